//! On processors without tile registers nothing is split.

use super::operand::Operand;
use super::product::View;
use super::tile::Place;
use crate::engine::Precision;

pub(super) fn is_available() -> bool {
    false
}

/// No product is to be computed so.
pub fn pays(_depth: usize, _columns: usize) -> bool {
    false
}

/// Runs what is to be tested.
#[cfg(test)]
pub(super) fn left_out<T>(run: impl FnOnce() -> T) -> T {
    run()
}

/// There is none.
pub(super) enum Split {}

impl Split {
    pub(super) fn new(_: Operand, _: Precision) -> Self {
        unreachable!("this processor has no tile registers")
    }

    pub(super) fn product(&self, _: View, _: Option<&[f32]>) -> Vec<f32> {
        match *self {}
    }

    pub(super) fn multiply_add(&self, _: &mut [f32], _: View) {
        match *self {}
    }
}

pub(super) unsafe fn multiply_whole(_: Place, _: View, _: Operand) {
    unreachable!("this processor has no tile registers")
}
