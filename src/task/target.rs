//! What a row of data asks for.

use std::ops::Range;

/// The target of one example.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    /// The index of a label.
    Class(usize),
    /// The indices of the labels of the rows that the head reads.
    Classes(Vec<usize>),
    /// A number.
    Number(f32),
    /// The masked tokens.
    MaskedTokens,
    /// The token after each token.
    NextTokens,
    /// The tokens at these places, each after those before it.
    Answers(Vec<Range<usize>>),
    /// The target is unknown.
    None,
}
