//! Dropout.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Layout, Matrix, Outcome};

/// One place in the graph where activations are dropped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The probability with which an element becomes zero, in `[0, 1)`.
    pub probability: f32,
    /// A number that tells places apart, so that they do not share their noise.
    pub place: u32,
}

/// Sets elements to zero with the dropout's probability and multiplies the others by `1 / (1 − probability)`
/// (Srivastava et al. 2014).
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn dropout(x: Matrix, layout: &Layout, dropout: Dropout) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu => {
            let count = x.count();
            let kernel = || cpu::dropout(x, layout, dropout);
            Ok(profile::forward(Op::Dropout, count, kernel))
        }
        device => run_definition!(device, |x| definition::dropout(&x, layout, dropout)),
    }
}
