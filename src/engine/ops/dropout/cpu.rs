//! Dropout on the CPU, in place. The backward pass draws the noise again.

use multiversion::multiversion;
use rayon::prelude::*;

use super::Dropout;
use crate::cpu::elementwise::multiply_by;
use crate::cpu::helpers::{rows_of_a_part, share_items};
use crate::gradient::InPlace;
use crate::noise::Noise;
use crate::{Layout, Matrix, Trace};

/// See [`super::dropout`].
pub(super) fn dropout(x: Matrix, layout: &Layout, dropout: Dropout) -> Matrix {
    let (_, columns) = x.shape();
    let mut result = InPlace::new(x);
    drop_rows(result.values(), columns, layout, dropout);
    let layout = layout.clone();
    result.finish(&Trace::off(), move |gradient| {
        drop_rows(gradient, columns, &layout, dropout);
    })
}

/// `values ← factors ⊙ values`, with factors drawn from the layout's keys.
fn drop_rows(values: &mut [f32], columns: usize, layout: &Layout, dropout: Dropout) {
    let places: Vec<(Noise, usize)> = layout
        .ranges()
        .enumerate()
        .flat_map(|(sequence, range)| {
            let noise = Noise::new(layout.key(sequence), dropout.place);
            (0..range.len()).map(move |position| (noise, position))
        })
        .collect();
    let rows = rows_of_a_part(columns);
    let parts = values.par_chunks_mut((rows * columns).max(1));
    share_items(
        parts.zip(places.par_chunks(rows)),
        || vec![0.0; columns],
        |factors, (values, places)| drop_part(values, places, dropout.probability, factors),
    );
}

/// [`drop_rows`] for some rows, each with its noise and its position in its sequence.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn drop_part(values: &mut [f32], places: &[(Noise, usize)], probability: f32, factors: &mut [f32]) {
    for (row, (noise, position)) in values.chunks_exact_mut(factors.len().max(1)).zip(places) {
        noise.dropout_row(*position, probability, factors);
        multiply_by(row, factors);
    }
}
