//! Element-wise non-linearities. The derivative is taken in the forward pass, where its parts are
//! at hand, so that the backward pass is one multiplication.

use dfdx::prelude::*;
use multiversion::multiversion;

use super::bridge::{data, is_traced, output, slot, trace};
use super::math::{gelu, gelu_tanh, sigmoid, swish, tanh};
use super::Outcome;
use crate::engine::{profile, Activation, Matrix};

/// See [`crate::engine::Backend::activate`].
pub(super) fn activate(x: &Matrix<Cpu>, activation: Activation) -> Outcome<Matrix<Cpu>> {
    let input = data(x);
    let mut values = vec![0.0; input.len()];
    let mut slopes = vec![0.0; if is_traced(x) { input.len() } else { 0 }];
    apply(activation, input, &mut values, &mut slopes);
    profile::kept(slopes.len());
    let x_slot = slot(x);
    output(
        values,
        *x.shape(),
        trace(x),
        x.device(),
        move |flow, upstream| {
            if let Some(slot) = &x_slot {
                add_product(flow.get(slot)?, upstream, &slopes);
            }
            Ok(())
        },
    )
}

/// `sum += a ⊙ b`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn add_product(sum: &mut [f32], a: &[f32], b: &[f32]) {
    for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
        *sum += a * b;
    }
}

/// Fills `values`, and `slopes` where it is not empty.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn apply(activation: Activation, input: &[f32], values: &mut [f32], slopes: &mut [f32]) {
    match activation {
        Activation::Gelu => map(input, values, slopes, gelu),
        Activation::GeluTanh => map(input, values, slopes, gelu_tanh),
        Activation::Relu => map(input, values, slopes, |x| {
            // Written so that a NaN stays one.
            if x <= 0.0 {
                (0.0, 0.0)
            } else {
                (x, 1.0)
            }
        }),
        Activation::Swish => map(input, values, slopes, swish),
        Activation::Tanh => map(input, values, slopes, |x| {
            let t = tanh(x);
            (t, 1.0 - t * t)
        }),
        Activation::Sigmoid => map(input, values, slopes, sigmoid),
    }
}

#[inline(always)]
fn map(input: &[f32], values: &mut [f32], slopes: &mut [f32], f: impl Fn(f32) -> (f32, f32)) {
    if slopes.is_empty() {
        for (value, x) in values.iter_mut().zip(input) {
            *value = f(*x).0;
        }
    } else {
        for ((value, slope), x) in values.iter_mut().zip(slopes).zip(input) {
            (*value, *slope) = f(*x);
        }
    }
}
