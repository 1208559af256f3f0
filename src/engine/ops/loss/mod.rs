//! Losses.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Scalar};

/// `Σ −log softmax(logits)[label] / total` over the rows of `logits (rows, classes)`. `total` is the number of rows of
/// the whole batch; `logits` may be a part of it.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn cross_entropy(logits: &Matrix, labels: &[usize], total: usize) -> Outcome<Scalar> {
    let rows = logits.shape().0;
    assert_eq!(
        rows,
        labels.len(),
        "cross entropy: logits and labels disagree"
    );
    match logits.device() {
        Device::Cpu => {
            let kernel = || cpu::cross_entropy(logits, labels, total);
            Ok(profile::forward(Op::Loss, logits.count(), kernel))
        }
        device => run_definition!(device, |logits| definition::cross_entropy(
            &logits, labels, total
        )),
    }
}

/// `Σ (predicted − target)² / total` over the rows of `predicted (rows, 1)`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn squared_error(predicted: &Matrix, targets: &[f32], total: usize) -> Outcome<Scalar> {
    let shape = (targets.len(), 1);
    assert_eq!(
        predicted.shape(),
        shape,
        "squared error: one column expected"
    );
    run_definition!(predicted.device(), |predicted| definition::squared_error(
        &predicted, targets, total
    ))
}
