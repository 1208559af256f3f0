//! The backbone's own tokenizer.

use std::path::Path;

use tokenizers::{EncodeInput, InputSequence, Tokenizer, TruncationParams};

use crate::diagnostic::Problem;

/// Texts to tokens.
pub struct TextEncoder {
    tokenizer: Tokenizer,
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
            vocabulary,
        })
    }

    /// Encodes texts, or pairs of texts.
    ///
    /// # Errors
    /// The tokenizer gives a token that the backbone has no embedding for, or none at all.
    pub fn encode(&self, texts: &[&[String]]) -> Result<Vec<Encoded>, Problem> {
        let input = |texts: &&[String]| match texts {
            [first, second] => EncodeInput::Dual(
                InputSequence::from(first.clone()),
                InputSequence::from(second.clone()),
            ),
            _ => EncodeInput::Single(InputSequence::from(texts.concat())),
        };
        let inputs: Vec<EncodeInput> = texts.iter().map(input).collect();
        let encodings = self.tokenizer.encode_batch(inputs, true).map_err(|e| {
            Problem::new(
                "delta::data::tokenizer",
                format!("the tokenizer refused a text: {e}"),
            )
            .help("look for unusual characters in the data")
        })?;
        let encoded: Vec<Encoded> = encodings
            .into_iter()
            .map(|encoding| Encoded {
                tokens: encoding.get_ids().to_vec(),
                types: encoding.get_type_ids().iter().map(|&t| t as u8).collect(),
                special: encoding
                    .get_special_tokens_mask()
                    .iter()
                    .map(|&s| s == 1)
                    .collect(),
            })
            .collect();
        self.check(&encoded)?;
        Ok(encoded)
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
        ["[MASK]", "<mask>"]
            .iter()
            .find_map(|name| self.tokenizer.token_to_id(name))
    }
}
