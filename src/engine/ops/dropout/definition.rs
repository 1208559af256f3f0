//! Dropout in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};
use crate::noise::Noise;
use crate::{Dropout, Layout};

/// See [`super::dropout`].
pub(super) fn dropout<D: DfdxDevice>(
    x: &DfdxMatrix<D>,
    layout: &Layout,
    dropout: Dropout,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let shape = *x.shape();
    let factors = factors(layout, dropout, shape.1);
    x.clone()
        .try_mul(x.device().try_tensor_from_vec(factors, shape)?)
}

/// The factors of a dropout over `(rows, columns)`: 0 or `1 / (1 - probability)`.
fn factors(layout: &Layout, dropout: Dropout, columns: usize) -> Vec<f32> {
    let mut factors = vec![0.0; layout.rows() * columns];
    for (index, range) in layout.ranges().enumerate() {
        let noise = Noise::new(layout.key(index), dropout.place);
        for (position, row) in range.enumerate() {
            let factors = &mut factors[row * columns..(row + 1) * columns];
            noise.dropout_row(position, dropout.probability, factors);
        }
    }
    factors
}
