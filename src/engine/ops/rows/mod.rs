//! Selecting and joining rows and columns.

mod cpu;
pub(crate) mod definition;

use std::ops::Range;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Elements, Matrix, Outcome, Weight};

/// Rows `indices` of `table (n, columns)`; an index may occur several times.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn select_rows(table: &Matrix, indices: &[usize]) -> Outcome<Matrix> {
    match table.device() {
        Device::Cpu => {
            let count = indices.len() * table.shape().1;
            let kernel = || cpu::select_rows(table, indices);
            Ok(profile::forward(Op::Rows, count, kernel))
        }
        device => run_definition!(device, |table| definition::select_rows(&table, indices)),
    }
}

/// [`select_rows`] of a weight. On the CPU a stored weight need not be in memory for it.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn look_up(table: &Weight, indices: &[usize]) -> Outcome<Matrix> {
    match &table.elements {
        Elements::Stored(stored) if matches!(stored.device(), Device::Cpu) => {
            let count = indices.len() * table.shape().1;
            let kernel = || cpu::look_up(stored, indices);
            Ok(profile::forward(Op::Rows, count, kernel))
        }
        _ => select_rows(&table.matrix()?, indices),
    }
}

/// Columns `range` of `x (rows, columns)`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn columns(x: &Matrix, range: Range<usize>) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu => {
            let kernel = || cpu::columns(x, range);
            Ok(profile::forward(Op::Rows, x.count(), kernel))
        }
        device => run_definition!(device, |x| definition::columns(&x, range)),
    }
}

/// Joins matrices with the same number of rows, side by side.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn join_columns(parts: &[Matrix]) -> Outcome<Matrix> {
    match parts[0].device() {
        Device::Cpu => {
            let count = parts.iter().map(Matrix::count).sum();
            let kernel = || cpu::join_columns(parts);
            Ok(profile::forward(Op::Rows, count, kernel))
        }
        device => run_definition!(device, |parts| definition::join_columns(&parts)),
    }
}

/// Joins matrices with the same number of columns, one below the other.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn join_rows(parts: &[Matrix]) -> Outcome<Matrix> {
    if let [one] = parts {
        return Ok(one.clone());
    }
    match parts[0].device() {
        Device::Cpu => {
            let count = parts.iter().map(Matrix::count).sum();
            let kernel = || cpu::join_rows(parts);
            Ok(profile::forward(Op::Rows, count, kernel))
        }
        device => run_definition!(device, |parts| definition::join_rows(&parts)),
    }
}
