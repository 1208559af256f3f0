//! Layer norm: one pass over the rows forward, one backward.

use dfdx::prelude::*;
use multiversion::multiversion;

use super::bridge::{data, output, slot, trace};
use super::Outcome;
use crate::engine::{profile, Matrix, Vector};

/// See [`crate::engine::Backend::layer_norm`].
pub(super) fn layer_norm(
    x: &Matrix<Cpu>,
    gain: &Vector<Cpu>,
    bias: &Vector<Cpu>,
    epsilon: f32,
) -> Outcome<Matrix<Cpu>> {
    let (rows, hidden) = *x.shape();
    let joined = trace(x).merge(trace(gain)).merge(trace(bias));
    let mut values = Vec::with_capacity(rows * hidden);
    // Of all rows where the backward pass needs them, of one at a time elsewhere.
    let kept = if joined.is_on() { rows } else { 1 };
    let mut normal = Vec::with_capacity(kept * hidden);
    let mut inverse = Vec::with_capacity(rows);
    let (g, b) = (data(gain), data(bias));
    for x in data(x).chunks_exact(hidden) {
        if !joined.is_on() {
            normal.clear();
        }
        inverse.push(normalize(x, &mut normal, epsilon));
        affine(&normal[normal.len() - hidden..], g, b, &mut values);
    }
    profile::kept(if joined.is_on() { normal.len() } else { 0 });
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
                let mut scaled = vec![0.0; hidden];
                let dx = flow.get(slot)?;
                for (((dy, n), dx), inverse) in
                    rows().zip(dx.chunks_exact_mut(hidden)).zip(&inverse)
                {
                    backward_row(dy, n, gain, *inverse, &mut scaled, dx);
                }
            }
            Ok(())
        },
    )
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
    lanes.iter().fold(rest, |total, lane| total + lane)
}

/// Appends `(x − mean) / √(variance + ε)` to `normal`; returns the inverse of the root.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn normalize(x: &[f32], normal: &mut Vec<f32>, epsilon: f32) -> f32 {
    let count = x.len() as f32;
    let mean = sum_lanes(x, x, |x, _| x) / count;
    let variance = sum_lanes(x, x, |x, _| (x - mean) * (x - mean)) / count;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    normal.extend(x.iter().map(|x| (x - mean) * inverse));
    inverse
}

/// Appends `normal ⊙ gain + bias` to `out`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn affine(normal: &[f32], gain: &[f32], bias: &[f32], out: &mut Vec<f32>) {
    let elements = normal.iter().zip(gain).zip(bias);
    out.extend(elements.map(|((n, g), b)| n * g + b));
}

/// `dx += inverse · (s − mean(s) − normal · mean(s ⊙ normal))` with `s = dy ⊙ gain`, for which `scaled`
/// is a buffer.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn backward_row(
    dy: &[f32],
    normal: &[f32],
    gain: &[f32],
    inverse: f32,
    scaled: &mut [f32],
    dx: &mut [f32],
) {
    for ((scaled, dy), gain) in scaled.iter_mut().zip(dy).zip(gain) {
        *scaled = dy * gain;
    }
    let count = dx.len() as f32;
    let mean = sum_lanes(scaled, scaled, |s, _| s) / count;
    let along = sum_lanes(scaled, normal, |s, n| s * n) / count;
    for ((dx, s), n) in dx.iter_mut().zip(scaled.iter()).zip(normal) {
        *dx += inverse * (s - mean - n * along);
    }
}
