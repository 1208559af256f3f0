//! Losses in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult, DfdxTensor};

/// See [`super::cross_entropy`].
pub(super) fn cross_entropy<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    labels: &[usize],
    total: usize,
) -> DfdxResult<DfdxTensor<(), D>, D> {
    let shares = one_hot(labels, logits.shape().1);
    soft_cross_entropy(logits, &shares, total as f32)
}

/// See [`super::soft_cross_entropy`].
pub(super) fn soft_cross_entropy<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    shares: &[f32],
    total: f32,
) -> DfdxResult<DfdxTensor<(), D>, D> {
    losses_of_rows(logits, shares)?
        .try_sum()?
        .try_mul(1.0 / total)
}

/// `Σ shares ⊙ −log softmax(logits)` of each row, `(rows)`.
fn losses_of_rows<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    shares: &[f32],
) -> DfdxResult<DfdxTensor<(usize,), D>, D> {
    let (rows, classes) = *logits.shape();
    let device = logits.device().clone();
    let (values, trace) = logits.clone().split_tape();
    let highest = values.clone().try_max::<(usize,), Axis<1>>()?;
    let shifted = values
        .put_tape(trace)
        .try_sub(highest.try_broadcast_like::<_, Axis<1>>(&(rows, classes))?)?;
    let log_sum = shifted
        .clone()
        .try_exp()?
        .try_sum::<(usize,), Axis<1>>()?
        .try_ln()?;
    let of_rows = shares.chunks(classes.max(1));
    let of_rows: Vec<f32> = of_rows.map(|row| row.iter().sum()).collect();
    let of_rows = device.try_tensor_from_vec(of_rows, (rows,))?;
    let shares = device.try_tensor_from_vec(shares.to_vec(), (rows, classes))?;
    let chosen = shifted.try_mul(shares)?.try_sum::<(usize,), Axis<1>>()?;
    log_sum.try_mul(of_rows)?.try_sub(chosen)
}

/// A share of 1 for each row's label, `(rows, classes)`.
fn one_hot(labels: &[usize], classes: usize) -> Vec<f32> {
    let mut shares = vec![0.0; labels.len() * classes];
    for (row, &label) in labels.iter().enumerate() {
        shares[row * classes + label] = 1.0;
    }
    shares
}

/// `−log softmax(logits)[label]` of each row, `(rows, 1)`.
pub(super) fn row_losses<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    labels: &[usize],
) -> DfdxResult<DfdxMatrix<D>, D> {
    let (rows, classes) = *logits.shape();
    losses_of_rows(logits, &one_hot(labels, classes))?.try_reshape_like(&(rows, 1))
}

/// See [`super::log_odds`].
pub(super) fn log_odds<D: DfdxDevice>(x: &DfdxMatrix<D>) -> DfdxResult<DfdxMatrix<D>, D> {
    // Nearer to 1, 1 − p is 0 in f32.
    let x = x.clone().try_clamp(f32::MIN, -1e-6)?;
    let others = x.clone().try_exp()?.try_negate()?.try_add(1.0)?.try_ln()?;
    x.try_sub(others)
}

/// See [`super::squared_error`].
pub(super) fn squared_error<D: DfdxDevice>(
    predicted: &DfdxMatrix<D>,
    targets: &[f32],
    total: usize,
) -> DfdxResult<DfdxTensor<(), D>, D> {
    let shape = *predicted.shape();
    let targets = predicted
        .device()
        .try_tensor_from_vec(targets.to_vec(), shape)?;
    let difference = predicted.clone().try_sub(targets)?;
    difference
        .try_square()?
        .try_sum()?
        .try_mul(1.0 / total as f32)
}
