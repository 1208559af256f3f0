//! Element-wise sums and products in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult, DfdxTensor, DfdxVector};

/// See [`super::add`].
pub(super) fn add<S: Shape, D: DfdxDevice>(
    x: DfdxTensor<S, D>,
    y: DfdxTensor<S, D>,
) -> DfdxResult<DfdxTensor<S, D>, D> {
    x.try_add(y)
}

/// See [`super::multiply`].
pub(super) fn multiply<S: Shape, D: DfdxDevice>(
    x: DfdxTensor<S, D>,
    y: DfdxTensor<S, D>,
) -> DfdxResult<DfdxTensor<S, D>, D> {
    x.try_mul(y)
}

/// See [`super::scale`].
pub(super) fn scale<S: Shape, D: DfdxDevice>(
    x: DfdxTensor<S, D>,
    factor: f32,
) -> DfdxResult<DfdxTensor<S, D>, D> {
    x.try_mul(factor)
}

/// See [`super::scale_columns`].
pub(super) fn scale_columns<D: DfdxDevice>(
    x: DfdxMatrix<D>,
    factors: DfdxVector<D>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = *x.shape();
    x.try_mul(factors.try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::add_row`].
pub(super) fn add_row<D: DfdxDevice>(
    x: DfdxMatrix<D>,
    row: DfdxVector<D>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = *x.shape();
    x.try_add(row.try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::reciprocal`].
pub(super) fn reciprocal<S: Shape, D: DfdxDevice>(
    x: DfdxTensor<S, D>,
) -> DfdxResult<DfdxTensor<S, D>, D> {
    x.try_recip()
}
