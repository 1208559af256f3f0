//! What sums and products mean, element by element.

use dfdx::prelude::*;

use crate::engine::definition::{Defined, DefinedMatrix, DefinedVector, Home, Made};

/// See [`super::add`].
pub(super) fn add<S: Shape, D: Home>(x: Defined<S, D>, y: Defined<S, D>) -> Made<Defined<S, D>, D> {
    x.try_add(y)
}

/// See [`super::multiply`].
pub(super) fn multiply<S: Shape, D: Home>(
    x: Defined<S, D>,
    y: Defined<S, D>,
) -> Made<Defined<S, D>, D> {
    x.try_mul(y)
}

/// See [`super::scale`].
pub(super) fn scale<S: Shape, D: Home>(x: Defined<S, D>, factor: f32) -> Made<Defined<S, D>, D> {
    x.try_mul(factor)
}

/// See [`super::scale_columns`].
pub(super) fn scale_columns<D: Home>(
    x: DefinedMatrix<D>,
    factors: DefinedVector<D>,
) -> Made<DefinedMatrix<D>, D> {
    let shape = *x.shape();
    x.try_mul(factors.try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::add_row`].
pub(super) fn add_row<D: Home>(
    x: DefinedMatrix<D>,
    row: DefinedVector<D>,
) -> Made<DefinedMatrix<D>, D> {
    let shape = *x.shape();
    x.try_add(row.try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`super::reciprocal`].
pub(super) fn reciprocal<S: Shape, D: Home>(x: Defined<S, D>) -> Made<Defined<S, D>, D> {
    x.try_recip()
}
