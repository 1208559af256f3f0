//! Products in f32 by integer arithmetic: each element is split into three digits of 8 bits (int8, Ozaki's scheme).
//!
//! Each row (or column) is scaled by its largest element to 24-bit fixed point, and each value is split into three int8
//! digits. The products of digits are added without any rounding, in one sum for each power of the base. The product of
//! the two last digits is too small to matter and is left out (Ozaki, Ogita, Oishi, Rump, "Error-free transformations
//! of matrix multiplication by using fast routines of matrix multiplication", 2012; with integers Ootomo, Ozaki,
//! Yokota, "DGEMM on integer matrix multiplication unit", 2024).

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::tile::{prefetch, Target, WriteMode, PANEL};
use super::registers::{load, Encoding, Registers, Side, TileRegister, ROWS, SUMS};
use super::Tiled;

/// Three digits for each element, each in a tile of its own, the most significant first. 16 rows are multiplied by 16
/// columns at once.
pub(super) struct SplitInt8;

/// The integer that the largest element becomes, a little less than three digits of 127.
const LARGEST: f32 = 8_355_000.0;

/// The value of 1 in the first digit, if the largest element is 1.
const UNIT: f32 = BASE * BASE / LARGEST;

/// Added to a number, it turns each digit into a byte from 0 to 255.
const MIDDLE: i32 = 0x80_8080;

/// Base of the digits.
const BASE: f32 = 256.0;

/// The least value that counts as the largest element, so that no unit is 0. Elements below it have fewer digits.
const LEAST: f32 = f32::from_bits(27 << 23);

