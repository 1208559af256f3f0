//! Layer norm, RMS norm, and the norms of rows.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Vector};

pub(crate) use cpu::Normalized;

/// Normalizes each row of `x (rows, hidden)` to mean 0 and variance 1, then multiplies it by `weight (hidden)` and adds
/// `bias (hidden)` (Ba et al., arXiv 1607.06450). `epsilon` is added to the variance.
///
/// # Errors
/// The device fails, for example for want of memory.
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

/// Divides each row of `x (rows, hidden)` by the root of its mean square, then multiplies it by `weight (hidden)`
/// (Zhang and Sennrich, arXiv 1910.07467). `epsilon` is added to the mean square.
///
/// # Errors
/// The device fails, for example for want of memory.
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
/// The device fails, for example for want of memory.
pub fn row_norms(x: &Matrix) -> Outcome<Vector> {
    let x = &x.detached();
    run_definition!(x.device(), |x| definition::row_norms(x))
}
