//! Norms on the CPU: one pass over the rows forward, one backward.

use std::mem::MaybeUninit;
use std::rc::Rc;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::cpu::elementwise::{add_product, add_to};
use crate::cpu::helpers::{rows_of_a_part, share_items};
use crate::cpu::lanes::sum_lanes;
use crate::cpu::products::{multiply_add_once, View};
use crate::gradient::{record_kernel, set_normalized};
use crate::{profile, Matrix, Tensor, Vector};

/// See [`super::layer_norm`], which has a bias, and [`super::rms_norm`], which has none.
pub(super) fn norm(x: &Matrix, weight: &Vector, bias: Option<&Vector>, epsilon: f32) -> Matrix {
    let (rows, hidden) = x.shape();
    let is_centered = bias.is_some();
    let mut trace = x.trace().or(&weight.trace());
    if let Some(bias) = bias {
        trace = trace.or(&bias.trace());
    }
    let bias_slot = bias.and_then(Vector::slot);
    let bias = bias.map_or(vec![0.0; hidden], Vector::read);
    assert!(
        weight.count() == hidden && bias.len() == hidden,
        "norm: x, weight and bias disagree"
    );
    let affine = (weight.data(), bias.as_slice());
    let how = (epsilon, is_centered);
    let (values, normal, inverse) = normalize_all(x.data(), affine, how, trace.is_on());
    profile::kept(normal.len());
    let (x_slot, weight_slot) = (x.slot(), weight.slot());
    let weight = weight.value.clone();
    let normalized = Rc::new(Normalized {
        normal,
        weight,
        bias,
    });
    let kept = normalized.clone();
    let result = record_kernel(values, (rows, hidden), trace, move |mut upstream| {
        let Normalized { normal, weight, .. } = &*normalized;
        let rows = || {
            let rows = upstream.chunks_exact(hidden);
            rows.zip(normal.chunks_exact(hidden))
        };
        if let Some(slot) = &weight_slot {
            slot.add_in_place(|sum| rows().for_each(|(dy, n)| add_product(sum, dy, n)));
        }
        if let Some(slot) = &bias_slot {
            slot.add_in_place(|sum| rows().for_each(|(dy, _)| add_to(sum, dy)));
        }
        if let Some(slot) = &x_slot {
            backward_all(&mut upstream, normal, weight.data(), &inverse, is_centered);
            slot.add(upstream);
        }
    });
    set_normalized(&result, kept);
    result
}

/// [`normalize`] for all rows. Returns the values, the rows before weight and bias (empty unless `keeps`), and the
/// factor that each row was multiplied by. The backward pass needs the last two.
fn normalize_all(
    x: &[f32],
    affine: (&[f32], &[f32]),
    how: (f32, bool),
    keeps: bool,
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (count, hidden) = (x.len(), affine.0.len());
    let mut values = Vec::with_capacity(count);
    let kept = if keeps { count } else { 0 };
    let mut normal = Vec::with_capacity(kept);
    let mut inverse = vec![0.0; count / hidden.max(1)];
    let part = rows_of_a_part(hidden);
    let length = (part * hidden).max(1);
    let mut normals = normal.spare_capacity_mut()[..kept].chunks_mut(length);
    let parts: Vec<_> = x
        .chunks(length)
        .zip(values.spare_capacity_mut()[..count].chunks_mut(length))
        .zip(inverse.chunks_mut(part))
        .map(|((x, values), inverse)| (x, values, inverse, normals.next()))
        .collect();
    share_items(
        parts.into_par_iter(),
        || (),
        |(), (x, values, inverse, normal)| normalize(x, affine, how, values, inverse, normal),
    );
    // SAFETY: all parts were just written.
    unsafe {
        values.set_len(count);
        normal.set_len(kept);
    }
    (values, normal, inverse)
}

/// [`backward`] for all rows.
fn backward_all(
    dy: &mut [f32],
    normal: &[f32],
    weight: &[f32],
    inverse: &[f32],
    is_centered: bool,
) {
    let part = rows_of_a_part(weight.len());
    let length = (part * weight.len()).max(1);
    let parts = dy
        .par_chunks_mut(length)
        .zip(normal.par_chunks(length))
        .zip(inverse.par_chunks(part));
    share_items(
        parts,
        || (),
        |(), ((dy, normal), inverse)| backward(dy, normal, weight, inverse, is_centered),
    );
}

/// Rows `normal ⊙ weight + bias`, in the form in which the backward pass of a norm keeps them.
pub(crate) struct Normalized {
    /// `(rows, hidden)`
    normal: Vec<f32>,
    weight: Tensor<(usize,)>,
    bias: Vec<f32>,
}

impl Normalized {
    /// `sum ← sum + aᵀ x` for these rows x: `sum (rank, hidden)`, `a (rows, rank)`. `aᵀ x` is computed as `(aᵀ normal)
    /// ⊙ weight + (aᵀ 1) biasᵀ`, so the rows need not be computed again.
    pub(crate) fn add_product(&self, sum: &mut [f32], a: &[f32], rank: usize) {
        let (weight, bias) = (self.weight.data(), &self.bias);
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

/// `values ← normal ⊙ weight + bias` with `normal = inverse · (x − mean)` and `inverse = 1 / √(variance + ε)`, row by
/// row. The mean counts as 0 unless `is_centered`. Writes all of `values`, and all of `normal` if it is given.
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

/// `dy ← inverse · (s − mean(s) − normal · mean(s ⊙ normal))` with `s = dy ⊙ weight`, row by row. `mean(s)` counts as 0
/// unless `is_centered`.
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