impl Encoding for SplitInt8 {
    const DEPTH: usize = 64;
    const PIECES: usize = 3;
    const SIDE: usize = ROWS;
    const MOST_DEPTH: usize = 384;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_row(
        elements: &[f32],
        scales: Option<&[f32]>,
        tiles: &mut [TileRegister],
        row: usize,
    ) -> f32 {
        let mut largest = [_mm512_set1_epi32(LEAST.to_bits() as i32); 4];
        for first in (0..elements.len()).step_by(Self::DEPTH) {
            for (quarter, largest) in largest.iter_mut().enumerate() {
                *largest = larger(*largest, load(elements, scales, first + 16 * quarter));
            }
        }
        let [a, b, c, d] = largest;
        let largest = _mm512_max_epi32(_mm512_max_epi32(a, b), _mm512_max_epi32(c, d));
        let unit = f32::from_bits(_mm512_reduce_max_epi32(largest) as u32) * UNIT;
        let factors = _mm512_set1_ps(BASE * BASE / unit);
        // Puts the last digits of four elements together, then the middle ones, then the first ones.
        let by_digit = exchange();
        for (block, tiles) in tiles.chunks_exact_mut(Self::PIECES).enumerate() {
            let of = |quarter: usize| {
                let elements = load(elements, scales, block * Self::DEPTH + quarter);
                _mm512_shuffle_epi8(numbers(elements, factors), by_digit)
            };
            let [a, b, c, d] = [of(0), of(16), of(32), of(48)];
            let (low_ab, low_cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (high_ab, high_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            tiles[0].set_row(row, signed(_mm512_unpacklo_epi64(high_ab, high_cd)));
            tiles[1].set_row(row, signed(_mm512_unpackhi_epi64(low_ab, low_cd)));
            tiles[2].set_row(row, signed(_mm512_unpacklo_epi64(low_ab, low_cd)));
        }
        unit
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn units(panel: &[f32]) -> [f32; PANEL] {
        let mut largest = [_mm512_set1_epi32(LEAST.to_bits() as i32); PANEL / ROWS];
        for row in panel.chunks_exact(PANEL) {
            for (largest, elements) in largest.iter_mut().zip(row.chunks_exact(ROWS)) {
                *largest = larger(*largest, _mm512_loadu_ps(elements.as_ptr()));
            }
        }
        let mut units = [0.0; PANEL];
        for (largest, units) in largest.into_iter().zip(units.chunks_exact_mut(ROWS)) {
            let of = _mm512_mul_ps(_mm512_castsi512_ps(largest), _mm512_set1_ps(UNIT));
            _mm512_storeu_ps(units.as_mut_ptr(), of);
        }
        units
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn write_columns(
        block: &[f32],
        units: &[f32; PANEL],
        first: usize,
        tiles: &mut [TileRegister],
    ) {
        const ODD: __mmask32 = 0xaaaa_aaaa;
        const ODD_BYTES: __mmask64 = 0xaaaa_aaaa_aaaa_aaaa;
        let there = block.len() / PANEL;
        let units = _mm512_loadu_ps(units[first..][..ROWS].as_ptr());
        let factors = _mm512_div_ps(_mm512_set1_ps(BASE * BASE), units);
        let of = |row: usize| match row < there {
            true => numbers(
                _mm512_loadu_ps(block[row * PANEL + first..].as_ptr()),
                factors,
            ),
            false => _mm512_set1_epi32(MIDDLE),
        };
        for row in 0..ROWS {
            let four = 4 * four_of(row);
            let [a, b, c, d] = [of(four), of(four + 1), of(four + 2), of(four + 3)];
            let low_ac = _mm512_mask_blend_epi16(ODD, a, _mm512_slli_epi32::<16>(c));
            let low_bd = _mm512_mask_blend_epi16(ODD, b, _mm512_slli_epi32::<16>(d));
            let high_ac = _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(a), c);
            let high_bd = _mm512_mask_blend_epi16(ODD, _mm512_srli_epi32::<16>(b), d);
            let with =
                |even: __m512i, odd: __m512i| signed(_mm512_mask_blend_epi8(ODD_BYTES, even, odd));
            tiles[0].set_row(row, with(high_ac, _mm512_slli_epi16::<8>(high_bd)));
            tiles[1].set_row(row, with(_mm512_srli_epi16::<8>(low_ac), low_bd));
            tiles[2].set_row(row, with(low_ac, _mm512_slli_epi16::<8>(low_bd)));
        }
    }

    /// A share is a quarter of the rows of one tile.
    const SHARES: usize = 4 * Self::PIECES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn turn(
        tiled: &Tiled,
        column: usize,
        depth: usize,
        share: usize,
        to: &mut [TileRegister],
    ) {
        let (quarter, piece) = (share / Self::PIECES, share % Self::PIECES);
        let (from, from_quarter) = of_original(tiled, column, depth / ROWS + quarter);
        turn_quarter(&from[piece], from_quarter, &mut to[piece], quarter);
        let (coming, from_quarter) = of_original(tiled, column + PANEL, depth / ROWS + quarter);
        for four in 0..4 {
            prefetch(coming[piece].line(4 * four + from_quarter));
        }
    }

    #[inline(always)]
    unsafe fn multiply(
        registers: &mut Registers,
        target: &Target,
        rows: usize,
        [left, _]: [Side; 2],
        right: Side,
        mut beside: impl FnMut(usize),
    ) {
        let blocks = left.tiles.len() / Self::PIECES;
        debug_assert!(right.tiles.len() >= Self::PIECES * blocks);
        registers.clear();
        for block in 0..blocks {
            registers.add_split(
                left.tiles.as_ptr().wrapping_add(Self::PIECES * block),
                right.tiles.as_ptr().wrapping_add(Self::PIECES * block),
            );
            beside(block);
        }
        let mut sums = MaybeUninit::<[TileRegister; SUMS]>::uninit();
        registers.store(sums.as_mut_ptr());
        write(
            target,
            rows,
            sums.assume_init_ref(),
            left.units,
            right.units,
        );
    }
}

/// The tiles of the block of a strip that contains row `row`, and the quarter of the block's depth that begins at that
/// row. Zeros beyond the last row and the last strip.
fn of_original(tiled: &Tiled, row: usize, strip: usize) -> (&[TileRegister], usize) {
    static NONE: [TileRegister; SplitInt8::PIECES] = [TileRegister::ZEROS; SplitInt8::PIECES];
    let (block, quarter) = (row / SplitInt8::DEPTH, row % SplitInt8::DEPTH / ROWS);
    if row >= tiled.depth || strip * ROWS >= tiled.columns {
        return (&NONE, quarter);
    }
    let tiles = &tiled.strip::<SplitInt8>(strip).tiles[block * SplitInt8::PIECES..];
    (&tiles[..SplitInt8::PIECES], quarter)
}

/// Makes quarter `to_quarter` of the rows of a tile of the transpose: 16 elements of depth for 16 columns. Reads
/// them from the original's tile, where the transpose's columns are quarter `from_quarter` of the depth of 64, and
/// the transpose's depth is the 16 columns.
///
/// # Safety
/// As for [`Encoding::write_row`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn turn_quarter(
    from: &TileRegister,
    from_quarter: usize,
    to: &mut TileRegister,
    to_quarter: usize,
) {
    let of = |four: usize| from.row(4 * four + from_quarter);
    let [a, b, c, d] = [of(0), of(1), of(2), of(3)];
    // Transposes lanes of 16 bytes, then the bytes in each lane.
    let low_ab = _mm512_shuffle_i32x4::<0x44>(a, b);
    let low_cd = _mm512_shuffle_i32x4::<0x44>(c, d);
    let high_ab = _mm512_shuffle_i32x4::<0xee>(a, b);
    let high_cd = _mm512_shuffle_i32x4::<0xee>(c, d);
    let rows = [
        _mm512_shuffle_i32x4::<0x88>(low_ab, low_cd),
        _mm512_shuffle_i32x4::<0xdd>(low_ab, low_cd),
        _mm512_shuffle_i32x4::<0x88>(high_ab, high_cd),
        _mm512_shuffle_i32x4::<0xdd>(high_ab, high_cd),
    ];
    for (number, row) in rows.into_iter().enumerate() {
        to.set_row(
            4 * number + to_quarter,
            _mm512_shuffle_epi8(row, exchange()),
        );
    }
}

/// Which four elements of a block's depth go into a row of the right tiles, and into four bytes of each row of the left
/// ones. This order takes the fewest instructions to write.
fn four_of(row: usize) -> usize {
    row % 4 * 4 + row / 4
}

/// Combines the sums of all powers of the base, multiplies them by the units and writes them to `target`.
///
/// # Safety
/// As for [`Encoding::multiply`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn write(
    target: &Target,
    rows: usize,
    sums: &[TileRegister; SUMS],
    left: &[f32],
    right: &[f32],
) {
    let mask = ((1u32 << target.width.min(ROWS)) - 1) as __mmask16;
    let right = _mm512_maskz_loadu_ps(mask, right.as_ptr());
    let of_last = _mm512_set1_ps(1.0 / BASE);
    for (row, left) in left[..rows].iter().enumerate() {
        let sum = |power: usize| _mm512_cvtepi32_ps(sums[power].row(row));
        let last = _mm512_fmadd_ps(sum(3), of_last, sum(2));
        let middle = _mm512_fmadd_ps(last, of_last, sum(1));
        let all = _mm512_fmadd_ps(middle, of_last, sum(0));
        // Multiplies by one unit after the other, because the product of both might not be a number in f32's range.
        let all = _mm512_mul_ps(all, _mm512_set1_ps(*left));
        let out = target.out.wrapping_add(row * target.stride);
        let result = match target.mode {
            WriteMode::Set => _mm512_mul_ps(all, right),
            WriteMode::Add => _mm512_fmadd_ps(all, right, _mm512_maskz_loadu_ps(mask, out)),
            WriteMode::Bias(bias) => _mm512_fmadd_ps(all, right, _mm512_maskz_loadu_ps(mask, bias)),
        };
        _mm512_mask_storeu_ps(out, mask, result);
    }
}

/// The larger of `found` and the absolute values of the elements, compared as bits. NaN is larger than every number.
#[inline]
#[target_feature(enable = "avx512f")]
fn larger(found: __m512i, elements: __m512) -> __m512i {
    let amount = _mm512_set1_epi32(0x7fff_ffff);
    let bits = _mm512_and_si512(_mm512_castps_si512(elements), amount);
    _mm512_max_epi32(found, bits)
}

/// The elements times their factors, plus [`MIDDLE`], rounded to integers.
#[inline]
#[target_feature(enable = "avx512f")]
fn numbers(elements: __m512, factors: __m512) -> __m512i {
    let middle = _mm512_set1_ps(MIDDLE as f32);
    _mm512_cvtps_epi32(_mm512_fmadd_ps(elements, factors, middle))
}

/// The shuffle that transposes 4 by 4 bytes in each lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn exchange() -> __m512i {
    _mm512_set4_epi32(0x0f0b_0703, 0x0e0a_0602, 0x0d09_0501, 0x0c08_0400)
}

/// Turns bytes from 0 to 255 into digits from -128 to 127.
#[inline]
#[target_feature(enable = "avx512f")]
fn signed(digits: __m512i) -> __m512i {
    _mm512_xor_si512(digits, _mm512_set1_epi8(-128))
}
