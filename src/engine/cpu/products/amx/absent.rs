//! Stand-ins for architectures without tile registers, where no matrix is in tiles.

use super::packed::Packed;
use super::view::View;
use crate::Precision;

pub(super) fn is_available() -> bool {
    false
}

/// Always false: no product uses tile registers.
pub fn pays(_depth: usize, _columns: usize) -> bool {
    false
}

/// A matrix in tiles: a type without values.
#[derive(Clone, Copy)]
pub(super) enum Tiled {}

/// A matrix in tiles as an operand: there is none.
pub(crate) type TiledOperand<'a> = &'a Tiled;

impl Tiled {
    pub(super) fn new(_: &Packed, _: Precision) -> Self {
        unreachable!("this processor has no tile registers")
    }

    pub(super) fn plain(&self) -> TiledOperand<'_> {
        self
    }

    pub(super) fn t(&self) -> TiledOperand<'_> {
        self
    }

    pub(super) fn product(&self, _: View, _: Option<&[f32]>) -> Vec<f32> {
        match *self {}
    }

    pub(super) fn multiply_add(&self, _: &mut [f32], _: View) {
        match *self {}
    }
}
