//! The backbone's own tokenizer.

use std::path::Path;

use tokenizers::{EncodeInput, Encoding, InputSequence, Tokenizer, TruncationParams};

use crate::diagnostic::Problem;
use crate::plan::{Cloze, Piece};
use crate::text::quoted_list;

/// Texts to tokens.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    max_length: usize,
    vocabulary: usize,
}

/// Tokens of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token numbers.
    pub tokens: Vec<u32>,
    /// Token types: 1 for the second text of a pair, where the family tells them apart.
    pub types: Vec<u8>,
    /// Whether a token is one of the tokenizer's own, such as `[CLS]`.
    pub special: Vec<bool>,
    /// Where the mask of a cloze is.
    pub mask: Option<usize>,
}

impl TextEncoder {
    /// Reads `tokenizer.json` of a backbone with `vocabulary` word embeddings; texts are cut to
    /// `max_length` tokens, the longer of a pair first.
    ///
    /// # Errors
    /// The file is missing or is not a tokenizer.
    pub fn open(directory: &Path, max_length: usize, vocabulary: usize) -> Result<Self, Problem> {
        let path = directory.join("tokenizer.json");
        if !path.exists() {
            let message = format!("`{}` has no `tokenizer.json`", directory.display());
            return Err(Problem::new("delta::data::tokenizer", message).help(
                "write one with transformers: `AutoTokenizer.from_pretrained(d).save_pretrained(d)`",
            ));
        }
        let unreadable = |e: tokenizers::Error| {
            let message = format!("`{}` cannot be read: {e}", path.display());
            Problem::new("delta::data::tokenizer", message)
                .help("give the tokenizer of this backbone")
        };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(unreadable)?;
        let truncation = TruncationParams {
            max_length,
            ..TruncationParams::default()
        };
        tokenizer
            .with_truncation(Some(truncation))
            .map_err(unreadable)?;
        tokenizer.with_padding(None);
        Ok(TextEncoder {
            tokenizer,
            max_length,
            vocabulary,
        })
    }

    /// Encodes texts, or pairs of texts.
    ///
    /// # Errors
    /// The tokenizer gives a token that the backbone has no embedding for, or none at all.
    pub fn encode(&self, texts: &[Vec<String>]) -> Result<Vec<Encoded>, Problem> {
        let input = |texts: &Vec<String>| match texts.as_slice() {
            [first, second] => EncodeInput::Dual(
                InputSequence::from(first.clone()),
                InputSequence::from(second.clone()),
            ),
            _ => EncodeInput::Single(InputSequence::from(texts.concat())),
        };
        let inputs: Vec<EncodeInput> = texts.iter().map(input).collect();
        let encodings = self.tokenizer.encode_batch(inputs, true).map_err(refused)?;
        let encoded: Vec<Encoded> = encodings.iter().map(Encoded::from).collect();
        self.check(&encoded)?;
        Ok(encoded)
    }

    /// Encodes texts in a template. Where the whole is too long, words are cut from the end of the
    /// longest text, never from the template.
    ///
    /// # Errors
    /// A text has the mask in it; the template alone is too long; what [`TextEncoder::encode`]
    /// reports. The number of the text comes with the problem.
    pub fn encode_cloze(
        &self,
        cloze: &Cloze,
        texts: &[Vec<String>],
    ) -> Result<Vec<Encoded>, (Option<usize>, Problem)> {
        let (name, mask) = self.mask().ok_or_else(|| (None, self.no_mask(cloze)))?;
        let mut whole = self.tokenizer.clone();
        whole
            .with_truncation(None)
            .map_err(|e| (None, refused(e)))?;
        let columns = cloze.columns();
        let one = |texts: &Vec<String>| -> Result<Encoded, Problem> {
            let mut texts = texts.clone();
            if texts.iter().any(|text| text.contains(name)) {
                let message = format!("the text has `{name}` in it, which the template puts there");
                let problem = Problem::new("delta::data::mask_in_text", message);
                return Err(problem.help("remove it from the text"));
            }
            loop {
                let text = fill(cloze, &columns, &texts, name);
                let mut encoded = Encoded::from(&whole.encode(text, true).map_err(refused)?);
                let excess = encoded.tokens.len().saturating_sub(self.max_length);
                if excess == 0 {
                    encoded.mask = encoded.tokens.iter().position(|token| *token == mask);
                    return Ok(encoded);
                }
                let longest = texts.iter_mut().max_by_key(|text| text.len());
                match longest.filter(|text| !text.is_empty()) {
                    Some(text) => cut_words(text, excess),
                    None => return Err(self.template_too_long(cloze)),
                }
            }
        };
        let encoded = texts
            .iter()
            .enumerate()
            .map(|(i, texts)| one(texts).map_err(|p| (Some(i), p)));
        let encoded: Vec<Encoded> = encoded.collect::<Result<_, _>>()?;
        self.check(&encoded).map_err(|problem| (None, problem))?;
        Ok(encoded)
    }

