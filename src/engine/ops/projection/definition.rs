//! A random projection in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult, SharedTape};
use crate::ops::rows::definition::{join_columns, select_rows};
use crate::Fastfood;

/// See [`super::project`]. All blocks are computed at once, with H as a matrix.
pub(super) fn project<D: DfdxDevice>(
    z: &DfdxMatrix<D>,
    projection: Fastfood,
    shape: (usize, usize),
) -> DfdxResult<DfdxMatrix<D>, D> {
    let device = z.device().clone();
    let width = projection.width();
    let (mut signs, mut order, mut gaussians) = (Vec::new(), Vec::new(), Vec::new());
    for (number, block) in projection.blocks().enumerate() {
        signs.extend(block.signs);
        order.extend(block.order.into_iter().map(|from| number * width + from));
        gaussians.extend(block.gaussians);
    }
    let blocks = (signs.len() / width, width);
    let all = |rows: DfdxMatrix<D>| rows.try_reshape_like(&(blocks.0 * width, 1));
    let hadamard = (0..width * width).map(|i| match ((i / width) & (i % width)).count_ones() % 2 {
        0 => 1.0,
        _ => -1.0,
    });
    let hadamard = device.try_tensor_from_vec(hadamard.collect(), (width, width))?;
    let padded = match width - projection.dimension {
        0 => z.clone(),
        more => {
            let zeros = device.try_tensor_from_vec(vec![0.0; more], (1, more))?;
            join_columns(&[z.clone(), zeros.put_tape(SharedTape::default())])?
        }
    };
    let mixed = select_rows(&padded, &vec![0; blocks.0])?
        .try_mul(device.try_tensor_from_vec(signs, blocks)?)?
        .try_matmul(hadamard.clone())?; // blocks
    let projected = select_rows(&all(mixed)?, &order)?
        .try_reshape_like(&blocks)?
        .try_mul(device.try_tensor_from_vec(gaussians, blocks)?)?
        .try_matmul(hadamard)?; // blocks
    let kept: Vec<usize> = (0..projection.length).collect();
    select_rows(&all(projected)?, &kept)?.try_reshape_like(&shape)
}
