//! The micro-kernel of products: some rows of one matrix, times a panel of 32 columns of the other.

#[cfg(target_arch = "x86_64")]
mod register;
#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// Columns of a panel: two registers of AVX-512, four of AVX2.
pub(crate) const PANEL: usize = 32;

/// The number of elements in a cache line, and in an AVX-512 register.
pub(crate) const LINE: usize = 16;

/// The index of the first element at a cache line boundary, at most [`LINE`]. Panels begin there, because loading a
/// register across two lines costs as much as two loads.
pub(crate) fn from_line(buffer: &[f32]) -> usize {
    buffer.as_ptr().align_offset(4 * LINE).min(LINE)
}

/// How a product is written to the elements of a result.
#[derive(Clone, Copy)]
pub(crate) enum WriteMode {
    /// `out ← out + a b`
    Add,
    /// `out ← a b`
    Set,
    /// `out ← a b + bias`
    Bias(*const f32),
}

impl WriteMode {
    /// The mode for a new result with `columns` columns.
    pub(crate) fn result(bias: Option<&[f32]>, columns: usize) -> Self {
        match bias {
            Some(bias) => {
                assert_eq!(bias.len(), columns, "product: bias and columns disagree");
                WriteMode::Bias(bias.as_ptr())
            }
            None => WriteMode::Set,
        }
    }

    /// The mode for the columns from `first` on.
    pub(crate) fn at_column(self, first: usize) -> Self {
        match self {
            WriteMode::Bias(bias) => WriteMode::Bias(bias.wrapping_add(first)),
            other => other,
        }
    }
}

/// Where a result is written.
#[derive(Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) out: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) mode: WriteMode,
}

// SAFETY: these are only pointers. The code that writes through them ensures that no two threads write the same
// elements.
unsafe impl Send for Destination {}
unsafe impl Sync for Destination {}

impl Destination {
    pub(crate) fn new(out: &mut [f32], stride: usize, mode: WriteMode) -> Self {
        let out = out.as_mut_ptr();
        Destination { out, stride, mode }
    }

    /// The destination this many elements further on. The mode must not be [`WriteMode::Bias`], which would have to move as
    /// well.
    pub(crate) fn at(self, elements: usize) -> Self {
        debug_assert!(!matches!(self.mode, WriteMode::Bias(_)));
        let out = self.out.wrapping_add(elements);
        Destination { out, ..self }
    }

    /// The part of a result of `columns` columns that begins at a row and a column and is at most one panel wide.
    pub(crate) fn target(self, row: usize, first: usize, columns: usize) -> Target {
        Target {
            out: self.out.wrapping_add(row * self.stride + first),
            stride: self.stride,
            width: PANEL.min(columns - first),
            mode: self.mode.at_column(first),
        }
    }
}

/// Makes a result `(rows, columns)`, which `write` fills, with `bias (columns)` added to each row. Uses the allocation
/// of `room` if that is large enough.
///
/// # Safety
/// `write` writes every element of its destination.
pub(crate) unsafe fn result(
    room: Vec<f32>,
    rows: usize,
    columns: usize,
    bias: Option<&[f32]>,
    write: impl FnOnce(Destination),
) -> Vec<f32> {
    let count = rows * columns;
    let mut out = room;
    out.clear();
    out.reserve_exact(count);
    write(Destination {
        out: out.as_mut_ptr(),
        stride: columns,
        mode: WriteMode::result(bias, columns),
    });
    // There is room for `count` elements, and each was written.
    out.set_len(count);
    out
}

/// `panel[p * 32 + j] ← data[j * stride + p]` for `p` below `depth` and `j` below `count`; zero for the
/// other `j` of a panel.
pub(crate) fn transpose(
    data: &[f32],
    stride: usize,
    depth: usize,
    count: usize,
    panel: &mut [f32],
) {
    assert!(count <= PANEL);
    exchange(data, stride, (depth, count), panel, PANEL);
    for row in panel.chunks_exact_mut(PANEL).take(depth) {
        row[count..].fill(0.0);
    }
}

/// `out[p * out_stride + j] ← data[j * stride + p]` for `p` below `depth` and `j` below `count`.
pub(crate) fn exchange(
    data: &[f32],
    stride: usize,
    (depth, count): (usize, usize),
    out: &mut [f32],
    out_stride: usize,
) {
    if depth == 0 || count == 0 {
        return;
    }
    assert!((count - 1) * stride + depth <= data.len());
    assert!(count <= out_stride && (depth - 1) * out_stride + count <= out.len());
    let mut whole = (0, 0);
    #[cfg(target_arch = "x86_64")]
    if let Some((side, exchange)) = x86::blocks().next() {
        whole = (depth / side * side, count / side * side);
        for p in (0..whole.0).step_by(side) {
            for j in (0..whole.1).step_by(side) {
                // SAFETY: the processor has the instructions, and both blocks of `side` by `side` lie in
                // their slices, by the assertions above.
                unsafe {
                    exchange(
                        data.as_ptr().add(j * stride + p),
                        stride,
                        out.as_mut_ptr().add(p * out_stride + j),
                        out_stride,
                    );
                }
            }
        }
    }
    for p in 0..depth {
        let done = if p < whole.0 { whole.1 } else { 0 };
        for j in done..count {
            out[p * out_stride + j] = data[j * stride + p];
        }
    }
}

/// The largest number of rows in a tile.
pub(crate) const MOST_ROWS: usize = 12;

