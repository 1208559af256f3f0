//! Texts with answers in them: which tokens are the answers'.

use std::ops::Range;

use tokenizers::Encoding;

use super::tokens::{encoded, refused, TextEncoder};
use crate::diagnostic::Problem;
use crate::task::{Encoded, Example, Marked, Target};

impl TextEncoder {
    /// Encodes a text and finds the tokens of its answers. An answer begins with the first token that the text before
    /// it alone does not have, so a token that reaches into an answer belongs to it.
    ///
    /// # Errors
    /// See [`Encoder::marked`].
    ///
    /// [`Encoder::marked`]: crate::task::Encoder::marked
    pub(super) fn encode_marked(&self, marked: &Marked) -> Result<Example, Problem> {
        let whole = self.without_end(&marked.text, marked.is_whole)?;
        let count = whole.tokens.len();
        let place = |end: usize| match end == marked.text.len() {
            true => Ok(count),
            false => {
                let before = self.without_end(&marked.text[..end], marked.is_whole)?;
                let pairs = before.tokens.iter().zip(&whole.tokens);
                Ok(pairs.take_while(|(a, b)| a == b).count())
            }
        };
        let answers = marked.answers.iter();
        let answers = answers.map(|range| Ok(place(range.start)?..place(range.end)?));
        let answers: Vec<Range<usize>> = answers.collect::<Result<_, Problem>>()?;
        let cut = count.saturating_sub(self.max_length());
        let kept = match self.cuts_start() {
            true => cut..count,
            false => 0..count - cut,
        };
        let left = |range: Range<usize>| {
            let start = range.start.clamp(kept.start, kept.end) - kept.start;
            let end = range.end.clamp(kept.start, kept.end) - kept.start;
            (start < end).then_some(start..end)
        };
        let text = Encoded {
            tokens: whole.tokens[kept.clone()].to_vec(),
            types: vec![0; kept.len()],
            special: whole.special[kept.clone()].to_vec(),
            ..whole
        };
        self.check(&text)?;
        Ok(Example {
            text,
            decoder: Vec::new(),
            target: Target::Answers(answers.into_iter().filter_map(left).collect()),
            cut,
            others: Vec::new(),
        })
    }

    /// The tokens of a text without those that the tokenizer puts behind it.
    fn without_end(&self, text: &str, is_whole: bool) -> Result<Encoded, Problem> {
        let encoding: Encoding = self
            .tokenizer
            .encode_fast(text, !is_whole)
            .map_err(refused)?;
        let mut text = encoded(&encoding);
        // A template that writes the tokenizer's first token means the one that the tokenizer puts there.
        if self.begins_twice(&text) {
            text.tokens.remove(0);
            text.types.remove(0);
            text.special.remove(0);
        }
        let own = text.special.iter().rev().take_while(|own| **own).count();
        let count = text.tokens.len() - own;
        text.tokens.truncate(count);
        text.types.truncate(count);
        text.special.truncate(count);
        Ok(text)
    }
}
