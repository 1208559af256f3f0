//! A portable model of the tile registers, after Intel's description of their instructions (Architecture Instruction
//! Set Extensions Programming Reference, chapter 3). Tests of the arithmetic run on it if the processor has no tile
//! registers.

use super::registers::{TileRegister, ROWS, SUMS};

/// Registers 0 to 3, which hold the sums.
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

/// `tdpbssd`: adds 16 times four products of signed bytes to each of 16 by 16 sums of 32 bits.
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

/// `tdpbf16ps`: adds 16 times two products of bfloat16 elements to each of 16 by 16 sums in f32. The first and the
/// second products are summed separately, then together; the result is added to the register's sum last. Subnormal
/// numbers count as 0.
fn add_bf16(sums: &mut TileRegister, left: &TileRegister, right: &TileRegister) {
    let flushed = |x: f32| if x.is_subnormal() { 0.0 } else { x };
    let halves = |bytes: [u8; 4]| {
        let bits = u32::from_le_bytes(bytes);
        [bits << 16, bits & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
    };
    for row in 0..ROWS {
        for column in 0..ROWS {
            let mut products = [0.0f32; 2];
            for depth in 0..ROWS {
                let pair = (four(left, row, depth), four(right, depth, column));
                let pairs = halves(pair.0).into_iter().zip(halves(pair.1));
                for (sum, (a, b)) in products.iter_mut().zip(pairs) {
                    *sum = flushed(a.mul_add(b, *sum));
                }
            }
            let before = flushed(f32::from_le_bytes(four(sums, row, column)));
            let sum = flushed(before + flushed(products[0] + products[1]));
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
    /// `left` and `right` each point to three tiles.
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
    /// `above` and `below` each point to one tile, `right` to two.
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
    /// `above` and `below` each point to 16 rows of 32 elements.
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
    /// As for [`Model::load_sums`].
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

/// The model gives what the processor's registers give for the same tiles, bit for bit.
#[test]
#[ignore = "needs a processor with AMX"]
fn the_model_is_the_processor_on_amx() {
    use super::registers::Registers;
    let mut seed = 0;
    let mut tiles = |is_bytes: bool| -> [TileRegister; 3] {
        std::array::from_fn(|_| {
            let mut tile = TileRegister::ZEROS;
            for pair in tile.0.iter_mut().flat_map(|row| row.chunks_exact_mut(2)) {
                seed += 1;
                let random = crate::mix(seed);
                let value = half::bf16::from_f32((random % 1000) as f32 / 500.0 - 1.0);
                pair.copy_from_slice(&match is_bytes {
                    true => [random as u8, (random >> 8) as u8],
                    false => value.to_bits().to_le_bytes(),
                });
            }
            tile
        })
    };
    let (split, rounded) = ([tiles(true), tiles(true)], [tiles(false), tiles(false)]);
    // SAFETY: there are three tiles at each place, and the test is for processors that have the registers.
    let run = |registers: &mut Registers| unsafe {
        let mut sums = [[TileRegister::ZEROS; SUMS]; 2];
        registers.clear();
        registers.add_split(split[0].as_ptr(), split[1].as_ptr());
        registers.store(&mut sums[0]);
        registers.clear();
        registers.add_rounded(&rounded[0][0], &rounded[0][1], rounded[1].as_ptr());
        registers.store(&mut sums[1]);
        sums.map(|sums| sums.map(|tile| tile.0))
    };
    // SAFETY: as above; they are this thread's.
    let found = run(&mut unsafe { Registers::new() });
    assert!(found == run(&mut Registers::Model(Box::default())));
}
