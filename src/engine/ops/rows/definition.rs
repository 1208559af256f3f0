//! Selecting and joining rows and columns in dfdx operations, the definitions that kernels are compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};

/// See [`super::select_rows`].
pub(crate) fn select_rows<D: DfdxDevice>(
    table: &DfdxMatrix<D>,
    indices: &[usize],
) -> DfdxResult<DfdxMatrix<D>, D> {
    let device = table.device().clone();
    let indices = device.try_tensor_from_vec(indices.to_vec(), (indices.len(),))?;
    table.clone().try_gather(indices)
}

/// See [`super::columns`]: selects rows of the transpose. dfdx's own `slice` overwrites the gradient of `x`, to which
/// it has to add.
pub(crate) fn columns<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    range: std::ops::Range<usize>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = (x.shape().0, range.len());
    let transposed = x.clone().try_permute::<_, Axes2<1, 0>>()?;
    select_rows(&transposed, &range.collect::<Vec<_>>())?
        .try_permute::<_, Axes2<1, 0>>()?
        .try_reshape_like(&shape)
}

/// See [`super::join_columns`]: stacks the transposes of the parts and transposes the whole.
pub(crate) fn join_columns<D: DfdxDevice>(parts: &[DfdxMatrix<D>]) -> DfdxResult<DfdxMatrix<D>, D> {
    let transposed = |part: &DfdxMatrix<D>| part.clone().try_permute::<_, Axes2<1, 0>>();
    let (first, rest) = parts.split_first().expect("there is a part to join");
    let mut joined = transposed(first)?;
    for part in rest {
        joined = (joined, transposed(part)?).try_concat_along(Axis::<0>)?;
    }
    let shape = (joined.shape().1, joined.shape().0);
    joined
        .try_permute::<_, Axes2<1, 0>>()?
        .try_reshape_like(&shape)
}

/// See [`super::join_rows`].
pub(crate) fn join_rows<D: DfdxDevice>(parts: &[DfdxMatrix<D>]) -> DfdxResult<DfdxMatrix<D>, D> {
    let (first, rest) = parts.split_first().expect("there is a part to join");
    let mut joined = first.clone();
    for part in rest {
        joined = (joined, part.clone()).try_concat_along(Axis::<0>)?;
    }
    Ok(joined)
}
