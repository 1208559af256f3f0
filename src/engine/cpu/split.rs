//! Products on registers for bfloat16, which multiply 16 times as fast as those for f32 where a processor has AMX
//! ([`Registers`]).
//!
//! In f32: each element is split into three bfloat16 whose sum it is, and of the nine products of two elements'
//! pieces the six largest are added up in f32 (Henry, Tang, Heinecke, "Leveraging the bfloat16 artificial
//! intelligence datatype for higher-precision computations", ARITH 2019). What is left out is smaller than the
//! rounding of the sums. In 16 bits each element is rounded to one piece.
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
pub(super) use super::tile::amx::is_available;
use super::tile::amx::{split_pair_of_rows, split_row, Registers, Tile, DEPTH, ROWS};
use super::tile::x86::ask_for_rows;
use super::tile::{ask_for, slices, Mode, Pieces, Place, LINE, PANEL};
use crate::engine::{profile, Precision};

/// Rows that are multiplied at once, and tiles that 16 of them are split into at most: all of them are to stay in the
/// second-level cache.
const MOST_ROWS: usize = 256;
const MOST_TILES: usize = 36;

/// Panels that are worth another thread's time: it splits the first of them beside nothing else.
const LEAST_SHARED: usize = 6;

/// How many rows are asked for ahead of the one that is split.
const ROWS_AHEAD: usize = 4;

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

/// A matrix that was split once: for each panel and each block of its depth, the left and the right tile of each
/// piece.
pub(super) struct Split {
    depth: usize,
    columns: usize,
    precision: Precision,
    tiles: Vec<Tile>,
}

/// Pieces of an element.
fn pieces(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 3,
        Precision::Bf16 => 1,
    }
}

impl Split {
    /// Splits a matrix, where [`is_available`].
    pub(super) fn new(matrix: Operand, precision: Precision) -> Self {
        assert!(is_available(), "this processor has no tile registers");
        let (depth, columns) = matrix.shape();
        let (blocks, panels) = (depth.div_ceil(DEPTH), columns.div_ceil(PANEL));
        let tiles_of_panel = 2 * pieces(precision) * blocks;
        let mut tiles = vec![Tile::ZEROS; panels * tiles_of_panel];
        let mut room = vec![0.0; matrix.room(depth)];
        for (number, tiles) in tiles.chunks_exact_mut(tiles_of_panel.max(1)).enumerate() {
            let panel = matrix.panel(number, 0..depth, &mut room);
            for block in 0..blocks {
                // SAFETY: the processor has the instructions.
                unsafe {
                    match precision {
                        Precision::F32 => split_block::<3>(panel, tiles, block, 0..ROWS),
                        Precision::Bf16 => split_block::<1>(panel, tiles, block, 0..ROWS),
                    }
                }
            }
        }
        Split {
            depth,
            columns,
            precision,
            tiles,
        }
    }

    /// `(depth, columns)`
    pub(super) fn shape(&self) -> (usize, usize) {
        (self.depth, self.columns)
    }

    /// `a b (rows, columns)`, where this is `b`, and `bias (columns)` added to each row.
    pub(super) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        let count = a.rows * self.columns;
        let mut out: Vec<f32> = Vec::with_capacity(count);
        let (stride, mode) = (self.columns, Mode::result(bias, self.columns));
        // SAFETY: there is room for `count` elements, and each is written before the length is set.
        unsafe {
            let out_place = out.as_mut_ptr();
            self.multiply(
                Place {
                    out: out_place,
                    stride,
                    mode,
                },
                a,
            );
            out.set_len(count);
        }
        out
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
            Precision::F32 => multiply::<3>(place, a, Right::Split(self)),
            Precision::Bf16 => multiply::<1>(place, a, Right::Split(self)),
        }
    }

    /// The tiles of a panel, from one block on.
    fn panel(&self, number: usize, blocks: Range<usize>) -> &[Tile] {
        let tiles = 2 * pieces(self.precision);
        let of_panel = &self.tiles[number * tiles * self.depth.div_ceil(DEPTH)..];
        &of_panel[tiles * blocks.start..tiles * blocks.end]
    }
}

/// A matrix to multiply with.
#[derive(Clone, Copy)]
enum Right<'a> {
    Split(&'a Split),
    /// It is split panel by panel as it is needed.
    Whole(Operand<'a>),
}

impl Right<'_> {
    fn columns(&self) -> usize {
        match self {
            Right::Split(split) => split.columns,
            Right::Whole(operand) => operand.shape().1,
        }
    }
}

