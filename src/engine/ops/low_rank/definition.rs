//! A low-rank change in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};

/// See [`super::add_low_rank`].
pub(super) fn add_low_rank<D: DfdxDevice>(
    y: DfdxMatrix<D>,
    x: DfdxMatrix<D>,
    a: DfdxMatrix<D>,
    b: DfdxMatrix<D>,
    scale: f32,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let low = x.try_matmul(a.try_permute::<_, Axes2<1, 0>>()?)?; // (rows, rank)
    let low = low.try_mul(scale)?;
    let change = low.try_matmul(b.try_permute::<_, Axes2<1, 0>>()?)?; // (rows, out)
    y.try_add(change)
}
