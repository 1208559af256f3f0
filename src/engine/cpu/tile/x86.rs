//! The inner part of products with AVX-512 and with AVX2.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{Mode, Target, Tile, MOST_ROWS, PANEL, STEPS_PER_LINE};

/// `a · panel` for `count` rows, 1 to 12.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn rows_avx512(tile: &Tile, count: usize) {
    const KERNELS: [[Kernel; 4]; MOST_ROWS] = [
        kernels::<1>(),
        kernels::<2>(),
        kernels::<3>(),
        kernels::<4>(),
        kernels::<5>(),
        kernels::<6>(),
        kernels::<7>(),
        kernels::<8>(),
        kernels::<9>(),
        kernels::<10>(),
        kernels::<11>(),
        kernels::<12>(),
    ];
    let kernels = &KERNELS[count.clamp(1, MOST_ROWS) - 1];
    match (tile.difference, tile.widest()) {
        (Some(_), _) => kernels[3](tile),
        (None, 0..=8) => kernels[0](tile),
        (None, 9..=16) => kernels[1](tile),
        (None, _) => kernels[2](tile),
    }
}

const fn kernels<const ROWS: usize>() -> [Kernel; 4] {
    [
        narrow::<ROWS>,
        wide::<ROWS, 1, false>,
        wide::<ROWS, 2, false>,
        wide::<ROWS, 2, true>,
    ]
}

type Kernel = unsafe fn(&Tile);

/// `HALVES` registers of 16 columns.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn wide<const ROWS: usize, const HALVES: usize, const MAKES: bool>(tile: &Tile) {
    let mut sums = [[_mm512_setzero_ps(); HALVES]; ROWS];
    let mut first = 0;
    if HALVES == 2 {
        tile.targets()
            .for_each(|target| ask_for_rows::<_MM_HINT_T1>(target, 0..ROWS));
        first = tile.depth.saturating_sub(STEPS_PER_ROW * ROWS);
        for p in 0..first {
            ask_for_coming(tile, p);
            step::<ROWS, HALVES, MAKES>(tile, p, &mut sums);
        }
    }
    for p in first..tile.depth {
        if HALVES == 2 {
            ask_for_coming(tile, p);
            let row = (p - first) / STEPS_PER_ROW;
            tile.targets()
                .for_each(|target| ask_for_rows::<_MM_HINT_T0>(target, row..row + 1));
        }
        step::<ROWS, HALVES, MAKES>(tile, p, &mut sums);
    }
    write(&tile.target, &sums);
    if let Some(second) = &tile.second {
        write(second, &sums);
    }
}

/// Steps of a product for each row that will be written, which is asked for meanwhile: sooner, and
/// the panel that streams by would have displaced it.
const STEPS_PER_ROW: usize = 2;

/// Adds the products of column `p` of the rows and row `p` of the panel. Where the panel is a
/// difference, it is written on the way: beside products, subtractions cost nothing.
///
/// It becomes part of the kernel that calls it, which has the target features: the sums never leave
/// their registers.
#[inline(always)]
unsafe fn step<const ROWS: usize, const HALVES: usize, const MAKES: bool>(
    tile: &Tile,
    p: usize,
    sums: &mut [[__m512; HALVES]; ROWS],
) {
    let mut b = [_mm512_setzero_ps(); HALVES];
    for (half, b) in b.iter_mut().enumerate() {
        let place = PANEL * p + 16 * half;
        match tile.difference.filter(|_| MAKES) {
            Some(made) => {
                let minuend = _mm512_loadu_ps(made.minuend.add(place));
                let subtrahend = _mm512_loadu_ps(made.subtrahend.add(place));
                *b = _mm512_sub_ps(minuend, subtrahend);
                _mm512_storeu_ps(tile.panel.add(place).cast_mut(), *b);
            }
            None => *b = _mm512_loadu_ps(tile.panel.add(place)),
        }
    }
    for (i, sum) in sums.iter_mut().enumerate() {
        let x = _mm512_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
        for (sum, b) in sum.iter_mut().zip(b) {
            *sum = _mm512_fmadd_ps(x, b, *sum);
        }
    }
}

