//! A part of a product: so many rows by so much of the depth as stay in the second-level cache.

use std::arch::x86_64::_MM_HINT_T0;
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::helpers::{share, share_items};
use super::super::operand::Operand;
use super::super::product::View;
use super::super::tile::amx::{split_row, Registers, Tile, DEPTH, ROWS};
use super::super::tile::x86::ask_for_rows;
use super::super::tile::{ask_for, slices, Mode, Pieces, Place, LINE, PANEL};
use super::{split_block, Split};

/// Rows that are multiplied at once, and tiles that 16 of them are split into at most: all of them are to stay in the
/// second-level cache.
const MOST_ROWS: usize = 256;
const MOST_TILES: usize = 36;

/// Panels that are worth another thread's time: it splits the first of them beside nothing else.
const LEAST_SHARED: usize = 6;

/// How many rows are asked for ahead of the one that is split.
const ROWS_AHEAD: usize = 4;

/// A matrix to multiply with.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
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

/// # Safety
/// As of [`super::multiply_whole`]; what is split is split into as many pieces.
pub(super) unsafe fn multiply<const PIECES: usize>(place: Place, a: View, b: Right) {
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
        let last = panels.end.saturating_sub(1);
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
        if panels.is_empty() {
            return;
        }
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
