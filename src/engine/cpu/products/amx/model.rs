//! A portable model of the tile registers, by Intel's description of their instructions (Architecture Instruction Set
//! Extensions Programming Reference, chapter 3): what tests of their arithmetic run on where a processor has none.

use super::registers::{TileRegister, ROWS, SUMS};

/// Registers 0 to 3.
pub(super) struct Model([TileRegister; SUMS]);

impl Default for Model {
    fn default() -> Self {
        Model([TileRegister::ZEROS; SUMS])
    }
}

/// Four bytes of a row.
fn four(tile: &TileRegister, row: usize, column: usize) -> [u8; 4] {
    tile.0[row][4 * column..][..4]
        .try_into()
        .expect("four bytes")
}

fn set_four(tile: &mut TileRegister, row: usize, column: usize, bytes: [u8; 4]) {
    tile.0[row][4 * column..][..4].copy_from_slice(&bytes);
}

/// `tdpbssd`: to each of 16 by 16 sums of 32 bits, 16 times four products of signed bytes.
fn add_int8(sums: &mut TileRegister, left: &TileRegister, right: &TileRegister) {
    for row in 0..ROWS {
        for column in 0..ROWS {
            let mut sum = i32::from_le_bytes(four(sums, row, column));
            for depth in 0..ROWS {
                let pairs = four(left, row, depth)
                    .into_iter()
                    .zip(four(right, depth, column));
                for (a, b) in pairs {
                    sum = sum.wrapping_add(i32::from(a as i8) * i32::from(b as i8));
                }
            }
            set_four(sums, row, column, sum.to_le_bytes());
        }
    }
}

/// `tdpbf16ps`: to each of 16 by 16 sums in f32, 16 times two products of bfloat16s.
fn add_bf16(sums: &mut TileRegister, left: &TileRegister, right: &TileRegister) {
    let halves = |bytes: [u8; 4]| {
        let bits = u32::from_le_bytes(bytes);
        [bits << 16, bits & 0xffff_0000].map(f32::from_bits)
    };
    for row in 0..ROWS {
        for column in 0..ROWS {
            let mut sum = f32::from_le_bytes(four(sums, row, column));
            for depth in 0..ROWS {
                let (a, b) = (
                    halves(four(left, row, depth)),
                    halves(four(right, depth, column)),
                );
                sum = a[1].mul_add(b[1], a[0].mul_add(b[0], sum));
            }
            set_four(sums, row, column, sum.to_le_bytes());
        }
    }
}

impl Model {
    pub(super) fn clear(&mut self) {
        *self = Model::default();
    }

    pub(super) fn sums(&self) -> [TileRegister; SUMS] {
        self.0
    }

    /// # Safety
    /// There are three tiles at both places.
    pub(super) unsafe fn add_split(
        &mut self,
        left: *const TileRegister,
        right: *const TileRegister,
    ) {
        for (i, j) in [
            (0, 0),
            (0, 1),
            (1, 0),
            (0, 2),
            (1, 1),
            (2, 0),
            (1, 2),
            (2, 1),
        ] {
            add_int8(&mut self.0[i + j], &*left.add(i), &*right.add(j));
        }
    }

    /// # Safety
    /// There is a tile at the places of rows, and two at that of columns.
    pub(super) unsafe fn add_rounded(
        &mut self,
        above: *const TileRegister,
        below: *const TileRegister,
        right: *const TileRegister,
    ) {
        for (number, sums) in self.0.iter_mut().enumerate() {
            let left = if number < 2 { above } else { below };
            add_bf16(sums, &*left, &*right.add(number % 2));
        }
    }

    /// # Safety
    /// There are 16 rows of 32 elements at each place.
    pub(super) unsafe fn load_sums(
        &mut self,
        above: *const f32,
        below: Option<*const f32>,
        stride: usize,
    ) {
        for (first, from) in [(0, Some(above)), (2, below)] {
            let Some(from) = from else { continue };
            for row in 0..ROWS {
                let from = from.byte_add(row * stride);
                for place in 0..2 * ROWS {
                    let bytes = from.add(place).read_unaligned().to_le_bytes();
                    set_four(&mut self.0[first + place / ROWS], row, place % ROWS, bytes);
                }
            }
        }
    }

    /// # Safety
    /// As of [`Model::load_sums`].
    pub(super) unsafe fn store_sums(
        &self,
        above: *mut f32,
        below: Option<*mut f32>,
        stride: usize,
    ) {
        for (first, to) in [(0, Some(above)), (2, below)] {
            let Some(to) = to else { continue };
            for row in 0..ROWS {
                let to = to.byte_add(row * stride);
                for place in 0..2 * ROWS {
                    let bytes = four(&self.0[first + place / ROWS], row, place % ROWS);
                    to.add(place).write_unaligned(f32::from_le_bytes(bytes));
                }
            }
        }
    }
}
