//! Texts in a template, cut until the whole fits.

use std::borrow::Cow;

use tokenizers::{Encoding, Token, Tokenizer};

use super::tokens::{encoded, refused, TextEncoder};
use crate::diagnostic::Problem;
use crate::plan::{Cloze, Edit, Piece};
use crate::task::Encoded;

impl TextEncoder {
    /// Encodes texts in a template. If the whole is too long, cuts words from the longest text, never from the
    /// template. Cuts them from the end, unless the tokenizer truncates on the left.
    ///
    /// # Errors
    /// See [`Encoder::cloze`].
    ///
    /// [`Encoder::cloze`]: crate::task::Encoder::cloze
    pub(super) fn encode_cloze(&self, cloze: &Cloze, texts: &[String]) -> Result<Encoded, Problem> {
        let mask = match (self.is_causal, self.mask()) {
            (true, _) => None,
            (false, Some(mask)) => Some(mask),
            (false, None) => return Err(self.no_mask(cloze)),
        };
        let template = Template {
            cloze,
            columns: cloze.columns(),
            mask,
            tokenizer: &self.tokenizer,
        };
        let parts = texts.iter().map(|text| self.long_enough(text));
        let mut texts: Vec<String> = parts
            .map(|part| part.map(Cow::into_owned))
            .collect::<Result<_, _>>()?;
        if let Some((name, _)) = mask.filter(|(name, _)| texts.iter().any(|t| t.contains(name))) {
            let message = format!(
                "the text contains the mask token `{name}`, which only the template may place"
            );
            let problem = Problem::new("delta::data::mask_in_text", message);
            return Err(problem.help("remove it from the text"));
        }
        loop {
            let encoded = template.encode(&texts)?;
            let excess = encoded.tokens.len().saturating_sub(self.max_length());
            if excess == 0 {
                self.check(&encoded)?;
                return Ok(encoded);
            }
            let longest = texts.iter_mut().max_by_key(|text| text.len());
            match longest.filter(|text| !text.is_empty()) {
                Some(text) if self.cuts_start() => cut_first_words(text, excess),
                Some(text) => cut_words(text, excess),
                None => return Err(self.template_too_long(cloze)),
            }
        }
    }

    fn no_mask(&self, cloze: &Cloze) -> Problem {
        Problem::new("delta::data::no_mask", "the tokenizer has no mask token")
            .at(cloze.span, "needed by this template")
            .help("use a backbone whose tokenizer has `[MASK]` or `<mask>`")
    }

    fn template_too_long(&self, cloze: &Cloze) -> Problem {
        let message = format!(
            "the template alone takes more than {} tokens",
            self.max_length()
        );
        Problem::new("delta::data::template_too_long", message)
            .at(cloze.span, "in this task")
            .help("shorten the template, or raise `max_length`")
    }
}

/// A template, with everything needed to fill and encode it.
struct Template<'a> {
    cloze: &'a Cloze,
    columns: Vec<String>,
    /// The tokenizer's mask; `None` for a causal backbone.
    mask: Option<(&'static str, u32)>,
    /// A tokenizer without truncation.
    tokenizer: &'a Tokenizer,
}