/// The operands of one call of [`Kernels::rows`].
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    pub(crate) depth: usize,
    pub(crate) a: *const f32,
    pub(crate) a_strides: (usize, usize),
    pub(crate) panel: *const f32,
    /// The memory to prefetch meanwhile: [`coming_elements`] from here on.
    pub(crate) coming: *const f32,
    /// Where the sums go.
    pub(crate) target: Target,
}

/// The gap between the slices of a buffer, in elements. Rows whose distance is a multiple of 1024 elements compete for
/// a few sets of the first-level cache.
pub(crate) const GAP: usize = 272;

/// `COUNT` slices of `length` elements in a buffer, with gaps between them. The first begins at a cache line boundary.
pub(crate) fn slices<const COUNT: usize>(
    buffer: &mut Vec<f32>,
    length: usize,
) -> [&mut [f32]; COUNT] {
    let with_gap = length + GAP;
    if buffer.len() < COUNT * with_gap + LINE {
        buffer.resize(COUNT * with_gap + LINE, 0.0);
    }
    let first = from_line(buffer);
    let mut rest = &mut buffer[first..];
    std::array::from_fn(|_| {
        let (slice, after) = std::mem::take(&mut rest).split_at_mut(with_gap);
        rest = after;
        &mut slice[..length]
    })
}

/// The number of steps of a product for each cache line of 16 elements that is prefetched.
const STEPS_PER_LINE: usize = 4;

/// The number of elements that a kernel prefetches during a product of this depth.
fn coming_elements(depth: usize) -> usize {
    depth / STEPS_PER_LINE * LINE
}

/// Memory that will be needed soon and is prefetched into the second-level cache. It is never read through these
/// pointers.
#[derive(Clone, Copy)]
pub(crate) struct Pieces {
    pub(crate) first: *const f32,
    pub(crate) count: usize,
    /// The number of elements in each piece.
    pub(crate) length: usize,
    /// The distance from one piece to the next, in elements.
    pub(crate) stride: usize,
}

impl Pieces {
    /// Nothing to prefetch but what is at hand.
    pub(crate) fn none(at_hand: *const f32) -> Self {
        Pieces {
            first: at_hand,
            count: 0,
            length: 0,
            stride: 0,
        }
    }

    /// The places from which to prefetch [`coming_elements`], one for each of a series of products of this depth.
    pub(crate) fn places(self, depth: usize) -> Places {
        let step = coming_elements(depth).max(LINE);
        Places {
            pieces: self,
            step,
            offset: 0,
        }
    }
}

/// Places in [`Pieces`], one after the other.
pub(crate) struct Places {
    /// The pieces that are left.
    pieces: Pieces,
    step: usize,
    /// The offset of the next place in the first piece.
    offset: usize,
}

impl Iterator for Places {
    type Item = *const f32;

    #[inline(always)]
    fn next(&mut self) -> Option<*const f32> {
        if self.offset >= self.pieces.length {
            self.offset = 0;
            self.pieces.count = self.pieces.count.saturating_sub(1);
            self.pieces.first = self.pieces.first.wrapping_add(self.pieces.stride);
        }
        let place = self.pieces.first.wrapping_add(self.offset);
        self.offset += self.step;
        (self.pieces.count > 0 && self.pieces.length > 0).then_some(place)
    }
}

/// Prefetches the cache line of `place` into the second-level cache.
#[inline(always)]
pub(crate) fn prefetch(place: *const f32) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T1};
        // SAFETY: all of x86-64 has the instruction, and it touches nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(place.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = place;
}

/// The part of a result that a tile's sums are written to.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) out: *mut f32,
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// Columns, at most those of a panel.
    pub(crate) width: usize,
    pub(crate) mode: WriteMode,
}

/// The micro-kernels for an instruction set.
#[derive(Clone, Copy)]
pub(crate) struct Kernels {
    /// Writes the products of 1 to 12 rows and a panel.
    pub(crate) rows: unsafe fn(&Tile, usize),
}

impl Kernels {
    /// The kernels for this processor, if there are any.
    pub(crate) fn of_this_processor() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                return Some(x86::AVX512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Some(x86::AVX2);
            }
        }
        None
    }
}

impl Tile {
    /// The rest of the tile from a row and a column on.
    pub(crate) fn at(self, row: usize, column: usize) -> Self {
        Tile {
            a: self.a.wrapping_add(row * self.a_strides.0),
            panel: self.panel.wrapping_add(column),
            target: self.target.at(row, column),
            ..self
        }
    }
}

impl Target {
    /// The rest of the target from a row and a column on.
    pub(crate) fn at(self, row: usize, column: usize) -> Self {
        Target {
            out: self.out.wrapping_add(row * self.stride + column),
            width: self.width.saturating_sub(column),
            mode: self.mode.at_column(column),
            ..self
        }
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn blocks_exchange_rows_and_columns() {
        for (side, exchange) in x86::blocks() {
            let (from_stride, to_stride) = (side + 3, side + 5);
            let from: Vec<f32> = (0..side * from_stride).map(|i| i as f32).collect();
            let mut to = vec![-1.0; side * to_stride];
            // SAFETY: the processor has the instructions; both hold `side` rows.
            unsafe { exchange(from.as_ptr(), from_stride, to.as_mut_ptr(), to_stride) };
            for (place, found) in to.iter().enumerate() {
                let (row, column) = (place / to_stride, place % to_stride);
                let expected = match column < side {
                    true => from[column * from_stride + row],
                    false => -1.0,
                };
                assert_eq!(*found, expected, "block of {side}: {row}, {column}");
            }
        }
    }
}
