//! Products in f32 on registers for bfloat16, which multiply 16 times as fast where a processor has AMX: each
//! element is split into three bfloat16 whose sum it is, and of the nine products of two elements' pieces the six
//! largest are added up in f32 (Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for
//! higher-precision computations", ARITH 2019). What is left out is smaller than the rounding of the sums.
//!
//! Each element of a result is one sum in the order of `depth`, whatever the number of rows and what they hold.

use std::arch::x86_64::_MM_HINT_T0;
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::helpers::{share, share_items};
use super::operand::Operand;
use super::product::View;
use super::strassen::LEAST_SIDE;
use super::tile::amx::{
    is_available, split_pair_of_rows, split_row, Registers, Tile, DEPTH, PIECES, ROWS,
};
use super::tile::x86::ask_for_rows;
use super::tile::{ask_for, slices, Mode, Place, LINE, PANEL};

/// Rows, and depth, of what is multiplied at once: what they are split into is to stay in the second-level cache.
const MOST_ROWS: usize = 256;
const MOST_DEPTH: usize = 384;

/// How many rows are asked for ahead of the one that is split.
const ROWS_AHEAD: usize = 4;

/// Whether `a b` is to be computed so. The number of rows has no say: a row's result is to be the same beside any.
pub(super) fn pays(a: &View, columns: usize) -> bool {
    a.columns.min(columns) >= LEAST_SIDE && a.strides.1 == 1 && is_available()
}

/// What a thread makes of the panels that it multiplies with.
#[derive(Default)]
struct Right {
    /// A panel of a transpose.
    room: Vec<f32>,
    /// What the present panel and the next are split into.
    tiles: [Vec<Tile>; 2],
}

thread_local! {
    /// What the rows are split into: for each 16 of them and each block of the depth, a tile of each piece.
    static LEFT: RefCell<Vec<Tile>> = RefCell::default();
    static RIGHT: RefCell<Right> = RefCell::default();
}

/// `a b` at a place.
///
/// # Safety
/// [`pays`]; `a` has as many columns as `b` has depth; the place is as [`Operand::multiply`] asks.
pub(super) unsafe fn multiply(place: Place, a: View, b: Operand) {
    // Taken, not borrowed: who waits for a helper may help another.
    let mut left = LEFT.take();
    let parts = a.columns.div_ceil(MOST_DEPTH);
    let most = a.columns.div_ceil(parts).next_multiple_of(DEPTH);
    for row in (0..a.rows).step_by(MOST_ROWS) {
        let out = place.out.wrapping_add(row * place.stride);
        for first in (0..a.columns).step_by(most) {
            let part = Part {
                a: View {
                    rows: MOST_ROWS.min(a.rows - row),
                    columns: most.min(a.columns - first),
                    data: &a.data[row * a.strides.0 + first..],
                    ..a
                },
                b,
                first,
            };
            let mode = if first == 0 { place.mode } else { Mode::Add };
            // SAFETY: a part of what the caller vouches for.
            unsafe { part.multiply(Place { out, mode, ..place }, &mut left) };
        }
    }
    LEFT.set(left);
}

/// Some columns of `a`, times the rows of `b` from `first` on.
struct Part<'a> {
    a: View<'a>,
    b: Operand<'a>,
    first: usize,
}

