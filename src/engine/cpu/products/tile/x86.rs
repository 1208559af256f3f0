//! The micro-kernels for AVX-512 and AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use super::register::Register;
use super::{Kernels, Target, Tile, WriteMode, LINE, MOST_ROWS, PANEL, STEPS_PER_LINE};

pub(in super::super) const AVX512: Kernels = Kernels { rows: rows_avx512 };

pub(in super::super) const AVX2: Kernels = Kernels { rows: rows_avx2 };

/// An array of the instances of a function for each number of rows.
macro_rules! by_rows {
    ($function:ident: $($rows:literal)*) => {
        [$($function::<$rows>),*]
    };
    ($function:ident, $making:literal: $($rows:literal)*) => {
        [$($function::<$rows, $making>),*]
    };
}

/// Uses two registers of 16 columns, one of 16, or one of 8, depending on the width of the target. The processor
/// multiplies two registers of 8 at once.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn rows_avx512(tile: &Tile, count: usize) {
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn wide<const ROWS: usize>(tile: &Tile) {
        multiply::<__m512, ROWS, 2>(tile);
    }
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn half<const ROWS: usize>(tile: &Tile) {
        multiply::<__m512, ROWS, 1>(tile);
    }
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn narrow<const ROWS: usize>(tile: &Tile) {
        multiply::<__m256, ROWS, 1>(tile);
    }
    type ByRows = [unsafe fn(&Tile); MOST_ROWS];
    const WIDE: ByRows = by_rows!(wide: 1 2 3 4 5 6 7 8 9 10 11 12);
    const HALF: ByRows = by_rows!(half: 1 2 3 4 5 6 7 8 9 10 11 12);
    const NARROW: ByRows = by_rows!(narrow: 1 2 3 4 5 6 7 8 9 10 11 12);
    let kernels = match tile.target.width {
        0..=8 => NARROW,
        9..=16 => HALF,
        _ => WIDE,
    };
    kernels[count.clamp(1, MOST_ROWS) - 1](tile);
}

/// The largest number of rows in a tile of 16 columns whose sums fit in the registers of AVX2.
pub(super) const MOST_ROWS_AVX2: usize = 6;

/// Uses two registers of 8 columns, or one, depending on the columns that are left.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows_avx2(tile: &Tile, count: usize) {
    #[target_feature(enable = "avx2,fma")]
    unsafe fn wide<const ROWS: usize>(tile: &Tile) {
        multiply::<__m256, ROWS, 2>(tile);
    }
    #[target_feature(enable = "avx2,fma")]
    unsafe fn narrow<const ROWS: usize>(tile: &Tile) {
        multiply::<__m256, ROWS, 1>(tile);
    }
    const WIDE: [unsafe fn(&Tile); MOST_ROWS_AVX2] = by_rows!(wide: 1 2 3 4 5 6);
    const NARROW: [unsafe fn(&Tile); MOST_ROWS] = by_rows!(narrow: 1 2 3 4 5 6 7 8 9 10 11 12);
    for first in (0..tile.target.width).step_by(16) {
        let kernels = match tile.target.width - first {
            0..=8 => NARROW.as_slice(),
            _ => WIDE.as_slice(),
        };
        // Parts of equal size: two of four rows are faster than one of six and one of two.
        let most = count.div_ceil(count.div_ceil(kernels.len()).max(1));
        for row in (0..count).step_by(most.max(1)) {
            let part = tile.at(row, first);
            kernels[(count - row).min(most) - 1](&part);
        }
    }
}

/// The sums of some rows, `HALVES` registers each.
pub(super) type Sums<R, const ROWS: usize, const HALVES: usize> = [[R; HALVES]; ROWS];

#[inline(always)]
pub(super) unsafe fn zeros<R: Register, const ROWS: usize, const HALVES: usize>(
) -> Sums<R, ROWS, HALVES> {
    [[R::splat(0.0); HALVES]; ROWS]
}

/// [`Kernels::rows`] for `ROWS` rows.
#[inline(always)]
unsafe fn multiply<R: Register, const ROWS: usize, const HALVES: usize>(tile: &Tile) {
    if HALVES == 2 {
        ask_for_rows::<_MM_HINT_T1>(&tile.target, 0..ROWS, PANEL);
    }
    let product = Product {
        depth: tile.depth,
        a: every_third_row(tile.a, tile.a_strides.0),
        strides: tile.a_strides,
        panel: tile.panel,
        coming: tile.coming,
        written_next: (HALVES == 2).then_some(&tile.target),
    };
    // A stride that is known at compile time takes no instruction.
    let sums = match tile.a_strides.1 {
        1 => {
            let strides = (tile.a_strides.0, 1);
            Product { strides, ..product }.add_to(zeros::<R, ROWS, HALVES>())
        }
        _ => product.add_to(zeros::<R, ROWS, HALVES>()),
    };
    write(&tile.target, &sums);
}