/// Asks for the next line of what is coming, when its turn has come.
#[inline(always)]
unsafe fn ask_for_coming(tile: &Tile, p: usize) {
    if p.is_multiple_of(STEPS_PER_LINE) {
        let line = tile.coming.wrapping_add(p / STEPS_PER_LINE * 16);
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
}

/// Asks for rows of a target.
#[inline(always)]
unsafe fn ask_for_rows<const HINT: i32>(target: &Target, rows: Range<usize>) {
    for row in rows {
        let place = target.out.wrapping_add(row * target.stride);
        _mm_prefetch::<HINT>(place.cast());
        _mm_prefetch::<HINT>(place.wrapping_add(PANEL - 1).cast());
    }
}

/// Writes the sums of all rows, 16 columns in a register. What is asked of a target is asked once:
/// between the instructions of a small product it would cost as much as they do.
///
/// It becomes part of the kernel that calls it, as [`step`] does.
#[inline(always)]
pub(in super::super) unsafe fn write<const ROWS: usize, const HALVES: usize>(
    target: &Target,
    sums: &[[__m512; HALVES]; ROWS],
) {
    let masks: [__mmask16; HALVES] = std::array::from_fn(|half| {
        let left = target.width.saturating_sub(16 * half).min(16);
        ((1u32 << left) - 1) as __mmask16
    });
    macro_rules! write {
        (|$row:ident, $first:ident, $mask:ident, $sum:ident| $value:expr) => {
            for ($row, sums) in sums.iter().enumerate() {
                let place = target.out.add($row * target.stride);
                for ((half, &$sum), &$mask) in sums.iter().enumerate().zip(&masks) {
                    let $first = 16 * half;
                    _mm512_mask_storeu_ps(place.add($first), $mask, $value);
                }
            }
        };
    }
    let base = match target.mode {
        Mode::Set => None,
        Mode::Add => Some((target.out as *const f32, target.stride)),
        Mode::Bias(bias) => Some((bias, 0)),
    };
    match (base, target.addend) {
        (None, None) => write!(|i, first, mask, sum| sum),
        (None, Some(addend)) => write!(|i, first, mask, sum| {
            _mm512_add_ps(_mm512_loadu_ps(addend.add(i * PANEL + first)), sum)
        }),
        (Some((base, stride)), None) => write!(|i, first, mask, sum| {
            let base = _mm512_maskz_loadu_ps(mask, base.add(i * stride + first));
            _mm512_add_ps(base, sum)
        }),
        (Some((base, stride)), Some(addend)) => write!(|i, first, mask, sum| {
            let base = _mm512_maskz_loadu_ps(mask, base.add(i * stride + first));
            let addend = _mm512_loadu_ps(addend.add(i * PANEL + first));
            _mm512_add_ps(base, _mm512_add_ps(addend, sum))
        }),
    }
}

/// One register of 8 columns, of which two are multiplied at once.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn narrow<const ROWS: usize>(tile: &Tile) {
    let mut sums = [_mm256_setzero_ps(); ROWS];
    let mut panel = tile.panel;
    for p in 0..tile.depth {
        let b = _mm256_loadu_ps(panel);
        panel = panel.add(PANEL);
        for (i, sum) in sums.iter_mut().enumerate() {
            let x = _mm256_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
            *sum = _mm256_fmadd_ps(x, b, *sum);
        }
    }
    let mut values = [0.0f32; 8];
    for (i, sum) in sums.iter().enumerate() {
        _mm256_storeu_ps(values.as_mut_ptr(), *sum);
        tile.targets()
            .for_each(|target| target.write(i, 0, &values));
    }
}

/// A block of 16 by 16 elements, rows and columns exchanged.
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

/// As [`rows_avx512`], in tiles of 6 rows by 16 columns.
#[target_feature(enable = "avx2,fma")]
pub(in super::super) unsafe fn rows_avx2(tile: &Tile, count: usize) {
    if let Some(made) = tile.difference {
        for i in (0..tile.depth * PANEL).step_by(8) {
            let [minuend, subtrahend] =
                [made.minuend, made.subtrahend].map(|panel| _mm256_loadu_ps(panel.add(i)));
            let difference = _mm256_sub_ps(minuend, subtrahend);
            _mm256_storeu_ps(tile.panel.add(i).cast_mut(), difference);
        }
    }
    let mut row = 0;
    while row < count {
        let part = Tile {
            a: tile.a.add(row * tile.a_strides.0),
            target: tile.target.at_row(row),
            second: tile.second.map(|target| target.at_row(row)),
            ..*tile
        };
        match count - row {
            1 => avx2::<1>(&part),
            2 => avx2::<2>(&part),
            3 => avx2::<3>(&part),
            4 => avx2::<4>(&part),
            5 => avx2::<5>(&part),
            _ => avx2::<6>(&part),
        }
        row += 6;
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROWS: usize>(tile: &Tile) {
    for half in 0..PANEL / 16 {
        if 16 * half >= tile.widest() {
            return;
        }
        let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
        let mut b = tile.panel.add(16 * half);
        for p in 0..tile.depth {
            let b0 = _mm256_loadu_ps(b);
            let b1 = _mm256_loadu_ps(b.add(8));
            b = b.add(PANEL);
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
                sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            let mut values = [0.0f32; 16];
            _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), sum[1]);
            tile.targets()
                .for_each(|target| target.write(i, 16 * half, &values));
        }
    }
}
