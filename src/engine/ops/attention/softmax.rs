//! The softmax of a row of scores and the cap before it, with their backward passes.

use multiversion::multiversion;

use crate::cpu::lanes::{join_lanes, sum_lanes, LANES};
use crate::cpu::math::{exp, tanh};

/// `row ← cap · tanh(scale · row / cap)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn cap_scores(row: &mut [f32], scale: f32, cap: f32) {
    let inner = scale / cap;
    for value in row.iter_mut() {
        *value = cap * tanh(inner * *value);
    }
}

/// `gradient ← gradient ⊙ scale · (1 − tanh²(scale · products / cap))`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn cap_backward(gradient: &mut [f32], products: &[f32], scale: f32, cap: f32) {
    let inner = scale / cap;
    for (gradient, product) in gradient.iter_mut().zip(products) {
        let tanh = tanh(inner * product);
        *gradient *= scale * (1.0 - tanh * tanh);
    }
}

/// `row ← softmax(scale · row)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn softmax(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    let rest = chunks.remainder().iter();
    let highest = rest.fold(join_lanes(lanes, larger), |a, b| larger(a, *b));
    for value in row.iter_mut() {
        *value = exp((*value - highest) * scale);
    }
    let inverse = 1.0 / sum_lanes(row, row, |x, _| x);
    for value in row.iter_mut() {
        *value *= inverse;
    }
}

/// `dscores ← scale · weights ⊙ (dscores − Σ dscores ⊙ weights)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn softmax_backward(dscores: &mut [f32], weights: &[f32], scale: f32) {
    let along = sum_lanes(dscores, weights, |s, w| s * w);
    for (dscore, weight) in dscores.iter_mut().zip(weights) {
        *dscore = scale * weight * (*dscore - along);
    }
}
