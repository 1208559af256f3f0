//! Element-wise non-linearities. The forward pass computes the derivative as well, because its parts are at hand; the
//! backward pass is then one multiplication.

use std::mem::MaybeUninit;

use multiversion::multiversion;
use rayon::prelude::*;

use super::Activation;
use crate::cpu::elementwise::multiply_by;
use crate::cpu::helpers::{share_elements, share_items, PART};
use crate::cpu::math::{gelu, gelu_tanh, sigmoid, swish, tanh};
use crate::gradient::InPlace;
use crate::{profile, Matrix, Trace};

/// See [`super::activate`].
pub(super) fn activate(x: Matrix, activation: Activation) -> Matrix {
    let mut result = InPlace::new(x);
    let is_traced = result.is_traced();
    let values = result.values();
    let count = if is_traced { values.len() } else { 0 };
    let mut derivatives = Vec::with_capacity(count);
    let parts = values.par_chunks_mut(PART);
    if is_traced {
        let room = derivatives.spare_capacity_mut()[..count].par_chunks_mut(PART);
        let work = |(): &mut _, (values, derivatives): (&mut [f32], &mut [_])| {
            apply(activation, values, Some(derivatives));
        };
        share_items(parts.zip(room), || (), work);
    } else {
        share_items(parts, || (), |(), values| apply(activation, values, None));
    }
    // SAFETY: as many elements were just written.
    unsafe { derivatives.set_len(count) };
    profile::kept(derivatives.len());
    result.finish(&Trace::off(), move |gradient| {
        share_elements(gradient, &derivatives, multiply_by);
    })
}

/// `values ← f(values)`. If `derivatives` is given, it has as many elements, and all of them are written.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn apply(activation: Activation, values: &mut [f32], derivatives: Option<&mut [MaybeUninit<f32>]>) {
    match activation {
        Activation::Gelu => map(values, derivatives, gelu),
        Activation::GeluTanh => map(values, derivatives, gelu_tanh),
        Activation::Relu => map(values, derivatives, |x| {
            // Written so that a NaN stays one.
            if x <= 0.0 {
                (0.0, 0.0)
            } else {
                (x, 1.0)
            }
        }),
        Activation::Swish => map(values, derivatives, swish),
        Activation::Tanh => map(values, derivatives, |x| {
            let t = tanh(x);
            (t, 1.0 - t * t)
        }),
        Activation::Sigmoid => map(values, derivatives, sigmoid),
    }
}

#[inline(always)]
fn map(
    values: &mut [f32],
    derivatives: Option<&mut [MaybeUninit<f32>]>,
    f: impl Fn(f32) -> (f32, f32),
) {
    let Some(derivatives) = derivatives else {
        for value in values {
            *value = f(*value).0;
        }
        return;
    };
    assert_eq!(
        values.len(),
        derivatives.len(),
        "a derivative for each value"
    );
    for (value, room) in values.iter_mut().zip(derivatives) {
        let (y, derivative) = f(*value);
        *value = y;
        room.write(derivative);
    }
}
