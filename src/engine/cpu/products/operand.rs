//! Products with a packed matrix, or with its transpose.

use std::cell::RefCell;
use std::ops::Range;

use super::super::helpers::share;
use super::coded::{decode, decode_transposed, DECODED};
use super::packed::Packed;
use super::tile::{
    result, slices, Destination, Kernels, Pieces, Tile, WriteMode, MOST_ROWS, PANEL,
};
use super::view::{multiply, View};
use crate::{profile, WeightSource};

/// The least number of multiplications in a part of a product that is worth another thread's time: some 50
/// microseconds.
const LEAST_SHARED: usize = 1 << 21;

thread_local! {
    /// A panel of a transpose.
    static TRANSPOSED: RefCell<Vec<f32>> = RefCell::default();
}

/// A packed matrix or its transpose, or one in codes. The transpose is made panel by panel when it is needed, so that a
/// weight is in memory once for both directions; so are the elements of codes.
#[derive(Clone, Copy)]
pub(crate) struct PackedOperand<'a> {
    matrix: Source<'a>,
    is_transposed: bool,
}

#[derive(Clone, Copy)]
enum Source<'a> {
    Packed(&'a Packed),
    /// With its shape.
    Coded(&'a dyn WeightSource, (usize, usize)),
}

/// Decoding an element takes as long as this many multiplications.
const DECODING: usize = 32;

impl<'a> PackedOperand<'a> {
    /// The matrix as it is.
    pub(crate) fn new(packed: &'a Packed) -> Self {
        PackedOperand {
            matrix: Source::Packed(packed),
            is_transposed: false,
        }
    }

    /// A matrix in codes, of this shape.
    pub(crate) fn coded(source: &'a dyn WeightSource, shape: (usize, usize)) -> Self {
        PackedOperand {
            matrix: Source::Coded(source, shape),
            is_transposed: false,
        }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        let is_transposed = !self.is_transposed;
        PackedOperand {
            is_transposed,
            ..self
        }
    }

    /// `(depth, columns)`
    pub(crate) fn shape(&self) -> (usize, usize) {
        let (depth, columns) = match self.matrix {
            Source::Packed(packed) => (packed.depth, packed.columns),
            Source::Coded(_, shape) => shape,
        };
        match self.is_transposed {
            false => (depth, columns),
            true => (columns, depth),
        }
    }

    /// The number of elements of room that [`PackedOperand::panel`] needs for this many rows.
    pub(crate) fn room(&self, rows: usize) -> usize {
        match (self.matrix, self.is_transposed) {
            (Source::Packed(_), false) => 0,
            (Source::Packed(_), true) | (Source::Coded(..), false) => rows * PANEL,
            (Source::Coded(..), true) => rows * PANEL + PANEL * DECODED,
        }
    }

    /// Rows `rows` of panel `number`, `(rows, 32)`: borrowed in place, or written to `room` for a transpose.
    pub(crate) fn panel<'b>(
        &self,
        number: usize,
        rows: Range<usize>,
        room: &'b mut [f32],
    ) -> &'b [f32]
    where
        'a: 'b,
    {
        match self.matrix {
            Source::Packed(packed) if self.is_transposed => {
                packed.transpose(number, rows, room);
                room
            }
            Source::Packed(packed) => &packed.panel(number)[rows.start * PANEL..rows.end * PANEL],
            Source::Coded(source, shape) => {
                let (panel, rest) = room.split_at_mut(rows.len() * PANEL);
                match self.is_transposed {
                    true => decode_transposed(source, shape, number, rows, panel, rest),
                    false => decode(source, shape, number, rows, panel),
                }
                panel
            }
        }
    }

    /// The memory that [`PackedOperand::panel`] reads for these rows, to be prefetched: none of codes, which are small.
    /// `at_hand` is memory that is in the caches.
    pub(crate) fn pieces(&self, number: usize, rows: Range<usize>, at_hand: *const f32) -> Pieces {
        let packed = match self.matrix {
            Source::Packed(packed) => packed,
            Source::Coded(..) => return Pieces::none(at_hand),
        };
        if !self.is_transposed {
            return Pieces {
                first: packed.panel(number)[rows.start * PANEL..].as_ptr(),
                count: 1,
                length: rows.len() * PANEL,
                stride: 0,
            };
        }
        // A panel of the transpose reads, from each packed panel, as many rows as it has columns.
        let (first, last) = (rows.start / PANEL, rows.end.div_ceil(PANEL));
        let row = number * PANEL;
        Pieces {
            first: packed.panel(first)[row * PANEL..].as_ptr(),
            count: last - first,
            length: PANEL.min(packed.depth - row) * PANEL,
            stride: packed.distance(),
        }
    }

    /// `out ← out + a b`, where this is `b (depth, columns)` and `a` is `(rows, depth)`. The rows of `out` are `stride`
    /// elements apart.
    pub(crate) fn multiply_add(&self, out: &mut [f32], stride: usize, a: View) {
        self.check(out.len(), stride, &a);
        // SAFETY: `check` has made sure that all rows lie in `out`.
        unsafe { self.multiply(Destination::new(out, stride, WriteMode::Add), a) }
    }

    /// `out ← a b`, with the operands of [`PackedOperand::multiply_add`].
    pub(crate) fn multiply_into(&self, out: &mut [f32], stride: usize, a: View) {
        self.check(out.len(), stride, &a);
        // SAFETY: `check` has made sure that all rows lie in `out`.
        unsafe { self.multiply(Destination::new(out, stride, WriteMode::Set), a) }
    }

    /// Writes `a b` to `place`, in its mode.
    ///
    /// # Safety
    /// `place` has `a.rows` rows of as many columns as this matrix, and nothing else accesses them meanwhile.
    pub(crate) unsafe fn multiply_at(&self, place: Destination, a: View) {
        assert!(a.columns == self.shape().0 && a.fits());
        self.multiply(place, a);
    }

    /// `a b (rows, columns)`, and `bias (columns)` added to each row.
    pub(crate) fn product(&self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        self.product_in(Vec::new(), a, bias)
    }

    /// [`PackedOperand::product`], in the allocation of `room` if that is large enough.
    pub(crate) fn product_in(&self, room: Vec<f32>, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        let (_, columns) = self.shape();
        self.check(a.rows * columns, columns, &a);
        // SAFETY: `check` has made sure that each element is written, and that there are no more.
        unsafe { result(room, a.rows, columns, bias, |place| self.multiply(place, a)) }
    }

    fn check(&self, length: usize, stride: usize, a: &View) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        assert!(
            a.columns == depth && a.fits(),
            "packed product: {rows}x{} by {depth}x{columns}",
            a.columns
        );
        assert!(columns <= stride && (rows == 0 || (rows - 1) * stride + columns <= length));
    }

    /// # Safety
    /// `a` fits and has `depth` columns. `place` has `a.rows` rows of `columns` elements, which may be uninitialized
    /// unless they are added to. A bias has `columns` elements.
    unsafe fn multiply(&self, place: Destination, a: View) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        profile::product(rows, depth, columns);
        let Some(kernels) = Kernels::of_this_processor().filter(|_| depth > 0) else {
            return self.multiply_portably(place, a);
        };
        let panels = columns.div_ceil(PANEL);
        self.multiply_panels(kernels, 0..panels, place, a);
    }

    /// Computes the columns of some panels. Each element is one sum over the depth, whichever thread computes it.
    ///
    /// # Safety
    /// As for [`PackedOperand::multiply`]; the processor has the kernel's instructions.
    unsafe fn multiply_panels(
        &self,
        kernels: Kernels,
        panels: Range<usize>,
        place: Destination,
        a: View,
    ) {
        let (depth, columns) = self.shape();
        let decoding = match self.matrix {
            Source::Packed(_) => 0,
            Source::Coded(..) => DECODING,
        };
        let least = |rows: usize| LEAST_SHARED.div_ceil(((rows + decoding) * depth * PANEL).max(1));
        // The next panel is prefetched here, because this thread most likely multiplies with it too.
        let last = panels.end.saturating_sub(1);
        let work = |panels: Range<usize>, rows: Range<usize>| {
            TRANSPOSED.with_borrow_mut(|buffer| {
                let [room] = slices(buffer, self.room(depth));
                for number in panels.clone() {
                    let panel = self.panel(number, 0..depth, room).as_ptr();
                    let next = self.pieces((number + 1).min(last), 0..depth, panel);
                    let whole = Tile {
                        depth,
                        a: a.data.as_ptr(),
                        a_strides: a.strides,
                        panel,
                        coming: next.first,
                        target: place.target(0, number * PANEL, columns),
                    };
                    let mut places = next.places(depth);
                    for row in rows.clone().step_by(MOST_ROWS) {
                        let tile = Tile {
                            coming: places.next().unwrap_or(next.first),
                            ..whole.at(row, 0)
                        };
                        // The tile covers at most the remaining rows of `a` and of the result, the columns that exist,
                        // and a whole panel.
                        (kernels.rows)(&tile, (rows.end - row).min(MOST_ROWS));
                    }
                }
            });
        };
        if panels.len() > 1 {
            return share(panels, least(a.rows), &|panels| work(panels, 0..a.rows));
        }
        // A product of a single panel is divided by rows instead.
        let tiles = 0..a.rows.div_ceil(MOST_ROWS);
        share(tiles, least(MOST_ROWS), &|tiles| {
            let end = a.rows.min(tiles.end * MOST_ROWS);
            work(panels.clone(), tiles.start * MOST_ROWS..end);
        });
    }

    /// [`PackedOperand::multiply`] for processors without a kernel of ours, by the `gemm` crate.
    unsafe fn multiply_portably(&self, Destination { out, stride, mode }: Destination, a: View) {
        let ((depth, columns), rows) = (self.shape(), a.rows);
        for row in 0..rows {
            let out = out.add(row * stride);
            match mode {
                WriteMode::Add => {}
                WriteMode::Set => out.write_bytes(0, columns),
                WriteMode::Bias(bias) => out.copy_from_nonoverlapping(bias, columns),
            }
        }
        if rows == 0 || depth == 0 || columns == 0 {
            return;
        }
        let out = std::slice::from_raw_parts_mut(out, (rows - 1) * stride + columns);
        let mut room = vec![0.0; self.room(depth)];
        for (number, first) in (0..columns).step_by(PANEL).enumerate() {
            let panel = self.panel(number, 0..depth, &mut room);
            let b = View::strided(panel, depth, PANEL.min(columns - first), PANEL);
            multiply(&mut out[first..], stride, a, b, 1.0, true);
        }
    }
}

