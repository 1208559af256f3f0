//! Cross-entropy on the CPU, with a fused softmax.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Output;
use crate::cpu::helpers::share_items;
use crate::cpu::lanes::{join_lanes, sum_lanes, LANES};
use crate::cpu::math::{exp, tanh};
use crate::cpu::products::View;
use crate::gradient::record_kernel;
use crate::{profile, Matrix, Scalar, Vector};

/// Rows whose logits are in memory together: enough for a product to be worth reading the weight once more.
const ROWS: usize = 64;

/// See [`super::linear_cross_entropy`]. The gradient of the logits is known as soon as they are, so that of `x` is
/// computed at once, and nothing else is kept.
pub(super) fn linear_cross_entropy(
    x: &Matrix,
    output: &Output,
    labels: &[usize],
    total: usize,
) -> Scalar {
    let slot = x.slot();
    let scale = 1.0 / total as f64;
    let (losses, mut gradient) = rows(x, output, labels, scale as f32);
    let loss: f64 = losses.into_iter().sum();
    let values = vec![(loss * scale) as f32];
    record_kernel(values, (), x.trace(), move |upstream| {
        let Some(slot) = &slot else { return };
        gradient.iter_mut().for_each(|value| *value *= upstream[0]);
        slot.add(gradient);
    })
}

/// See [`super::token_losses`].
pub(super) fn token_losses(x: &Matrix, output: &Output, labels: &[usize]) -> Matrix {
    let (slot, input) = (x.slot(), x.shape().1);
    let (losses, mut gradient) = rows(x, output, labels, 1.0);
    let losses: Vec<f32> = losses.into_iter().map(|loss| loss as f32).collect();
    record_kernel(losses, (labels.len(), 1), x.trace(), move |upstream| {
        let Some(slot) = &slot else { return };
        let rows = gradient.chunks_exact_mut(input).zip(upstream);
        for (row, factor) in rows {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        slot.add(gradient);
    })
}

/// The loss of each row, and if `x` has a gradient that of `scale` times each row's loss, `(rows, in)`.
fn rows(x: &Matrix, output: &Output, labels: &[usize], scale: f32) -> (Vec<f64>, Vec<f32>) {
    let Output { weight, bias, cap } = output;
    let ((_, input), (classes, _)) = (x.shape(), weight.shape());
    let slot = x.slot();
    let mut gradient = Vec::with_capacity(slot.as_ref().map_or(0, |_| x.count()));
    let mut all = Vec::with_capacity(labels.len());
    for (x, labels) in x.data().chunks(ROWS * input).zip(labels.chunks(ROWS)) {
        let view = View::strided(x, labels.len(), input, input);
        let operand = weight.prepared.forward(weight.precision, &weight.elements);
        let bias = bias.as_ref().map(Vector::data);
        let mut logits = operand.product(view, bias); // (some rows, classes)
        let mut losses = vec![0.0; labels.len()];
        let rows = logits
            .par_chunks_exact_mut(classes)
            .zip(labels)
            .zip(&mut losses);
        share_items(
            rows,
            Vec::new,
            |capped: &mut Vec<f32>, ((row, label), loss)| match *cap {
                None => *loss = turn_into_gradient(row, *label, scale),
                Some(cap) => {
                    cap_logits(row, cap);
                    capped.clear();
                    capped.extend_from_slice(row);
                    *loss = turn_into_gradient(row, *label, scale);
                    cap_backward(row, capped, cap);
                }
            },
        );
        all.append(&mut losses);
        if slot.is_some() {
            let operand = weight.prepared.backward(weight.precision, &weight.elements);
            let view = View::strided(&logits, labels.len(), classes, classes);
            gradient.append(&mut operand.product(view, None)); // (some rows, in)
        }
    }
    profile::kept(gradient.len());
    (all, gradient)
}

/// `logits ← cap · tanh(logits / cap)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn cap_logits(logits: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for value in logits.iter_mut() {
        *value = cap * tanh(inverse * *value);
    }
}

/// `gradient ← gradient ⊙ (1 − (capped / cap)²)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn cap_backward(gradient: &mut [f32], capped: &[f32], cap: f32) {
    let inverse = 1.0 / cap;
    for (gradient, capped) in gradient.iter_mut().zip(capped) {
        let tanh = inverse * capped;
        *gradient *= 1.0 - tanh * tanh;
    }
}

/// `logits ← scale · (softmax(logits) − 1 at the label)`. Returns `−log softmax(logits)[label]`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn turn_into_gradient(logits: &mut [f32], label: usize, scale: f32) -> f64 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut chunks = logits.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    let rest = chunks.remainder().iter();
    let highest = rest.fold(join_lanes(lanes, larger), |a, b| larger(a, *b));
    let target = logits[label] - highest;
    for value in logits.iter_mut() {
        *value = exp(*value - highest);
    }
    // Parts of the sum are added in f64: there may be a hundred thousand terms.
    let sum: f64 = logits
        .chunks(1024)
        .map(|part| f64::from(sum_lanes(part, part, |x, _| x)))
        .sum();
    let factor = (f64::from(scale) / sum) as f32;
    for value in logits.iter_mut() {
        *value *= factor;
    }
    logits[label] -= scale;
    sum.ln() - f64::from(target)
}

/// See [`super::cross_entropy`].
pub(super) fn cross_entropy(logits: &Matrix, labels: &[usize], total: usize) -> Scalar {
    let (_, classes) = logits.shape();
    let mut loss = 0.0f64;
    let mut softmax = logits.read();
    for (row, &label) in softmax.chunks_exact_mut(classes).zip(labels) {
        let highest = row
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sum = 0.0f64;
        let target = f64::from(row[label] - highest);
        for value in row.iter_mut() {
            *value = (*value - highest).exp();
            sum += f64::from(*value);
        }
        loss += sum.ln() - target;
        row.iter_mut()
            .for_each(|value| *value = (f64::from(*value) / sum) as f32);
    }
    let labels = labels.to_vec();
    let logits_slot = logits.slot();
    profile::kept(logits_slot.as_ref().map_or(0, |_| softmax.len()));
    let scale = 1.0 / total as f64;
    let values = vec![(loss * scale) as f32];
    record_kernel(values, (), logits.trace(), move |upstream| {
        let Some(slot) = &logits_slot else { return };
        let factor = upstream[0] * scale as f32;
        let mut gradient = softmax;
        for (row, &label) in gradient.chunks_exact_mut(classes).zip(&labels) {
            row.iter_mut().for_each(|value| *value *= factor);
            row[label] -= factor;
        }
        slot.add(gradient);
    })
}
