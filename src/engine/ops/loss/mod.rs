//! Losses.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Scalar, Vector, Weight};
use super::{activate, linear, scale, Activation};

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

/// `Σ shares ⊙ −log softmax(logits) / total` over the rows of `logits (rows, classes)`, with the share of each class in
/// `shares (rows, classes)`, row by row: weighted classes, smoothed labels, or a label that a row has in part.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn soft_cross_entropy(logits: &Matrix, shares: &[f32], total: f32) -> Outcome<Scalar> {
    assert_eq!(
        logits.count(),
        shares.len(),
        "cross entropy: logits and shares disagree"
    );
    run_definition!(logits.device(), |logits| definition::soft_cross_entropy(
        &logits, shares, total
    ))
}

/// The last layer of a language model: `logits = x weightᵀ + bias`, with `x (rows, in)`, `weight (classes, in)` and
/// `bias (classes)`.
pub struct Output {
    /// `weight`
    pub weight: Weight,
    /// `bias`
    pub bias: Option<Vector>,
    /// Logits `l` become `cap · tanh(l / cap)` (Gemma 2, arXiv 2408.00118, section 2).
    pub cap: Option<f32>,
}

impl Output {
    /// The logits, `(rows, classes)`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn logits(&self, x: &Matrix) -> Outcome<Matrix> {
        let logits = linear(x, &self.weight, self.bias.as_ref())?;
        cap(logits, self.cap)
    }

    fn is_frozen(&self) -> bool {
        let bias = self.bias.as_ref();
        !self.weight.is_traced() && !bias.is_some_and(|bias| bias.trace().is_on())
    }
}

/// `cap · tanh(x / cap)`, if there is a cap.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn cap(x: Matrix, cap: Option<f32>) -> Outcome<Matrix> {
    match cap {
        None => Ok(x),
        Some(cap) => scale(&activate(scale(&x, 1.0 / cap)?, Activation::Tanh)?, cap),
    }
}

/// [`cross_entropy`] of the logits of an output layer. The CPU never holds the logits of more than some rows, nor their gradients, unless the weight or the bias is trained
/// (the idea is that of Hsu et al., Liger Kernel, arXiv 2410.10989, section 3.2).
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn linear_cross_entropy(
    x: &Matrix,
    output: &Output,
    labels: &[usize],
    total: usize,
) -> Outcome<Scalar> {
    assert_eq!(
        x.shape().0,
        labels.len(),
        "cross entropy: rows and labels disagree"
    );
    match x.device() {
        Device::Cpu if output.is_frozen() => {
            let count = labels.len() * output.weight.shape().0;
            let kernel = || cpu::linear_cross_entropy(x, output, labels, total);
            Ok(profile::forward(Op::Loss, count, kernel))
        }
        _ => cross_entropy(&output.logits(x)?, labels, total),
    }
}

/// `−log softmax(logits)[label]` of each row, `(rows, 1)`, with the operands of [`linear_cross_entropy`].
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn token_losses(x: &Matrix, output: &Output, labels: &[usize]) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu if output.is_frozen() => {
            let count = labels.len() * output.weight.shape().0;
            let kernel = || cpu::token_losses(x, output, labels);
            Ok(profile::forward(Op::Loss, count, kernel))
        }
        device => {
            let logits = output.logits(x)?;
            run_definition!(device, |logits| definition::row_losses(&logits, labels))
        }
    }
}

/// `log (p / (1 − p))` of probabilities whose logarithms are the elements of `x`. Those above −1e-6 count as −1e-6, and
/// have no gradient.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn log_odds(x: &Matrix) -> Outcome<Matrix> {
    run_definition!(x.device(), |x| definition::log_odds(&x))
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
