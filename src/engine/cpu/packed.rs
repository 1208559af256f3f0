//! Products with a weight that is used again and again: packed once into panels of 32 columns, so
//! that a product streams it from the second-level cache.

use super::product::{multiply, View};
use crate::engine::profile;

/// Columns of a panel: two registers of AVX-512, four of AVX2.
pub(super) const PANEL: usize = 32;

/// A matrix `(depth, columns)`, panel after panel: the 32 elements of a row of a panel lie side by
/// side, zeros where the last panel is not full.
#[derive(Default)]
pub(super) struct Packed {
    depth: usize,
    columns: usize,
    panels: Vec<f32>,
}

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

impl Packed {
    /// Packs `depth` rows of `columns` elements that are `stride` elements apart.
    pub(super) fn rows(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut packed = Packed::default();
        packed.pack_rows(data, stride, depth, columns);
        packed
    }

    /// Packs the transpose of `columns` rows of `depth` elements that are `stride` elements apart.
    pub(super) fn transposed(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut packed = Packed::default();
        packed.pack_transposed(data, stride, depth, columns);
        packed
    }

    /// [`Packed::rows`] in the place of what is there.
    pub(super) fn pack_rows(&mut self, data: &[f32], stride: usize, depth: usize, columns: usize) {
        self.resize(depth, columns);
        let panels = self.panels.chunks_exact_mut((depth * PANEL).max(1));
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            for (p, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                let start = p * stride + first;
                row[..count].copy_from_slice(&data[start..start + count]);
                row[count..].fill(0.0);
            }
        }
    }

    /// [`Packed::transposed`] in the place of what is there.
    pub(super) fn pack_transposed(
        &mut self,
        data: &[f32],
        stride: usize,
        depth: usize,
        columns: usize,
    ) {
        self.resize(depth, columns);
        let panels = self.panels.chunks_exact_mut((depth * PANEL).max(1));
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            transpose(&data[first * stride..], stride, depth, count, panel);
        }
    }

    fn resize(&mut self, depth: usize, columns: usize) {
        (self.depth, self.columns) = (depth, columns);
        self.panels
            .resize(columns.div_ceil(PANEL) * depth * PANEL, 0.0);
    }

    /// `out ← out + a b`; `a` has this matrix's depth as its columns, and the rows of `out` are
    /// `stride` elements apart. Every element is one sum in the order of `depth`, whatever the number
    /// of rows.
    pub(super) fn multiply_add(&self, out: &mut [f32], stride: usize, a: View) {
        self.check(out.len(), stride, &a);
        // SAFETY: `check` has made sure that all rows lie in `out`.
        unsafe { self.multiply(out.as_mut_ptr(), stride, a, Mode::Add) }
    }

    /// `out ← a b`, else as [`Packed::multiply_add`].
    pub(super) fn multiply_into(&self, out: &mut [f32], stride: usize, a: View) {
        self.check(out.len(), stride, &a);
        // SAFETY: `check` has made sure that all rows lie in `out`.
        unsafe { self.multiply(out.as_mut_ptr(), stride, a, Mode::Set) }
    }

    /// `a b (rows, columns)`, and `bias (columns)` added to each row.
    pub(super) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        let count = a.rows * self.columns;
        let mut out: Vec<f32> = Vec::with_capacity(count);
        self.check(count, self.columns, &a);
        let mode = match bias {
            Some(bias) => {
                assert_eq!(bias.len(), self.columns, "packed product: bias");
                Mode::Bias(bias.as_ptr())
            }
            None => Mode::Set,
        };
        // SAFETY: there is room for `count` elements, each of which is written before the length is
        // set; `check` has made sure that there are no more.
        unsafe {
            self.multiply(out.as_mut_ptr(), self.columns, a, mode);
            out.set_len(count);
        }
        out
    }

    fn check(&self, length: usize, stride: usize, a: &View) {
        let (depth, columns, rows) = (self.depth, self.columns, a.rows);
        assert!(
            a.columns == depth && a.fits(),
            "packed product: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        assert!(columns <= stride && (rows == 0 || (rows - 1) * stride + columns <= length));
    }

    /// # Safety
    /// `a` fits and has `depth` columns. `out` has `a.rows` rows of `columns` elements, `stride` apart,
    /// which may be without a value unless they are added to. A bias has `columns` elements.
    unsafe fn multiply(&self, out: *mut f32, stride: usize, a: View, mode: Mode) {
        let (depth, columns, rows) = (self.depth, self.columns, a.rows);
        profile::product(rows, depth, columns);
        let kernel = kernel().filter(|_| depth > 0);
        let Some(kernel) = kernel else {
            return self.multiply_portably(out, stride, a, mode);
        };
        if rows == 0 || columns == 0 {
            return;
        }
        for (number, panel) in self.panels.chunks_exact(depth * PANEL).enumerate() {
            let first = number * PANEL;
            let width = PANEL.min(columns - first);
            let mode = match mode {
                Mode::Bias(bias) => Mode::Bias(bias.add(first)),
                other => other,
            };
            for row in (0..rows).step_by(MOST_ROWS) {
                let tile = Tile {
                    depth,
                    a: a.data[row * a.strides.0..].as_ptr(),
                    a_strides: a.strides,
                    panel: panel.as_ptr(),
                    out: out.add(row * stride + first),
                    stride,
                    width,
                    mode,
                };
                // The processor has the kernel's instructions (`kernel` asked). The tile has at most
                // the rows of `a` and `out` that are left, `width` columns of `out` from `first` on,
                // and a whole panel.
                kernel(&tile, (rows - row).min(MOST_ROWS));
            }
        }
    }

    /// As [`Packed::multiply`], for processors without a kernel of ours.
    unsafe fn multiply_portably(&self, out: *mut f32, stride: usize, a: View, mode: Mode) {
        let (depth, columns, rows) = (self.depth, self.columns, a.rows);
        for row in 0..rows {
            let out = out.add(row * stride);
            match mode {
                Mode::Add => {}
                Mode::Set => out.write_bytes(0, columns),
                Mode::Bias(bias) => out.copy_from_nonoverlapping(bias, columns),
            }
        }
        if rows == 0 || depth == 0 || columns == 0 {
            return;
        }
        let out = std::slice::from_raw_parts_mut(out, (rows - 1) * stride + columns);
        for (number, panel) in self.panels.chunks_exact(depth * PANEL).enumerate() {
            let first = number * PANEL;
            let b = View::strided(panel, depth, PANEL.min(columns - first), PANEL);
            multiply(&mut out[first..], stride, a, b, 1.0, true);
        }
    }
}

