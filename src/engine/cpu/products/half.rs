//! Products whose operands are rounded to bfloat16, with sums in f32. AVX512-BF16 computes two such products in the
//! time of one in f32.

use std::cell::RefCell;

use multiversion::multiversion;

use super::operand::PackedOperand;
use super::tile::{result, Target, WriteMode, MOST_ROWS, PANEL};
use super::view::View;
use crate::profile;

/// Whether this processor has AVX512-BF16.
pub(super) fn is_available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// A matrix `(depth, columns)` of rounded elements, in panels of 32 columns. Rows are stored in pairs: the two elements
/// of a pair that are in one column are adjacent.
pub(crate) struct HalfPacked {
    depth: usize,
    columns: usize,
    panels: Vec<u16>,
}

impl HalfPacked {
    /// Packs a matrix.
    pub(super) fn new(matrix: PackedOperand) -> Self {
        let (depth, columns) = matrix.shape();
        let pairs = depth.div_ceil(2);
        let mut panels = vec![0; columns.div_ceil(PANEL) * pairs * 2 * PANEL];
        let sized = panels.chunks_exact_mut((pairs * 2 * PANEL).max(1));
        let mut room = vec![0.0; matrix.room(depth)];
        for (number, panel) in sized.enumerate() {
            let from = matrix.panel(number, 0..depth, &mut room);
            for (place, element) in from.iter().enumerate() {
                let (p, j) = (place / PANEL, place % PANEL);
                panel[p / 2 * 2 * PANEL + 2 * j + p % 2] = round(*element);
            }
        }
        HalfPacked {
            depth,
            columns,
            panels,
        }
    }

    /// This matrix as the right operand of a product.
    pub(super) fn plain(&self) -> HalfOperand<'_> {
        HalfOperand {
            packed: self,
            is_transposed: false,
        }
    }

    /// The elements of a panel.
    fn panel(&self, number: usize) -> &[u16] {
        let length = self.depth.div_ceil(2) * 2 * PANEL;
        &self.panels[number * length..][..length]
    }

    /// Writes panel `number` of the transpose to `panel`. Four elements that are two rows by two columns are adjacent
    /// in both panels.
    fn turn(&self, number: usize, panel: &mut [u16]) {
        assert!(is_available(), "this processor has no bfloat16 products");
        let (pairs, first) = (self.depth.div_ceil(2), number * FOURS);
        let there = FOURS.min(pairs - first);
        if there < FOURS {
            panel.fill(0);
        }
        // Rows of the panel are pairs of columns here.
        for (block, target) in panel.chunks_mut(FOURS * 2 * PANEL).enumerate() {
            let from = &self.panel(block)[first * 2 * PANEL..][..there * 2 * PANEL];
            let rows = target.len() / (2 * PANEL);
            for (column, row) in (0..rows).step_by(8).flat_map(|column| {
                let rows = (0..there).step_by(8);
                rows.map(move |row| (column, row))
            }) {
                let from = &from[row * 2 * PANEL + 4 * column..];
                let target = &mut target[column * 2 * PANEL + 4 * row..];
                let count = [(there - row).min(8), (rows - column).min(8)];
                // SAFETY: the processor has the instructions. Rows and columns are those that exist.
                unsafe { turn_fours(from.as_ptr(), target.as_mut_ptr(), count) };
            }
        }
    }
}

/// The pairs of columns of a panel.
const FOURS: usize = PANEL / 2;

thread_local! {
    /// A panel of a transpose.
    static TURNED: RefCell<Vec<u16>> = RefCell::default();
}

/// A rounded matrix, or its transpose. The panels of the transpose are made when they are needed, so that a weight is in
/// memory once for both directions.
#[derive(Clone, Copy)]
pub(crate) struct HalfOperand<'a> {
    packed: &'a HalfPacked,
    is_transposed: bool,
}

