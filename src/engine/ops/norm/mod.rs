//! Layer norm, RMS norm, and the norms of rows.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Vector};

pub(crate) use cpu::Normalized;

/// Normalizes each row to mean 0 and variance 1, then `weight ⊙ x + bias`
/// (Ba et al., arXiv 1607.06450).
///
/// # Errors
/// What the device reports.
pub fn layer_norm(x: &Matrix, weight: &Vector, bias: &Vector, epsilon: f32) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::norm(x, weight, Some(bias), epsilon);
            Ok(profile::forward(Op::Norm, x.count(), kernel))
        }
        device => run_definition!(device, |x, weight, bias| definition::layer_norm(
            &x, &weight, &bias, epsilon
        )),
    }
}

/// Divides each row by the root of its mean square, then `weight ⊙ x`
/// (Zhang and Sennrich, arXiv 1910.07467).
///
/// # Errors
/// What the device reports.
pub fn rms_norm(x: &Matrix, weight: &Vector, epsilon: f32) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::norm(x, weight, None, epsilon);
            Ok(profile::forward(Op::Norm, x.count(), kernel))
        }
        device => run_definition!(device, |x, weight| definition::rms_norm(
            &x, &weight, epsilon
        )),
    }
}

/// The Euclidean norm of every row, without a gradient: `(rows, columns)` → `(rows)`.
///
/// # Errors
/// What the device reports.
pub fn row_norms(x: &Matrix) -> Outcome<Vector> {
    let x = &x.detached();
    run_definition!(x.device(), |x| definition::row_norms(x))
}
