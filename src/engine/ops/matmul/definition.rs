//! Products of two variables in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};

/// See [`super::matmul`].
pub(super) fn matmul<D: DfdxDevice>(
    x: DfdxMatrix<D>,
    y: DfdxMatrix<D>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    x.try_matmul(y)
}

/// See [`super::kronecker`]: the outer product of all elements, reordered.
pub(super) fn kronecker<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    y: &DfdxMatrix<D>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let ((l, m), (k, n)) = (*x.shape(), *y.shape());
    let column = x.clone().try_reshape_like(&(l * m, 1))?;
    let row = y.clone().try_reshape_like(&(1, k * n))?;
    column
        .try_matmul(row)? // (l m, k n)
        .try_reshape_like(&(l, m, k, n))?
        .try_permute::<_, Axes4<0, 2, 1, 3>>()? // (l, k, m, n)
        .try_reshape_like(&(l * k, m * n))
}
