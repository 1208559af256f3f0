//! Layer norm and RMS norm: one pass over the rows forward, one backward.

use std::mem::MaybeUninit;
use std::rc::Rc;

use dfdx::prelude::*;
use multiversion::multiversion;
use rayon::prelude::*;

use super::activation::add_product;
use super::bridge::{data, output};
use super::gradient::{set_form, slot, trace};
use super::helpers::{rows_of_a_part, share_items};
use super::operand::multiply_add_once;
use super::product::View;
use super::rows::add_to;
use super::Outcome;
use crate::engine::{profile, Matrix, Vector};

/// See [`crate::engine::Backend::layer_norm`].
pub(super) fn layer_norm(
    x: &Matrix<Cpu>,
    weight: &Vector<Cpu>,
    bias: &Vector<Cpu>,
    epsilon: f32,
) -> Outcome<Matrix<Cpu>> {
    normed(x, weight, Some(bias), epsilon)
}

/// See [`crate::engine::Backend::rms_norm`].
pub(super) fn rms_norm(
    x: &Matrix<Cpu>,
    weight: &Vector<Cpu>,
    epsilon: f32,
) -> Outcome<Matrix<Cpu>> {
    normed(x, weight, None, epsilon)
}

/// Layer norm with a bias, RMS norm without.
fn normed(
    x: &Matrix<Cpu>,
    weight: &Vector<Cpu>,
    bias: Option<&Vector<Cpu>>,
    epsilon: f32,
) -> Outcome<Matrix<Cpu>> {
    let (rows, hidden) = *x.shape();
    let is_centered = bias.is_some();
    let mut joined = trace(x).merge(trace(weight));
    if let Some(bias) = bias {
        joined = joined.merge(trace(bias));
    }
    let bias_slot = bias.and_then(slot);
    let bias = bias.map_or(vec![0.0; hidden], |bias| data(bias).to_vec());
    assert!(
        data(weight).len() == hidden && bias.len() == hidden,
        "norm: x, weight and bias disagree"
    );
    let count = rows * hidden;
    let mut values = Vec::with_capacity(count);
    // What the backward pass needs.
    let kept = if joined.is_on() { count } else { 0 };
    let mut normal = Vec::with_capacity(kept);
    let mut inverse = vec![0.0; rows];
    let part = rows_of_a_part(hidden);
    let mut normals = normal.spare_capacity_mut()[..kept].chunks_mut((part * hidden).max(1));
    let parts: Vec<_> = data(x)
        .chunks((part * hidden).max(1))
        .zip(values.spare_capacity_mut()[..count].chunks_mut((part * hidden).max(1)))
        .zip(inverse.chunks_mut(part))
        .map(|((x, values), inverse)| (x, values, inverse, normals.next()))
        .collect();
    let affine = (data(weight), bias.as_slice());
    share_items(
        parts.into_par_iter(),
        || (),
        |(), (x, values, inverse, normal)| {
            normalize(x, affine, (epsilon, is_centered), values, inverse, normal)
        },
    );
    // SAFETY: all parts were just written.
    unsafe {
        values.set_len(count);
        normal.set_len(kept);
    }
    profile::kept(kept);
    let (x_slot, weight_slot) = (slot(x), slot(weight));
    let weight = weight.clone().split_tape().0;
    let normalized = Rc::new(Normalized {
        normal,
        weight,
        bias,
    });
    let form = normalized.clone();
    let result = output(
        values,
        (rows, hidden),
        joined,
        x.device(),
        move |flow, mut upstream| {
            let Normalized { normal, weight, .. } = &*normalized;
            let rows = || {
                upstream
                    .chunks_exact(hidden)
                    .zip(normal.chunks_exact(hidden))
            };
            if let Some(slot) = &weight_slot {
                flow.add_in_place(slot, |sum| {
                    rows().for_each(|(dy, n)| add_product(sum, dy, n));
                })?;
            }
            if let Some(slot) = &bias_slot {
                flow.add_in_place(slot, |sum| rows().for_each(|(dy, _)| add_to(sum, dy)))?;
            }
            if let Some(slot) = &x_slot {
                let weight = data(weight);
                let part = rows_of_a_part(hidden);
                let parts = upstream
                    .par_chunks_mut(part * hidden)
                    .zip(normal.par_chunks(part * hidden))
                    .zip(inverse.par_chunks(part));
                share_items(
                    parts,
                    || (),
                    |(), ((dy, normal), inverse)| {
                        backward(dy, normal, weight, inverse, is_centered);
                    },
                );
                flow.add(slot, upstream)?;
            }
            Ok(())
        },
    )?;
    set_form(&result, form);
    Ok(result)
}

