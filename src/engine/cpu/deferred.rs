//! Parts of the gradients of large parameters that are computed after the pass: a group would need a
//! whole matrix for each, where what makes it up is a few rows.

use dfdx::prelude::{Cpu, Tensor};
use rayon::prelude::*;

use super::bridge::data;
use super::packed::Packed;
use super::product::View;

/// What one operation adds to the gradient of a parameter `(out, in)`.
pub struct Deferred {
    /// The parameter's address, see [`crate::engine::Backend::address`].
    pub parameter: usize,
    pub(super) part: Part,
}

pub(super) enum Part {
    /// `dyᵀ x`: `dy (rows, out)`, `x (rows, in)`.
    Product {
        upstream: Vec<f32>,
        input: Tensor<(usize, usize), f32, Cpu>,
    },
    /// Rows `indices` of the parameter get those of `dy (indices, in)`.
    Rows {
        indices: Vec<usize>,
        upstream: Vec<f32>,
    },
}

/// Rows of a gradient that one thread computes at a time.
const BLOCK: usize = 48;

impl Deferred {
    /// Adds the part to the whole gradient, `columns` to a row. Every element is the sum of the part's
    /// rows in their order, added once: the same whatever the number of threads.
    pub fn add_to(&self, gradient: &mut [f32], columns: usize) {
        match &self.part {
            Part::Product { upstream, input } => {
                let rows = data(input).len() / columns.max(1);
                let out = gradient.len() / columns.max(1);
                let x = Packed::rows(data(input), columns, rows, columns);
                let blocks = gradient.par_chunks_mut(BLOCK * columns).enumerate();
                blocks.for_each(|(number, block)| {
                    let first = number * BLOCK;
                    let count = block.len() / columns;
                    let dy = View::strided(&upstream[first..], rows, count, out);
                    x.multiply_add(block, columns, dy.t());
                });
            }
            Part::Rows { indices, upstream } => {
                for (index, row) in indices.iter().zip(upstream.chunks_exact(columns)) {
                    let target = &mut gradient[index * columns..(index + 1) * columns];
                    for (sum, value) in target.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
        }
    }
}