/// Pointers to the first, fourth, seventh and tenth row, from which the other rows are one or two strides away. The
/// empty assembly hides from the compiler that these four are equally spaced. Otherwise it would compute each row's
/// address anew in every step.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block)] // what it points to is not touched
pub(super) fn every_third_row(a: *const f32, stride: usize) -> [*const f32; MOST_ROWS / 3] {
    std::array::from_fn(|third| {
        let mut row = a.wrapping_add(3 * third * stride);
        // SAFETY: the assembly has no instruction.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) row, options(pure, nomem, nostack, preserves_flags));
        }
        row
    })
}

/// A product of some rows of `a` with a panel.
pub(super) struct Product<'a> {
    pub(super) depth: usize,
    pub(super) a: [*const f32; MOST_ROWS / 3],
    pub(super) strides: (usize, usize),
    pub(super) panel: *const f32,
    /// The memory that is needed next. One of its cache lines is prefetched into the second-level cache every
    /// [`STEPS_PER_LINE`] steps.
    pub(super) coming: *const f32,
    /// The target that is written next. It is prefetched only in the last steps: before them, the streaming panel would
    /// evict it again.
    pub(super) written_next: Option<&'a Target>,
}

impl Product<'_> {
    /// Adds the product to `sums`. Inlined into the kernel that calls it, so that the sums never leave their registers.
    #[inline(always)]
    pub(super) unsafe fn add_to<R: Register, const ROWS: usize, const HALVES: usize>(
        mut self,
        mut sums: Sums<R, ROWS, HALVES>,
    ) -> Sums<R, ROWS, HALVES> {
        const ROWS_AT_ONCE: usize = 2;
        let whole = self.depth / STEPS_PER_LINE;
        let asking = match self.written_next {
            Some(_) => ROWS.div_ceil(ROWS_AT_ONCE).min(whole),
            None => 0,
        };
        for _ in asking..whole {
            self.ask_for_panel();
            self.steps::<STEPS_PER_LINE, _, ROWS, HALVES>(&mut sums);
        }
        if let Some(target) = self.written_next {
            for rows in 0..asking {
                self.ask_for_panel();
                let first = rows * ROWS_AT_ONCE;
                let rows = first..first + ROWS_AT_ONCE;
                ask_for_rows::<_MM_HINT_T0>(target, rows, PANEL);
                self.steps::<STEPS_PER_LINE, _, ROWS, HALVES>(&mut sums);
            }
        }
        for _ in whole * STEPS_PER_LINE..self.depth {
            self.steps::<1, _, ROWS, HALVES>(&mut sums);
        }
        sums
    }

    /// Adds the products of the next `COUNT` columns of the rows with the next `COUNT` rows of the panel.
    #[inline(always)]
    unsafe fn steps<const COUNT: usize, R: Register, const ROWS: usize, const HALVES: usize>(
        &mut self,
        sums: &mut Sums<R, ROWS, HALVES>,
    ) {
        let (stride, along) = self.strides;
        for p in 0..COUNT {
            let mut b = [R::splat(0.0); HALVES];
            for (half, b) in b.iter_mut().enumerate() {
                *b = R::load(self.panel.add(p * PANEL + R::LANES * half));
            }
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = R::splat(*self.a[i / 3].add(i % 3 * stride + p * along));
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum = sum.plus_product(x, b);
                }
            }
        }
        self.a = self.a.map(|row| row.wrapping_add(COUNT * along));
        self.panel = self.panel.wrapping_add(COUNT * PANEL);
    }

    /// Prefetches the next cache line of the coming panel.
    #[inline(always)]
    unsafe fn ask_for_panel(&mut self) {
        _mm_prefetch::<_MM_HINT_T1>(self.coming.cast());
        self.coming = self.coming.wrapping_add(LINE);
    }
}

/// Prefetches the first and the last of `columns` columns in some rows of what will be written.
#[inline(always)]
pub(in super::super) unsafe fn ask_for_rows<const HINT: i32>(
    target: &Target,
    rows: Range<usize>,
    columns: usize,
) {
    for row in rows {
        let place = target.out.wrapping_add(row * target.stride);
        _mm_prefetch::<HINT>(place.cast());
        _mm_prefetch::<HINT>(place.wrapping_add(columns - 1).cast());
    }
}

/// Writes the sums of all rows. The width of the target is tested once, here: tests between the instructions of a small
/// product would cost as much as the product.
#[inline(always)]
pub(in super::super) unsafe fn write<R: Register, const ROWS: usize, const HALVES: usize>(
    target: &Target,
    sums: &Sums<R, ROWS, HALVES>,
) {
    match target.width >= R::LANES * HALVES {
        true => write_columns::<R, ROWS, HALVES, true>(target, sums),
        false => write_columns::<R, ROWS, HALVES, false>(target, sums),
    }
}

