//! The parts of a product: as many rows and as much of the depth as stay in the second-level cache.

use std::arch::x86_64::_MM_HINT_T0;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::super::super::helpers::{share, share_items};
use super::super::tile::x86::ask_for_rows;
use super::super::tile::{prefetch, Destination, Target, WriteMode, LINE, PANEL};
use super::super::view::View;
use super::registers::{Encoding, Registers, Side, TileRegister, ROWS};
use super::TiledOperand;

/// The largest number of rows in a part. With the largest depth of an [`Encoding`], their tiles have to stay in the
/// second-level cache.
const MOST_ROWS: usize = 256;

/// The least number of panels that is worth another thread's time: the first panel of a transpose is made before any
/// product, not alongside one.
const LEAST_SHARED: usize = 6;

/// How many rows ahead of the one that is being written are prefetched.
const ROWS_AHEAD: usize = 4;

/// Rows of the left matrix in tiles, with the units of their elements.
#[derive(Default)]
struct TiledRows {
    tiles: Vec<TileRegister>,
    units: Vec<f32>,
}

thread_local! {
    /// The rows of the left matrix: a tile for each 16 rows, each block of the depth and each piece.
    static LEFT: RefCell<TiledRows> = RefCell::default();
    /// The tiles of the present panel of a transpose, and of the next.
    static MADE: RefCell<[Vec<TileRegister>; 2]> = RefCell::default();
}

/// Writes `a b` to `place`, part by part.
///
/// # Safety
/// The registers are available, and `b` was written in form `F`. `a` has as many columns as the depth of `b`, and each
/// of its rows is contiguous. `place` has `a.rows` rows of as many columns as `b`, and nothing else accesses them
/// meanwhile.
pub(super) unsafe fn multiply<F: Encoding>(place: Destination, a: View, b: TiledOperand) {
    // Taken, not borrowed: while this thread waits for a helper, it may help another product that needs the buffer.
    let mut left = LEFT.take();
    let parts = a.columns.div_ceil(F::MOST_DEPTH);
    let most = a.columns.div_ceil(parts).next_multiple_of(F::DEPTH);
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
            let mode = if first == 0 {
                place.mode
            } else {
                WriteMode::Add
            };
            // SAFETY: the part lies within what the caller guarantees.
            unsafe { part.multiply(Destination { out, mode, ..place }, &mut left) };
        }
    }
    LEFT.set(left);
}

/// The product of some columns of `a` with the rows of `b` from `first` on. `first` is a multiple of
/// [`Encoding::DEPTH`].
struct Part<'a, F> {
    a: View<'a>,
    b: TiledOperand<'a>,
    first: usize,
    form: PhantomData<F>,
}

