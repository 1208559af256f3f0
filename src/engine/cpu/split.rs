//! Products on tile registers, where a processor has AMX ([`Registers`]): in f32 by whole numbers ([`Digits`]), or with
//! elements that are rounded to bfloat16 ([`Rounded`]).
//!
//! An element of a result is the sum, in their order, of one product for each part of `depth`, whatever the number of
//! rows and what they hold.
//!
//! [`Registers`]: super::tile::amx::Registers

mod part;

use std::ops::Range;

use self::part::{multiply, parts, write_panel, Right};
use super::operand::Operand;
use super::product::View;
use super::strassen::LEAST_SIDE;
pub(super) use super::tile::amx::is_available;
use super::tile::amx::{Digits, Form, Rounded, Side, Tile, ROWS};
use super::tile::{result, Mode, Place, PANEL};
use crate::engine::{profile, Precision};

/// Whether products of such a depth with so many columns are to be computed so. The number of rows has no say: a
/// row's result is to be the same beside any others.
pub fn pays(depth: usize, columns: usize) -> bool {
    #[cfg(test)]
    if IS_LEFT_OUT.get() {
        return false;
    }
    depth.min(columns) >= LEAST_SIDE && is_available()
}

#[cfg(test)]
thread_local! {
    static IS_LEFT_OUT: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs what is to be tested on this thread as on a processor without tile registers.
#[cfg(test)]
pub(super) fn left_out<T>(run: impl FnOnce() -> T) -> T {
    IS_LEFT_OUT.set(true);
    let result = run();
    IS_LEFT_OUT.set(false);
    result
}

/// A matrix that was written into tiles once: for each panel and each part of its depth, the tiles of that, and the
/// units of its columns.
pub(super) struct Split {
    depth: usize,
    columns: usize,
    precision: Precision,
    tiles: Vec<Tile>,
    units: Vec<[f32; PANEL]>,
}

impl Split {
    /// Writes a matrix into tiles, where [`is_available`].
    pub(super) fn new(matrix: Operand, precision: Precision) -> Self {
        assert!(is_available(), "this processor has no tile registers");
        // SAFETY: it has.
        unsafe {
            match precision {
                Precision::F32 => Self::in_form::<Digits>(matrix, precision),
                Precision::Bf16 => Self::in_form::<Rounded>(matrix, precision),
            }
        }
    }

    /// # Safety
    /// As of [`Form::write_columns`].
    unsafe fn in_form<F: Form>(matrix: Operand, precision: Precision) -> Self {
        let (depth, columns) = matrix.shape();
        let (_, most) = parts::<F>(depth);
        let (mut tiles, mut units) = (Vec::new(), Vec::new());
        let mut room = vec![0.0; matrix.room(most)];
        for number in 0..columns.div_ceil(PANEL) {
            for first in (0..depth).step_by(most) {
                let depths = first..depth.min(first + most);
                let room = &mut room[..matrix.room(depths.len())];
                let written = tiles.len();
                tiles.resize(written + tiles_of_panel::<F>(depths.len()), Tile::ZEROS);
                let panel = matrix.panel(number, depths, room);
                let of_columns = F::units(panel);
                write_panel::<F>(panel, &of_columns, &mut tiles[written..]);
                units.push(of_columns);
            }
        }
        Split {
            depth,
            columns,
            precision,
            tiles,
            units,
        }
    }

    /// `(depth, columns)`
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.depth, self.columns)
    }

    /// `a b (rows, columns)`, where this is `b`, and `bias (columns)` added to each row.
    pub(super) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        // SAFETY: each element is written.
        unsafe {
            result(Vec::new(), a.rows, self.columns, bias, |place| {
                self.multiply(place, a)
            })
        }
    }

    /// `out ← out + a b`, `out (rows, columns)`.
    pub(super) fn multiply_add(&self, out: &mut [f32], a: View) {
        assert_eq!(out.len(), a.rows * self.columns, "split product: out");
        let place = Place::new(out, self.columns, Mode::Add);
        // SAFETY: `out` has all rows.
        unsafe { self.multiply(place, a) }
    }

    /// # Safety
    /// As of [`Operand::multiply`].
    unsafe fn multiply(&self, place: Place, a: View) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        // With no depth the elements would stay without a value.
        assert!(
            depth > 0 && a.columns == depth && a.fits() && a.strides.1 == 1,
            "split product: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        profile::product(rows, depth, columns);
        match self.precision {
            Precision::F32 => multiply::<Digits>(place, a, Right::Split(self)),
            Precision::Bf16 => multiply::<Rounded>(place, a, Right::Split(self)),
        }
    }

    /// A part of a panel.
    fn panel<F: Form>(&self, number: usize, depths: Range<usize>) -> Side<'_> {
        let (parts, most) = parts::<F>(self.depth);
        let first = number * tiles_of_panel::<F>(self.depth) + tiles_of_panel::<F>(depths.start);
        Side {
            tiles: &self.tiles[first..][..tiles_of_panel::<F>(depths.len())],
            units: &self.units[number * parts + depths.start / most],
        }
    }
}

/// Tiles that a panel of such a depth takes.
fn tiles_of_panel<F: Form>(depth: usize) -> usize {
    PANEL / ROWS * F::PIECES * depth.div_ceil(F::DEPTH)
}

