//! The inner part of products: some rows of one matrix by a panel of 32 columns of the other.

/// Columns of a panel: two registers of AVX-512, four of AVX2.
pub(super) const PANEL: usize = 32;

/// What becomes of the elements of a result.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    /// `out ← out + a b`
    Add,
    /// `out ← a b`
    Set,
    /// `out ← a b + bias`
    Bias(*const f32),
}

impl Mode {
    /// Of a result of its own with `columns` columns.
    pub(super) fn result(bias: Option<&[f32]>, columns: usize) -> Self {
        match bias {
            Some(bias) => {
                assert_eq!(bias.len(), columns, "product: bias and columns disagree");
                Mode::Bias(bias.as_ptr())
            }
            None => Mode::Set,
        }
    }

    /// The same from column `first` on.
    ///
    /// # Safety
    /// A bias has at least so many elements.
    pub(super) unsafe fn at_column(self, first: usize) -> Self {
        match self {
            Mode::Bias(bias) => Mode::Bias(bias.add(first)),
            other => other,
        }
    }
}

/// `panel[p * 32 + j] ← data[j * stride + p]` for `p` below `depth` and `j` below `count`; zero for the
/// other `j` of a panel.
pub(super) fn transpose(
    data: &[f32],
    stride: usize,
    depth: usize,
    count: usize,
    panel: &mut [f32],
) {
    assert!(count <= PANEL && panel.len() >= depth * PANEL);
    assert!(count == 0 || (count - 1) * stride + depth <= data.len());
    let mut whole = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        whole = (depth / 16 * 16, count / 16 * 16);
        for p in (0..whole.0).step_by(16) {
            for j in (0..whole.1).step_by(16) {
                // SAFETY: the processor has AVX-512, and both blocks of 16 by 16 lie in their slices, by
                // the assertions above.
                unsafe {
                    x86::transpose_16(
                        data.as_ptr().add(j * stride + p),
                        stride,
                        panel.as_mut_ptr().add(p * PANEL + j),
                        PANEL,
                    );
                }
            }
        }
    }
    for (p, row) in panel.chunks_exact_mut(PANEL).enumerate().take(depth) {
        let done = if p < whole.0 { whole.1 } else { 0 };
        for (j, place) in row.iter_mut().enumerate().skip(done) {
            *place = if j < count { data[j * stride + p] } else { 0.0 };
        }
    }
}

/// Rows of a tile at most.
pub(super) const MOST_ROWS: usize = 12;

/// What one call of a kernel works on.
pub(super) struct Tile {
    pub(super) depth: usize,
    pub(super) a: *const f32,
    pub(super) a_strides: (usize, usize),
    pub(super) panel: *const f32,
    pub(super) out: *mut f32,
    pub(super) stride: usize,
    pub(super) width: usize,
    pub(super) mode: Mode,
}

pub(super) type Kernel = unsafe fn(&Tile, usize);

/// The kernel for this processor, if it has one.
pub(super) fn kernel() -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            return Some(x86::rows_avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(x86::rows_avx2);
        }
    }
    None
}