/// `panel[p * 32 + j] ← data[j * stride + p]` for `p` below `depth` and `j` below `count`; zero for the
/// other `j` of a panel.
fn transpose(data: &[f32], stride: usize, depth: usize, count: usize, panel: &mut [f32]) {
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
struct Tile {
    depth: usize,
    a: *const f32,
    a_strides: (usize, usize),
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    width: usize,
    mode: Mode,
}

type Kernel = unsafe fn(&Tile, usize);

/// The kernel for this processor, if it has one.
fn kernel() -> Option<Kernel> {
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
    pub(super) unsafe fn rows_avx2(tile: &Tile, count: usize) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kernel: impl Fn(&Packed, &mut [f32], &[f32])) {
        let mut seed = 1u64;
        let mut next = || {
            seed = crate::engine::mix(seed);
            (seed >> 40) as f32 / 16_777_216.0 - 0.5
        };
        for (rows, depth, columns) in [
            (1, 1, 1),
            (13, 7, 33),
            (25, 40, 64),
            (12, 384, 70),
            (7, 3, 31),
            (14, 33, 8),
            (26, 70, 11),
        ] {
            let a: Vec<f32> = (0..rows * depth).map(|_| next()).collect();
            let b: Vec<f32> = (0..depth * columns).map(|_| next()).collect();
            let turned: Vec<f32> = (0..columns * depth)
                .map(|i| b[i % depth * columns + i / depth])
                .collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            assert_eq!(
                packed.panels,
                Packed::transposed(&turned, depth, depth, columns).panels
            );
            let mut out = vec![1.0; rows * columns];
            kernel(&packed, &mut out, &a);
            for i in 0..rows {
                for j in 0..columns {
                    let exact: f64 = (0..depth)
                        .map(|p| f64::from(a[i * depth + p]) * f64::from(b[p * columns + j]))
                        .sum::<f64>()
                        + 1.0;
                    let found = f64::from(out[i * columns + j]);
                    assert!(
                        (found - exact).abs() < 1e-5,
                        "{rows}x{depth}x{columns}: {found} is not {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn products_are_right_on_this_processor() {
        check(|packed, out, a| {
            packed.multiply_add(out, packed.columns, View::new(a, packed.depth))
        });
        // The same with `a` stored by columns.
        check(|packed, out, a| {
            let (rows, depth) = (a.len() / packed.depth, packed.depth);
            let turned: Vec<f32> = (0..a.len())
                .map(|i| a[i % rows * depth + i / rows])
                .collect();
            packed.multiply_add(out, packed.columns, View::new(&turned, rows).t());
        });
    }

    /// The same elements by the other ways of writing them.
    #[test]
    fn results_are_set_added_and_biased() {
        for (rows, depth, columns) in [(1, 1, 1), (13, 7, 33), (26, 5, 8), (3, 0, 40), (0, 4, 4)] {
            let a: Vec<f32> = (0..rows * depth).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| (i % 5) as f32 - 2.0).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let view = || View::strided(&a, rows, depth, depth);
            let plain = packed.product(view(), None);
            let exact = |i: usize, j: usize| -> f32 {
                (0..depth)
                    .map(|p| a[i * depth + p] * b[p * columns + j])
                    .sum()
            };
            for (place, value) in plain.iter().enumerate() {
                assert_eq!(*value, exact(place / columns, place % columns));
            }
            let biased = packed.product(view(), Some(&bias));
            let mut added = vec![2.0; rows * columns];
            packed.multiply_add(&mut added, columns, view());
            let mut set = vec![f32::NAN; rows * columns];
            packed.multiply_into(&mut set, columns, view());
            for (place, value) in plain.iter().enumerate() {
                assert_eq!(biased[place], value + bias[place % columns]);
                assert_eq!(added[place], value + 2.0);
                assert_eq!(set[place], *value);
            }
        }
    }

    /// Runs a kernel over all tiles of a product.
    fn tiled(kernel: Kernel) -> impl Fn(&Packed, &mut [f32], &[f32]) {
        move |packed, out, a| {
            let rows = a.len() / packed.depth;
            for (number, panel) in packed.panels.chunks_exact(packed.depth * PANEL).enumerate() {
                let first = number * PANEL;
                let tile = Tile {
                    depth: packed.depth,
                    a: a.as_ptr(),
                    a_strides: (packed.depth, 1),
                    panel: panel.as_ptr(),
                    out: out[first..].as_mut_ptr(),
                    stride: packed.columns,
                    width: PANEL.min(packed.columns - first),
                    mode: Mode::Add,
                };
                // SAFETY: the processor has the kernel's instructions, and the tile covers all rows.
                unsafe { kernel(&tile, rows) };
            }
        }
    }

    #[test]
    fn products_are_right_on_any_processor() {
        check(|packed, out, a| {
            let rows = View::new(a, packed.depth);
            // SAFETY: `out` has as many rows of as many columns as the product.
            unsafe { packed.multiply_portably(out.as_mut_ptr(), packed.columns, rows, Mode::Add) };
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn products_are_right_with_avx2() {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            println!("skipped: this processor has no AVX2");
            return;
        }
        check(tiled(x86::rows_avx2));
    }
}
