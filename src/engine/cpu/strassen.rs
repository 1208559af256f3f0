//! Products of large matrices with an eighth fewer multiplications: one level of Strassen's scheme in
//! Winograd's form (Strassen, "Gaussian elimination is not optimal", Numerische Mathematik 13, 1969;
//! Higham, "Accuracy and stability of numerical algorithms", 2nd edition, eq. 23.6).
//!
//! The sums of quarters of the weight are made panel by panel as they are needed, so the scheme takes
//! next to no memory. The rounding of an element depends on the rows that stand beside its own: as
//! small in norm, but not to the bit what sums in order give.

use std::cell::RefCell;
use std::ops::Range;

use multiversion::multiversion;

use super::helpers::{rows_of_a_part, share};
use super::operand::Operand;
use super::product::View;
use super::tile::{
    made_elements, slices, Kernels, Mode, Pieces, Place, Seven, LEAST_ROWS_OF_SEVEN, PANEL,
};

/// Rows from which on the scheme is faster than sums in order.
const LEAST_ROWS: usize = 96;

/// Depth and columns from which on it is.
pub const LEAST_SIDE: usize = 192;

/// Depth of the products whose sums are made at once: the eight panels of half that depth, and the seven
/// quarters and sums of a group's rows, are to stay in the second-level cache.
const MOST_DEPTH: usize = 384;

/// Rows whose distance is a multiple of so many elements share a few places of the first-level cache, eight
/// or twelve, and displace each other: a tile has twelve, beside the panel that streams by.
const DISPLACING: usize = 1024;

/// Whether `a b` is to be computed by this scheme.
pub(super) fn pays(a: &View, columns: usize) -> bool {
    a.rows >= LEAST_ROWS
        && a.columns.min(columns) >= LEAST_SIDE
        && a.columns.is_multiple_of(2)
        && a.strides.1 == 1
}

/// What a thread writes anew for each product.
#[derive(Default)]
struct Buffers {
    /// Four sums of quarters of `a`, `(rows / 2, depth / 2)` each.
    left: Vec<f32>,
    /// Copies of three quarters of `a`, where its rows displace each other.
    copies: Vec<f32>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::default();
    /// What a kernel makes of the quarters of two panels, and the two panels where they are a transpose's.
    static MADE: RefCell<[Vec<f32>; 2]> = RefCell::default();
}

/// The columns of `a b` that lie in the first `panels` panels of `b`, for `a (rows, depth)`; rows,
/// depth and panels are even.
///
/// # Safety
/// The processor has the kernel's instructions; `a` has as many columns as `b` has depth, one after
/// the other, and at least [`LEAST_ROWS`] rows but one; the place is as [`Operand::multiply`] asks.
pub(super) unsafe fn multiply(
    kernels: Kernels,
    Place { out, stride, mode }: Place,
    a: View,
    b: Operand,
    panels: usize,
) {
    debug_assert!(a.rows / 2 >= LEAST_ROWS_OF_SEVEN);
    // Taken, not borrowed: who waits for a helper may help another.
    let mut buffers = BUFFERS.take();
    let blocks = a.rows.div_ceil(2 * kernels.most_rows_of_seven).max(1);
    let block = a.rows.div_ceil(blocks).next_multiple_of(2).max(2);
    // Parts alike, so that none is too short to be worth its sums; halves are whole lines of a kernel.
    let parts = a.columns.div_ceil(MOST_DEPTH);
    let most = a.columns.div_ceil(parts).next_multiple_of(8);
    for row in (0..a.rows).step_by(block) {
        let mut mode = mode;
        for first in (0..a.columns).step_by(most) {
            let part = Part {
                a: View {
                    rows: block.min(a.rows - row),
                    columns: most.min(a.columns - first),
                    data: &a.data[row * a.strides.0 + first..],
                    ..a
                },
                b,
                first,
                panels: panels / 2,
                kernels,
            };
            let out = out.wrapping_add(row * stride);
            // SAFETY: a part of what the caller vouches for.
            unsafe { part.multiply(Place { out, stride, mode }, &mut buffers) };
            mode = Mode::Add;
        }
    }
    BUFFERS.set(buffers);
}

/// Some columns of `a`, times the rows of `b` from `first` on.
struct Part<'a> {
    a: View<'a>,
    b: Operand<'a>,
    first: usize,
    /// Half of the panels.
    panels: usize,
    kernels: Kernels,
}

