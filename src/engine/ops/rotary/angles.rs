//! The angles of rotary position embeddings.

/// Cosines and sines of the angles by which each position rotates the pairs of columns of a head.
#[derive(Debug)]
pub struct Angles {
    /// The width of a head.
    width: usize,
    /// Pairs of columns that are rotated, at most half the width.
    pairs: usize,
    /// `(positions, pairs)`, cosine and sine.
    turns: Vec<(f32, f32)>,
}

impl Angles {
    /// The angles of the positions below `positions`: a pair is rotated by its frequency times the position. Cosines
    /// and sines are multiplied by `factor`. Angles are rounded to f32, as in transformers. A head is `width` columns
    /// wide; those after the pairs are not rotated.
    pub fn new(frequencies: &[f32], factor: f32, positions: usize, width: usize) -> Self {
        assert!(
            2 * frequencies.len() <= width,
            "rotary: more pairs than columns"
        );
        let turn = |angle: f32| (angle.cos() * factor, angle.sin() * factor);
        let rows = (0..positions).flat_map(|position| {
            let angles = frequencies.iter().map(move |f| position as f32 * f);
            angles.map(turn)
        });
        Angles {
            width,
            pairs: frequencies.len(),
            turns: rows.collect(),
        }
    }

    /// The width of a head.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of pairs of columns that are rotated.
    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// The number of positions.
    pub fn positions(&self) -> usize {
        self.turns.len() / self.pairs.max(1)
    }

    /// Cosine and sine for each pair at a position.
    pub fn at(&self, position: usize) -> &[(f32, f32)] {
        &self.turns[position * self.pairs..][..self.pairs]
    }
}
