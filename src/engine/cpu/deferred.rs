//! Gradients of large parameters, computed after the pass. During the pass every group would need a whole matrix for
//! each of them, although the operands of its contribution are only a few rows. So a group keeps the operands instead.

use std::ops::Range;

use rayon::prelude::*;

use super::products::{self, exchange, Packed, View, WeightForm};
use crate::{Precision, Tensor};

/// The contribution of one operation to the gradient of a parameter `(out, in)`.
pub struct Deferred {
    /// The parameter's id, see [`Tensor::id`].
    pub parameter: u64,
    pub(crate) contribution: Contribution,
}

pub(crate) enum Contribution {
    /// `dyᵀ x`: `dy (rows, out)`, `x (rows, in)`.
    Product {
        upstream: Vec<f32>,
        input: Tensor<(usize, usize)>,
    },
    /// Row `i` of `dy (indices, in)`, added to row `indices[i]` of the gradient.
    Rows {
        indices: Vec<usize>,
        upstream: Vec<f32>,
    },
}

/// The number of rows of a gradient that one thread computes at a time. With AMX, where products are faster, it is
/// twice as large, so that the other operand is read half as often.
fn rows_of_a_block() -> usize {
    if products::has_amx() {
        96
    } else {
        48
    }
}

impl Deferred {
    /// Adds `parts` to the whole gradient of their parameter, which has `columns` elements per row. A thread adds all
    /// parts to one block of rows while the block is in its caches. Each element sums the rows of a part in order, part
    /// after part, so the result is the same for every number of threads.
    pub fn add_all(parts: &[Deferred], gradient: &mut [f32], columns: usize) {
        let out = gradient.len() / columns.max(1);
        let parts: Vec<Ready> = parts.iter().map(|part| part.ready(columns)).collect();
        let most = rows_of_a_block();
        let blocks = gradient.par_chunks_mut((most * columns).max(1));
        blocks.enumerate().for_each(|(number, block)| {
            let rows = number * most..out.min((number + 1) * most);
            parts
                .iter()
                .for_each(|part| part.add_to(block, rows.clone(), out));
        });
    }

    fn ready(&self, columns: usize) -> Ready<'_> {
        match &self.contribution {
            Contribution::Product { upstream, input } => {
                let rows = input.count() / columns.max(1);
                let x = Packed::rows(input.data(), columns, rows, columns);
                let x = WeightForm::new(Precision::F32, x);
                Ready::Product { upstream, x, rows }
            }
            Contribution::Rows { indices, upstream } => Ready::Rows {
                indices,
                upstream,
                columns,
            },
        }
    }
}

/// A part with its operands in the form that the kernels take.
enum Ready<'a> {
    Product {
        upstream: &'a [f32],
        /// `(rows, in)`
        x: WeightForm,
        rows: usize,
    },
    Rows {
        indices: &'a [usize],
        upstream: &'a [f32],
        columns: usize,
    },
}

impl Ready<'_> {
    /// Adds this part to `block`, which is rows `range` of a gradient with `out` rows.
    fn add_to(&self, block: &mut [f32], range: Range<usize>, out: usize) {
        match self {
            Ready::Product { upstream, x, rows } => {
                let (rows, count) = (*rows, range.len());
                let mut dy = vec![0.0; rows * count];
                let x = x.operand();
                let dy = match x.takes_rows() {
                    true => {
                        exchange(&upstream[range.start..], out, (count, rows), &mut dy, rows);
                        View::strided(&dy, count, rows, rows)
                    }
                    false => {
                        // Copied side by side: a kernel reads these columns once for each panel, and the original rows
                        // may be pages apart.
                        let places = dy.chunks_exact_mut(count.max(1));
                        for (place, row) in places.zip(upstream.chunks_exact(out.max(1))) {
                            place.copy_from_slice(&row[range.clone()]);
                        }
                        View::strided(&dy, rows, count, count).t()
                    }
                };
                x.multiply_add(block, dy);
            }
            Ready::Rows {
                indices,
                upstream,
                columns,
            } => {
                let rows = indices.iter().zip(upstream.chunks_exact(*columns));
                for (index, row) in rows.filter(|(index, _)| range.contains(index)) {
                    let target = &mut block[(index - range.start) * columns..][..*columns];
                    for (sum, value) in target.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
        }
    }
}
