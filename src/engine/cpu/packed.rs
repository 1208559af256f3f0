//! Products with a weight that is used again and again: packed once into panels of 32 columns, so
//! that a product streams it from the second-level cache.

use super::product::{multiply, View};

/// Columns of a panel: two registers of AVX-512, four of AVX2.
const PANEL: usize = 32;

/// A matrix `(depth, columns)`, panel after panel: the 32 elements of a row of a panel lie side by
/// side, zeros where the last panel is not full.
pub(super) struct Packed {
    depth: usize,
    columns: usize,
    panels: Vec<f32>,
}

impl Packed {
    /// Packs `depth` rows of `columns` elements that are `stride` elements apart.
    pub(super) fn rows(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut panels = vec![0.0; columns.div_ceil(PANEL) * depth * PANEL];
        for (number, panel) in panels.chunks_exact_mut((depth * PANEL).max(1)).enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            for (p, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                let start = p * stride + first;
                row[..count].copy_from_slice(&data[start..start + count]);
            }
        }
        Packed {
            depth,
            columns,
            panels,
        }
    }

    /// Packs the transpose of `columns` rows of `depth` elements that are `stride` elements apart.
    pub(super) fn transposed(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut panels = vec![0.0; columns.div_ceil(PANEL) * depth * PANEL];
        for (number, panel) in panels.chunks_exact_mut((depth * PANEL).max(1)).enumerate() {
            let first = number * PANEL;
            for j in 0..PANEL.min(columns - first) {
                let row = &data[(first + j) * stride..(first + j) * stride + depth];
                for (element, place) in row.iter().zip(panel[j..].iter_mut().step_by(PANEL)) {
                    *place = *element;
                }
            }
        }
        Packed {
            depth,
            columns,
            panels,
        }
    }

    /// `out ← out + a b`; `a` has this matrix's depth as its columns, and the rows of `out` are
    /// `stride` elements apart. Every element is one sum in the order of `depth`, whatever the number
    /// of rows.
    pub(super) fn multiply_add(&self, out: &mut [f32], stride: usize, a: View) {
        let (depth, columns) = (self.depth, self.columns);
        let rows = a.rows;
        if rows == 0 || depth == 0 || columns == 0 {
            return;
        }
        assert!(
            a.columns == depth && a.fits(),
            "packed product: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        assert!(columns <= stride && (rows - 1) * stride + columns <= out.len());
        let kernel = kernel();
        for (number, panel) in self.panels.chunks_exact(depth * PANEL).enumerate() {
            let first = number * PANEL;
            let width = PANEL.min(columns - first);
            let Some(kernel) = kernel else {
                let b = View::strided(panel, depth, width, PANEL);
                multiply(&mut out[first..], stride, a, b, 1.0, true);
                continue;
            };
            for row in (0..rows).step_by(MOST_ROWS) {
                let tile = Tile {
                    depth,
                    a: a.data[row * a.strides.0..].as_ptr(),
                    a_strides: a.strides,
                    panel: panel.as_ptr(),
                    out: out[row * stride + first..].as_mut_ptr(),
                    stride,
                    width,
                };
                // SAFETY: the processor has the kernel's instructions (`kernel` asked). The tile has
                // at most the rows of `a` and `out` that are left, `width` columns of `out` from
                // `first` on, and a whole panel: all within the slices, by the assertions above.
                unsafe { kernel(&tile, (rows - row).min(MOST_ROWS)) };
            }
        }
    }
}

/// Rows of a tile at most.
const MOST_ROWS: usize = 12;

/// What one call of a kernel works on.
struct Tile {
    depth: usize,
    a: *const f32,
    a_strides: (usize, usize),
    panel: *const f32,
    out: *mut f32,
    stride: usize,
    width: usize,
}

type Kernel = unsafe fn(&Tile, usize);

/// The kernel for this processor, if it has one.
fn kernel() -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(x86::rows_avx512);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(x86::rows_avx2);
        }
    }
    None
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Tile, PANEL};

    /// `out += a · panel` for `count` rows, 1 to 12.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn rows_avx512(tile: &Tile, count: usize) {
        match count {
            12 => avx512::<12>(tile),
            11 => avx512::<11>(tile),
            10 => avx512::<10>(tile),
            9 => avx512::<9>(tile),
            8 => avx512::<8>(tile),
            7 => avx512::<7>(tile),
            6 => avx512::<6>(tile),
            5 => avx512::<5>(tile),
            4 => avx512::<4>(tile),
            3 => avx512::<3>(tile),
            2 => avx512::<2>(tile),
            _ => avx512::<1>(tile),
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const ROWS: usize>(tile: &Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let mut b = tile.panel;
        for p in 0..tile.depth {
            let b0 = _mm512_loadu_ps(b);
            let b1 = _mm512_loadu_ps(b.add(16));
            b = b.add(PANEL);
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*tile.a.add(i * tile.a_strides.0 + p * tile.a_strides.1));
                sum[0] = _mm512_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm512_fmadd_ps(x, b1, sum[1]);
            }
        }
        let mask = |first: usize| -> __mmask16 {
            ((1u32 << tile.width.saturating_sub(first).min(16)) - 1) as __mmask16
        };
        for (i, sum) in sums.iter().enumerate() {
            for (half, sum) in sum.iter().enumerate() {
                let mask = mask(16 * half);
                let place = tile.out.add(i * tile.stride + 16 * half);
                let old = _mm512_maskz_loadu_ps(mask, place);
                _mm512_mask_storeu_ps(place, mask, _mm512_add_ps(old, *sum));
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
            let width = (tile.width - 16 * half).min(16);
            for (i, sum) in sums.iter().enumerate() {
                let mut values = [0.0f32; 16];
                _mm256_storeu_ps(values.as_mut_ptr(), sum[0]);
                _mm256_storeu_ps(values.as_mut_ptr().add(8), sum[1]);
                let place = tile.out.add(i * tile.stride + 16 * half);
                for (j, value) in values[..width].iter().enumerate() {
                    *place.add(j) += value;
                }
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

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn products_are_right_with_avx2() {
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            println!("skipped: this processor has no AVX2");
            return;
        }
        check(|packed, out, a| {
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
                };
                // SAFETY: the processor has AVX2 and FMA, and the tile covers all rows.
                unsafe { x86::rows_avx2(&tile, rows) };
            }
        });
    }
}
