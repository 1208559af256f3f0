//! Products on tile registers, for processors with AMX ([`Registers`](registers::Registers)). Products in f32 are
//! computed from integer digits ([`SplitInt8`]), those in bf16 from elements rounded to bfloat16 ([`Rounded`]).
//!
//! The gain on one Xeon (docs/performance.md): a step of LoRA at 32 × 64 takes 225 ms instead of 280 with plain sums,
//! and one of BERT-base's shape takes 981 instead of 1320. Only `products/mod.rs` knows of this module, so it can be
//! removed. Its arithmetic is tested on any processor with AVX-512, on a model of the registers (`model.rs`).
//!
//! An element of a result is the sum of one product for each part of `depth`, in their order. It does not depend on the
//! number of rows, nor on what the other rows hold.

#[cfg(test)]
mod model;
mod part;
mod registers;
mod rounded;
mod split_int8;

use self::part::multiply;
pub(super) use self::registers::is_available;
use self::registers::{Encoding, Side, TileRegister, ROWS};
use self::rounded::Rounded;
use self::split_int8::SplitInt8;
use super::packed::Packed;
use super::tile::{result, Destination, WriteMode, PANEL};
use super::view::View;
use crate::{profile, Precision};

/// The least depth and the least number of columns at which products on tile registers are faster.
const LEAST_SIDE: usize = 192;

/// Whether products of this depth and number of columns use tile registers. The number of rows does not matter, because
/// a row's result must be the same whatever rows are beside it.
pub fn pays(depth: usize, columns: usize) -> bool {
    depth.min(columns) >= LEAST_SIDE && is_available()
}

/// A matrix in tiles: panel after panel, in a panel strip after strip, in a strip block after block of the depth.
pub(crate) struct Tiled {
    depth: usize,
    columns: usize,
    precision: Precision,
    tiles: Vec<TileRegister>,
    /// The unit of each column, including the padding of the last panel.
    units: Vec<f32>,
}

impl Tiled {
    /// Writes a matrix into tiles. Panics unless [`is_available`]; in tests, a model of the registers is enough.
    pub(super) fn new(matrix: &Packed, precision: Precision) -> Self {
        assert!(registers::can_run(), "this processor has no tile registers");
        // SAFETY: the processor has the instructions, by the assertion above.
        unsafe {
            match precision {
                Precision::F32 => Self::in_form::<SplitInt8>(matrix, precision),
                Precision::Bf16 => Self::in_form::<Rounded>(matrix, precision),
            }
        }
    }

    /// # Safety
    /// As for [`Encoding::write_columns`].
    unsafe fn in_form<F: Encoding>(matrix: &Packed, precision: Precision) -> Self {
        let Packed { depth, columns, .. } = *matrix;
        let panels = columns.div_ceil(PANEL);
        let tiles_of_block = F::PIECES * F::SIDE / ROWS;
        let count = panels * PANEL / F::SIDE * depth.div_ceil(F::DEPTH) * tiles_of_block;
        let (mut tiles, mut units) = (vec![TileRegister::ZEROS; count], Vec::new());
        let mut blocks = tiles.chunks_exact_mut(tiles_of_block);
        for number in 0..panels {
            let panel = matrix.panel(number);
            let of_columns = F::units(panel);
            for first in (0..PANEL).step_by(F::SIDE) {
                for (block, tiles) in panel.chunks(F::DEPTH * PANEL).zip(&mut blocks) {
                    F::write_columns(block, &of_columns, first, tiles);
                }
            }
            units.extend(of_columns);
        }
        Tiled {
            depth,
            columns,
            precision,
            tiles,
            units,
        }
    }

    /// This matrix as the right operand of a product.
    pub(super) fn plain(&self) -> TiledOperand<'_> {
        TiledOperand {
            tiled: self,
            is_transposed: false,
        }
    }

    /// Strip `number`: the columns of a panel that are multiplied at once.
    fn strip<F: Encoding>(&self, number: usize) -> Side<'_> {
        let tiles = self.depth.div_ceil(F::DEPTH) * F::PIECES * F::SIDE / ROWS;
        Side {
            tiles: &self.tiles[number * tiles..][..tiles],
            units: &self.units[number * F::SIDE..],
        }
    }
}

/// A matrix in tiles, or its transpose. The tiles of the transpose are made panel by panel when they are needed, so
/// that a weight is in memory once for both directions.
#[derive(Clone, Copy)]
pub(crate) struct TiledOperand<'a> {
    tiled: &'a Tiled,
    is_transposed: bool,
}

