//! Attention over packed rows.

mod cpu;
mod definition;
mod kept;
mod softmax;

use std::ops::Range;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Dropout, Layout, Matrix, Outcome};

pub use kept::{attend_kept, KeyValues};

/// How an attention reads its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of the queries; the columns of `q` are a multiple of it.
    pub heads: usize,
    /// Heads of keys and values. Each serves the same number of consecutive heads of the queries.
    pub key_value_heads: usize,
    /// The factor on the scores before the softmax.
    pub scale: f32,
    /// Whether a position sees only itself and what is before it.
    pub causal: bool,
    /// Rows of `k` and `v` that stand before each sequence's own, and take its first positions.
    pub prefix: usize,
    /// A position sees only keys that are fewer positions away than this, itself included.
    pub window: Option<usize>,
    /// Scores `s` become `cap · tanh(s / cap)` before a bias is added.
    pub cap: Option<f32>,
}

impl AttentionShape {
    /// The keys that a query sees, of `keys` in its sequence. All are counted with the prefix.
    fn seen(&self, query: usize, keys: usize) -> Range<usize> {
        let window = self.window.unwrap_or(usize::MAX);
        let end = match self.causal {
            true => query + 1,
            false => keys.min(query.saturating_add(window)),
        };
        (query + 1).saturating_sub(window)..end
    }
}

/// Which rows attend to which.
#[derive(Clone, Copy, Debug)]
pub struct Attending<'a> {
    /// The sequences of the queries.
    pub queries: &'a Layout,
    /// The rows of these sequences that `q` has, in ascending order; a row may occur several times. `None` stands for
    /// all rows.
    pub rows: Option<&'a [usize]>,
    /// The sequences of keys and values: those of the queries, or as many others (cross-attention).
    pub keys: &'a Layout,
}

impl<'a> Attending<'a> {
    /// Self-attention: every sequence attends to itself.
    pub fn within(layout: &'a Layout, rows: Option<&'a [usize]>) -> Self {
        Attending {
            queries: layout,
            rows,
            keys: layout,
        }
    }
}

/// `softmax(scale · q kᵀ + bias) v` for every sequence and head (Vaswani et al., arXiv 1706.03762, eq. 1). `q` and the
/// result are `(rows, heads · width)`. `k` and `v` are `(rows, key-value heads · width)`, with `shape.prefix` more rows
/// for each sequence, before its own.
///
/// Row `positions − 1 + key − query` of `bias (2 · positions − 1, heads)` is added to the score of a key, by its
/// distance from the query (Raffel et al., arXiv 1910.10683, section 2.1). A prefix takes the first positions. Windows
/// are those of Beltagy et al. (Longformer, arXiv 2004.05150), caps those of Gemma 2 (arXiv 2408.00118, section 2).
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn attention(
    q: &Matrix,
    k: &Matrix,
    v: &Matrix,
    attending: Attending,
    shape: AttentionShape,
    bias: Option<&Matrix>,
    dropout: Option<Dropout>,
) -> Outcome<Matrix> {
    match q.device() {
        Device::Cpu => {
            let count = q.count() + k.count() + v.count();
            let kernel = || cpu::attention([q, k, v], attending, shape, bias, dropout);
            Ok(profile::forward(Op::Attention, count, kernel))
        }
        device => run_definition!(device, |q, k, v, bias| definition::attention(
            [&q, &k, &v],
            attending,
            shape,
            bias.as_ref(),
            dropout
        )),
    }
}
