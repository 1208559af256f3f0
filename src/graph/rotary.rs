//! Positions of rows, and the queries and keys that rotary embeddings turn by them.

use std::sync::Arc;

use super::forward::Pass;
use super::Outcome;
use crate::engine::{Angles, Backend, Layout, Matrix};

impl<D: Backend> Pass<'_, D> {
    /// Queries and keys turned by the angles of their positions, where the family has rotary embeddings; `q` is of
    /// the rows `queries` where they are given.
    pub(super) fn rotary(
        &self,
        [q, k]: [Matrix<D>; 2],
        layout: &Layout,
        queries: Option<&[usize]>,
    ) -> Outcome<[Matrix<D>; 2], D> {
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
            D::rotary(q, &own, angles)?,
            D::rotary(k, &positions, angles)?,
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