    /// The tokens of a text as it stands behind a space, without any of the tokenizer's own.
    ///
    /// # Errors
    /// The tokenizer refuses it; a token that the backbone has no embedding for.
    pub fn tokens(&self, text: &str) -> Result<Vec<usize>, Problem> {
        let encoded = Encoded::from(&self.plain(text)?);
        let tokens = encoded.tokens.iter().map(|token| *token as usize).collect();
        self.check(&[encoded])?;
        Ok(tokens)
    }

    fn plain(&self, text: &str) -> Result<Encoding, Problem> {
        let text = format!(" {text}");
        self.tokenizer.encode(text, false).map_err(refused)
    }

    /// The token of a label word, as it stands behind a space.
    ///
    /// # Errors
    /// It is not one token; its tokens are shown.
    pub fn word(&self, word: &str, cloze: &Cloze) -> Result<usize, Problem> {
        let encoding = self.plain(word)?;
        match encoding.get_ids() {
            [token] => Ok(*token as usize),
            _ => {
                let tokens = quoted_list(encoding.get_tokens().iter().map(String::as_str));
                let message = format!("the label word `{word}` is not one token, but {tokens}");
                Err(Problem::new("delta::data::label_word", message)
                    .at(cloze.span, "in here")
                    .help("choose a word that the tokenizer knows as a whole"))
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
            "the template alone has more than {} tokens",
            self.max_length
        );
        Problem::new("delta::data::template_too_long", message)
            .at(cloze.span, "of this task")
            .help("shorten the template, or raise `max_length`")
    }

    fn check(&self, encoded: &[Encoded]) -> Result<(), Problem> {
        let highest = encoded.iter().flat_map(|e| &e.tokens).max();
        if let Some(token) = highest.filter(|token| **token as usize >= self.vocabulary) {
            let message = format!(
                "the tokenizer gives the token {token}, but the backbone has {} word embeddings",
                self.vocabulary
            );
            return Err(Problem::new("delta::data::tokenizer", message)
                .help("give the tokenizer of this backbone"));
        }
        Ok(())
    }

    /// The number of the mask token, if the tokenizer has one.
    pub fn mask_token(&self) -> Option<u32> {
        self.mask().map(|(_, token)| token)
    }

    fn mask(&self) -> Option<(&'static str, u32)> {
        let names = ["[MASK]", "<mask>"].into_iter();
        names
            .filter_map(|name| Some((name, self.tokenizer.token_to_id(name)?)))
            .next()
    }
}

impl From<&Encoding> for Encoded {
    fn from(encoding: &Encoding) -> Self {
        Encoded {
            tokens: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().iter().map(|&t| t as u8).collect(),
            special: encoding
                .get_special_tokens_mask()
                .iter()
                .map(|&s| s == 1)
                .collect(),
            mask: None,
        }
    }
}

fn refused(error: tokenizers::Error) -> Problem {
    Problem::new(
        "delta::data::tokenizer",
        format!("the tokenizer refused a text: {error}"),
    )
    .help("look for unusual characters in the data")
}

/// The template with texts and mask put in.
fn fill(cloze: &Cloze, columns: &[String], texts: &[String], mask: &str) -> String {
    let text_of = |name: &String| {
        columns
            .iter()
            .position(|column| column == name)
            .map(|i| texts[i].as_str())
    };
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Field(name) => text_of(name).unwrap_or_default().to_owned(),
        Piece::Mask => mask.to_owned(),
    };
    cloze.template.iter().map(piece).collect()
}

/// Cuts about `count` tokens off the end: as many words, or half of a single long word.
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