impl Part<'_> {
    /// # Safety
    /// As of [`multiply`].
    unsafe fn multiply(&self, place: Place, left: &mut Vec<Tile>) {
        // Asked for while the rows are split.
        self.b.pieces(0, self.depths()).ask_for();
        self.split_rows(left);
        let left = &*left;
        let panels = self.b.shape().1.div_ceil(PANEL);
        share(0..panels, 1, &|panels| {
            RIGHT.with_borrow_mut(|right| {
                // SAFETY: the registers are available where this pays, and nothing within uses them too.
                unsafe { self.multiply_panels(panels, place, left, right) };
            });
        });
    }

    /// Its rows of `b`.
    fn depths(&self) -> Range<usize> {
        self.first..self.first + self.a.columns
    }

    /// Blocks of the depth.
    fn blocks(&self) -> usize {
        self.a.columns.div_ceil(DEPTH)
    }

    /// Tiles that 16 rows are split into.
    fn tiles_of_rows(&self) -> usize {
        PIECES * self.blocks()
    }

    fn split_rows(&self, left: &mut Vec<Tile>) {
        let tiles = self.tiles_of_rows();
        let needed = self.a.rows.div_ceil(ROWS) * tiles;
        if left.len() < needed {
            left.resize(needed, Tile::ZEROS);
        }
        let groups = left[..needed].par_chunks_exact_mut(tiles).enumerate();
        share_items(
            groups,
            || (),
            |(), (group, tiles)| {
                for (row, elements) in rows_of(&self.a, group * ROWS).enumerate() {
                    let ahead = elements
                        .as_ptr()
                        .wrapping_add(ROWS_AHEAD * self.a.strides.0);
                    (0..elements.len())
                        .step_by(LINE)
                        .for_each(|place| ask_for(ahead.wrapping_add(place)));
                    let blocks = elements.chunks(DEPTH).zip(tiles.chunks_exact_mut(PIECES));
                    for (elements, tiles) in blocks {
                        // SAFETY: where this pays, the processor has the instructions.
                        unsafe { split_row(elements, tiles, row) };
                    }
                }
            },
        );
    }

    /// # Safety
    /// As of [`multiply`]; nobody else uses this thread's registers.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn multiply_panels(
        &self,
        panels: Range<usize>,
        place: Place,
        left: &[Tile],
        Right { room, tiles }: &mut Right,
    ) {
        let depths = self.depths();
        let needed = 2 * self.tiles_of_rows();
        let [mut present, mut next] = tiles.each_mut().map(|tiles| {
            tiles.resize(needed.max(tiles.len()), Tile::ZEROS);
            &mut tiles[..needed]
        });
        let [room] = slices(room, self.b.room(depths.len()));
        let first = self.b.panel(panels.start, depths.clone(), room);
        (0..self.blocks()).for_each(|block| split_rows_of_panel(first, present, block, 0..ROWS));

        let groups = self.a.rows.div_ceil(2 * ROWS);
        let (columns, tiles_of_rows) = (self.b.shape().1, self.tiles_of_rows());
        let rows_at_once = (2 * ROWS).div_ceil(self.blocks());
        let lines_at_once = (DEPTH * PANEL / LINE).div_ceil(groups);
        let mut registers = Registers::new();
        let last = panels.end - 1;
        for number in panels {
            // Split for the next panel, asked for for the one after it.
            let coming = match number < last {
                true => self.b.panel(number + 1, depths.clone(), room),
                false => &[],
            };
            let mut lines = self
                .b
                .pieces((number + 2).min(last), depths.clone())
                .lines();
            for group in 0..groups {
                let row = group * 2 * ROWS;
                let rows = (self.a.rows - row).min(2 * ROWS);
                let of = |row: usize| &left[row / ROWS * tiles_of_rows..][..tiles_of_rows];
                let below = if rows > ROWS { of(row + ROWS) } else { &[] };
                let written_next = match group + 1 < groups {
                    true => place.target(row + 2 * ROWS, number * PANEL, columns),
                    false => place.target(0, (number + 1).min(last) * PANEL, columns),
                };
                // Beside each block of the depth, this group's share of the same block of the panel that comes.
                let share = group * ROWS / groups..(group + 1) * ROWS / groups;
                let target = place.target(row, number * PANEL, columns);
                registers.multiply(&target, rows, [of(row), below], present, |block| {
                    lines.by_ref().take(lines_at_once).for_each(ask_for);
                    let rows = block * rows_at_once..(block + 1) * rows_at_once;
                    ask_for_rows::<_MM_HINT_T0>(&written_next, rows, PANEL);
                    if !coming.is_empty() {
                        split_rows_of_panel(coming, next, block, share.clone());
                    }
                });
            }
            std::mem::swap(&mut present, &mut next);
        }
    }
}

/// The 16 rows from `first` on, or those that are left.
fn rows_of<'a>(a: &View<'a>, first: usize) -> impl Iterator<Item = &'a [f32]> {
    let View {
        data,
        columns,
        strides,
        ..
    } = *a;
    let rows = first..a.rows.min(first + ROWS);
    rows.map(move |row| &data[row * strides.0..][..columns])
}

/// Splits the rows `rows` and those 16 further on of a block of a panel.
///
/// # Safety
/// As of [`split_pair_of_rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split_rows_of_panel(panel: &[f32], tiles: &mut [Tile], block: usize, rows: Range<usize>) {
    const BLOCK: usize = DEPTH * PANEL;
    let elements = &panel[block * BLOCK..panel.len().min((block + 1) * BLOCK)];
    let tiles = &mut tiles[2 * PIECES * block..][..2 * PIECES];
    rows.for_each(|row| split_pair_of_rows(elements, tiles, row));
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
            if !pays(&view, columns) {
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
            let mut added = vec![1.0; rows * columns];
            packed.plain().multiply_add(&mut added, columns, view);
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
