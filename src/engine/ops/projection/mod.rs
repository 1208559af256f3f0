//! Random projections.

mod cpu;
mod definition;
mod fastfood;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome};

pub use fastfood::Fastfood;

/// `P z` as a matrix of `shape`: `z (1, dimension)` → `(out, in)`.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn project(z: &Matrix, projection: Fastfood, shape: (usize, usize)) -> Outcome<Matrix> {
    assert!(
        z.shape() == (1, projection.dimension) && shape.0 * shape.1 == projection.length,
        "project: shapes disagree"
    );
    match z.device() {
        Device::Cpu => {
            let kernel = || cpu::project(z, projection, shape);
            Ok(profile::forward(Op::Projection, z.count(), kernel))
        }
        device => run_definition!(device, |z| definition::project(&z, projection, shape)),
    }
}
