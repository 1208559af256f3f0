//! Random projections on the CPU, without a matrix.

use super::Fastfood;
use crate::gradient::record_kernel;
use crate::Matrix;

/// See [`super::project`].
pub(super) fn project(z: &Matrix, projection: Fastfood, shape: (usize, usize)) -> Matrix {
    let z_slot = z.slot();
    let values = projection.apply(z.data());
    record_kernel(values, shape, z.trace(), move |upstream| {
        if let Some(slot) = &z_slot {
            slot.add(projection.apply_transposed(&upstream));
        }
    })
}
