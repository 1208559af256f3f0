//! Finds the rows of a batch that the head reads. The forward pass drops all other rows after the attention of the last
//! block (`Pass::blocks` and `Pass::block`).

use super::super::{Batch, Targets};
use super::{is_gated_at_the_top, Optimization};
use crate::backbone::family::Reads;
use crate::engine::Layout;
use crate::plan::{Plan, TaskPlan};

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "the last block only for the rows that are read",
    check,
};

fn check(plan: &Plan, index: usize) -> Result<String, String> {
    if is_gated_at_the_top(plan, index) {
        return Err("a gate in it reads all rows of a sequence".to_owned());
    }
    let task = plan.tasks.get(&plan.stages[index].task);
    Ok(match task.is_some_and(TaskPlan::uses_language_model) {
        true => "behind its attention, only the tokens that a target is read off go on".to_owned(),
        false => "behind its attention, one row of a sequence goes on".to_owned(),
    })
}

/// The rows that a head reads, in ascending order.
pub(in crate::graph) fn read_rows(reads: Reads, batch: &Batch, layout: &Layout) -> Vec<usize> {
    match (reads, &batch.targets) {
        // As in PEFT, the first row belongs to the prompt if there is one.
        (Reads::First, _) => layout.ranges().map(|range| range.start).collect(),
        (Reads::Last, _) => layout.ranges().map(|range| range.end - 1).collect(),
        (Reads::Masked | Reads::Next, targets) => {
            let rows: Vec<usize> = match targets {
                _ if !batch.masks.is_empty() => batch.masks.clone(),
                Targets::Tokens { rows, .. } => rows.clone(),
                _ if batch.decoder.is_some() => (0..layout.rows()).collect(),
                _ => (0..batch.layout.rows()).collect(),
            };
            match batch.decoder {
                // Prompts extend the encoder's input, so the decoder's rows do not move.
                Some(_) => rows,
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