/// What a thread makes of the panels that it splits.
#[derive(Default)]
struct Made {
    /// A panel of a transpose.
    room: Vec<f32>,
    /// What the present panel and the next are split into.
    tiles: [Vec<Tile>; 2],
}

thread_local! {
    /// What the rows are split into: for each 16 of them and each block of the depth, a tile of each piece.
    static LEFT: RefCell<Vec<Tile>> = RefCell::default();
    static MADE: RefCell<Made> = RefCell::default();
}

/// `a b` at a place, in f32.
///
/// # Safety
/// [`pays`]; `a` has as many columns as `b` has depth, one after the other; the place is as [`Operand::multiply`]
/// asks.
pub(super) unsafe fn multiply_whole(place: Place, a: View, b: Operand) {
    multiply::<3>(place, a, Right::Whole(b));
}

/// # Safety
/// As of [`multiply_whole`]; what is split is split into as many pieces.
unsafe fn multiply<const PIECES: usize>(place: Place, a: View, b: Right) {
    // Taken, not borrowed: who waits for a helper may help another.
    let mut left = LEFT.take();
    let parts = a.columns.div_ceil(MOST_TILES / PIECES * DEPTH);
    let most = a.columns.div_ceil(parts).next_multiple_of(DEPTH);
    for row in (0..a.rows).step_by(MOST_ROWS) {
        let out = place.out.wrapping_add(row * place.stride);
        for first in (0..a.columns).step_by(most) {
            let part = Part::<PIECES> {
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

/// Some columns of `a`, times the rows of `b` from `first` on, which is a multiple of [`DEPTH`].
struct Part<'a, const PIECES: usize> {
    a: View<'a>,
    b: Right<'a>,
    first: usize,
}

impl<const PIECES: usize> Part<'_, PIECES> {
    /// # Safety
    /// As of [`multiply`].
    unsafe fn multiply(&self, place: Place, left: &mut Vec<Tile>) {
        // Asked for while the rows are split.
        self.coming(0).ask_for();
        self.split_rows(left);
        let left = &*left;
        share(
            0..self.b.columns().div_ceil(PANEL),
            LEAST_SHARED,
            &|panels| {
                // SAFETY: the registers are available where this pays, and nothing within uses them too.
                unsafe {
                    let registers = Registers::new();
                    match self.b {
                        Right::Split(split) => self.by_split(registers, panels, place, left, split),
                        Right::Whole(b) => MADE.with_borrow_mut(|made| {
                            self.by_whole(registers, panels, place, left, b, made)
                        }),
                    }
                };
            },
        );
    }

    /// Its rows of `b`.
    fn depths(&self) -> Range<usize> {
        self.first..self.first + self.a.columns
    }

    /// Blocks of its depth.
    fn blocks(&self) -> usize {
        self.a.columns.div_ceil(DEPTH)
    }

    /// Pairs of tiles that the rows have, the last perhaps less.
    fn groups(&self) -> usize {
        self.a.rows.div_ceil(2 * ROWS)
    }

    /// What its part of a panel of `b` is read from.
    fn coming(&self, number: usize) -> Pieces {
        match self.b {
            Right::Whole(b) => b.pieces(number, self.depths()),
            Right::Split(split) => {
                let tiles = split.panel(number, self.blocks_of_b());
                Pieces {
                    first: tiles.as_ptr().cast(),
                    count: 1,
                    length: size_of_val(tiles) / size_of::<f32>(),
                    stride: 0,
                }
            }
        }
    }

    /// Which blocks of `b` those are.
    fn blocks_of_b(&self) -> Range<usize> {
        let first = self.first / DEPTH;
        first..first + self.blocks()
    }

    fn split_rows(&self, left: &mut Vec<Tile>) {
        let tiles = PIECES * self.blocks();
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
                    // SAFETY: where this pays, the processor has the instructions.
                    unsafe { split_whole_row::<PIECES>(elements, ahead, tiles, row) };
                }
            },
        );
    }

    /// # Safety
    /// As of [`multiply`]; the registers are this thread's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn by_split(
        &self,
        mut registers: Registers,
        panels: Range<usize>,
        place: Place,
        left: &[Tile],
        split: &Split,
    ) {
        let last = panels.end - 1;
        for number in panels {
            let mut lines = self.coming((number + 1).min(last)).lines();
            let lines_at_once = (2 * PIECES * size_of::<Tile>() / 64).div_ceil(self.groups());
            let right = split.panel(number, self.blocks_of_b());
            self.by_panel(&mut registers, number, last, place, left, right, |_, _| {
                lines.by_ref().take(lines_at_once).for_each(ask_for);
            });
        }
    }

    /// # Safety
    /// As of [`multiply`]; the registers are this thread's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn by_whole(
        &self,
        mut registers: Registers,
        panels: Range<usize>,
        place: Place,
        left: &[Tile],
        b: Operand,
        Made { room, tiles }: &mut Made,
    ) {
        let needed = 2 * PIECES * self.blocks();
        let [mut present, mut next] = tiles.each_mut().map(|tiles| {
            tiles.resize(needed.max(tiles.len()), Tile::ZEROS);
            &mut tiles[..needed]
        });
        let [room] = slices(room, b.room(self.a.columns));
        let first = b.panel(panels.start, self.depths(), room);
        for block in 0..self.blocks() {
            split_block::<PIECES>(first, present, block, 0..ROWS);
        }
        let (last, groups) = (panels.end - 1, self.groups());
        let lines_at_once = (DEPTH * PANEL / LINE).div_ceil(groups);
        for number in panels {
            // Split for the next panel, asked for for the one after it.
            let coming = match number < last {
                true => b.panel(number + 1, self.depths(), room),
                false => &[],
            };
            let mut lines = self.coming((number + 2).min(last)).lines();
            self.by_panel(
                &mut registers,
                number,
                last,
                place,
                left,
                present,
                |group, block| {
                    lines.by_ref().take(lines_at_once).for_each(ask_for);
                    if !coming.is_empty() {
                        let share = group * ROWS / groups..(group + 1) * ROWS / groups;
                        split_block::<PIECES>(coming, next, block, share);
                    }
                },
            );
            std::mem::swap(&mut present, &mut next);
        }
    }

    /// The product with one panel, of which `right` are the tiles. `beside` is called with each group and each
    /// block.
    ///
    /// # Safety
    /// As of [`multiply`]; the registers are this thread's.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn by_panel(
        &self,
        registers: &mut Registers,
        number: usize,
        last: usize,
        place: Place,
        left: &[Tile],
        right: &[Tile],
        mut beside: impl FnMut(usize, usize),
    ) {
        let (columns, tiles, groups) = (self.b.columns(), PIECES * self.blocks(), self.groups());
        let rows_at_once = (2 * ROWS).div_ceil(self.blocks());
        for group in 0..groups {
            let row = group * 2 * ROWS;
            let rows = (self.a.rows - row).min(2 * ROWS);
            let of = |row: usize| &left[row / ROWS * tiles..][..tiles];
            let below = if rows > ROWS { of(row + ROWS) } else { &[] };
            let written_next = match group + 1 < groups {
                true => place.target(row + 2 * ROWS, number * PANEL, columns),
                false => place.target(0, (number + 1).min(last) * PANEL, columns),
            };
            let target = place.target(row, number * PANEL, columns);
            registers.multiply::<PIECES>(&target, rows, [of(row), below], right, |block| {
                let rows = block * rows_at_once..(block + 1) * rows_at_once;
                ask_for_rows::<_MM_HINT_T0>(&written_next, rows, PANEL);
                beside(group, block);
            });
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

/// Splits a row into row `row` of the tiles of its blocks, and asks for the one that is `ahead`.
///
/// # Safety
/// As of [`split_row`].
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split_whole_row<const PIECES: usize>(
    elements: &[f32],
    ahead: *const f32,
    tiles: &mut [Tile],
    row: usize,
) {
    let blocks = elements.chunks(DEPTH).zip(tiles.chunks_exact_mut(PIECES));
    for (block, (elements, tiles)) in blocks.enumerate() {
        ask_for(ahead.wrapping_add(block * DEPTH));
        ask_for(ahead.wrapping_add(block * DEPTH + LINE));
        split_row::<PIECES>(elements, tiles, row);
    }
}

/// Splits rows `rows` and those 16 further on of a block of a panel.
///
/// # Safety
/// As of [`split_pair_of_rows`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn split_block<const PIECES: usize>(
    panel: &[f32],
    tiles: &mut [Tile],
    block: usize,
    rows: Range<usize>,
) {
    const BLOCK: usize = DEPTH * PANEL;
    let elements = &panel[block * BLOCK..panel.len().min((block + 1) * BLOCK)];
    let tiles = &mut tiles[2 * PIECES * block..][..2 * PIECES];
    rows.for_each(|row| split_pair_of_rows::<PIECES>(elements, tiles, row));
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
