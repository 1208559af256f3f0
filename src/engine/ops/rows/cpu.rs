//! Selecting and joining rows and columns on the CPU.

use std::ops::Range;

use crate::cpu::deferred::{Contribution, Deferred};
use crate::cpu::elementwise::add_to;
use crate::gradient::record_kernel;
use crate::{Matrix, Stored, Tensor, Trace};

/// See [`super::select_rows`].
pub(super) fn select_rows(table: &Matrix, indices: &[usize]) -> Matrix {
    let (_, columns) = table.shape();
    let source = table.data();
    let mut values = Vec::with_capacity(indices.len() * columns);
    for &index in indices {
        values.extend_from_slice(&source[index * columns..(index + 1) * columns]);
    }
    let table_slot = table.slot();
    let kept = match table_slot.is_some() {
        true => indices.to_vec(),
        false => Vec::new(),
    };
    let (trace, parameter) = (table.trace(), table.value.id());
    let deferring = trace.deferrals(parameter);
    record_kernel(values, (indices.len(), columns), trace, move |upstream| {
        if let Some(deferrals) = deferring {
            let indices = kept;
            deferrals.borrow_mut().push(Deferred {
                parameter,
                contribution: Contribution::Rows { indices, upstream },
            });
        } else if let Some(slot) = &table_slot {
            slot.add_in_place(|gradient| {
                for (index, row) in kept.iter().zip(upstream.chunks_exact(columns)) {
                    add_to(&mut gradient[index * columns..(index + 1) * columns], row);
                }
            });
        }
    })
}

/// See [`super::look_up`].
pub(super) fn look_up(table: &Stored, indices: &[usize]) -> Matrix {
    let (_, columns) = table.shape();
    let mut values = Vec::with_capacity(indices.len() * columns);
    let mut last = None;
    for run in indices.chunk_by(|a, b| *b == a + 1) {
        let (first, end) = (run[0], run[0] + run.len());
        match last == Some(first) && run.len() == 1 {
            true => values.extend_from_within(values.len() - columns..),
            false => {
                let place = values.len();
                values.resize(place + run.len() * columns, 0.0);
                let range = first * columns..end * columns;
                table.source().read(range, &mut values[place..]);
            }
        }
        last = Some(end - 1);
    }
    Tensor::on_cpu(values, (indices.len(), columns)).constant()
}

/// See [`super::columns`].
pub(super) fn columns(x: &Matrix, range: Range<usize>) -> Matrix {
    let (rows, width) = x.shape();
    let count = range.len();
    let mut values = Vec::with_capacity(rows * count);
    for row in x.data().chunks_exact(width) {
        values.extend_from_slice(&row[range.clone()]);
    }
    let x_slot = x.slot();
    record_kernel(values, (rows, count), x.trace(), move |upstream| {
        if let Some(slot) = &x_slot {
            slot.add_in_place(|gradient| {
                let rows = gradient.chunks_exact_mut(width);
                for (sum, row) in rows.zip(upstream.chunks_exact(count)) {
                    add_to(&mut sum[range.clone()], row);
                }
            });
        }
    })
}

/// The trace that records an operation on `parts`: the first live one, if any is.
fn joined(parts: &[Matrix]) -> Trace {
    let traces = parts.iter().map(Matrix::trace);
    traces.fold(Trace::off(), |joined, trace| joined.or(&trace))
}

/// See [`super::join_columns`].
pub(super) fn join_columns(parts: &[Matrix]) -> Matrix {
    let rows = parts[0].shape().0;
    let widths: Vec<usize> = parts.iter().map(|part| part.shape().1).collect();
    let width: usize = widths.iter().sum();
    let mut values = Vec::with_capacity(rows * width);
    for row in 0..rows {
        for (part, width) in parts.iter().zip(&widths) {
            values.extend_from_slice(&part.data()[row * width..(row + 1) * width]);
        }
    }
    let slots: Vec<_> = parts.iter().map(Matrix::slot).collect();
    record_kernel(values, (rows, width), joined(parts), move |upstream| {
        let mut start = 0;
        for (slot, part) in slots.iter().zip(&widths) {
            if let Some(slot) = slot {
                let rows = upstream.chunks_exact(width);
                let own = rows.flat_map(|row| &row[start..start + part]);
                slot.add(own.copied().collect());
            }
            start += part;
        }
    })
}

/// See [`super::join_rows`].
pub(super) fn join_rows(parts: &[Matrix]) -> Matrix {
    let columns = parts[0].shape().1;
    let values: Vec<f32> = parts.iter().flat_map(Matrix::data).copied().collect();
    let shape = (parts.iter().map(|part| part.shape().0).sum(), columns);
    let slots: Vec<_> = parts.iter().map(|p| (p.slot(), p.count())).collect();
    record_kernel(values, shape, joined(parts), move |upstream| {
        let mut start = 0;
        for (slot, count) in &slots {
            if let Some(slot) = slot {
                slot.add(upstream[start..start + count].to_vec());
            }
            start += count;
        }
    })
}
