//! Positions of rows, and the rotation of queries and keys by them (rotary embeddings).

use std::sync::Arc;

use super::forward::Pass;
use crate::engine::{ops, Angles, Layout, Matrix, Outcome};

impl Pass<'_> {
    /// Rotates queries and keys by the angles of their positions, if the family has rotary embeddings. `queries`
    /// lists the rows that `q` has; without it, `q` has all rows of the layout.
    pub(super) fn rotary(
        &self,
        [q, k]: [Matrix; 2],
        layout: &Layout,
        queries: Option<&[usize]>,
    ) -> Outcome<[Matrix; 2]> {
        let Some((frequencies, factor)) = &self.graph.frequencies else {
            return Ok([q, k]);
        };
        // As in PEFT, a prefix takes the first positions and its keys are not rotated.
        let first = self.graph.active.prefix_tokens;
        let angles = self.angles.get_or_init(|| {
            let positions = first + layout.end();
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
    layout
        .positions()
        .map(|position| first + position)
        .collect()
}