impl HalfOperand<'_> {
    /// The transpose.
    pub(super) fn t(self) -> Self {
        let is_transposed = !self.is_transposed;
        HalfOperand {
            is_transposed,
            ..self
        }
    }

    /// `(depth, columns)`
    fn shape(&self) -> (usize, usize) {
        let HalfPacked { depth, columns, .. } = *self.packed;
        match self.is_transposed {
            false => (depth, columns),
            true => (columns, depth),
        }
    }

    /// `a b (rows, columns)`, and `bias (columns)` added to each row.
    pub(super) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        let (_, columns) = self.shape();
        // SAFETY: each element is written.
        unsafe {
            result(Vec::new(), a.rows, columns, bias, |place| {
                self.multiply(place.out, a, place.mode)
            })
        }
    }

    /// `out ← out + a b`, `out (rows, columns)`.
    pub(super) fn multiply_add(&self, out: &mut [f32], a: View) {
        let (_, columns) = self.shape();
        assert_eq!(out.len(), a.rows * columns, "half product: out");
        // SAFETY: `out` has all rows.
        unsafe { self.multiply(out.as_mut_ptr(), a, WriteMode::Add) }
    }

    /// # Safety
    /// `out` has `a.rows` rows of `columns` elements, which may be uninitialized unless they are added to. A bias has
    /// `columns` elements.
    unsafe fn multiply(&self, out: *mut f32, a: View, mode: WriteMode) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        // At depth 0 there would be no panel, and the result would stay uninitialized.
        assert!(
            depth > 0 && a.columns == depth && a.fits() && a.strides.1 == 1,
            "half product: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        assert!(is_available(), "this processor has no bfloat16 products");
        profile::product(rows, depth, columns);
        let pairs = depth.div_ceil(2);
        let mut rounded = vec![0u16; rows * pairs * 2];
        for (row, to) in rounded.chunks_exact_mut((pairs * 2).max(1)).enumerate() {
            let from = &a.data[row * a.strides.0..row * a.strides.0 + depth];
            round_all(from, to);
        }
        let mut turned = TURNED.take();
        if self.is_transposed {
            turned.resize(pairs * 2 * PANEL, 0);
        }
        for number in 0..columns.div_ceil(PANEL) {
            let panel = match self.is_transposed {
                false => self.packed.panel(number),
                true => {
                    self.packed.turn(number, &mut turned);
                    turned.as_slice()
                }
            };
            let first = number * PANEL;
            let tile = |row: usize| Bf16Tile {
                pairs,
                a: rounded[row * pairs * 2..].as_ptr(),
                panel: panel.as_ptr(),
                target: Target {
                    out: out.add(row * columns + first),
                    stride: columns,
                    width: PANEL.min(columns - first),
                    mode: mode.at_column(first),
                },
            };
            for row in (0..rows).step_by(MOST_ROWS) {
                // The processor has the instructions. The tile covers at most the remaining rows and a whole panel.
                multiply_tile(&tile(row), (rows - row).min(MOST_ROWS));
            }
        }
        TURNED.set(turned);
    }
}

/// Rounds to the nearest bfloat16, ties to even; NaN stays NaN. The same as `half::bf16::from_f32`, in a form that the
/// compiler vectorizes.
#[inline(always)]
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if x.is_nan() { quiet } else { nearest }) >> 16) as u16
}

/// Rounds a row. Further elements of `to` are left as they are.
#[multiversion(targets("x86_64+avx512f+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn round_all(from: &[f32], to: &mut [u16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = round(*from);
    }
}

/// The operands of one call of the kernel.
struct Bf16Tile {
    pairs: usize,
    a: *const u16,
    panel: *const u16,
    target: Target,
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn multiply_tile(_: &Bf16Tile, _: usize) {
    unreachable!("no processor of this kind has bfloat16 products")
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn turn_fours(_: *const u16, _: *mut u16, _: [usize; 2]) {
    unreachable!("no processor of this kind has bfloat16 products")
}

#[cfg(target_arch = "x86_64")]
use x86::{multiply_tile, turn_fours};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::super::tile::x86::write;
    use super::{Bf16Tile, MOST_ROWS, PANEL};

    /// `a · panel` for `count` rows, 1 to 12.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn multiply_tile(tile: &Bf16Tile, count: usize) {
        const KERNELS: [unsafe fn(&Bf16Tile); MOST_ROWS] = [
            rows::<1>, rows::<2>, rows::<3>, rows::<4>, rows::<5>, rows::<6>, rows::<7>, rows::<8>,
            rows::<9>, rows::<10>, rows::<11>, rows::<12>,
        ];
        KERNELS[count.clamp(1, MOST_ROWS) - 1](tile);
    }