/// `out ← out + a b` for a matrix `b (depth, columns)` that is used in this product only. It is packed one panel at a
/// time, and that panel stays in the first-level cache.
pub(crate) fn multiply_add_once(out: &mut [f32], a: View, b: &[f32], columns: usize) {
    /// Packing an element takes as long as this many multiplications.
    const PACKING: usize = 32;
    assert!(a.fits() && a.rows * columns <= out.len() && a.columns * columns <= b.len());
    let least = LEAST_SHARED.div_ceil(((a.rows + PACKING) * a.columns * PANEL).max(1));
    let place = Destination::new(out, columns, WriteMode::Add);
    share(0..columns.div_ceil(PANEL), least, &|panels| {
        let mut panel = Packed::default();
        for first in panels.map(|number| number * PANEL) {
            let count = PANEL.min(columns - first);
            panel.pack_rows(&b[first..], columns, a.columns, count);
            let place = place.at(first);
            // SAFETY: `out` has `a.rows` rows of `columns` elements, and only this thread writes these columns.
            unsafe { panel.plain().multiply(place, a) };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::super::tile::{self, Target};
    use super::*;

    fn check(kernel: impl Fn(&Packed, &mut [f32], &[f32])) {
        let mut seed = 1u64;
        let mut next = || {
            seed = crate::mix(seed);
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
                packed.panels(),
                Packed::transposed(&turned, depth, depth, columns).panels()
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
            packed
                .plain()
                .multiply_add(out, packed.columns, View::new(a, packed.depth))
        });
        // The same with `a` stored by columns.
        check(|packed, out, a| {
            let (rows, depth) = (a.len() / packed.depth, packed.depth);
            let turned: Vec<f32> = (0..a.len())
                .map(|i| a[i % rows * depth + i / rows])
                .collect();
            packed
                .plain()
                .multiply_add(out, packed.columns, View::new(&turned, rows).t());
        });
    }

    /// Multiplying by the transpose of the packed transpose gives the same bits.
    #[test]
    fn transposes_change_no_bit() {
        for (rows, depth, columns) in [(1, 1, 1), (13, 40, 33), (7, 3, 70), (128, 450, 333)] {
            let value = |i: usize| (crate::mix(i as u64) >> 40) as f32 / 16_777_216.0;
            let a: Vec<f32> = (0..rows * depth).map(value).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| value(!i)).collect();
            let plain = Packed::rows(&b, columns, depth, columns);
            let transpose = Packed::transposed(&b, columns, columns, depth);
            let [expected, found] = [plain.plain(), transpose.plain().t()]
                .map(|b| b.product(View::new(&a, depth), None));
            assert_eq!(expected, found, "{rows}x{depth}x{columns}");
            let mut found = vec![0.0; rows * columns];
            let (a, place) = (
                View::new(&a, depth),
                Destination::new(&mut found, columns, WriteMode::Set),
            );
            // SAFETY: the place has as many rows of as many columns as the product.
            unsafe { transpose.plain().t().multiply_portably(place, a) };
            for (expected, found) in plain.plain().product(a, None).iter().zip(found) {
                assert!((expected - found).abs() <= 1e-5 * expected.abs());
            }
        }
    }

    /// All modes of writing a result give the same elements.
    #[test]
    fn results_are_set_added_and_biased() {
        for (rows, depth, columns) in [(1, 1, 1), (13, 7, 33), (26, 5, 8), (3, 0, 40), (0, 4, 4)] {
            let a: Vec<f32> = (0..rows * depth).map(|i| (i % 7) as f32 - 3.0).collect();
            let b: Vec<f32> = (0..depth * columns).map(|i| (i % 5) as f32 - 2.0).collect();
            let bias: Vec<f32> = (0..columns).map(|i| i as f32).collect();
            let packed = Packed::rows(&b, columns, depth, columns);
            let view = || View::strided(&a, rows, depth, depth);
            let plain = packed.plain().product(view(), None);
            let exact = |i: usize, j: usize| -> f32 {
                (0..depth)
                    .map(|p| a[i * depth + p] * b[p * columns + j])
                    .sum()
            };
            for (place, value) in plain.iter().enumerate() {
                assert_eq!(*value, exact(place / columns, place % columns));
            }
            let biased = packed.plain().product(view(), Some(&bias));
            let mut added = vec![2.0; rows * columns];
            packed.plain().multiply_add(&mut added, columns, view());
            let mut set = vec![f32::NAN; rows * columns];
            packed.plain().multiply_into(&mut set, columns, view());
            for (place, value) in plain.iter().enumerate() {
                assert_eq!(biased[place], value + bias[place % columns]);
                assert_eq!(added[place], value + 2.0);
                assert_eq!(set[place], *value);
            }
        }
    }

    /// Runs a kernel over all tiles of a product.
    #[cfg(target_arch = "x86_64")]
    fn tiled(kernels: tile::Kernels) -> impl Fn(&Packed, &mut [f32], &[f32]) {
        move |packed, out, a| {
            let rows = a.len() / packed.depth;
            for first in (0..packed.columns).step_by(PANEL) {
                let panel = packed.panel(first / PANEL).as_ptr();
                let tile = Tile {
                    depth: packed.depth,
                    a: a.as_ptr(),
                    a_strides: (packed.depth, 1),
                    panel,
                    coming: panel,
                    target: Target {
                        out: out[first..].as_mut_ptr(),
                        stride: packed.columns,
                        width: PANEL.min(packed.columns - first),
                        mode: WriteMode::Add,
                    },
                };
                // SAFETY: the processor has the kernel's instructions, and the tile covers all rows.
                unsafe { (kernels.rows)(&tile, rows) };
            }
        }
    }

    #[test]
    fn products_are_right_on_any_processor() {
        check(|packed, out, a| {
            let rows = View::new(a, packed.depth);
            // SAFETY: `out` has as many rows of as many columns as the product.
            unsafe {
                packed
                    .plain()
                    .multiply_portably(Destination::new(out, packed.columns, WriteMode::Add), rows)
            };
        });
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    #[ignore = "needs a processor with AVX2"]
    fn products_are_right_on_avx2() {
        check(tiled(tile::x86::AVX2));
    }
}
