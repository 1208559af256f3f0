//! Decodes panels of a weight that is kept in codes.

use std::ops::Range;

use super::tile::{transpose, PANEL};
use crate::WeightSource;

/// The columns of a matrix in codes that are decoded for a part of a panel of its transpose.
pub(super) const DECODED: usize = 256;

/// Decodes rows `rows` of a panel of a matrix, `(rows, 32)`.
pub(super) fn decode(
    source: &dyn WeightSource,
    (_, columns): (usize, usize),
    number: usize,
    rows: Range<usize>,
    panel: &mut [f32],
) {
    let first = number * PANEL;
    let count = PANEL.min(columns - first);
    for (row, own) in rows.zip(panel.chunks_exact_mut(PANEL)) {
        let start = row * columns + first;
        source.read(start..start + count, &mut own[..count]);
        own[count..].fill(0.0);
    }
}

/// Decodes rows `rows` of a panel of the transpose of a matrix, `(rows, 32)`, with room for [`DECODED`] columns of 32 rows.
pub(super) fn decode_transposed(
    source: &dyn WeightSource,
    (depth, columns): (usize, usize),
    number: usize,
    rows: Range<usize>,
    panel: &mut [f32],
    room: &mut [f32],
) {
    let first = number * PANEL;
    let count = PANEL.min(depth - first);
    for part in rows.clone().step_by(DECODED) {
        let width = DECODED.min(rows.end - part);
        for (row, own) in room.chunks_exact_mut(width).take(count).enumerate() {
            let start = (first + row) * columns + part;
            source.read(start..start + width, own);
        }
        let place = (part - rows.start) * PANEL;
        let panel = &mut panel[place..place + width * PANEL];
        transpose(room, width, width, count, panel);
    }
}
