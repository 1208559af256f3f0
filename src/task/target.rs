//! What a row of data asks for.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// The target of one example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Target {
    /// The index of a label.
    Class(usize),
    /// The indices of the labels of the rows that the head reads.
    Classes(Vec<usize>),
    /// Whether it has each of the labels.
    Set(Vec<bool>),
    /// A number.
    Number(f32),
    /// The masked tokens.
    MaskedTokens,
    /// The token after each token.
    NextTokens,
    /// The tokens at these places, each after those before it.
    Answers(Vec<Range<usize>>),
    /// The same, of the first of several answers.
    OneOf {
        /// The places of its tokens.
        answer: Vec<Range<usize>>,
        /// Which of all answers is the right one; none if that is unknown.
        right: Option<usize>,
    },
    /// The target is unknown.
    None,
}

/// What is hidden of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Noise {
    /// This share of its tokens, which the model predicts at their places.
    Tokens(f32),
    /// Spans, which a decoder writes.
    Spans {
        /// The share of tokens that are in spans.
        share: f32,
        /// The mean number of tokens of a span.
        length: f32,
    },
}

/// How much each class counts in a loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// The weight of each class.
    pub weights: Vec<f32>,
    /// The share of a label that is given to all labels alike (Szegedy et al., arXiv 1512.00567, section 7).
    pub smoothing: f32,
}

impl Shares {
    /// The share of each class in the loss of an example of `class`, as PyTorch's `cross_entropy` has it with a weight
    /// and with smoothing.
    pub fn of(&self, class: usize) -> impl Iterator<Item = f32> + '_ {
        let each = self.smoothing / self.weights.len() as f32;
        let share = move |(other, weight): (usize, &f32)| {
            let own = if other == class {
                1.0 - self.smoothing
            } else {
                0.0
            };
            weight * (own + each)
        };
        self.weights.iter().enumerate().map(share)
    }
}
