//! Layer norm: one pass over the rows forward, one backward.

use dfdx::prelude::*;
use multiversion::multiversion;

use super::bridge::{data, output, slot, trace};
use super::Outcome;
use crate::engine::{Matrix, Vector};

/// See [`crate::engine::Backend::layer_norm`].
pub(super) fn layer_norm(
    x: &Matrix<Cpu>,
    gain: &Vector<Cpu>,
    bias: &Vector<Cpu>,
    epsilon: f32,
) -> Outcome<Matrix<Cpu>> {
    let (rows, hidden) = *x.shape();
    let joined = trace(x).merge(trace(gain)).merge(trace(bias));
    let mut values = vec![0.0; rows * hidden];
    let mut normal = vec![0.0; if joined.is_on() { rows * hidden } else { 0 }];
    let mut inverse = vec![0.0; rows];
    let (g, b) = (data(gain), data(bias));
    let mut scratch = vec![0.0; hidden];
    for (row, x) in data(x).chunks_exact(hidden).enumerate() {
        let range = row * hidden..(row + 1) * hidden;
        inverse[row] = normalize(x, &mut scratch, epsilon);
        affine(&scratch, g, b, &mut values[range.clone()]);
        if let Some(kept) = normal.get_mut(range) {
            kept.copy_from_slice(&scratch);
        }
    }
    let (x_slot, gain_slot, bias_slot) = (slot(x), slot(gain), slot(bias));
    let gain = gain.clone().split_tape().0;
    output(
        values,
        (rows, hidden),
        joined,
        x.device(),
        move |flow, upstream| {
            let rows = || {
                upstream
                    .chunks_exact(hidden)
                    .zip(normal.chunks_exact(hidden))
            };
            if let Some(slot) = &gain_slot {
                let sum = flow.get(slot)?;
                for (dy, n) in rows() {
                    for ((sum, dy), n) in sum.iter_mut().zip(dy).zip(n) {
                        *sum += dy * n;
                    }
                }
            }
            if let Some(slot) = &bias_slot {
                let sum = flow.get(slot)?;
                for (dy, _) in rows() {
                    for (sum, dy) in sum.iter_mut().zip(dy) {
                        *sum += dy;
                    }
                }
            }
            if let Some(slot) = &x_slot {
                let gain = data(&gain);
                let dx = flow.get(slot)?;
                for (((dy, n), dx), inverse) in
                    rows().zip(dx.chunks_exact_mut(hidden)).zip(&inverse)
                {
                    backward_row(dy, n, gain, *inverse, dx);
                }
            }
            Ok(())
        },
    )
}

/// Sums in 16 independent lanes, so that the order is the same on every instruction set.
#[inline(always)]
pub(super) fn sum_lanes(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [0.0f32; LANES];
    let whole = length / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += term(start + lane);
        }
    }
    let mut total = 0.0;
    for lane in lanes {
        total += lane;
    }
    for i in whole..length {
        total += term(i);
    }
    total
}

/// `normal ← (x − mean) / √(variance + ε)`; returns the inverse of the root.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn normalize(x: &[f32], normal: &mut [f32], epsilon: f32) -> f32 {
    let count = x.len() as f32;
    let mean = sum_lanes(x.len(), |i| x[i]) / count;
    for (n, x) in normal.iter_mut().zip(x) {
        *n = x - mean;
    }
    let variance = sum_lanes(normal.len(), |i| normal[i] * normal[i]) / count;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    for n in normal.iter_mut() {
        *n *= inverse;
    }
    inverse
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn affine(normal: &[f32], gain: &[f32], bias: &[f32], out: &mut [f32]) {
    for (((out, n), g), b) in out.iter_mut().zip(normal).zip(gain).zip(bias) {
        *out = n * g + b;
    }
}

/// `dx += inverse · (s − mean(s) − normal · mean(s ⊙ normal))` with `s = dy ⊙ gain`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn backward_row(dy: &[f32], normal: &[f32], gain: &[f32], inverse: f32, dx: &mut [f32]) {
    let (dy, normal, gain) = (&dy[..dx.len()], &normal[..dx.len()], &gain[..dx.len()]);
    let count = dx.len() as f32;
    let mean = sum_lanes(dx.len(), |i| dy[i] * gain[i]) / count;
    let along = sum_lanes(dx.len(), |i| dy[i] * gain[i] * normal[i]) / count;
    for (i, dx) in dx.iter_mut().enumerate() {
        *dx += inverse * (dy[i] * gain[i] - mean - normal[i] * along);
    }
}
