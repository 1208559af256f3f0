//! The low-rank change that LoRA adds to the result of a linear layer.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome, Weight};

/// `y + scale · x Aᵀ Bᵀ`: `y (rows, out)`, `x (rows, in)`, `a (rank, in)`, `b (out, rank)`
/// (Hu et al., arXiv 2106.09685, eq. 3).
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn add_low_rank(y: Matrix, x: &Matrix, a: &Weight, b: &Weight, scale: f32) -> Outcome<Matrix> {
    let ((rows, input), (out, rank)) = (x.shape(), b.shape());
    assert_eq!(y.shape(), (rows, out), "low rank: y and b disagree");
    assert_eq!(
        a.shape(),
        (rank, input),
        "low rank: a disagrees with x or b"
    );
    match x.device() {
        Device::Cpu => {
            let count = x.count() + y.count();
            let kernel = || cpu::add_low_rank(y, x, a, b, scale);
            Ok(profile::forward(Op::LowRank, count, kernel))
        }
        device => {
            let (y, a, b) = (&y, &a.matrix()?, &b.matrix()?);
            run_definition!(device, |y, x, a, b| definition::add_low_rank(
                y, x, a, b, scale
            ))
        }
    }
}