impl Tile {
    /// Writes sums to row `i`, from column `first` on.
    ///
    /// # Safety
    /// The tile has that row.
    unsafe fn write(&self, i: usize, first: usize, sums: &[f32]) {
        let place = self.out.add(i * self.stride + first);
        let width = self.width.saturating_sub(first).min(sums.len());
        for (j, sum) in sums[..width].iter().enumerate() {
            let value = match self.mode {
                Mode::Add => *place.add(j) + sum,
                Mode::Set => *sum,
                Mode::Bias(bias) => *bias.add(first + j) + sum,
            };
            place.add(j).write(value);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Mode, Tile, MOST_ROWS, PANEL};

    /// `a · panel` for `count` rows, 1 to 12.
    #[target_feature(enable = "avx512f,avx512vl")]
    pub(super) unsafe fn rows_avx512(tile: &Tile, count: usize) {
        const KERNELS: [[Kernel; 3]; MOST_ROWS] = [
            [narrow::<1>, wide::<1, 1>, wide::<1, 2>],
            [narrow::<2>, wide::<2, 1>, wide::<2, 2>],
            [narrow::<3>, wide::<3, 1>, wide::<3, 2>],
            [narrow::<4>, wide::<4, 1>, wide::<4, 2>],
            [narrow::<5>, wide::<5, 1>, wide::<5, 2>],
            [narrow::<6>, wide::<6, 1>, wide::<6, 2>],
            [narrow::<7>, wide::<7, 1>, wide::<7, 2>],
            [narrow::<8>, wide::<8, 1>, wide::<8, 2>],
            [narrow::<9>, wide::<9, 1>, wide::<9, 2>],
            [narrow::<10>, wide::<10, 1>, wide::<10, 2>],
            [narrow::<11>, wide::<11, 1>, wide::<11, 2>],
            [narrow::<12>, wide::<12, 1>, wide::<12, 2>],
        ];
        let kernels = &KERNELS[count.clamp(1, MOST_ROWS) - 1];
        match tile.width {
            0..=8 => kernels[0](tile),
            9..=16 => kernels[1](tile),
            _ => kernels[2](tile),
        }
    }

    type Kernel = unsafe fn(&Tile);

    /// `HALVES` registers of 16 columns.
    #[target_feature(enable = "avx512f,avx512vl")]
    unsafe fn wide<const ROWS: usize, const HALVES: usize>(tile: &Tile) {
        let mut sums = [[_mm512_setzero_ps(); HALVES]; ROWS];
        let mut panel = tile.panel;
        for p in 0..tile.depth {
            let mut b = [_mm512_setzero_ps(); HALVES];
            for (half, b) in b.iter_mut().enumerate() {
                *b = _mm512_loadu_ps(panel.add(16 * half));
            }
            panel = panel.add(PANEL);
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
                for (sum, b) in sum.iter_mut().zip(b) {
                    *sum = _mm512_fmadd_ps(x, b, *sum);
                }
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            for (half, sum) in sum.iter().enumerate() {
                let place = tile.out.add(i * tile.stride);
                write_16(place, 16 * half, tile.width, tile.mode, *sum);
            }
        }
    }

    /// Writes 16 sums from column `first` on, those that lie below `width`, into the row at `place`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) unsafe fn write_16(
        place: *mut f32,
        first: usize,
        width: usize,
        mode: Mode,
        sum: __m512,
    ) {
        let left = width.saturating_sub(first).min(16);
        let mask = ((1u32 << left) - 1) as __mmask16;
        let place = place.add(first);
        let sum = match mode {
            Mode::Set => sum,
            Mode::Add => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, place), sum),
            Mode::Bias(bias) => _mm512_add_ps(_mm512_maskz_loadu_ps(mask, bias.add(first)), sum),
        };
        _mm512_mask_storeu_ps(place, mask, sum);
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
            tile.write(i, 0, &values);
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
        let mut row = 0;
        while row < count {
            let part = Tile {
                a: tile.a.add(row * tile.a_strides.0),
                out: tile.out.add(row * tile.stride),
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
            if 16 * half >= tile.width {
                return;
            }
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            let mut b = tile.panel.add(16 * half);
            for p in 0..tile.depth {
                let b0 = _mm256_loadu_ps(b);
                let b1 = _mm256_loadu_ps(b.add(8));
                b = b.add(PANEL);
                for (i, sum) in sums.iter_mut().enumerate() {
                    let x =
                        _mm256_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
                    sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                    sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
                }
            }
            for (i, sum) in sums.iter().enumerate() {
                let mut values = [0.0f32; 16];
                _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), sum[1]);
                tile.write(i, 16 * half, &values);
            }
        }
    }
}