impl Part<'_> {
    /// # Safety
    /// As of [`multiply`].
    unsafe fn multiply(&self, place: Place, buffers: &mut Buffers) {
        let (rows, depth) = (self.a.rows / 2, self.a.columns / 2);
        if self.panels > 0 {
            // The first panels are asked for while sums are made of the rows.
            self.coming(0).into_iter().for_each(Pieces::ask_for);
        }
        let left = self.left(&mut buffers.left, &mut buffers.copies);
        share(0..self.panels, 1, &|panels| {
            MADE.with_borrow_mut(|[made, room]| {
                let [made] = slices(made, made_elements(depth));
                let mut room = slices(room, self.b.room(2 * depth));
                for panel in panels.clone() {
                    let target = |below: usize, right: usize| {
                        let first = (panel + right * self.panels) * PANEL;
                        place.target(below * rows, first, self.b.shape().1)
                    };
                    let seven = Seven {
                        depth,
                        left: left.map(|view| (view.data.as_ptr(), view.strides.0)),
                        right: self.quarters(panel, &mut room),
                        made: made.as_mut_ptr(),
                        coming: self.coming((panel + 1).min(self.panels - 1)),
                        targets: [target(0, 0), target(0, 1), target(1, 0), target(1, 1)],
                    };
                    (self.kernels.seven)(&seven, rows);
                }
            });
        });
    }

    /// `A11, A12, A22, S1 … S4`.
    fn left<'b>(&'b self, sums: &'b mut Vec<f32>, copies: &'b mut Vec<f32>) -> [View<'b>; 7] {
        let (rows, depth, stride) = (self.a.rows / 2, self.a.columns / 2, self.a.strides.0);
        let quarters = [0, depth, rows * stride, rows * stride + depth]
            .map(|start| View::strided(&self.a.data[start..], rows, depth, stride));
        let [a11, a12, _, a22] = quarters;
        let mut plain = [a11, a12, a22];
        let displace = stride.is_multiple_of(DISPLACING);
        let mut sums = slices::<4>(sums, rows * depth);
        let mut copies = slices::<3>(copies, if displace { rows * depth } else { 0 });
        let sum_places = sums.each_mut().map(|sum| Place::new(sum, depth, Mode::Set));
        let copy_places = copies
            .each_mut()
            .map(|copy| Place::new(copy, depth, Mode::Set));
        share(0..rows, rows_of_a_part(depth), &|rows| {
            for row in rows {
                // SAFETY: the rows that are written are there, and no other thread has them.
                let row_at = |place: Place| unsafe { place.row(row, depth) };
                left_sums(
                    quarters.map(|quarter| row_of(quarter, row)),
                    sum_places.map(row_at),
                );
                if displace {
                    for (place, quarter) in copy_places.into_iter().zip(plain) {
                        row_at(place).copy_from_slice(row_of(quarter, row));
                    }
                }
            }
        });
        if displace {
            plain = copies.map(|copy| View::strided(copy, rows, depth, depth));
        }
        let [a11, a12, a22] = plain;
        let [s1, s2, s3, s4] = sums.map(|sum| View::strided(sum, rows, depth, depth));
        [a11, a12, a22, s1, s2, s3, s4]
    }

    /// `B11, B12, B21, B22` of a panel and the one half the panels further on.
    fn quarters(&self, panel: usize, room: &mut [&mut [f32]; 2]) -> [*const f32; 4] {
        let length = self.a.columns / 2 * PANEL;
        let [left, right] = room.each_mut();
        let left = self.b.panel(panel, self.depths(), left);
        let right = self.b.panel(panel + self.panels, self.depths(), right);
        [left, right, &left[length..], &right[length..]].map(|quarter| quarter.as_ptr())
    }

    /// What those of a panel are read from.
    fn coming(&self, panel: usize) -> [Pieces; 2] {
        [panel, panel + self.panels].map(|panel| self.b.pieces(panel, self.depths()))
    }

    /// Its rows of `b`.
    fn depths(&self) -> Range<usize> {
        self.first..self.first + self.a.columns
    }
}

fn row_of(view: View<'_>, row: usize) -> &[f32] {
    &view.data[row * view.strides.0..][..view.columns]
}

