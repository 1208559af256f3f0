//! What a row of data asks for.

/// The target of one example.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The index of a label.
    Class(usize),
    /// A number.
    Number(f32),
    /// The masked tokens.
    MaskedTokens,
    /// The token after each token.
    NextTokens,
    /// The target is unknown.
    None,
}
