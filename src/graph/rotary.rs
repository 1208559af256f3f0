//! Positions of rows, and the rotation of queries and keys by them (rotary embeddings).

use std::cell::OnceCell;
use std::sync::Arc;

use super::forward::Pass;
use crate::backbone::Rotation;
use crate::engine::{ops, Angles, Layout, Matrix, Outcome};

/// The frequencies of rotary embeddings, with the factor of their cosines and sines.
pub(super) struct Frequencies {
    pub usual: (Vec<f32>, f32),
    /// Those of blocks with [`Rotation::Local`].
    pub local: Option<(Vec<f32>, f32)>,
}

/// The angles of a pass's positions, computed at first use.
#[derive(Default)]
pub(super) struct PassAngles {
    usual: OnceCell<Arc<Angles>>,
    local: OnceCell<Arc<Angles>>,
}

impl Pass<'_> {
    /// Rotates queries and keys by the angles of their positions, if the block does. `queries` lists the rows that `q`
    /// has; without it, `q` has all rows of the layout.
    pub(super) fn rotary(
        &self,
        rotation: Rotation,
        [q, k]: [Matrix; 2],
        layout: &Layout,
        queries: Option<&[usize]>,
    ) -> Outcome<[Matrix; 2]> {
        let Some(all) = &self.graph.frequencies else {
            return Ok([q, k]);
        };
        let (angles, (frequencies, factor)) = match (rotation, &all.local) {
            (Rotation::Off, _) => return Ok([q, k]),
            (Rotation::Local, Some(local)) => (&self.angles.local, local),
            _ => (&self.angles.usual, &all.usual),
        };
        // As in PEFT, a prefix takes the first positions and its keys are not rotated.
        let first = self.graph.active.prefix_tokens;
        let angles = angles.get_or_init(|| {
            let positions = first + layout.end();
            let width = self.graph.architecture.attention.width;
            Arc::new(Angles::new(frequencies, *factor, positions, width))
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
