//! Rotary position embeddings on the CPU, in place. The backward pass rotates by the opposite angles.

use std::sync::Arc;

use rayon::prelude::*;

use super::Angles;
use crate::cpu::helpers::{rows_of_a_part, share_items};
use crate::gradient::InPlace;
use crate::{Matrix, Trace};

/// See [`super::rotary`].
pub(super) fn rotary(x: Matrix, positions: &[usize], angles: &Arc<Angles>) -> Matrix {
    let (_, columns) = x.shape();
    let mut result = InPlace::new(x);
    turn(result.values(), columns, positions, angles, 1.0);
    let kept = match result.is_traced() {
        true => positions.to_vec(),
        false => Vec::new(),
    };
    let angles = angles.clone();
    result.finish(&Trace::off(), move |gradient| {
        turn(gradient, columns, &kept, &angles, -1.0);
    })
}

/// Rotates the rows forwards (`sign` 1) or backwards (−1).
fn turn(values: &mut [f32], columns: usize, positions: &[usize], angles: &Angles, sign: f32) {
    let part = rows_of_a_part(columns);
    let parts = values
        .par_chunks_mut((part * columns).max(1))
        .zip(positions.par_chunks(part));
    let rows = |(): &mut _, (values, positions): (&mut [f32], &[usize])| {
        let rows = values.chunks_exact_mut(columns).zip(positions);
        for (row, &position) in rows {
            let turns = angles.at(position);
            for head in row.chunks_exact_mut(angles.width()) {
                let (first, second) = head[..2 * turns.len()].split_at_mut(turns.len());
                for ((a, b), (cosine, sine)) in first.iter_mut().zip(second).zip(turns) {
                    let sine = sign * sine;
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    };
    share_items(parts, || (), rows);
}
