//! Rotary position embeddings in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};
use crate::Angles;

/// See [`super::rotary`]: `x ⊙ cos + rotate_half(x) ⊙ sin`, where a matrix rotates the halves of every head.
pub(super) fn rotary<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    positions: &[usize],
    angles: &Angles,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let (shape, width) = (*x.shape(), angles.width());
    let heads = (shape.0 * (shape.1 / width), width);
    let table = |part: fn(&(f32, f32)) -> f32| {
        let rows = positions.iter().flat_map(|&position| {
            let half = angles.at(position).iter().map(part);
            let rest = std::iter::repeat_n(part(&(1.0, 0.0)), width - 2 * half.len());
            let both: Vec<f32> = half.clone().chain(half).chain(rest).collect();
            std::iter::repeat_n(both, shape.1 / width).flatten()
        });
        x.device().try_tensor_from_vec(rows.collect(), heads)
    };
    let (cosines, sines) = (table(|turn| turn.0)?, table(|turn| turn.1)?);
    let pairs = angles.pairs();
    let half_turn = (0..width * width).map(|i| match (i / width, i % width) {
        (from, to) if from == to + pairs && from < 2 * pairs => -1.0,
        (from, to) if from + pairs == to && to < 2 * pairs => 1.0,
        _ => 0.0,
    });
    let half_turn = half_turn.collect();
    let half_turn = x.device().try_tensor_from_vec(half_turn, (width, width))?;
    let x = x.clone().try_reshape_like(&heads)?;
    let turned = x.clone().try_matmul(half_turn)?.try_mul(sines)?;
    x.try_mul(cosines)?
        .try_add(turned)?
        .try_reshape_like(&shape)
}
