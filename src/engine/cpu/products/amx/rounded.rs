//! Products of elements that are rounded to bfloat16, with sums in f32.

use std::arch::x86_64::*;

use super::super::tile::{prefetch, Target, WriteMode, PANEL};
use super::registers::{load, quarters, Encoding, Registers, Side, TileRegister, ROWS};
use super::Tiled;

/// Rounds each element to the nearest bfloat16; all units are 1. 32 rows are multiplied by 32 columns at once.
pub(super) struct Rounded;

impl Encoding for Rounded {
    const DEPTH: usize = 32;
    const PIECES: usize = 1;
    const SIDE: usize = PANEL;
    const MOST_DEPTH: usize = 1152;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_row(
        elements: &[f32],
        scales: Option<&[f32]>,
        tiles: &mut [TileRegister],
        row: usize,
    ) -> f32 {
        for (block, tile) in tiles.iter_mut().enumerate() {
            let of = |half: usize| load(elements, scales, block * Self::DEPTH + half * 16);
            tile.set_row(row, pairs(of(0), of(1)));
        }
        1.0
    }

    unsafe fn units(_: &[f32]) -> [f32; PANEL] {
        [1.0; PANEL]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_columns(
        block: &[f32],
        _: &[f32; PANEL],
        first: usize,
        tiles: &mut [TileRegister],
    ) {
        let there = block.len() / PANEL;
        for (half, tile) in tiles.iter_mut().enumerate() {
            let first = first + half * 16;
            let of = |row: usize| match row < there {
                true => _mm512_loadu_ps(block[row * PANEL + first..].as_ptr()),
                false => _mm512_setzero_ps(),
            };
            for row in 0..ROWS {
                tile.set_row(row, pairs(of(row), of(row + ROWS)));
            }
        }
    }

    /// A share is a quarter of the rows of both tiles.
    const SHARES: usize = 4;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn turn(
        tiled: &Tiled,
        column: usize,
        depth: usize,
        share: usize,
        to: &mut [TileRegister],
    ) {
        let [from, coming] = [column, column + PANEL].map(|row| of_original(tiled, row, depth));
        // Each pair holds two columns of the transpose; each column becomes a row of pairs.
        let [left, right] = [&from[0], &from[1]].map(|tile| turned(quarters(tile, share)));
        for (number, (left, right)) in left.into_iter().zip(right).enumerate() {
            let (first, second) = (
                _mm512_slli_epi32::<16>(right),
                _mm512_srli_epi32::<16>(left),
            );
            to[0].set_row(
                4 * share + number,
                _mm512_mask_blend_epi16(UPPER, left, first),
            );
            to[1].set_row(
                4 * share + number,
                _mm512_mask_blend_epi16(UPPER, second, right),
            );
        }
        for line in 4 * share..4 * share + 4 {
            coming.iter().for_each(|tile| prefetch(tile.line(line)));
        }
    }

    #[inline(always)]
    unsafe fn multiply(
        registers: &mut Registers,
        target: &Target,
        rows: usize,
        [above, below]: [Side; 2],
        right: Side,
        beside: impl FnMut(usize),
    ) {
        let tiles = [above.tiles, below.tiles];
        if rows.is_multiple_of(ROWS) && target.width == PANEL {
            return multiply_whole(registers, target, rows, tiles, right.tiles, beside);
        }
        // A target that is not whole is computed in a whole buffer and copied.
        let mut place = [[0.0f32; PANEL]; 2 * ROWS];
        let width = target.width;
        for (row, sums) in place.iter_mut().enumerate().take(rows) {
            let from = match target.mode {
                WriteMode::Set => continue,
                WriteMode::Add => target.out.add(row * target.stride).cast_const(),
                WriteMode::Bias(bias) => bias,
            };
            std::ptr::copy_nonoverlapping(from, sums.as_mut_ptr(), width);
        }
        let whole = Target {
            out: place.as_mut_ptr().cast(),
            stride: PANEL,
            width: PANEL,
            mode: WriteMode::Add,
        };
        let whole_rows = rows.next_multiple_of(ROWS);
        multiply_whole(registers, &whole, whole_rows, tiles, right.tiles, beside);
        for (row, sums) in place.iter().enumerate().take(rows) {
            let to = target.out.add(row * target.stride);
            std::ptr::copy_nonoverlapping(sums.as_ptr(), to, width);
        }
    }
}

/// [`Encoding::multiply`] for 16 or 32 rows and 32 columns.
#[inline(always)]
unsafe fn multiply_whole(
    registers: &mut Registers,
    target: &Target,
    rows: usize,
    [above, below]: [&[TileRegister]; 2],
    right: &[TileRegister],
    mut beside: impl FnMut(usize),
) {
    let has_below = rows > ROWS;
    let stride = 4 * target.stride;
    let out_below = target.out.wrapping_add(ROWS * target.stride);
    let base = match target.mode {
        WriteMode::Set => None,
        WriteMode::Add => Some((target.out.cast_const(), out_below.cast_const(), stride)),
        // A stride of 0 loads the bias into every row.
        WriteMode::Bias(bias) => Some((bias, bias, 0)),
    };
    match base {
        None => registers.clear(),
        Some((above, below, stride)) => {
            registers.load_sums(above, has_below.then_some(below), stride);
        }
    }
    debug_assert!(right.len() >= 2 * above.len() && (!has_below || below.len() >= above.len()));
    for block in 0..above.len() {
        let above = above.as_ptr().wrapping_add(block);
        let below = below.as_ptr().wrapping_add(block);
        let right = right.as_ptr().wrapping_add(2 * block);
        registers.add_rounded(above, if has_below { below } else { above }, right);
        beside(block);
    }
    registers.store_sums(target.out, has_below.then_some(out_below), stride);
}

/// The upper one of each pair.
const UPPER: __mmask32 = 0xaaaa_aaaa;

/// The tiles of the block that contains row `row`, in the columns from `column` on. Zeros beyond the last row and the
/// last column.
fn of_original(tiled: &Tiled, row: usize, column: usize) -> &[TileRegister] {
    const COUNT: usize = Rounded::SIDE / ROWS;
    static NONE: [TileRegister; COUNT] = [TileRegister::ZEROS; COUNT];
    if row >= tiled.depth || column >= tiled.columns {
        return &NONE;
    }
    let tiles = tiled.strip::<Rounded>(column / Rounded::SIDE).tiles;
    &tiles[row / Rounded::DEPTH * COUNT..][..COUNT]
}

/// Rows of a transpose from [`quarters`]: row `m` has element `m` of each row.
#[inline]
#[target_feature(enable = "avx512f")]
fn turned([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (low_ab, low_cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (high_ab, high_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(low_ab, low_cd),
        _mm512_unpackhi_epi64(low_ab, low_cd),
        _mm512_unpacklo_epi64(high_ab, high_cd),
        _mm512_unpackhi_epi64(high_ab, high_cd),
    ]
}

/// Rounds 16 elements of `x` and of `y` and puts them side by side in pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(x: __m512, y: __m512) -> __m512i {
    _mm512_mask_blend_epi16(UPPER, _mm512_srli_epi32::<16>(nearest(x)), nearest(y))
}

/// Rounds to the nearest bfloat16, in the upper half of each element's bits, as `half::bf16::from_f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn nearest(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let below_half = _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff));
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_mov_epi32(_mm512_add_epi32(bits, below_half), is_nan, quiet)
}
