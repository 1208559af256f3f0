//! A matrix for many products, packed once into panels of 32 columns, so that a product streams it from the
//! second-level cache.

use std::ops::Range;

use super::operand::PackedOperand;
use super::tile::{from_line, transpose, LINE, PANEL};

/// A matrix `(depth, columns)`, panel after panel. The 32 elements of a panel's row are contiguous. The last panel is
/// padded with zeros.
#[derive(Default)]
pub(crate) struct Packed {
    pub(crate) depth: usize,
    pub(crate) columns: usize,
    /// Holds the panels from the first cache line boundary on, see [`from_line`].
    buffer: Vec<f32>,
}

impl Packed {
    /// Packs `depth` rows of `columns` elements that are `stride` elements apart.
    pub(crate) fn rows(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut packed = Packed::default();
        packed.pack_rows(data, stride, depth, columns);
        packed
    }

    /// Packs the transpose of `columns` rows of `depth` elements that are `stride` elements apart.
    pub(crate) fn transposed(data: &[f32], stride: usize, depth: usize, columns: usize) -> Self {
        let mut packed = Packed::default();
        packed.pack_transposed(data, stride, depth, columns);
        packed
    }

    /// [`Packed::transposed`] of a matrix that `read` supplies, which reads a range of its elements, row by row. At most 32
    /// of its rows are in memory beside the result.
    pub(crate) fn transposed_by(
        read: impl Fn(Range<usize>, &mut [f32]),
        depth: usize,
        columns: usize,
    ) -> Self {
        let mut packed = Packed::default();
        packed.resize(depth, columns);
        let distance = packed.distance();
        let panels = packed.panels_mut().chunks_exact_mut(distance.max(1));
        let mut rows = vec![0.0; PANEL.min(columns) * depth];
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            let rows = &mut rows[..count * depth];
            read(first * depth..(first + count) * depth, rows);
            transpose(rows, depth, depth, count, panel);
        }
        packed
    }

    /// [`Packed::rows`] into this buffer, in place of what it held.
    pub(crate) fn pack_rows(&mut self, data: &[f32], stride: usize, depth: usize, columns: usize) {
        self.resize(depth, columns);
        let distance = self.distance();
        let panels = self.panels_mut().chunks_exact_mut(distance.max(1));
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            for (p, row) in panel.chunks_exact_mut(PANEL).take(depth).enumerate() {
                let start = p * stride + first;
                if count == PANEL {
                    // Copying a length that is known at compile time needs no function call.
                    row.copy_from_slice(&data[start..start + PANEL]);
                } else {
                    row[..count].copy_from_slice(&data[start..start + count]);
                    row[count..].fill(0.0);
                }
            }
        }
    }

    /// [`Packed::transposed`] into this buffer, in place of what it held.
    pub(crate) fn pack_transposed(
        &mut self,
        data: &[f32],
        stride: usize,
        depth: usize,
        columns: usize,
    ) {
        self.resize(depth, columns);
        let distance = self.distance();
        let panels = self.panels_mut().chunks_exact_mut(distance.max(1));
        for (number, panel) in panels.enumerate() {
            let first = number * PANEL;
            let count = PANEL.min(columns - first);
            transpose(&data[first * stride..], stride, depth, count, panel);
        }
    }

    fn resize(&mut self, depth: usize, columns: usize) {
        (self.depth, self.columns) = (depth, columns);
        self.buffer.resize(self.length() + LINE, 0.0);
    }

    fn length(&self) -> usize {
        self.columns.div_ceil(PANEL) * self.distance()
    }

    /// The distance from one panel to the next, in elements. A panel of the transpose is read across all panels, one
    /// block from each. At a distance that is a multiple of 2048 elements, all these blocks would compete for a few
    /// sets of the second-level cache; such distances are padded by half a block.
    pub(crate) fn distance(&self) -> usize {
        const HALF_BLOCK: usize = PANEL * PANEL / 2;
        let length = self.depth * PANEL;
        match length.is_multiple_of(4 * HALF_BLOCK) {
            true => length + HALF_BLOCK,
            false => length,
        }
    }

    pub(crate) fn panels(&self) -> &[f32] {
        &self.buffer[from_line(&self.buffer)..][..self.length()]
    }

    fn panels_mut(&mut self) -> &mut [f32] {
        let (first, length) = (from_line(&self.buffer), self.length());
        &mut self.buffer[first..][..length]
    }

    /// The `(depth, 32)` elements of a panel.
    pub(crate) fn panel(&self, number: usize) -> &[f32] {
        &self.panels()[number * self.distance()..][..self.depth * PANEL]
    }

    /// This matrix as the right operand of a product.
    pub(crate) fn plain(&self) -> PackedOperand<'_> {
        PackedOperand::new(self)
    }

    /// The transpose, packed.
    #[cfg(test)]
    pub(super) fn turned(&self) -> Packed {
        let mut turned = Packed::default();
        turned.resize(self.columns, self.depth);
        let distance = turned.distance();
        for (number, panel) in turned.panels_mut().chunks_exact_mut(distance).enumerate() {
            self.transpose(number, 0..self.columns, &mut panel[..self.columns * PANEL]);
        }
        turned
    }

    /// Writes rows `rows` of panel `number` of the transpose to `out`, `(rows, 32)`.
    pub(crate) fn transpose(&self, number: usize, rows: Range<usize>, out: &mut [f32]) {
        let first = number * PANEL;
        let count = PANEL.min(self.depth - first);
        let mut row = rows.start;
        while row < rows.end {
            let inside = row % PANEL;
            let length = (PANEL - inside).min(rows.end - row);
            let block = &self.panel(row / PANEL)[first * PANEL + inside..];
            let place = &mut out[(row - rows.start) * PANEL..];
            transpose(block, PANEL, length, count, place);
            row += length;
        }
    }
}
