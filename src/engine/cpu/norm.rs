//! Layer norm: one pass over the rows forward, one backward.

use dfdx::prelude::*;
use multiversion::multiversion;

use super::activation::add_product;
use super::bridge::{data, output};
use super::gradient::{slot, trace};
use super::rows::add_to;
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
        move |flow, mut upstream| {
            let rows = || {
                upstream
                    .chunks_exact(hidden)
                    .zip(normal.chunks_exact(hidden))
            };
            if let Some(slot) = &gain_slot {
                flow.add_in_place(slot, |sum| {
                    rows().for_each(|(dy, n)| add_product(sum, dy, n));
                })?;
            }
            if let Some(slot) = &bias_slot {
                flow.add_in_place(slot, |sum| rows().for_each(|(dy, _)| add_to(sum, dy)))?;
            }
            if let Some(slot) = &x_slot {
                let gain = data(&gain);
                let rows = upstream.chunks_exact_mut(hidden);
                for ((row, normal), inverse) in rows.zip(normal.chunks_exact(hidden)).zip(&inverse)
                {
                    backward_row(row, normal, gain, *inverse);
                }
                flow.add(slot, upstream)?;
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

/// `dy ← inverse · (s − mean(s) − normal · mean(s ⊙ normal))` with `s = dy ⊙ gain`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn backward_row(dy: &mut [f32], normal: &[f32], gain: &[f32], inverse: f32) {
    for (dy, gain) in dy.iter_mut().zip(gain) {
        *dy *= gain;
    }
    let count = dy.len() as f32;
    let mean = sum_lanes(dy, dy, |s, _| s) / count;
    let along = sum_lanes(dy, normal, |s, n| s * n) / count;
    for (s, n) in dy.iter_mut().zip(normal) {
        *s = inverse * (*s - mean - n * along);
    }
}
