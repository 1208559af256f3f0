//! Positions of rows, and the queries and keys that rotary embeddings turn by them.

use std::sync::Arc;

use super::forward::Pass;
use crate::engine::{ops, Angles, Layout, Matrix, Outcome};

impl Pass<'_> {
    /// Queries and keys turned by the angles of their positions, where the family has rotary embeddings; `q` is of
    /// the rows `queries` where they are given.
    pub(super) fn rotary(
        &self,
        [q, k]: [Matrix; 2],
        layout: &Layout,
        queries: Option<&[usize]>,
    ) -> Outcome<[Matrix; 2]> {
        let Some((frequencies, factor)) = &self.graph.frequencies else {
            return Ok([q, k]);
        };
        // As in PEFT, a prefix before the keys takes the first positions, and is not turned.
        let first = self.graph.active.prefix_tokens;
        let angles = self.angles.get_or_init(|| {
            let positions = first + layout.longest();
            Arc::new(Angles::new(frequencies, *factor, positions))
        });
        let positions = positions(layout, first);
        let own: Vec<usize> = match queries {
            Some(rows) => rows.iter().map(|&row| positions[row]).collect(),
            None => positions.clone(),
        };
        Ok([
            ops::rotary(q, &own, angles)?,
            ops::rotary(k, &positions, angles)?,
        ])
    }
}

/// The position of every row, counted from `first` in each sequence.
pub(super) fn positions(layout: &Layout, first: usize) -> Vec<usize> {
    let ranges = layout.ranges();
    ranges
        .flat_map(|range| first..first + range.len())
        .collect()
}
