//! Norms in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult, DfdxVector};

/// See [`super::layer_norm`].
pub(super) fn layer_norm<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    weight: &DfdxVector<D>,
    bias: &DfdxVector<D>,
    epsilon: f32,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = *x.shape();
    let mean = x.clone().try_mean::<_, Axis<1>>()?; // (rows)
    let centered = x
        .clone()
        .try_sub(mean.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
    let variance = centered.clone().try_square()?.try_mean::<_, Axis<1>>()?; // (rows)
    let inverse = variance.try_add(epsilon)?.try_sqrt()?.try_recip()?;
    let normal = centered.try_mul(inverse.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
    normal
        .try_mul(weight.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)?
        .try_add(bias.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::rms_norm`].
pub(super) fn rms_norm<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    weight: &DfdxVector<D>,
    epsilon: f32,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = *x.shape();
    let square = x.clone().try_square()?.try_mean::<_, Axis<1>>()?; // (rows)
    let inverse = square.try_add(epsilon)?.try_sqrt()?.try_recip()?;
    x.clone()
        .try_mul(inverse.try_broadcast_like::<_, Axis<1>>(&shape)?)?
        .try_mul(weight.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::row_norms`].
pub(super) fn row_norms<D: DfdxDevice>(x: DfdxMatrix<D>) -> DfdxResult<DfdxVector<D>, D> {
    x.try_square()?.try_sum::<(usize,), Axis<1>>()?.try_sqrt()
}
