//! Sums and products, element by element.

mod cpu;
mod definition;

use dfdx::prelude::Shape;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Variable, Vector};

/// `x + y`; both have the same shape.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn add(x: Matrix, y: &Matrix) -> Outcome<Matrix> {
    assert_eq!(x.shape(), y.shape(), "add: shapes disagree");
    match x.device() {
        Device::Cpu => {
            let count = x.count() + y.count();
            Ok(profile::forward(Op::Add, count, || cpu::add(x, y)))
        }
        device => run_definition!(device, |x, y| definition::add(x, y)),
    }
}

/// `factor · x`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn scale<S: Shape>(x: &Variable<S>, factor: f32) -> Outcome<Variable<S>> {
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::scale(x, factor);
            Ok(profile::forward(Op::Add, x.count(), kernel))
        }
        device => run_definition!(device, |x| definition::scale(x, factor)),
    }
}

/// `x ⊙ y`; both have the same shape.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn multiply<S: Shape>(x: &Variable<S>, y: &Variable<S>) -> Outcome<Variable<S>> {
    assert_eq!(x.shape(), y.shape(), "multiply: shapes disagree");
    match x.device() {
        Device::Cpu => {
            let count = x.count() + y.count();
            let kernel = || cpu::multiply(x, y);
            Ok(profile::forward(Op::Multiply, count, kernel))
        }
        device => run_definition!(device, |x, y| definition::multiply(x, y)),
    }
}

/// Every row of `x (rows, columns)` times `factors (columns)`, element by element.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn scale_columns(x: &Matrix, factors: &Vector) -> Outcome<Matrix> {
    let columns = x.shape().1;
    assert_eq!(columns, factors.shape().0, "scale columns: shapes disagree");
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::scale_columns(x, factors);
            Ok(profile::forward(Op::Multiply, x.count(), kernel))
        }
        device => run_definition!(device, |x, factors| definition::scale_columns(x, factors)),
    }
}

/// `x (rows, columns)` with `row (columns)` added to each row.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn add_row(x: Matrix, row: &Vector) -> Outcome<Matrix> {
    assert_eq!(x.shape().1, row.shape().0, "add row: shapes disagree");
    match x.device() {
        Device::Cpu => {
            let count = x.count();
            Ok(profile::forward(Op::Add, count, || cpu::add_row(x, row)))
        }
        device => run_definition!(device, |x, row| definition::add_row(x, row)),
    }
}

/// `1 / x`, element by element.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn reciprocal<S: Shape>(x: &Variable<S>) -> Outcome<Variable<S>> {
    run_definition!(x.device(), |x| definition::reciprocal(x))
}
