//! Rows chosen, added, scaled, dropped.

use dfdx::prelude::*;
use multiversion::multiversion;
use rayon::prelude::*;

use super::activation::{add_product, multiply_by};
use super::bridge::{data, output, InPlace};
use super::deferred::{Deferred, Part};
use super::gradient::{slot, trace};
use super::helpers::{rows_of_a_part, share_elements, share_items};
use super::Outcome;
use crate::engine::noise::Noise;
use crate::engine::{Dropout, Elements, Fastfood, Layout, Matrix, Trace, Vector, Weight};

/// See [`crate::engine::Backend::select_rows`].
pub(super) fn select_rows(table: &Matrix<Cpu>, indices: &[usize]) -> Outcome<Matrix<Cpu>> {
    let (_, columns) = *table.shape();
    let source = data(table);
    let mut values = Vec::with_capacity(indices.len() * columns);
    gather(source, columns, indices, &mut values);
    let table_slot = slot(table);
    let kept = if table_slot.is_some() {
        indices.to_vec()
    } else {
        Vec::new()
    };
    let shape = (indices.len(), columns);
    let address = source.as_ptr() as usize;
    let deferring = trace(table).defers(address).then(|| trace(table));
    output(
        values,
        shape,
        trace(table),
        table.device(),
        move |flow, upstream| {
            if let Some(trace) = deferring {
                trace.defer(Deferred {
                    parameter: address,
                    part: Part::Rows {
                        indices: kept,
                        upstream,
                    },
                });
            } else if let Some(slot) = &table_slot {
                flow.add_in_place(slot, |gradient| {
                    for (index, row) in kept.iter().zip(upstream.chunks_exact(columns)) {
                        add_to(&mut gradient[index * columns..(index + 1) * columns], row);
                    }
                })?;
            }
            Ok(())
        },
    )
}

/// See [`crate::engine::Backend::look_up`].
pub(super) fn look_up(table: &Weight<Cpu>, indices: &[usize]) -> Outcome<Matrix<Cpu>> {
    let Elements::Stored(stored) = &table.elements else {
        return select_rows(&table.matrix()?, indices);
    };
    let (_, columns) = table.shape();
    let mut values = Vec::with_capacity(indices.len() * columns);
    let mut last = None;
    for run in indices.chunk_by(|a, b| *b == a + 1) {
        let (first, end) = (run[0], run[0] + run.len());
        match last == Some(first) && run.len() == 1 {
            true => values.extend_from_within(values.len() - columns..),
            false => stored
                .source()
                .append(first * columns..end * columns, &mut values),
        }
        last = Some(end - 1);
    }
    let rows = Cpu::default().try_tensor_from_vec(values, (indices.len(), columns))?;
    Ok(rows.put_tape(Trace::off()))
}

/// Appends rows `indices`.
fn gather(table: &[f32], columns: usize, indices: &[usize], values: &mut Vec<f32>) {
    for &index in indices {
        values.extend_from_slice(&table[index * columns..(index + 1) * columns]);
    }
}

/// `values ← factor · values`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn scale_by(values: &mut [f32], factor: f32) {
    values.iter_mut().for_each(|value| *value *= factor);
}

/// `sum += values`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
pub(super) fn add_to(sum: &mut [f32], values: &[f32]) {
    for (sum, value) in sum.iter_mut().zip(values) {
        *sum += value;
    }
}

/// See [`crate::engine::Backend::add`].
pub(super) fn add(x: Matrix<Cpu>, y: &Matrix<Cpu>) -> Outcome<Matrix<Cpu>> {
    assert_eq!(x.shape(), y.shape(), "add: shapes disagree");
    let mut sum = InPlace::new(x)?;
    share_elements(sum.values(), data(y), add_to);
    let y_slot = slot(y);
    Ok(sum.finish(trace(y), move |flow, gradient| match &y_slot {
        Some(slot) => flow.make_or_add(
            slot,
            || gradient.to_vec(),
            |sum| share_elements(sum, gradient, add_to),
        ),
        None => Ok(()),
    }))
}

/// See [`crate::engine::Backend::project`].
pub(super) fn project(
    z: &Matrix<Cpu>,
    projection: Fastfood,
    shape: (usize, usize),
) -> Outcome<Matrix<Cpu>> {
    assert_eq!(
        shape.0 * shape.1,
        projection.length,
        "project: shapes disagree"
    );
    let z_slot = slot(z);
    output(
        projection.apply(data(z)),
        shape,
        trace(z),
        z.device(),
        move |flow, upstream| {
            if let Some(slot) = &z_slot {
                flow.add(slot, projection.apply_transposed(&upstream))?;
            }
            Ok(())
        },
    )
}

/// See [`crate::engine::Backend::scale`].
pub(super) fn scale(x: &Matrix<Cpu>, factor: f32) -> Outcome<Matrix<Cpu>> {
    let values = data(x).iter().map(|x| factor * x).collect();
    let x_slot = slot(x);
    output(
        values,
        *x.shape(),
        trace(x),
        x.device(),
        move |flow, mut upstream| match &x_slot {
            Some(slot) => {
                scale_by(&mut upstream, factor);
                flow.add(slot, upstream)
            }
            None => Ok(()),
        },
    )
}

