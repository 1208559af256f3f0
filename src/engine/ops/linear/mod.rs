//! The linear layer.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Vector, Weight};

/// `x Wᵀ + b`: `x (rows, in)`, `weight (out, in)`, `bias (out)` → `(rows, out)`. Operands that are not traced get no
/// gradient.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn linear(x: &Matrix, weight: &Weight, bias: Option<&Vector>) -> Outcome<Matrix> {
    let ((rows, columns), (out, input)) = (x.shape(), weight.shape());
    assert_eq!(
        columns, input,
        "linear: x is {rows}x{columns}, weight {out}x{input}"
    );
    if let Device::Cpu = x.device() {
        let kernel = || cpu::linear(x, weight, bias);
        return Ok(profile::forward(Op::Linear, x.count(), kernel));
    }
    let matrix = &weight.matrix()?;
    if weight.is_traced() {
        return run_definition!(x.device(), |x, matrix, bias| definition::linear(
            x, matrix, bias
        ));
    }
    let product = definition::of_frozen(x, matrix)?;
    match bias {
        Some(bias) => super::add_row(product, bias),
        None => Ok(product),
    }
}

/// `x W` with a frozen weight: `x (rows, out)`, `weight (out, in)` → `(rows, in)`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn linear_transposed(x: &Matrix, weight: &Weight) -> Outcome<Matrix> {
    let ((rows, columns), (out, input)) = (x.shape(), weight.shape());
    assert_eq!(
        columns, out,
        "linear transposed: x is {rows}x{columns}, weight {out}x{input}"
    );
    assert!(
        !weight.is_traced(),
        "linear transposed: the weight is to be frozen"
    );
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::linear_transposed(x, weight);
            Ok(profile::forward(Op::Linear, x.count(), kernel))
        }
        _ => super::matmul(x, &weight.matrix()?),
    }
}