/// Rows that are `normal ⊙ weight + bias`, as the backward pass of a norm keeps them.
pub(in crate::engine) struct Normalized {
    /// `(rows, hidden)`
    normal: Vec<f32>,
    weight: Tensor<(usize,), f32, Cpu>,
    bias: Vec<f32>,
}

impl Normalized {
    /// `sum ← sum + aᵀ x` for these rows x: `sum (rank, hidden)`, `a (rows, rank)`. As `aᵀ x` is
    /// `(aᵀ normal) ⊙ weight + (aᵀ 1) biasᵀ`, they need not be made again.
    pub(super) fn add_product(&self, sum: &mut [f32], a: &[f32], rank: usize) {
        let (weight, bias) = (data(&self.weight), &self.bias);
        let hidden = weight.len();
        let mut products = vec![0.0; rank * hidden];
        multiply_add_once(&mut products, View::new(a, rank).t(), &self.normal, hidden);
        let mut totals = vec![0.0; rank];
        a.chunks_exact(rank)
            .for_each(|row| add_to(&mut totals, row));
        let rows = sum
            .chunks_exact_mut(hidden)
            .zip(products.chunks_exact(hidden));
        for ((sum, products), total) in rows.zip(totals) {
            let affine = products.iter().zip(weight).zip(bias);
            for (sum, ((product, weight), bias)) in sum.iter_mut().zip(affine) {
                *sum += product * weight + total * bias;
            }
        }
    }
}

/// Independent sums that are joined at the end, so that the order is the same on every instruction
/// set.
pub(super) const LANES: usize = 16;

/// `Σ term(x, y)` in lanes.
#[inline(always)]
pub(super) fn sum_lanes(x: &[f32], y: &[f32], term: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let rest = xs.remainder().iter().zip(ys.remainder());
    let rest = rest.fold(0.0, |sum, (x, y)| sum + term(*x, *y));
    for (x, y) in xs.zip(ys) {
        for ((sum, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *sum += term(*x, *y);
        }
    }
    rest + join_lanes(lanes, |a, b| a + b)
}

/// All lanes as one, half of them at a time: four operations wait for one another, where one lane after
/// the other would be sixteen.
#[inline(always)]
pub(super) fn join_lanes(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [LANES / 2, LANES / 4, LANES / 8, LANES / 16] {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
    }
    lanes[0]
}

/// `values ← normal ⊙ weight + bias` with `normal = inverse · (x − mean)` and `inverse = 1 / √(variance + ε)`, row
/// by row; of rows that are not centered the mean counts as 0. All of `values`, and of `normal` where it is asked for, is written.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn normalize(
    x: &[f32],
    (weight, bias): (&[f32], &[f32]),
    (epsilon, is_centered): (f32, bool),
    values: &mut [MaybeUninit<f32>],
    inverse: &mut [f32],
    mut normal: Option<&mut [MaybeUninit<f32>]>,
) {
    let hidden = weight.len();
    let count = hidden as f32;
    for (row, (x, place)) in x.chunks_exact(hidden).zip(inverse).enumerate() {
        let mean = match is_centered {
            true => sum_lanes(x, x, |x, _| x) / count,
            false => 0.0,
        };
        let variance = sum_lanes(x, x, |x, _| (x - mean) * (x - mean)) / count;
        let inverse = 1.0 / (variance + epsilon).sqrt();
        *place = inverse;
        let values = &mut values[row * hidden..][..hidden];
        let elements = x.iter().zip(weight).zip(bias).zip(values);
        let n = |x: f32| (x - mean) * inverse;
        match &mut normal {
            Some(normal) => {
                let normal = &mut normal[row * hidden..][..hidden];
                for ((((x, weight), bias), value), normal) in elements.zip(normal) {
                    value.write(*normal.write(n(*x)) * weight + bias);
                }
            }
            None => {
                for (((x, weight), bias), value) in elements {
                    value.write(n(*x) * weight + bias);
                }
            }
        }
    }
}

/// `dy ← inverse · (s − mean(s) − normal · mean(s ⊙ normal))` with `s = dy ⊙ weight`, row by row; `mean(s)` counts
/// as 0 where rows are not centered.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn backward(dy: &mut [f32], normal: &[f32], weight: &[f32], inverse: &[f32], is_centered: bool) {
    let hidden = weight.len();
    let rows = dy.chunks_exact_mut(hidden).zip(normal.chunks_exact(hidden));
    for ((dy, normal), inverse) in rows.zip(inverse) {
        for (dy, weight) in dy.iter_mut().zip(weight) {
            *dy *= weight;
        }
        let count = hidden as f32;
        let mean = match is_centered {
            true => sum_lanes(dy, dy, |s, _| s) / count,
            false => 0.0,
        };
        let along = sum_lanes(dy, normal, |s, n| s * n) / count;
        for (s, n) in dy.iter_mut().zip(normal) {
            *s = inverse * (*s - mean - n * along);
        }
    }
}
