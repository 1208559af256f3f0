//! What goes into a pass.

use crate::engine::Layout;

/// Sequences of tokens, packed, and what is to be predicted of them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token numbers, `(rows)`.
    pub tokens: Vec<usize>,
    /// Token types, `(rows)`.
    pub types: Vec<usize>,
    /// Which rows make up which sequence.
    pub layout: Layout,
    /// The row of each sequence off which the word of a cloze is read; else empty.
    pub masks: Vec<usize>,
    /// The number of each sequence's own rows before those of a prompt; empty where it is 0.
    pub soft: Vec<usize>,
    /// What the decoder of a backbone that has one reads; targets are then of its rows.
    pub decoder: Option<DecoderRows>,
    /// What is to be predicted.
    pub targets: Targets,
    /// The place of each sequence in the whole batch, of which these may be a part.
    pub places: Vec<usize>,
    /// What the blocks below the lowest trained site make of it, where that is known already.
    pub cached: Option<CachedActivations>,
    /// The number of predictions in the whole batch, of which this may be a part.
    pub total: usize,
}

/// Sequences of tokens that a decoder reads, packed.
#[derive(Clone, Debug)]
pub struct DecoderRows {
    /// Token numbers, `(rows)`.
    pub tokens: Vec<usize>,
    /// Which rows make up which sequence.
    pub layout: Layout,
}

/// What is to be predicted.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// A label for each sequence.
    Classes(Vec<usize>),
    /// A number for each sequence.
    Numbers(Vec<f32>),
    /// The tokens at some rows.
    Tokens {
        /// The rows.
        rows: Vec<usize>,
        /// The tokens that stood there.
        tokens: Vec<usize>,
    },
    /// Nothing is known.
    None,
}

/// Activations that a pass begins with instead of the embeddings.
#[derive(Clone, Debug)]
pub struct CachedActivations {
    /// The block that reads them; one past the last if only the head does.
    pub block: usize,
    /// `(rows, hidden)`: all rows of the layout, or those that the head reads.
    pub rows: Vec<f32>,
    /// How many of them belong to each sequence.
    pub counts: Vec<usize>,
    /// Which rows make up which sequence, those of a prompt included.
    pub layout: Layout,
}
