//! Matrix products on slices, with the `gemm` crate.

use gemm::Parallelism;

use crate::profile;

/// A matrix in a slice: `rows × columns`, element `(i, j)` at `i · row_stride + j · column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) strides: (usize, usize),
}

impl<'a> View<'a> {
    /// A whole row-major matrix of `columns` columns.
    pub(crate) fn new(data: &'a [f32], columns: usize) -> Self {
        let rows = data.len() / columns.max(1);
        View::strided(data, rows, columns, columns)
    }

    /// `rows` rows of `columns` elements, `stride` elements apart.
    pub(crate) fn strided(data: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        View {
            data,
            rows,
            columns,
            strides: (stride, 1),
        }
    }

    /// The transpose, by exchanging the strides.
    pub(crate) fn t(self) -> Self {
        View {
            rows: self.columns,
            columns: self.rows,
            strides: (self.strides.1, self.strides.0),
            ..self
        }
    }

    /// Whether all elements lie within the slice.
    pub(crate) fn fits(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.strides.0 + (self.columns - 1) * self.strides.1
                < self.data.len()
    }
}

/// `out ← scale · a b`, or `out ← out + scale · a b`; `out` is row-major with rows `stride` apart. Single-threaded,
/// because the groups of a batch already run in parallel.
pub(crate) fn multiply(
    out: &mut [f32],
    stride: usize,
    a: View,
    b: View,
    scale: f32,
    accumulate: bool,
) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    if m == 0 || n == 0 {
        return;
    }
    assert_eq!(a.columns, b.rows, "product: {m}x{k} by {}x{n}", b.rows);
    assert!(a.fits() && b.fits() && (m - 1) * stride + n <= out.len() && n <= stride);
    profile::product(m, k, n);
    // SAFETY: all three views were just checked to lie within their slices, and `out` is borrowed
    // exclusively, so it overlaps neither `a` nor `b`.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.strides.1 as isize,
            a.strides.0 as isize,
            b.data.as_ptr(),
            b.strides.1 as isize,
            b.strides.0 as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
