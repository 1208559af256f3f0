//! Rotary position embeddings.

mod angles;
mod cpu;
mod definition;

use std::sync::Arc;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome};

pub use angles::Angles;

/// Rotates the columns `j` and `j + pairs` of every head of `x (rows, heads · width)` by the angle of the row's position
/// (Su et al., arXiv 2104.09864, with the order of columns of GPT-NeoX). The first `2 · pairs` columns of a head are
/// rotated.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn rotary(x: Matrix, positions: &[usize], angles: &Arc<Angles>) -> Outcome<Matrix> {
    let (rows, columns) = x.shape();
    assert_eq!(rows, positions.len(), "rotary: a position for each row");
    assert_eq!(
        columns % angles.width(),
        0,
        "rotary: heads do not divide the columns"
    );
    match x.device() {
        Device::Cpu => {
            let count = x.count();
            let kernel = || cpu::rotary(x, positions, angles);
            Ok(profile::forward(Op::Rotary, count, kernel))
        }
        device => run_definition!(device, |x| definition::rotary(&x, positions, angles)),
    }
}
