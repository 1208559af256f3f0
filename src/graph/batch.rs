//! The input of a forward pass.

use crate::engine::Layout;

/// Packed sequences of tokens and their targets.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token numbers, `(rows)`.
    pub tokens: Vec<usize>,
    /// Token types, `(rows)`.
    pub types: Vec<usize>,
    /// Which rows make up which sequence.
    pub layout: Layout,
    /// The rows that the head reads, in ascending order; empty if the head says itself which.
    pub reads: Vec<usize>,
    /// How many of each sequence's own rows come before the prompt; empty if none do.
    pub soft: Vec<usize>,
    /// The decoder's input, if the backbone has a decoder. Target rows are then the decoder's rows.
    pub decoder: Option<DecoderRows>,
    /// The targets.
    pub targets: Targets,
    /// The output of the blocks below the lowest trained site, if an earlier pass computed it.
    pub cached: Option<CachedActivations>,
    /// The number of predictions in the whole batch. Every group divides its loss by this number.
    pub total: usize,
}

impl Batch {
    /// Sequences that are only read, with no targets, token types or prompts.
    pub fn of_tokens(tokens: Vec<usize>, layout: Layout, decoder: Option<DecoderRows>) -> Self {
        Batch {
            types: vec![0; tokens.len()],
            total: tokens.len(),
            tokens,
            layout,
            reads: Vec::new(),
            soft: Vec::new(),
            decoder,
            targets: Targets::None,
            cached: None,
        }
    }

    /// How many of [`Batch::reads`] each sequence has; 1 for each if the head says itself which row it reads.
    pub fn read_counts(&self) -> Vec<usize> {
        let is_in = |range: &std::ops::Range<usize>| {
            let of_sequence = self.reads.iter().filter(|row| range.contains(row));
            of_sequence.count()
        };
        match self.reads.is_empty() {
            true => vec![1; self.layout.sequences()],
            false => self.layout.ranges().map(|range| is_in(&range)).collect(),
        }
    }
}

/// Packed sequences of tokens for the decoder.
#[derive(Clone, Debug)]
pub struct DecoderRows {
    /// Token numbers, `(rows)`.
    pub tokens: Vec<usize>,
    /// Which rows make up which sequence.
    pub layout: Layout,
}

/// What the head must predict.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// A label for each row that the head reads.
    Classes(Vec<usize>),
    /// Labels that a row has in part, or that count differently.
    Shares {
        /// The share of each label in each row that the head reads, `(rows, labels)`.
        shares: Vec<f32>,
        /// The sum by which the loss of the whole batch is divided.
        total: f64,
    },
    /// Whether each row that the head reads has each label, 1 or 0: `(rows, labels)`.
    Sets(Vec<f32>),
    /// Several answers to each prompt, which are compared.
    Answers(AnswerRows),
    /// A number for each sequence.
    Numbers(Vec<f32>),
    /// The tokens at some rows.
    Tokens {
        /// The row of each token. A masked language model reads that row, a causal one the row before it. A decoder's
        /// input is one token behind its targets: there, it is the row that predicts the token.
        rows: Vec<usize>,
        /// The tokens.
        tokens: Vec<usize>,
    },
    /// The targets are unknown.
    None,
}

/// Tokens of answers that are compared; each answer is a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnswerRows {
    /// How many answers each prompt has.
    pub counts: Vec<usize>,
    /// Which of them is the right one.
    pub right: Vec<usize>,
    /// The row of each token; without a decoder, a causal model predicts it from the row before.
    pub rows: Vec<usize>,
    /// The tokens.
    pub tokens: Vec<usize>,
    /// For each of `rows`, where it stands.
    pub places: Vec<AnswerPlace>,
    /// The log-probabilities of the answers by the model that this one is compared with: one for each sequence, or none.
    pub reference: Vec<f32>,
    /// The number of tokens of all right sequences of the whole batch.
    pub total: usize,
}

/// Where a token stands among the answers to a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AnswerPlace {
    /// The number of the prompt.
    pub prompt: usize,
    /// The number of the answer among the prompt's.
    pub answer: usize,
    /// Whether the token is the answer's own, and not the prompt's.
    pub is_own: bool,
}

/// Activations that a pass begins with instead of the embeddings.
#[derive(Clone, Debug)]
pub struct CachedActivations {
    /// The block that reads them; one past the last if only the head does.
    pub block: usize,
    /// `(rows, hidden)`: all rows of the layout, or only those that the head reads if no block is left to run.
    pub rows: Vec<f32>,
    /// How many of `rows` belong to each sequence.
    pub counts: Vec<usize>,
    /// Which rows make up which sequence, prompt rows included.
    pub layout: Layout,
}
