//! Finds the rows of a batch that the head reads. The forward pass drops all other rows after the attention of the last
//! block (`Pass::blocks` and `Pass::block`).

use super::super::{AnswerRows, Batch, Targets};
use crate::backbone::family::Reads;
use crate::engine::Layout;

/// The rows that a head reads, in ascending order.
pub(in crate::graph) fn read_rows(reads: Reads, batch: &Batch, layout: &Layout) -> Vec<usize> {
    match (reads, &batch.targets) {
        // As in PEFT, the first row belongs to the prompt if there is one.
        (Reads::First, _) => layout.ranges().map(|range| range.start).collect(),
        (Reads::Last, _) => layout.ranges().map(|range| range.end - 1).collect(),
        (Reads::Mean, _) => (0..layout.rows()).collect(),
        (Reads::Each, _) => moved_rows(&batch.reads, batch, layout),
        (Reads::Masked | Reads::Next, targets) => {
            let rows: Vec<usize> = match targets {
                _ if !batch.reads.is_empty() => batch.reads.clone(),
                Targets::Tokens { rows, .. } | Targets::Answers(AnswerRows { rows, .. }) => {
                    rows.clone()
                }
                _ if batch.decoder.is_some() => (0..layout.rows()).collect(),
                _ => (0..batch.layout.rows()).collect(),
            };
            // A prompt's last row predicts the first token.
            let is_before = reads == Reads::Next
                && matches!(targets, Targets::Tokens { .. } | Targets::Answers(_));
            match batch.decoder {
                // Prompts extend the encoder's input, so the decoder's rows do not move.
                Some(_) => rows,
                None if is_before && batch.reads.is_empty() => {
                    let rows = moved_rows(&rows, batch, layout).into_iter();
                    rows.map(|row| row - 1).collect()
                }
                None => moved_rows(&rows, batch, layout),
            }
        }
    }
}

/// The layout of the rows that the head reads. Each row is a sequence of its own, and its random key is
/// derived from the sequence and position that it comes from.
pub(in crate::graph) fn read_layout(layout: &Layout, rows: &[usize]) -> Layout {
    let mut keys = Vec::with_capacity(rows.len());
    let ranges: Vec<_> = layout.ranges().collect();
    let mut sequence = 0;
    for &row in rows {
        if !ranges
            .get(sequence)
            .is_some_and(|range| range.contains(&row))
        {
            sequence = ranges.partition_point(|range| range.end <= row);
        }
        let position = (row - ranges[sequence].start) as u64;
        keys.push(crate::engine::mix(layout.key(sequence) ^ (position << 32)));
    }
    Layout::new(rows.iter().map(|_| 1), keys)
}

/// Translates row numbers of a batch to row numbers of `new`, which has prompt rows added to each sequence.
fn moved_rows(rows: &[usize], batch: &Batch, new: &Layout) -> Vec<usize> {
    let old = &batch.layout;
    let more = (new.rows() - old.rows()) / old.sequences().max(1);
    let mut moved = vec![0; old.rows()];
    for (place, row) in old.extended_rows(more, &batch.soft).into_iter().enumerate() {
        if row >= more {
            moved[row - more] = place;
        }
    }
    rows.iter().map(|&row| moved[row]).collect()
}
