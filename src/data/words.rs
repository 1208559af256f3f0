//! Sentences that come as words: which row stands for which word.

use tokenizers::{Encoding, TruncationDirection};

use super::tokens::{encoded, refused, TextEncoder};
use crate::diagnostic::Problem;
use crate::task::{Sentence, Subwords};

impl TextEncoder {
    /// Encodes each word on its own, as transformers does with `is_split_into_words` (and `add_prefix_space` for the
    /// classes that need it), and reads a word at its first token, or at all of them. See [`Encoder::words`].
    ///
    /// [`Encoder::words`]: crate::task::Encoder::words
    pub(super) fn encode_words(
        &self,
        words: &[String],
        subwords: Subwords,
    ) -> Result<Sentence, Problem> {
        let mut joined = Encoding::default();
        let mut places = Vec::with_capacity(words.len());
        for word in words {
            let word = format!("{}{word}", self.before_word);
            let encoding = self.tokenizer.encode(word, false).map_err(refused)?;
            places.push(joined.len()..joined.len() + encoding.len());
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
        let kept = joined.get_ids().to_vec();
        let whole = self.tokenizer.post_process(joined, None, true);
        let mut text = encoded(&whole.map_err(refused)?);
        text.types.fill(0);
        text.reads.clear();
        // The tokenizer's own tokens may surround the words'.
        let mut windows = text.tokens.windows(kept.len().max(1));
        let before = windows.position(|tokens| tokens == kept);
        let Some(before) = before.filter(|_| !kept.is_empty()) else {
            let message = "the tokenizer finds no tokens in the words";
            return Err(Problem::new("delta::data::no_tokens", message)
                .help("remove the row, or fill it in"));
        };
        for word in places {
            if word.is_empty() || !left.contains(&word.start) {
                text.words.push(None);
                continue;
            }
            text.words.push(Some(text.reads.len()));
            let end = match subwords {
                Subwords::First => word.start + 1,
                Subwords::All => word.end.min(left.end),
            };
            text.reads
                .extend((word.start..end).map(|token| before + token - left.start));
        }
        self.check(&text)?;
        Ok(Sentence { text, cut })
    }
}
