//! Losses in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult, DfdxTensor};

/// See [`super::cross_entropy`].
pub(super) fn cross_entropy<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    labels: &[usize],
    total: usize,
) -> DfdxResult<DfdxTensor<(), D>, D> {
    let (rows, classes) = *logits.shape();
    let mut one_hot = vec![0.0; rows * classes];
    for (row, &label) in labels.iter().enumerate() {
        one_hot[row * classes + label] = 1.0;
    }
    soft_cross_entropy(logits, &one_hot, total as f32)
}

/// See [`super::soft_cross_entropy`].
pub(super) fn soft_cross_entropy<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    shares: &[f32],
    total: f32,
) -> DfdxResult<DfdxTensor<(), D>, D> {
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
    let of_rows: Vec<f32> = shares
        .chunks(classes.max(1))
        .map(|row| row.iter().sum())
        .collect();
    let of_rows = device.try_tensor_from_vec(of_rows, (rows,))?;
    let shares = device.try_tensor_from_vec(shares.to_vec(), (rows, classes))?;
    let chosen = shifted.try_mul(shares)?.try_sum::<(usize,), Axis<1>>()?;
    log_sum
        .try_mul(of_rows)?
        .try_sub(chosen)?
        .try_sum()?
        .try_mul(1.0 / total)
}

/// `−log softmax(logits)[label]` of each row, `(rows, 1)`.
pub(super) fn row_losses<D: DfdxDevice>(
    logits: &DfdxMatrix<D>,
    labels: &[usize],
) -> DfdxResult<DfdxMatrix<D>, D> {
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
    let mut one_hot = vec![0.0; rows * classes];
    for (row, &label) in labels.iter().enumerate() {
        one_hot[row * classes + label] = 1.0;
    }
    let one_hot = device.try_tensor_from_vec(one_hot, (rows, classes))?;
    let chosen = shifted.try_mul(one_hot)?.try_sum::<(usize,), Axis<1>>()?;
    log_sum.try_sub(chosen)?.try_reshape_like(&(rows, 1))
}

/// See [`super::log_odds`].
pub(super) fn log_odds<D: DfdxDevice>(x: &DfdxMatrix<D>) -> DfdxResult<DfdxMatrix<D>, D> {
    let others = x.clone().try_exp()?.try_negate()?.try_add(1.0)?.try_ln()?;
    x.clone().try_sub(others)
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