    /// Transposes up to 8 by 8 groups of four elements, whose rows are [`PANEL`] pairs apart, and each group itself.
    ///
    /// # Safety
    /// As many rows and columns as `count` says can be read, and written the other way.
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) unsafe fn turn_fours(from: *const u16, to: *mut u16, [rows, columns]: [usize; 2]) {
        let inside = _mm512_set4_epi32(0x0f0e_0b0a, 0x0d0c_0908, 0x0706_0302, 0x0504_0100);
        let of = |row: usize| match row < rows {
            true => {
                let mask = ((1u32 << columns) - 1) as __mmask8;
                let fours = _mm512_maskz_loadu_epi64(mask, from.add(row * 2 * PANEL).cast());
                _mm512_shuffle_epi8(fours, inside)
            }
            false => _mm512_setzero_si512(),
        };
        // Columns 0, 2, 4, 6 and 1, 3, 5, 7 of two rows each.
        let two: [[__m512i; 2]; 4] = std::array::from_fn(|i| {
            let (a, b) = (of(2 * i), of(2 * i + 1));
            [_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)]
        });
        let mut turned = [_mm512_setzero_si512(); 8];
        for odd in 0..2 {
            let low = |lanes: usize| (two[2 * lanes][odd], two[2 * lanes + 1][odd]);
            let ((a, b), (c, d)) = (low(0), low(1));
            // Lanes 0 and 2 of rows 0 to 3 and of rows 4 to 7, then lanes 1 and 3.
            let even = [
                _mm512_shuffle_i64x2::<0x88>(a, b),
                _mm512_shuffle_i64x2::<0x88>(c, d),
            ];
            let uneven = [
                _mm512_shuffle_i64x2::<0xdd>(a, b),
                _mm512_shuffle_i64x2::<0xdd>(c, d),
            ];
            turned[odd] = _mm512_shuffle_i64x2::<0x88>(even[0], even[1]);
            turned[4 + odd] = _mm512_shuffle_i64x2::<0xdd>(even[0], even[1]);
            turned[2 + odd] = _mm512_shuffle_i64x2::<0x88>(uneven[0], uneven[1]);
            turned[6 + odd] = _mm512_shuffle_i64x2::<0xdd>(uneven[0], uneven[1]);
        }
        let mask = ((1u32 << rows) - 1) as __mmask8;
        for (column, fours) in turned.into_iter().take(columns).enumerate() {
            _mm512_mask_storeu_epi64(to.add(column * 2 * PANEL).cast(), mask, fours);
        }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn rows<const ROWS: usize>(tile: &Bf16Tile) {
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        let mut panel = tile.panel;
        for pair in 0..tile.pairs {
            let half = |pointer: *const u16| -> __m512bh {
                std::mem::transmute(_mm512_loadu_si512(pointer.cast()))
            };
            let b = [half(panel), half(panel.add(PANEL))];
            panel = panel.add(2 * PANEL);
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = tile.a.add(2 * (i * tile.pairs + pair)).cast::<i32>();
                let x: __m512bh = std::mem::transmute(_mm512_set1_epi32(x.read_unaligned()));
                sum[0] = _mm512_dpbf16_ps(sum[0], x, b[0]);
                sum[1] = _mm512_dpbf16_ps(sum[1], x, b[1]);
            }
        }
        write(&tile.target, &sums);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::packed::Packed;
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_and_of_two_to_the_even_one() {
        let bits = (0..0x1_0000u32)
            .flat_map(|high| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| high << 16 | low));
        for x in bits.map(f32::from_bits) {
            let (found, expected) = (half::bf16::from_bits(round(x)), half::bf16::from_f32(x));
            assert!(found == expected || x.is_nan() && found.is_nan(), "{x}");
        }
    }

    /// Compares products of rounded elements with sums in f64; ties are among the elements. `product` gets a matrix
    /// `b`, `a`, a bias and a buffer. It returns `a b` plus the bias and adds `a b` to the buffer.
    pub fn check_rounded(
        shapes: &[(usize, usize, usize)],
        product: impl Fn(Packed, View, &[f32], &mut [f32]) -> Vec<f32>,
    ) {
        let value = |seed: usize| (crate::mix(seed as u64) >> 40) as f32 / 16_777_216.0 - 0.5;
        let exact = |x: f32| f64::from(half::bf16::from_f32(x).to_f32());
        for &(rows, depth, columns) in shapes {
            let mut a: Vec<f32> = (0..rows * depth).map(value).collect();
            // Halfway between two bfloat16 values; one of the two is even.
            a[0] = f32::from_bits(0x3f80_8000);
            a[depth / 2] = f32::from_bits(0xbf81_8000);
            let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 / 64.0).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let mut added = vec![1.0; rows * columns];
            let biased = product(packed, View::new(&a, depth), &bias, &mut added);
            for (place, (biased, added)) in biased.iter().zip(&added).enumerate() {
                let (i, j) = (place / columns, place % columns);
                let terms = (0..depth).map(|p| exact(a[i * depth + p]) * exact(b[p * columns + j]));
                let sum: f64 = terms.sum();
                assert!((f64::from(*biased) - sum - f64::from(bias[j])).abs() < 1e-5);
                assert!((f64::from(*added) - sum - 1.0).abs() < 1e-5);
            }
        }
    }

    #[test]
    #[ignore = "needs a processor with AVX512-BF16"]
    fn products_are_those_of_rounded_elements_on_avx512_bf16() {
        let shapes = [(1, 1, 1), (13, 7, 33), (25, 40, 64), (12, 385, 70)];
        check_rounded(&shapes, |packed, a, bias, added| {
            let turned = HalfPacked::new(packed.plain().t());
            let packed = HalfPacked::new(packed.plain());
            packed.plain().multiply_add(added, a);
            let product = packed.plain().product(a, Some(bias));
            assert_eq!(turned.plain().t().product(a, Some(bias)), product);
            product
        });
    }
}
