//! Sentences that come as words: which row stands for which word.

use tokenizers::{Encoding, TruncationDirection};

use super::tokens::{encoded, refused, TextEncoder};
use crate::diagnostic::Problem;
use crate::task::Sentence;

impl TextEncoder {
    /// Encodes each word on its own, as transformers does with `is_split_into_words` (and `add_prefix_space` for the
    /// classes that need it), and reads a word at its first token. See [`Encoder::words`].
    ///
    /// [`Encoder::words`]: crate::task::Encoder::words
    pub(super) fn encode_words(&self, words: &[String]) -> Result<Sentence, Problem> {
        let mut joined = Encoding::default();
        let mut starts = Vec::with_capacity(words.len());
        for word in words {
            let word = format!("{}{word}", self.before_word);
            let encoding = self.tokenizer.encode(word, false).map_err(refused)?;
            starts.push((!encoding.is_empty()).then_some(joined.len()));
            joined.merge_with(encoding, false);
        }
        let room = self.max_length().saturating_sub(self.own_tokens());
        let count = joined.len();
        let cut = count.saturating_sub(room);
        let (left, direction) = match self.cuts_start() {
            true => (cut..count, TruncationDirection::Left),
            false => (0..count - cut, TruncationDirection::Right),
        };
        joined.truncate(room, 0, direction);
        let place = |start: Option<usize>| {
            let start = start.filter(|start| left.contains(start))?;
            Some(start - left.start)
        };
        let firsts: Vec<Option<usize>> = starts.into_iter().map(place).collect();
        let kept = joined.get_ids().to_vec();
        let whole = self.tokenizer.post_process(joined, None, true);
        let mut text = encoded(&whole.map_err(refused)?);
        text.types.fill(0);
        // The tokenizer's own tokens may surround the words'.
        let mut places = text.tokens.windows(kept.len().max(1));
        let before = places.position(|tokens| tokens == kept);
        let Some(before) = before.filter(|_| !kept.is_empty()) else {
            let message = "the tokenizer finds no tokens in the words";
            return Err(Problem::new("delta::data::no_tokens", message)
                .help("remove the row, or fill it in"));
        };
        text.reads = firsts
            .iter()
            .flatten()
            .map(|first| before + first)
            .collect();
        let mut place = 0;
        let places = firsts.into_iter().map(|first| {
            first.map(|_| {
                place += 1;
                place - 1
            })
        });
        text.words = places.collect();
        self.check(&text)?;
        Ok(Sentence { text, cut })
    }
}