impl TiledOperand<'_> {
    /// The transpose.
    pub(super) fn t(self) -> Self {
        let is_transposed = !self.is_transposed;
        TiledOperand {
            is_transposed,
            ..self
        }
    }

    /// `(depth, columns)`
    fn shape(&self) -> (usize, usize) {
        let Tiled { depth, columns, .. } = *self.tiled;
        match self.is_transposed {
            false => (depth, columns),
            true => (columns, depth),
        }
    }

    /// The factors by which the elements of each row of `a` are multiplied first. A transpose has the units of the
    /// original columns here, which are its rows; its own columns have no units. Rounded elements have none.
    fn scales(&self) -> Option<&[f32]> {
        let has_units = self.is_transposed && self.tiled.precision == Precision::F32;
        has_units.then_some(&self.tiled.units)
    }

    /// `a b (rows, columns)`, where this is `b`, with `bias (columns)` added to each row.
    pub(super) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        // SAFETY: each element is written.
        unsafe {
            result(Vec::new(), a.rows, self.shape().1, bias, |place| {
                self.multiply(place, a)
            })
        }
    }

    /// `out ← out + a b`, `out (rows, columns)`.
    pub(super) fn multiply_add(&self, out: &mut [f32], a: View) {
        let (_, columns) = self.shape();
        assert_eq!(out.len(), a.rows * columns, "product of tiles: out");
        let place = Destination::new(out, columns, WriteMode::Add);
        // SAFETY: `out` has all rows.
        unsafe { self.multiply(place, a) }
    }

    /// # Safety
    /// `place` has `a.rows` rows of as many columns as this matrix. Nothing else accesses them meanwhile, and they may
    /// be uninitialized unless they are added to.
    unsafe fn multiply(&self, place: Destination, a: View) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        // At depth 0 the result would stay uninitialized.
        assert!(
            depth > 0 && a.columns == depth && a.fits() && a.strides.1 == 1,
            "product of tiles: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        profile::product(rows, depth, columns);
        match self.tiled.precision {
            Precision::F32 => multiply::<SplitInt8>(place, a, *self),
            Precision::Bf16 => multiply::<Rounded>(place, a, *self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::half::tests::check_rounded;
    use super::*;

    fn value(seed: usize) -> f32 {
        (crate::mix(seed as u64) >> 40) as f32 / 16_777_216.0 - 0.5
    }

    /// About normally distributed: the largest of many values is several times the usual one.
    fn normal(seed: usize) -> f32 {
        (0..12).map(|i| value(12 * seed + i)).sum()
    }

    /// `b (depth, columns)` in tiles, and its transpose in tiles, to be transposed back.
    fn both_ways(b: &[f32], depth: usize, columns: usize) -> [Tiled; 2] {
        let plain = Packed::rows(b, columns, depth, columns);
        let turned = Packed::transposed(b, columns, columns, depth);
        [&plain, &turned].map(|packed| Tiled::new(packed, Precision::F32))
    }

    /// Against sums in f64, products on tiles have no larger errors than plain sums in f32. Covers rows, depths and
    /// columns that are no multiples of a tile's, several parts of the depth and of the rows, every mode of writing a
    /// result, and transposes.
    #[test]
    #[ignore = "needs a processor with AVX-512"]
    fn products_are_as_exact_as_sums_in_f32_on_avx512() {
        for (rows, depth, columns) in [
            (1, 192, 192),
            (16, 200, 193),
            (40, 769, 224),
            (290, 390, 257),
        ] {
            let a: Vec<f32> = (0..rows * depth).map(normal).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| normal(!i >> 8)).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 / 64.0).collect();
            let view = View::new(&a, depth);
            let [plain, turned] = both_ways(&b, depth, columns);
            for factor in [plain.plain(), turned.plain().t()] {
                let (found, biased) = (
                    factor.product(view, None),
                    factor.product(view, Some(&bias)),
                );
                let mut added = vec![1.0; rows * columns];
                factor.multiply_add(&mut added, view);
                let mut errors = [0.0f64; 2];
                for (place, found) in found.iter().enumerate() {
                    let (i, j) = (place / columns, place % columns);
                    let terms = (0..depth).map(|p| (a[i * depth + p], b[p * columns + j]));
                    let exact: f64 = terms
                        .clone()
                        .map(|(a, b)| f64::from(a) * f64::from(b))
                        .sum();
                    let in_f32 = terms.fold(0.0, |sum: f32, (a, b)| a.mul_add(b, sum));
                    for (error, found) in errors.iter_mut().zip([*found, in_f32]) {
                        *error += (f64::from(found) - exact).powi(2);
                    }
                    for (found, beside) in [(biased[place], bias[j]), (added[place], 1.0)] {
                        assert!((f64::from(found) - exact - f64::from(beside)).abs() < 1e-4);
                    }
                }
                println!(
                    "{rows}x{depth}x{columns}: {}",
                    (errors[0] / errors[1]).sqrt()
                );
                assert!(
                    errors[0] <= errors[1],
                    "{rows}x{depth}x{columns}: {errors:?}"
                );
            }
        }
    }

    #[test]
    #[ignore = "needs a processor with AVX-512"]
    fn products_are_those_of_rounded_elements_on_avx512() {
        let shapes = [(1, 1, 1), (13, 7, 33), (40, 1200, 70)];
        check_rounded(&shapes, |packed, a, bias, added| {
            let tiled = Tiled::new(&packed, Precision::Bf16);
            tiled.plain().multiply_add(added, a);
            let turned = packed.turned();
            let turned = Tiled::new(&turned, Precision::Bf16);
            assert_eq!(
                turned.plain().t().product(a, None),
                tiled.plain().product(a, None)
            );
            // A NaN makes its own row NaN, and no other.
            let mut odd = a.data.to_vec();
            odd[0] = f32::NAN;
            let product = tiled.plain().product(View::new(&odd, a.columns), None);
            for (place, value) in product.iter().enumerate() {
                assert_eq!(value.is_nan(), place < bias.len());
            }
            tiled.plain().product(a, Some(bias))
        });
    }

    /// The other rows of a product change no bit of a row's result.
    #[test]
    #[ignore = "needs a processor with AVX-512"]
    fn rows_do_not_depend_on_each_other_on_avx512() {
        let (rows, depth, columns) = (300, 400, 200);
        let a: Vec<f32> = (0..rows * depth).map(value).collect();
        let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
        let [plain, turned] = both_ways(&b, depth, columns);
        for factor in [plain.plain(), turned.plain().t()] {
            let all = factor.product(View::new(&a, depth), None);
            for (first, count) in [(0, 1), (17, 1), (5, 31), (250, 50)] {
                let some = &a[first * depth..][..count * depth];
                assert_eq!(
                    factor.product(View::new(some, depth), None),
                    all[first * columns..][..count * columns]
                );
            }
        }
    }

    /// Rows and columns of very different magnitudes, zeros among them. An error is small relative to its own row of
    /// `a`. It is also small relative to its own column of `b` or, for a transpose, to the largest element of each row
    /// of `b`.
    #[test]
    #[ignore = "needs a processor with AVX-512"]
    fn every_row_and_column_has_its_own_size_on_avx512() {
        let (rows, depth, columns) = (9, 200, 195);
        let size = |i: usize| [1.0, 1e15, 1e-15, 0.0, 1e30, 1e-30][i % 6];
        let a = (0..rows * depth).map(|place| normal(place) * size(place / depth));
        let b = (0..depth * columns).map(|place| normal(!place >> 8) * size(place % columns));
        let (a, b): (Vec<f32>, Vec<f32>) = (a.collect(), b.collect());
        let [plain, turned] = both_ways(&b, depth, columns);
        let of_b = |p: usize| &b[p * columns..][..columns];
        let largest = |p: usize| of_b(p).iter().fold(0.0f32, |most, b| most.max(b.abs()));
        let largest: Vec<f64> = (0..depth).map(|p| f64::from(largest(p))).collect();
        for (factor, is_turned) in [(plain.plain(), false), (turned.plain().t(), true)] {
            let found = factor.product(View::new(&a, depth), None);
            for (place, found) in found.into_iter().enumerate() {
                let (i, j) = (place / columns, place % columns);
                let (mut exact, mut size) = (0.0, 0.0);
                for (p, largest) in largest.iter().enumerate() {
                    let (a, b) = (f64::from(a[i * depth + p]), f64::from(of_b(p)[j]));
                    exact += a * b;
                    size += a.abs() * if is_turned { *largest } else { b.abs() };
                }
                if size < f64::from(f32::MAX) {
                    let error = (f64::from(found) - exact).abs();
                    let most = 1e-6 * size + f64::from(f32::MIN_POSITIVE);
                    assert!(error <= most, "{i}, {j}: {found} is not {exact}");
                } else if exact.abs() > f64::from(f32::MAX) {
                    assert!(!found.is_finite(), "{i}, {j}: {found} is not {exact}");
                }
            }
        }
    }

    #[test]
    #[ignore = "needs a processor with AVX-512"]
    fn what_is_not_a_number_stays_so_on_avx512() {
        let (rows, depth, columns) = (3, 192, 192);
        for odd in [
            f32::NAN,
            f32::from_bits(0x7fff_ffff),
            f32::INFINITY,
            f32::NEG_INFINITY,
        ] {
            let mut a = vec![1.0; rows * depth];
            a[depth + 40] = odd;
            let ones = vec![1.0; depth * columns];
            let [plain, turned] = both_ways(&ones, depth, columns);
            for factor in [plain.plain(), turned.plain().t()] {
                let product = factor.product(View::new(&a, depth), None);
                for (place, value) in product.iter().enumerate() {
                    assert_eq!(value.is_finite(), place / columns != 1, "{odd}: {value}");
                }
            }
            let mut b = vec![1.0; depth * columns];
            b[40 * columns + 7] = odd;
            let [plain, turned] = both_ways(&b, depth, columns);
            let ones = vec![1.0; rows * depth];
            for value in [
                plain.plain().product(View::new(&ones, depth), None)[7],
                turned.plain().t().product(View::new(&ones, depth), None)[7],
            ] {
                assert!(!value.is_finite(), "{odd}: {value}");
            }
        }
    }
}