/// See [`crate::engine::Backend::scale_columns`].
pub(super) fn scale_columns(x: &Matrix<Cpu>, factors: &Vector<Cpu>) -> Outcome<Matrix<Cpu>> {
    let (_, columns) = *x.shape();
    assert_eq!(columns, factors.shape().0, "scale columns: shapes disagree");
    let mut values = vec![0.0; data(x).len()];
    add_scaled_rows(&mut values, data(x), data(factors));
    let joined = trace(x).merge(trace(factors));
    let (x_slot, factor_slot) = (slot(x), slot(factors));
    let kept_x = factor_slot.is_some().then(|| x.clone().split_tape().0);
    let factors = factors.clone().split_tape().0;
    output(
        values,
        *x.shape(),
        joined,
        x.device(),
        move |flow, upstream| {
            if let Some(slot) = &x_slot {
                let factors = data(&factors);
                flow.add_in_place(slot, |sum| add_scaled_rows(sum, &upstream, factors))?;
            }
            if let (Some(slot), Some(x)) = (&factor_slot, &kept_x) {
                let rows = data(x).chunks_exact(columns);
                flow.add_in_place(slot, |sum| {
                    for (x, row) in rows.zip(upstream.chunks_exact(columns)) {
                        add_product(sum, x, row);
                    }
                })?;
            }
            Ok(())
        },
    )
}

/// See [`crate::engine::Backend::multiply`].
pub(super) fn multiply(x: &Matrix<Cpu>, y: &Matrix<Cpu>) -> Outcome<Matrix<Cpu>> {
    assert_eq!(x.shape(), y.shape(), "multiply: shapes disagree");
    let mut values = data(x).to_vec();
    share_elements(&mut values, data(y), multiply_by);
    let joined = trace(x).merge(trace(y));
    let (x_slot, y_slot) = (slot(x), slot(y));
    // Each is needed for the other's gradient.
    let kept_x = y_slot.is_some().then(|| x.clone().split_tape().0);
    let kept_y = x_slot.is_some().then(|| y.clone().split_tape().0);
    output(
        values,
        *x.shape(),
        joined,
        x.device(),
        move |flow, upstream| {
            for (slot, other) in [(&x_slot, &kept_y), (&y_slot, &kept_x)] {
                if let (Some(slot), Some(other)) = (slot, other) {
                    let mut gradient = upstream.clone();
                    share_elements(&mut gradient, data(other), multiply_by);
                    flow.add(slot, gradient)?;
                }
            }
            Ok(())
        },
    )
}

/// `out += factors ⊙ input`, row by row.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn add_scaled_rows(out: &mut [f32], input: &[f32], factors: &[f32]) {
    let rows = out.chunks_exact_mut(factors.len());
    for (out, input) in rows.zip(input.chunks_exact(factors.len())) {
        add_product(out, input, factors);
    }
}

/// See [`crate::engine::Backend::dropout`].
pub(super) fn dropout(x: Matrix<Cpu>, layout: &Layout, dropout: Dropout) -> Outcome<Matrix<Cpu>> {
    let (_, columns) = *x.shape();
    let mut result = InPlace::new(x)?;
    drop_rows(result.values(), columns, layout, dropout);
    let layout = layout.clone();
    Ok(result.finish(Trace::off(), move |_, gradient| {
        drop_rows(gradient, columns, &layout, dropout);
        Ok(())
    }))
}

/// `values ← factors ⊙ values`, the factors drawn from the layout's keys.
fn drop_rows(values: &mut [f32], columns: usize, layout: &Layout, dropout: Dropout) {
    let places: Vec<(Noise, usize)> = layout
        .ranges()
        .enumerate()
        .flat_map(|(sequence, range)| {
            let noise = Noise::new(layout.key(sequence), dropout.site);
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

/// The same for some rows, each with its noise and its position in its sequence.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn drop_part(values: &mut [f32], places: &[(Noise, usize)], probability: f32, factors: &mut [f32]) {
    for (row, (noise, position)) in values.chunks_exact_mut(factors.len().max(1)).zip(places) {
        noise.dropout_row(*position, probability, factors);
        multiply_by(row, factors);
    }
}

/// See [`crate::engine::Backend::columns`].
pub(super) fn columns(x: &Matrix<Cpu>, range: std::ops::Range<usize>) -> Outcome<Matrix<Cpu>> {
    let (rows, width) = *x.shape();
    let count = range.len();
    let mut values = Vec::with_capacity(rows * count);
    for row in data(x).chunks_exact(width) {
        values.extend_from_slice(&row[range.clone()]);
    }
    let x_slot = slot(x);
    output(
        values,
        (rows, count),
        trace(x),
        x.device(),
        move |flow, upstream| {
            if let Some(slot) = &x_slot {
                flow.add_in_place(slot, |gradient| {
                    let rows = gradient.chunks_exact_mut(width);
                    for (sum, row) in rows.zip(upstream.chunks_exact(count)) {
                        add_to(&mut sum[range.clone()], row);
                    }
                })?;
            }
            Ok(())
        },
    )
}

/// See [`crate::engine::Backend::join_columns`].
pub(super) fn join_columns(parts: &[Matrix<Cpu>]) -> Outcome<Matrix<Cpu>> {
    let rows = parts[0].shape().0;
    let widths: Vec<usize> = parts.iter().map(|part| part.shape().1).collect();
    let width: usize = widths.iter().sum();
    let mut values = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for (part, width) in parts.iter().zip(&widths) {
            values.extend_from_slice(&data(part)[row * width..(row + 1) * width]);
        }
    }
    let joined = parts
        .iter()
        .map(trace)
        .reduce(|a, b| a.merge(b))
        .unwrap_or_default();
    let slots: Vec<_> = parts.iter().map(slot).collect();
    output(
        values,
        (rows, width),
        joined,
        parts[0].device(),
        move |flow, upstream| {
            let mut start = 0;
            for (slot, part) in slots.iter().zip(&widths) {
                if let Some(slot) = slot {
                    let rows = upstream.chunks_exact(width);
                    let own = rows.flat_map(|row| &row[start..start + part]);
                    flow.add(slot, own.copied().collect())?;
                }
                start += part;
            }
            Ok(())
        },
    )
}