/// [`write`] for a target that may be narrower than the sums unless it `IS_WHOLE`. Whole targets have code of their
/// own, because a masked store takes Zen 3 ten times as long as a full one (measured: 4 to 5 ns against 0.4).
#[inline(always)]
unsafe fn write_columns<
    R: Register,
    const ROWS: usize,
    const HALVES: usize,
    const IS_WHOLE: bool,
>(
    target: &Target,
    sums: &Sums<R, ROWS, HALVES>,
) {
    macro_rules! write {
        (|$row:ident, $first:ident, $count:ident, $sum:ident| $value:expr) => {
            for ($row, sums) in sums.iter().enumerate() {
                for (half, &$sum) in sums.iter().enumerate() {
                    let $first = R::LANES * half;
                    let $count = target.width.saturating_sub($first);
                    let place = target.out.wrapping_add($row * target.stride + $first);
                    match IS_WHOLE {
                        true => $value.store(place),
                        false => $value.store_first(place, $count),
                    }
                }
            }
        };
    }
    let base = match target.mode {
        WriteMode::Set => None,
        WriteMode::Add => Some((target.out.cast_const(), target.stride)),
        WriteMode::Bias(bias) => Some((bias, 0)),
    };
    match base {
        None => write!(|row, first, count, sum| sum),
        Some((base, stride)) => write!(|row, first, count, sum| {
            let base = base.wrapping_add(row * stride + first);
            let base = match IS_WHOLE {
                true => R::load(base),
                false => R::load_first(base, count),
            };
            base.plus(sum)
        }),
    }
}

/// A function that writes the transpose of a square block. Its arguments are the block and the elements from one of its
/// rows to the next, then the same for the destination.
pub(super) type Exchange = unsafe fn(*const f32, usize, *mut f32, usize);

/// The sides of the square blocks that this processor transposes in registers, with the functions for them, the largest
/// first.
pub(super) fn blocks() -> impl Iterator<Item = (usize, Exchange)> {
    let wide = is_x86_feature_detected!("avx512f").then_some((16, transpose_16 as Exchange));
    let narrow = is_x86_feature_detected!("avx").then_some((8, transpose_8 as Exchange));
    wide.into_iter().chain(narrow)
}

/// Transposes a block of 16 by 16 elements.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transpose_16(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    let mut rows = [_mm512_setzero_ps(); 16];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = _mm512_loadu_ps(from.add(i * from_stride));
    }
    let mut pairs = [_mm512_setzero_ps(); 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| _mm512_castps_pd(pairs[4 * i + k]));
        rows[4 * i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
        rows[4 * i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
        rows[4 * i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
        rows[4 * i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
    }
    // Lane l of rows[4 g + k] holds column 4 l + k of rows 4 g to 4 g + 3.
    for k in 0..4 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|g| rows[4 * g + k]);
        let low = _mm512_shuffle_f32x4::<0x44>(a, b);
        let high = _mm512_shuffle_f32x4::<0xee>(a, b);
        let low_next = _mm512_shuffle_f32x4::<0x44>(c, d);
        let high_next = _mm512_shuffle_f32x4::<0xee>(c, d);
        let columns = [
            _mm512_shuffle_f32x4::<0x88>(low, low_next),
            _mm512_shuffle_f32x4::<0xdd>(low, low_next),
            _mm512_shuffle_f32x4::<0x88>(high, high_next),
            _mm512_shuffle_f32x4::<0xdd>(high, high_next),
        ];
        for (lane, column) in columns.into_iter().enumerate() {
            _mm512_storeu_ps(to.add((4 * lane + k) * to_stride), column);
        }
    }
}

/// Transposes a block of 8 by 8 elements.
#[target_feature(enable = "avx")]
pub(super) unsafe fn transpose_8(
    from: *const f32,
    from_stride: usize,
    to: *mut f32,
    to_stride: usize,
) {
    let mut rows = [_mm256_setzero_ps(); 8];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = _mm256_loadu_ps(from.add(i * from_stride));
    }
    let mut pairs = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    for i in 0..2 {
        let [a, b, c, d] = [0, 1, 2, 3].map(|k| _mm256_castps_pd(pairs[4 * i + k]));
        rows[4 * i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
        rows[4 * i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
        rows[4 * i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
        rows[4 * i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
    }
    // Half h of rows[4 g + k] holds column 4 h + k of rows 4 g to 4 g + 3.
    for k in 0..4 {
        let (upper, lower) = (rows[k], rows[4 + k]);
        let columns = [
            _mm256_permute2f128_ps::<0x20>(upper, lower),
            _mm256_permute2f128_ps::<0x31>(upper, lower),
        ];
        for (half, column) in columns.into_iter().enumerate() {
            _mm256_storeu_ps(to.add((4 * half + k) * to_stride), column);
        }
    }
}