impl Template<'_> {
    /// Fills in the texts and the mask. Encodes everything between two soft or special tokens as one text. If
    /// the template names no special token, adds the tokenizer's own.
    fn encode(&self, texts: &[String]) -> Result<Encoded, Problem> {
        let mut joined = Encoding::default();
        let mut types = Vec::new();
        let (mut segment, mut soft, mut text) = (0, None, String::new());
        let end = [Piece::Segment(0)];
        for piece in self.cloze.template.iter().chain(&end) {
            if matches!(piece, Piece::Mask) && self.mask.is_none() {
                // The word that a causal model predicts includes the space before it, so remove that space here.
                text.truncate(text.trim_end_matches(' ').len());
            }
            if let Some(more) = self.text_of(piece, texts) {
                text.push_str(&more);
                continue;
            }
            let text = std::mem::take(&mut text);
            joined.merge_with(self.tokenizer.encode(text, false).map_err(refused)?, false);
            if let Some(token) = self.special(piece)? {
                joined.merge_with(Encoding::from_tokens(vec![token], 0), false);
            }
            types.resize(joined.len(), segment);
            match piece {
                Piece::Segment(number) => segment = *number,
                Piece::Soft => soft = Some(joined.len()),
                _ => {}
            }
        }
        let own = joined.get_ids().to_vec();
        let is_special = |piece: &Piece| matches!(piece, Piece::Cls | Piece::Sep);
        if !self.cloze.template.iter().any(is_special) {
            let processed = self.tokenizer.post_process(joined, None, true);
            joined = processed.map_err(refused)?;
        }
        let mut encoded = encoded(&joined);
        // The tokenizer's own tokens may surround ours, so find where ours begin.
        let first = match own.len() {
            0 => 0,
            length => encoded
                .tokens
                .windows(length)
                .position(|w| w == own)
                .unwrap_or(0),
        };
        encoded.types[first..first + own.len()].copy_from_slice(&types);
        let last = types.last().copied().unwrap_or(0);
        encoded.types[first + own.len()..].fill(last);
        encoded.soft = soft.map(|before| first + before);
        let read = match self.mask {
            Some((_, mask)) => encoded.tokens.iter().position(|token| *token == mask),
            None => (first + own.len()).checked_sub(1),
        };
        encoded.reads = read.into_iter().collect();
        Ok(encoded)
    }

    /// The text that a piece adds; `None` if the piece is not text.
    fn text_of(&self, piece: &Piece, texts: &[String]) -> Option<String> {
        match piece {
            Piece::Text(text) => Some(text.clone()),
            Piece::Field { column, edits } => {
                let place = self.columns.iter().position(|name| name == column)?;
                let edited = |text: String, edit: &Edit| edit.apply(&text);
                Some(edits.iter().fold(texts[place].clone(), edited))
            }
            Piece::Mask => Some(
                self.mask
                    .map(|(name, _)| name.to_owned())
                    .unwrap_or_default(),
            ),
            Piece::Soft | Piece::Cls | Piece::Sep | Piece::Segment(_) => None,
        }
    }

    fn special(&self, piece: &Piece) -> Result<Option<Token>, Problem> {
        let (names, called) = match piece {
            Piece::Cls => (["[CLS]", "<s>"], "{cls}"),
            Piece::Sep => (["[SEP]", "</s>"], "{sep}"),
            _ => return Ok(None),
        };
        for name in names {
            if let Some(id) = self.tokenizer.token_to_id(name) {
                return Ok(Some(Token::new(id, name.to_owned(), (0, 0))));
            }
        }
        let message = format!("the tokenizer has no token for `{called}`");
        Err(Problem::new("delta::data::special_token", message)
            .at(self.cloze.span, "in this task")
            .help("remove it from the template"))
    }
}

/// Cuts words off the beginning, one for every two tokens of `count`. Of a single long word, cuts half.
fn cut_first_words(text: &mut String, count: usize) {
    for _ in 0..count.div_ceil(2) {
        let trimmed = text.trim_start();
        let skipped = text.len() - trimmed.len();
        let word = trimmed.find(char::is_whitespace).unwrap_or_else(|| {
            let half = trimmed.chars().count().div_ceil(2);
            trimmed
                .char_indices()
                .nth(half)
                .map_or(trimmed.len(), |(place, _)| place)
        });
        text.drain(..skipped + word);
    }
}

/// Cuts words off the end, one for every two tokens of `count`. Of a single long word, cuts half.
fn cut_words(text: &mut String, count: usize) {
    for _ in 0..count.div_ceil(2) {
        let end = match text.trim_end().rfind(char::is_whitespace) {
            Some(end) => end,
            None => text
                .char_indices()
                .nth(text.chars().count() / 2)
                .map_or(0, |(half, _)| half),
        };
        text.truncate(end);
    }
}
