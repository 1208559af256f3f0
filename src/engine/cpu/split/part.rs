//! A part of a product: so many rows by so much of the depth as stay in the second-level cache.

use std::arch::x86_64::_MM_HINT_T0;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::super::helpers::{share, share_items};
use super::super::operand::Operand;
use super::super::product::View;
use super::super::tile::amx::{Form, Registers, Side, Tile, ROWS};
use super::super::tile::x86::ask_for_rows;
use super::super::tile::{ask_for, slices, Mode, Pieces, Place, Target, LINE, PANEL};
use super::Split;

/// Rows that are multiplied at once: with as much of the depth as a [`Form`] has at most, their tiles are to stay in
/// the second-level cache.
const MOST_ROWS: usize = 256;

/// Panels that are worth another thread's time: it splits the first of them beside nothing else.
const LEAST_SHARED: usize = 6;

/// How many rows are asked for ahead of the one that is written.
const ROWS_AHEAD: usize = 4;

/// A matrix to multiply with.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    Split(&'a Split),
    /// It is written into tiles panel by panel as it is needed.
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

/// Tiles of rows, or of columns, and the units of their elements.
#[derive(Default)]
struct Written {
    tiles: Vec<Tile>,
    units: Vec<f32>,
}

impl Written {
    /// Room for so many of both.
    fn room(&mut self, tiles: usize, units: usize) -> (&mut [Tile], &mut [f32]) {
        self.tiles.resize(tiles.max(self.tiles.len()), Tile::ZEROS);
        self.units.resize(units.max(self.units.len()), 0.0);
        (&mut self.tiles[..tiles], &mut self.units[..units])
    }
}

/// What a thread makes of the panels that it writes.
#[derive(Default)]
struct Made {
    /// A panel of a transpose.
    room: Vec<f32>,
    /// The present panel and the next.
    tiles: [Vec<Tile>; 2],
}

thread_local! {
    /// The rows: for each 16 of them and each block of the depth, a tile of each piece.
    static LEFT: RefCell<Written> = RefCell::default();
    static MADE: RefCell<Made> = RefCell::default();
}

/// The parts that a depth is divided into: how many, and how deep all but the last are.
pub(super) fn parts<F: Form>(depth: usize) -> (usize, usize) {
    let parts = depth.div_ceil(F::MOST_DEPTH).max(1);
    (parts, depth.div_ceil(parts).next_multiple_of(F::DEPTH))
}

/// # Safety
/// As of [`super::multiply_whole`]; what is split is so in this form.
pub(super) unsafe fn multiply<F: Form>(place: Place, a: View, b: Right) {
    // Taken, not borrowed: who waits for a helper may help another.
    let mut left = LEFT.take();
    let (_, most) = parts::<F>(a.columns);
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
                form: PhantomData::<F>,
            };
            let mode = if first == 0 { place.mode } else { Mode::Add };
            // SAFETY: a part of what the caller vouches for.
            unsafe { part.multiply(Place { out, mode, ..place }, &mut left) };
        }
    }
    LEFT.set(left);
}

/// Some columns of `a`, times the rows of `b` from `first` on, where a part of the depth begins.
struct Part<'a, F> {
    a: View<'a>,
    b: Right<'a>,
    first: usize,
    form: PhantomData<F>,
}