/// `S1 = A21 + A22, S2 = S1 − A11, S3 = A11 − A21, S4 = A12 − S2`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn left_sums([a11, a12, a21, a22]: [&[f32]; 4], [s1, s2, s3, s4]: [&mut [f32]; 4]) {
    let quarters = a11.iter().zip(a12).zip(a21).zip(a22);
    let sums = s1.iter_mut().zip(s2).zip(s3).zip(s4);
    for ((((a11, a12), a21), a22), (((s1, s2), s3), s4)) in quarters.zip(sums) {
        *s1 = a21 + a22;
        *s2 = *s1 - a11;
        *s3 = a11 - a21;
        *s4 = a12 - *s2;
    }
}

#[cfg(test)]
mod tests {
    use super::super::operand::Scheme;
    use super::super::packed::Packed;
    use super::*;

    /// Beside sums in f64, with rows and panels that do not divide by two, several parts of `depth`, rows
    /// that displace each other, and a last panel that is not full; every way of writing a result.
    #[test]
    fn the_scheme_gives_products() {
        let value =
            |seed: usize| (crate::engine::mix(seed as u64) >> 40) as f32 / 16_777_216.0 - 0.5;
        for (rows, depth, columns) in [
            (96, 192, 192),
            (97, 194, 215),
            (131, 1700, 330),
            (99, 2048, 200),
        ] {
            let a: Vec<f32> = (0..rows * depth).map(value).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32 / 64.0).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let view = View::new(&a, depth);
            assert!(pays(&view, columns));
            let plain = packed.plain().product_by(Scheme::Strassen, view, None);
            let biased = packed
                .plain()
                .product_by(Scheme::Strassen, view, Some(&bias));
            let mut added = vec![1.0; rows * columns];
            packed
                .plain()
                .multiply_add_by(Scheme::Strassen, &mut added, columns, view);
            for (place, found) in plain.iter().enumerate() {
                let (i, j) = (place / columns, place % columns);
                let term = |p: usize| f64::from(a[i * depth + p]) * f64::from(b[p * columns + j]);
                let exact: f64 = (0..depth).map(term).sum();
                for (found, beside) in
                    [(*found, 0.0), (biased[place], bias[j]), (added[place], 1.0)]
                {
                    let error = (f64::from(found) - exact - f64::from(beside)).abs();
                    assert!(
                        error < 1e-4,
                        "{rows}x{depth}x{columns}: {found} for {exact}"
                    );
                }
            }
        }
    }

    /// `a (rows, depth)` and `b (depth, columns)`.
    fn integers(rows: usize, depth: usize, columns: usize) -> (Vec<f32>, Packed) {
        let up_to = |count: usize, most: usize| -> Vec<f32> {
            let places = 0..count;
            places
                .map(|i| (i % (2 * most + 1)) as f32 - most as f32)
                .collect()
        };
        let b = up_to(depth * columns, 5);
        (
            up_to(rows * depth, 6),
            Packed::rows(&b, columns, depth, columns),
        )
    }

    /// A product of integers is exact whatever the order of its sums.
    #[test]
    fn integers_are_exact() {
        let (rows, depth, columns) = (100, 256, 224);
        let (a, packed) = integers(rows, depth, columns);
        let view = View::new(&a, depth);
        let by = |scheme| packed.plain().product_by(scheme, view, None);
        assert_eq!(by(Scheme::Strassen), by(Scheme::InOrder));
    }

    /// The same by the kernel for processors without AVX-512, which goes another way: with several parts of the
    /// depth and of the rows, tiles of every height, a last panel that is not full, and results added to.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn integers_are_exact_with_avx2() {
        use super::super::tile::x86::AVX2;
        if !(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")) {
            println!("skipped: this processor has no AVX2");
            return;
        }
        for (rows, depth, columns) in [(100, 1000, 256), (98, 194, 250), (600, 386, 233)] {
            for rows in rows..rows + 12 {
                let (a, packed) = integers(rows, depth, columns);
                let view = View::new(&a, depth);
                let (above, _) = view.split_at(rows / 2 * 2);
                let mut out = vec![1.0; above.rows * columns];
                let place = Place::new(&mut out, columns, Mode::Add);
                let panels = columns.div_ceil(PANEL);
                assert!(panels.is_multiple_of(2));
                // SAFETY: the processor has AVX2; `out` has all rows and columns.
                unsafe { multiply(AVX2, place, above, packed.plain(), panels) };
                let mut expected = packed.plain().product(above);
                expected.iter_mut().for_each(|sum| *sum += 1.0);
                assert_eq!(out, expected, "{rows}x{depth}x{columns}");
            }
        }
    }
}
