//! Sentences that come as words: which row stands for which word.

use tokenizers::Encoding;

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
        let mut firsts = Vec::with_capacity(words.len());
        let own = self.own_tokens();
        let room = self.max_length().saturating_sub(own);
        for word in words {
            let word = format!("{}{word}", self.before_word);
            let encoding = self.tokenizer.encode(word, false).map_err(refused)?;
            let first = joined.len();
            let is_read = !encoding.is_empty() && first < room;
            firsts.push(is_read.then_some(first));
            joined.merge_with(encoding, false);
        }
        let cut = joined.len().saturating_sub(room);
        joined.truncate(room, 0, tokenizers::TruncationDirection::Right);
        let kept = joined.get_ids().to_vec();
        let whole = self.tokenizer.post_process(joined, None, true);
        let mut text = encoded(&whole.map_err(refused)?);
        text.types.fill(0);
        // The tokenizer's own tokens may surround the words'.
        let before = match kept.len() {
            0 => 0,
            count => {
                let mut places = text.tokens.windows(count);
                places.position(|tokens| tokens == kept).unwrap_or(0)
            }
        };
        text.reads = firsts
            .iter()
            .flatten()
            .map(|first| before + first)
            .collect();
        if text.reads.is_empty() {
            let message = "the tokenizer finds no tokens in the words";
            return Err(Problem::new("delta::data::no_tokens", message)
                .help("remove the row, or fill it in"));
        }
        let mut place = 0;
        let places = firsts.into_iter().map(|first| {
            first.map(|_| {
                place += 1;
                place - 1
            })
        });
        let places = places.collect();
        self.check(&text)?;
        Ok(Sentence { text, places, cut })
    }
}