impl<F: Encoding> Part<'_, F> {
    /// The number of strips in a panel. A strip is the columns that are multiplied at once.
    const STRIPS: usize = PANEL / F::SIDE;

    /// # Safety
    /// As for [`multiply`].
    unsafe fn multiply(&self, place: Destination, left: &mut TiledRows) {
        // Prefetches the first panel while the rows are written.
        if !self.b.is_transposed {
            (0..Self::STRIPS)
                .for_each(|strip| Lines::of(self.strip(strip).tiles).prefetch(usize::MAX));
        }
        let left = self.write_rows(left);
        let panels = self.b.shape().1.div_ceil(PANEL);
        share(0..panels, LEAST_SHARED, &|panels| {
            // SAFETY: the registers are available, and nothing that is called here uses them as well.
            unsafe {
                let registers = Registers::new();
                match self.b.is_transposed {
                    false => self.by_panels(registers, panels, place, left),
                    true => MADE.with_borrow_mut(|made| {
                        self.by_turned_panels(registers, panels, place, left, made)
                    }),
                }
            };
        });
    }

    /// The number of blocks in the part's depth.
    fn blocks(&self) -> usize {
        self.a.columns.div_ceil(F::DEPTH)
    }

    /// The number of tiles that 16 rows take.
    fn tiles(&self) -> usize {
        F::PIECES * self.blocks()
    }

    /// The number of tiles that a strip takes.
    fn tiles_of_strip(&self) -> usize {
        self.tiles() * F::SIDE / ROWS
    }

    /// The number of groups of rows. A group is the rows that are multiplied at once.
    fn groups(&self) -> usize {
        self.a.rows.div_ceil(F::SIDE)
    }

    /// The part's tiles of strip `number` of a matrix that is not transposed.
    fn strip(&self, number: usize) -> Side<'_> {
        let strip = self.b.tiled.strip::<F>(number);
        let first = self.first / F::DEPTH * F::PIECES * F::SIDE / ROWS;
        let tiles = &strip.tiles[first..][..self.tiles_of_strip()];
        Side { tiles, ..strip }
    }

    fn write_rows<'b>(&self, left: &'b mut TiledRows) -> Side<'b> {
        let (tiles, groups) = (self.tiles(), self.a.rows.div_ceil(ROWS));
        let TiledRows {
            tiles: written,
            units,
        } = left;
        written.resize((groups * tiles).max(written.len()), TileRegister::ZEROS);
        units.resize((groups * ROWS).max(units.len()), 0.0);
        let scales = self.b.scales().map(|scales| &scales[self.first..]);
        let groups = written[..groups * tiles]
            .par_chunks_exact_mut(tiles)
            .zip(units[..groups * ROWS].par_chunks_exact_mut(ROWS));
        share_items(
            groups.enumerate(),
            || (),
            |(), (group, (tiles, units))| {
                let rows = rows_of(&self.a, group * ROWS);
                for (row, (elements, unit)) in rows.zip(units).enumerate() {
                    let ahead = elements
                        .as_ptr()
                        .wrapping_add(ROWS_AHEAD * self.a.strides.0);
                    let lines = (0..elements.len()).step_by(LINE);
                    lines.for_each(|first| prefetch(ahead.wrapping_add(first)));
                    // SAFETY: the processor has the instructions.
                    *unit = unsafe { F::write_row(elements, scales, tiles, row) };
                }
            },
        );
        Side {
            tiles: written,
            units,
        }
    }

    /// # Safety
    /// As for [`multiply`]; the registers are this thread's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn by_panels(
        &self,
        mut registers: Registers,
        panels: Range<usize>,
        place: Destination,
        left: Side,
    ) {
        let last = panels.end.saturating_sub(1);
        for panel in panels {
            let of = |panel: usize, strip: usize| self.strip(panel * Self::STRIPS + strip);
            let right = |strip: usize| {
                let coming = of((panel + 1).min(last), strip).tiles;
                (of(panel, strip), Lines::of(coming))
            };
            self.by_panel(&mut registers, panel, place, left, right, |_, _, _| {});
        }
    }

    /// # Safety
    /// As for [`multiply`]; the registers are this thread's.
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn by_turned_panels(
        &self,
        mut registers: Registers,
        panels: Range<usize>,
        place: Destination,
        left: Side,
        made: &mut [Vec<TileRegister>; 2],
    ) {
        let (blocks, groups, tiles) = (self.blocks(), self.groups(), self.tiles_of_strip());
        let [mut present, mut next] = made.each_mut().map(|made| {
            made.resize((Self::STRIPS * tiles).max(made.len()), TileRegister::ZEROS);
            made.as_mut_slice()
        });
        for strip in 0..Self::STRIPS {
            for block in 0..blocks {
                self.turn(panels.start, strip, block, 0..F::SHARES, present);
            }
        }
        let last = panels.end.saturating_sub(1);
        // Computed once, because a division takes as long as a product of tiles.
        let shares: Vec<Range<usize>> = (0..groups)
            .map(|group| group * F::SHARES / groups..(group + 1) * F::SHARES / groups)
            .collect();
        for panel in panels {
            let right = |strip: usize| {
                let tiles = &present[strip * tiles..][..tiles];
                let units = &[1.0; PANEL];
                (Side { tiles, units }, Lines::of(&[]))
            };
            self.by_panel(
                &mut registers,
                panel,
                place,
                left,
                right,
                |strip, group, block| {
                    // Makes tiles of the next panel while the registers are busy.
                    if panel < last {
                        self.turn(panel + 1, strip, block, shares[group].clone(), next);
                    }
                },
            );
            std::mem::swap(&mut present, &mut next);
        }
    }

    /// Makes some shares of the tiles of one block, in a strip of a panel of the transpose.
    ///
    /// # Safety
    /// The processor has the instructions.
    #[inline(always)]
    unsafe fn turn(
        &self,
        panel: usize,
        strip: usize,
        block: usize,
        shares: Range<usize>,
        tiles: &mut [TileRegister],
    ) {
        let of_block = F::PIECES * F::SIDE / ROWS;
        let tiles = &mut tiles[strip * self.tiles_of_strip() + of_block * block..][..of_block];
        let column = panel * PANEL + strip * F::SIDE;
        for share in shares {
            F::turn(
                self.b.tiled,
                column,
                self.first + block * F::DEPTH,
                share,
                tiles,
            );
        }
    }

    /// Computes the product with one panel. `right` returns a strip of the panel, and the cache lines to prefetch
    /// during its products. During these products `beside` is called with the strip, each group of rows and each block.
    ///
    /// # Safety
    /// As for [`multiply`]; the registers are this thread's.
    #[inline(always)]
    unsafe fn by_panel<'b>(
        &self,
        registers: &mut Registers,
        panel: usize,
        place: Destination,
        left: Side,
        right: impl Fn(usize) -> (Side<'b>, Lines),
        mut beside: impl FnMut(usize, usize, usize),
    ) {
        let (columns, groups, tiles) = (self.b.shape().1, self.groups(), self.tiles());
        let rows_at_once = F::SIDE.div_ceil(self.blocks());
        let target = |strip: usize, group: usize| {
            let first = panel * PANEL + strip * F::SIDE;
            (first < columns).then(|| {
                let target = place.target(group * F::SIDE, first, columns);
                let width = target.width.min(F::SIDE);
                Target { width, ..target }
            })
        };
        for strip in 0..Self::STRIPS {
            let (right, mut coming) = right(strip);
            let lines_at_once = coming.count.div_ceil(groups * self.blocks());
            for group in 0..groups {
                let Some(of_group) = target(strip, group) else {
                    (0..self.blocks()).for_each(|block| beside(strip, group, block));
                    continue;
                };
                let written_next = match group + 1 < groups {
                    true => target(strip, group + 1),
                    false => target(strip + 1, 0),
                };
                let first = group * F::SIDE;
                let rows = (self.a.rows - first).min(F::SIDE);
                let of = |row: usize| match row < self.a.rows {
                    true => Side {
                        tiles: &left.tiles[row / ROWS * tiles..][..tiles],
                        units: &left.units[row..][..ROWS],
                    },
                    false => Side {
                        tiles: &[],
                        units: &[],
                    },
                };
                let sides = [of(first), of(first + ROWS)];
                F::multiply(registers, &of_group, rows, sides, right, |block| {
                    if let Some(target) = &written_next {
                        let rows = block * rows_at_once..(block + 1) * rows_at_once;
                        ask_for_rows::<_MM_HINT_T0>(target, rows, F::SIDE);
                    }
                    coming.prefetch(lines_at_once);
                    beside(strip, group, block);
                });
            }
        }
    }
}

/// Cache lines of tiles that are to be prefetched.
struct Lines {
    first: *const f32,
    count: usize,
}

impl Lines {
    fn of(tiles: &[TileRegister]) -> Self {
        Lines {
            first: tiles.as_ptr().cast(),
            count: tiles.len() * ROWS,
        }
    }

    /// Prefetches the next lines, at most `most` of them.
    #[inline(always)]
    fn prefetch(&mut self, most: usize) {
        for _ in 0..most.min(self.count) {
            prefetch(self.first);
            self.first = self.first.wrapping_add(LINE);
            self.count -= 1;
        }
    }
}

/// The 16 rows from `first` on, or fewer at the end.
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
