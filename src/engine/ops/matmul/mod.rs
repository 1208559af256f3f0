//! Products of two variables: matrix products and Kronecker products.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome};

/// `x y`: `x (n, k)`, `y (k, m)` → `(n, m)`. Each operand that is traced gets a gradient.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn matmul(x: &Matrix, y: &Matrix) -> Outcome<Matrix> {
    assert_eq!(x.shape().1, y.shape().0, "matmul: shapes disagree");
    match x.device() {
        Device::Cpu => {
            let count = x.count() + y.count();
            Ok(profile::forward(Op::Matmul, count, || cpu::matmul(x, y)))
        }
        device => run_definition!(device, |x, y| definition::matmul(x, y)),
    }
}

/// The Kronecker product `x ⊗ y`: `x (l, m)`, `y (k, n)` → `(l k, m n)`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn kronecker(x: &Matrix, y: &Matrix) -> Outcome<Matrix> {
    run_definition!(x.device(), |x, y| definition::kronecker(&x, &y))
}