/// `a b` at a place, in f32.
///
/// # Safety
/// [`pays`]; `a` has as many columns as `b` has depth, one after the other; the place is as [`Operand::multiply`]
/// asks.
pub(super) unsafe fn multiply_whole(place: Place, a: View, b: Operand) {
    multiply::<Digits>(place, a, Right::Whole(b));
}

#[cfg(test)]
mod tests {
    use super::super::operand::Scheme;
    use super::super::packed::Packed;
    use super::*;

    fn value(seed: usize) -> f32 {
        (crate::engine::mix(seed as u64) >> 40) as f32 / 16_777_216.0 - 0.5
    }

    /// Beside sums in f64 and plain sums in f32: rows, depths and columns that are no multiples of a tile's, several
    /// parts of the depth and of the rows, every way of writing a result, a transpose.
    #[test]
    fn products_are_as_exact_as_sums_in_f32() {
        for (rows, depth, columns) in [
            (1, 192, 192),
            (16, 200, 193),
            (40, 769, 224),
            (290, 390, 257),
        ] {
            let a: Vec<f32> = (0..rows * depth).map(value).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 / 64.0).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let turned = Packed::transposed(&b, columns, columns, depth);
            let view = View::new(&a, depth);
            if !pays(depth, columns) {
                println!("skipped: this processor has no AMX");
                return;
            }
            let [plain, by_transpose, biased] = [
                (packed.plain(), None),
                (turned.plain().t(), None),
                (packed.plain(), Some(bias.as_slice())),
            ]
            .map(|(b, bias)| b.product_by(Scheme::InOrder, view, bias));
            assert_eq!(plain, by_transpose, "{rows}x{depth}x{columns}");
            let split = Split::new(turned.plain().t(), Precision::F32);
            assert_eq!(
                split.product(view, Some(&bias)),
                biased,
                "{rows}x{depth}x{columns}"
            );
            let mut added = vec![1.0; rows * columns];
            split.multiply_add(&mut added, view);
            let mut errors = [0.0f64; 2];
            for (place, found) in plain.iter().enumerate() {
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
                    assert!((f64::from(found) - exact - f64::from(beside)).abs() < 1e-5);
                }
            }
            assert!(
                errors[0] <= errors[1],
                "{rows}x{depth}x{columns}: {errors:?}"
            );
        }
    }

    /// In 16 bits, beside sums in f64 of the rounded elements, ties and what is not a number among them.
    #[test]
    fn products_are_those_of_rounded_elements() {
        if !is_available() {
            println!("skipped: this processor has no AMX");
            return;
        }
        let exact = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
        for (rows, depth, columns) in [(1, 1, 1), (13, 7, 33), (40, 1200, 70)] {
            let mut a: Vec<f32> = (0..rows * depth).map(value).collect();
            // Halfway between two bfloat16, of which one is even.
            a[0] = f32::from_bits(0x3f80_8000);
            a[depth / 2] = f32::from_bits(0xbf81_8000);
            let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 / 64.0).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let split = Split::new(packed.plain(), Precision::Bf16);
            let biased = split.product(View::new(&a, depth), Some(&bias));
            let mut added = vec![1.0; rows * columns];
            split.multiply_add(&mut added, View::new(&a, depth));
            for (place, (biased, added)) in biased.iter().zip(&added).enumerate() {
                let (i, j) = (place / columns, place % columns);
                let terms = (0..depth).map(|p| exact(a[i * depth + p]) * exact(b[p * columns + j]));
                let sum: f64 = terms.sum();
                assert!((f64::from(*biased) - sum - f64::from(bias[j])).abs() < 1e-5);
                assert!((f64::from(*added) - sum - 1.0).abs() < 1e-5);
            }
            a[0] = f32::NAN;
            let product = split.product(View::new(&a, depth), None);
            let first = &product[..columns];
            assert!(first.iter().all(|value| value.is_nan()));
        }
    }

    /// What a row is multiplied beside changes no bit of it.
    #[test]
    fn rows_do_not_depend_on_each_other() {
        let (rows, depth, columns) = (300, 400, 200);
        let a: Vec<f32> = (0..rows * depth).map(value).collect();
        let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
        let packed = Packed::rows(&b, columns, depth, columns);
        let all = packed.plain().product(View::new(&a, depth));
        for (first, count) in [(0, 1), (17, 1), (5, 31), (250, 50)] {
            let some = packed
                .plain()
                .product(View::new(&a[first * depth..][..count * depth], depth));
            assert_eq!(some, all[first * columns..][..count * columns]);
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let (rows, depth, columns) = (3, 192, 192);
        for odd in [
            f32::NAN,
            f32::from_bits(0x7fff_ffff),
            f32::INFINITY,
            f32::NEG_INFINITY,
        ] {
            let mut a = vec![1.0; rows * depth];
            a[depth + 40] = odd;
            let packed = Packed::rows(&vec![1.0; depth * columns], columns, depth, columns);
            let product = packed.plain().product(View::new(&a, depth));
            for (place, value) in product.iter().enumerate() {
                assert_eq!(value.is_finite(), place / columns != 1, "{odd}: {value}");
            }
        }
    }
}