impl<F: Form> Part<'_, F> {
    /// Columns of a panel that are multiplied with at once.
    const STRIPS: usize = PANEL / F::SIDE;

    /// # Safety
    /// As of [`multiply`].
    unsafe fn multiply(&self, place: Place, left: &mut Written) {
        // Asked for while the rows are written.
        self.coming(0).ask_for();
        let left = self.write_rows(left);
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
        self.a.columns.div_ceil(F::DEPTH)
    }

    /// Tiles of 16 rows, or columns.
    fn tiles(&self) -> usize {
        F::PIECES * self.blocks()
    }

    /// Groups of rows that are multiplied at once.
    fn groups(&self) -> usize {
        self.a.rows.div_ceil(F::SIDE)
    }

    /// What its part of a panel of `b` is read from.
    fn coming(&self, number: usize) -> Pieces {
        match self.b {
            Right::Whole(b) => b.pieces(number, self.depths()),
            Right::Split(split) => {
                let tiles = split.panel::<F>(number, self.depths()).tiles;
                Pieces {
                    first: tiles.as_ptr().cast(),
                    count: 1,
                    length: size_of_val(tiles) / size_of::<f32>(),
                    stride: 0,
                }
            }
        }
    }

    /// How many of `lines` are to be asked for beside each block of a panel's products.
    fn lines_at_once(&self, lines: usize) -> usize {
        lines.div_ceil((self.blocks() * Self::STRIPS * self.groups()).max(1))
    }

    fn write_rows<'b>(&self, left: &'b mut Written) -> Side<'b> {
        let (tiles, rows) = (self.tiles(), self.a.rows.next_multiple_of(ROWS));
        let (written, units) = left.room(rows / ROWS * tiles, rows);
        let groups = written
            .par_chunks_exact_mut(tiles)
            .zip(units.par_chunks_exact_mut(ROWS));
        share_items(
            groups.enumerate(),
            || (),
            |(), (group, (tiles, units))| {
                let rows = rows_of(&self.a, group * ROWS);
                for (row, (elements, unit)) in rows.zip(units).enumerate() {
                    let ahead = elements
                        .as_ptr()
                        .wrapping_add(ROWS_AHEAD * self.a.strides.0);
                    (0..elements.len())
                        .step_by(LINE)
                        .for_each(|first| ask_for(ahead.wrapping_add(first)));
                    // SAFETY: where this pays, the processor has the instructions.
                    *unit = unsafe { F::write_row(elements, tiles, row) };
                }
            },
        );
        Side {
            tiles: written,
            units,
        }
    }

    /// # Safety
    /// As of [`multiply`]; the registers are this thread's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn by_split(
        &self,
        mut registers: Registers,
        panels: Range<usize>,
        place: Place,
        left: Side,
        split: &Split,
    ) {
        let last = panels.end.saturating_sub(1);
        for number in panels {
            let mut lines = self.coming((number + 1).min(last)).lines();
            let right = split.panel::<F>(number, self.depths());
            let lines_at_once = self.lines_at_once(size_of_val(right.tiles) / 64);
            self.by_panel(&mut registers, number, place, left, right, |_, _, _| {
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
        left: Side,
        b: Operand,
        Made { room, tiles }: &mut Made,
    ) {
        if panels.is_empty() {
            return;
        }
        let of_panel = 2 * self.tiles();
        let [mut present, mut next] = tiles.each_mut().map(|tiles| {
            tiles.resize(of_panel.max(tiles.len()), Tile::ZEROS);
            &mut tiles[..of_panel]
        });
        let [room] = slices(room, b.room(self.a.columns));
        let first = b.panel(panels.start, self.depths(), room);
        let mut units = F::units(first);
        write_panel::<F>(first, &units, present);
        let (last, groups) = (panels.end - 1, self.groups());
        let lines_at_once = self.lines_at_once(self.a.columns * PANEL / LINE);
        for number in panels {
            // Written for the next panel, asked for for the one after it.
            let coming = match number < last {
                true => b.panel(number + 1, self.depths(), room),
                false => &[],
            };
            let units_of_next = F::units(coming);
            let mut lines = self.coming((number + 2).min(last)).lines();
            let right = Side {
                tiles: present,
                units: &units,
            };
            self.by_panel(
                &mut registers,
                number,
                place,
                left,
                right,
                |strip, group, block| {
                    lines.by_ref().take(lines_at_once).for_each(ask_for);
                    if !coming.is_empty() {
                        let rows = group * ROWS / groups..(group + 1) * ROWS / groups;
                        write_block::<F>(coming, &units_of_next, strip, next, block, rows);
                    }
                },
            );
            units = units_of_next;
            std::mem::swap(&mut present, &mut next);
        }
    }

    /// The product with one panel. `beside` is called with each strip of it, each group of rows and each block.
    ///
    /// # Safety
    /// As of [`multiply`]; the registers are this thread's.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    unsafe fn by_panel(
        &self,
        registers: &mut Registers,
        number: usize,
        place: Place,
        left: Side,
        right: Side,
        mut beside: impl FnMut(usize, usize, usize),
    ) {
        let (columns, groups) = (self.b.columns(), self.groups());
        let rows_at_once = F::SIDE.div_ceil(self.blocks());
        let target = |strip: usize, group: usize| {
            let first = number * PANEL + strip * F::SIDE;
            (first < columns).then(|| {
                let target = place.target(group * F::SIDE, first, columns);
                let width = target.width.min(F::SIDE);
                Target { width, ..target }
            })
        };
        for strip in 0..Self::STRIPS {
            let tiles = right.tiles.len() / Self::STRIPS;
            let right = Side {
                tiles: &right.tiles[strip * tiles..][..tiles],
                units: &right.units[strip * F::SIDE..],
            };
            for group in 0..groups {
                let Some(of_group) = target(strip, group) else {
                    // What is to be done beside is done for all.
                    (0..self.blocks()).for_each(|block| beside(strip, group, block));
                    continue;
                };
                let first = group * F::SIDE;
                let rows = (self.a.rows - first).min(F::SIDE);
                let of = |row: usize| match row < self.a.rows {
                    true => Side {
                        tiles: &left.tiles[row / ROWS * self.tiles()..][..self.tiles()],
                        units: &left.units[row..][..ROWS],
                    },
                    false => Side {
                        tiles: &[],
                        units: &[],
                    },
                };
                let written_next = match group + 1 < groups {
                    true => target(strip, group + 1),
                    false => target(strip + 1, 0),
                };
                F::multiply(
                    registers,
                    &of_group,
                    rows,
                    [of(first), of(first + ROWS)],
                    right,
                    |block| {
                        if let Some(target) = &written_next {
                            let rows = block * rows_at_once..(block + 1) * rows_at_once;
                            ask_for_rows::<_MM_HINT_T0>(target, rows, F::SIDE);
                        }
                        beside(strip, group, block);
                    },
                );
            }
        }
    }
}

/// Writes a panel `(depth, 32)` into tiles: one strip after the other, in it one block after the other.
///
/// # Safety
/// As of [`Form::write_columns`].
pub(super) unsafe fn write_panel<F: Form>(panel: &[f32], units: &[f32; PANEL], tiles: &mut [Tile]) {
    for strip in 0..PANEL / F::SIDE {
        for block in 0..panel.len().div_ceil(F::DEPTH * PANEL) {
            write_block::<F>(panel, units, strip, tiles, block, 0..ROWS);
        }
    }
}

/// Writes some rows of the tiles of a block of a panel.
///
/// # Safety
/// As of [`Form::write_columns`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn write_block<F: Form>(
    panel: &[f32],
    units: &[f32; PANEL],
    strip: usize,
    tiles: &mut [Tile],
    block: usize,
    rows: Range<usize>,
) {
    let size = F::DEPTH * PANEL;
    let elements = &panel[block * size..panel.len().min((block + 1) * size)];
    let (of_strip, of_block) = (tiles.len() / (PANEL / F::SIDE), F::PIECES * F::SIDE / ROWS);
    let tiles = &mut tiles[strip * of_strip + block * of_block..][..of_block];
    F::write_columns(elements, units, strip, tiles, rows);
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
