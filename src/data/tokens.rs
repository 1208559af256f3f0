//! The backbone's own tokenizer.

use std::path::Path;

use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use super::tokenizer_config::TokenizerConfig;
use crate::backbone::family::Reads;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::plan::{BackbonePlan, Cloze, Words};
use crate::text::quoted_list;

/// Encodes texts as tokens.
pub struct TextEncoder {
    /// It cuts nothing.
    pub(super) tokenizer: Tokenizer,
    truncation: TruncationParams,
    /// Whether the backbone gets token types, which tell the texts of a pair apart.
    passes_types: bool,
    vocabulary: usize,
    /// Entries of the token-type embedding.
    types: usize,
    padding: Padding,
    /// The token with which a decoder's sequences begin, if the backbone has a decoder.
    start_token: Option<u32>,
    /// The token for words that the vocabulary lacks.
    unknown: Option<(&'static str, u32)>,
    /// The token that the tokenizer puts before a text.
    first: Option<u32>,
    /// The token with which texts end, if the classifier reads its row.
    end_token: Option<u32>,
    /// Whether the token before a cloze's word predicts it. Otherwise a mask in its place does.
    pub(super) is_causal: bool,
}

/// Tokens of one example.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// Token numbers.
    pub tokens: Vec<u32>,
    /// Token types: 1 for the second text of a pair, if the family tells them apart.
    pub types: Vec<u8>,
    /// Whether a token is one of the tokenizer's own, such as `[CLS]`.
    pub special: Vec<bool>,
    /// The index of the token that predicts the word of a cloze: the mask, or the last token of the template
    /// in a causal family.
    pub mask: Option<usize>,
    /// The number of tokens before the soft tokens, if a template says where those stand.
    pub soft: Option<usize>,
}

impl TextEncoder {
    /// Reads `tokenizer.json` of a backbone. Texts are cut to `max_length` tokens. Of a pair, the longer text
    /// is cut first.
    ///
    /// # Errors
    /// The file is missing or is not a tokenizer, `tokenizer_config.json` is refused, or a decoder has no start
    /// token.
    pub fn open(directory: &Path, max_length: usize, config: &Config) -> Result<Self, Problem> {
        TextEncoder::read(directory, directory, max_length, config)
    }

    /// The tokenizer of a plan's backbone: see [`TextEncoder::open`].
    ///
    /// # Errors
    /// As for [`TextEncoder::open`].
    pub fn of(backbone: &BackbonePlan) -> Result<Self, Problem> {
        let (own, length) = (&backbone.directory, backbone.max_length);
        let directory = backbone.tokenizer.as_ref().unwrap_or(own);
        TextEncoder::read(directory, own, length, &backbone.config)
    }

    fn read(
        directory: &Path,
        backbone: &Path,
        max_length: usize,
        config: &Config,
    ) -> Result<Self, Problem> {
        config.check_start().map_err(|message| {
            let message = format!("`{}`: {message}", directory.display());
            Problem::new("delta::data::start_token", message)
                .help("add it to `config.json`; for T5 it is 0, the id of the padding token")
        })?;
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
                .help("write it again with transformers: `AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)`")
        };
        let mut tokenizer = Tokenizer::from_file(&path).map_err(unreadable)?;
        let settings = TokenizerConfig::apply(directory, backbone, &mut tokenizer)?;
        tokenizer.with_truncation(None).map_err(unreadable)?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            max_length,
            direction: settings.direction,
            ..TruncationParams::default()
        };
        let names = ["[UNK]", "<unk>"].into_iter();
        let unknown = names
            .filter_map(|name| Some((name, tokenizer.token_to_id(name)?)))
            .next();
        let around_nothing = tokenizer.encode_fast("", true).map_err(unreadable)?;
        Ok(TextEncoder {
            unknown,
            first: around_nothing.get_ids().first().copied(),
            tokenizer,
            truncation,
            passes_types: settings.passes_types,
            vocabulary: config.vocabulary,
            types: config.types,
            padding: Padding::of(config),
            start_token: config.start_token,
            end_token: config.end_token,
            is_causal: config.family().causal,
        })
    }

    /// The tokens of a decoder's sequence: the start token, then those of a text. Empty if the backbone has no decoder.
    pub fn decoded(&self, text: &Encoded) -> Vec<u32> {
        match self.start_token {
            Some(start) => [&[start], text.tokens.as_slice()].concat(),
            None => Vec::new(),
        }
    }

    /// Encodes texts, or pairs of texts.
    ///
    /// # Errors
    /// The tokenizer refuses a text, or it gives a token or token type that the backbone has no embedding for.
    pub fn encode(&self, texts: &[Vec<String>]) -> Result<Vec<Encoded>, Problem> {
        let one = |texts: &Vec<String>| match texts.as_slice() {
            [first, second] => self.encode_one(first, Some(second)),
            texts => self.encode_one(&texts.concat(), None),
        };
        // On one thread: a tokenizer allocates for every token, and threads would wait for the allocator (twice as long).
        let encoded: Vec<Encoded> = texts.iter().map(one).collect::<Result<_, _>>()?;
        self.check(&encoded)?;
        Ok(encoded)
    }

    /// One text or pair, cut to the longest sequence before the tokenizer's own tokens are put around it.
    fn encode_one(&self, first: &str, second: Option<&str>) -> Result<Encoded, Problem> {
        let tokens = |text: &str| {
            let text = self.long_enough(text)?;
            self.tokenizer.encode_fast(text, false).map_err(refused)
        };
        let (first, mut second) = (tokens(first)?, second.map(tokens).transpose()?);
        if let Some(second) = &mut second {
            // A post-processor may set others.
            second.set_type_ids(vec![1; second.len()]);
        }
        let own = self.tokenizer.get_post_processor();
        let own = own.map_or(0, |own| own.added_tokens(second.is_some()));
        let cut = TruncationParams {
            max_length: self.max_length().saturating_sub(own),
            ..self.truncation.clone()
        };
        let (first, second) = truncate_encodings(first, second, &cut).map_err(refused)?;
        let whole = self.tokenizer.post_process(first, second, true);
        let mut encoded = Encoded::from(&whole.map_err(refused)?);
        if !self.passes_types {
            encoded.types.fill(0);
        }
        Ok(encoded)
    }

    /// The part of a long text that has all the tokens that are left after it is cut: what the tokenizer needs to read a
    /// text is many times the text's own size. Of a pair of texts that are both so long, the parts count as the texts.
    pub(super) fn long_enough<'t>(&self, text: &'t str) -> Result<&'t str, Problem> {
        /// Bytes up to which a text is read whole.
        const LONG: usize = 16 << 10;
        /// Tokens beyond those that are left, as the last ones may be others where a word is cut.
        const MARGIN: usize = 64;
        let mut size = LONG.max(16 * self.max_length());
        while size < text.len() {
            let is_between = |at: &usize| text.is_char_boundary(*at);
            let part = match self.cuts_start() {
                false => &text[..(0..=size).rev().find(is_between).unwrap_or(0)],
                true => &text[(text.len() - size..).find(is_between).unwrap_or(text.len())..],
            };
            let encoding = self.tokenizer.encode_fast(part, false).map_err(refused)?;
            if encoding.len() >= self.max_length() + MARGIN {
                return Ok(part);
            }
            size *= 4;
        }
        Ok(text)
    }

    pub(super) fn max_length(&self) -> usize {
        self.truncation.max_length
    }

    /// Whether a text that is too long is cut at its beginning instead of its end.
    pub(super) fn cuts_start(&self) -> bool {
        self.truncation.direction == TruncationDirection::Left
    }

    fn plain(&self, text: &str) -> Result<Encoding, Problem> {
        let text = format!(" {text}");
        self.tokenizer.encode(text, false).map_err(refused)
    }

    pub(super) fn check(&self, encoded: &[Encoded]) -> Result<(), Problem> {
        let kind = encoded.iter().flat_map(|e| &e.types).max();
        if let Some(kind) = kind.filter(|kind| **kind > 0 && **kind as usize >= self.types) {
            let message = format!(
                "the tokenizer assigns token type {kind}, but the backbone's number of token types is {}",
                self.types
            );
            return Err(Problem::new("delta::data::tokenizer", message)
                .help("use a backbone with two token types, or remove `token_type_ids` from `model_input_names` in `tokenizer_config.json`"));
        }
        let highest = encoded.iter().flat_map(|e| &e.tokens).max();
        if let Some(token) = highest.filter(|token| **token as usize >= self.vocabulary) {
            let name = self.tokenizer.id_to_token(*token).unwrap_or_default();
            let message = format!(
                "the tokenizer gives the token {token} (`{name}`), but the backbone has {} word embeddings",
                self.vocabulary
            );
            return Err(Problem::new("delta::data::tokenizer", message)
                .help("use the tokenizer that the backbone was trained with, or resize its embeddings with `model.resize_token_embeddings(len(tokenizer))`"));
        }
        Ok(())
    }

    /// The token for words that the vocabulary lacks, if there is one.
    pub fn unknown_name(&self) -> Option<&'static str> {
        self.unknown.map(|(name, _)| name)
    }

    /// How many tokens of a text stand for words that the vocabulary lacks.
    pub fn unknown_tokens(&self, text: &Encoded) -> usize {
        let is_unknown = |token: &&u32| self.unknown.is_some_and(|(_, unknown)| unknown == **token);
        text.tokens.iter().filter(is_unknown).count()
    }

    /// The token that the tokenizer puts before a text, if there is one.
    pub fn first_name(&self) -> Option<String> {
        self.tokenizer.id_to_token(self.first?)
    }

    /// Whether a text has the token that the tokenizer puts before it at its beginning as well.
    pub fn begins_twice(&self, text: &Encoded) -> bool {
        let first = self.first.is_some() && text.special.first() == Some(&true);
        first && matches!(text.tokens.as_slice(), [a, b, ..] if Some(*a) == self.first && a == b)
    }

    /// The number of the mask token, if the tokenizer has one.
    pub fn mask_token(&self) -> Option<u32> {
        self.mask().map(|(_, token)| token)
    }

    pub(super) fn mask(&self) -> Option<(&'static str, u32)> {
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
            soft: None,
        }
    }
}

pub(super) fn refused(error: tokenizers::Error) -> Problem {
    Problem::new(
        "delta::data::tokenizer",
        format!("the tokenizer rejected a text: {error}"),
    )
    .help("look for unusual characters in the data")
}

impl Words for TextEncoder {
    /// The tokens of a label word after a space. There must be one, unless the cloze takes the mean of several.
    ///
    /// # Errors
    /// The word is not one token. The problem shows its tokens.
    fn word(&self, word: &str, cloze: &Cloze) -> Result<Vec<usize>, Problem> {
        let encoding = self.plain(word)?;
        let tokens = encoding.get_ids();
        if tokens.len() == 1 || (cloze.takes_mean && !tokens.is_empty()) {
            return Ok(tokens.iter().map(|token| *token as usize).collect());
        }
        let tokens = quoted_list(encoding.get_tokens().iter().map(String::as_str));
        let message = format!("the label word `{word}` is not a single token, but {tokens}");
        let way_out = "choose a word that is a single token, or write `multi_token = mean`";
        Err(Problem::new("delta::data::label_word", message)
            .at(cloze.span, "in here")
            .help(way_out))
    }

    /// The tokens of a text after a space, without the tokenizer's own special tokens.
    fn tokens(&self, text: &str) -> Result<Vec<usize>, Problem> {
        let encoded = Encoded::from(&self.plain(text)?);
        let tokens = encoded.tokens.iter().map(|token| *token as usize).collect();
        self.check(&[encoded])?;
        Ok(tokens)
    }
}

/// How a padding token inside a text would change what transformers computes. We add no padding ourselves.
struct Padding {
    token: Option<u32>,
    /// Padding takes no position, so the positions of later tokens would move.
    moves_positions: bool,
    /// The classifier reads the last token that is not padding.
    is_read_over: bool,
}

impl Padding {
    fn of(config: &Config) -> Self {
        let family = config.family();
        Padding {
            token: config.pad_token,
            moves_positions: family.positions_follow_padding,
            is_read_over: family.heads.classify.reads == Reads::Last,
        }
    }
}

impl TextEncoder {
    /// The first text that contains a padding token which transformers would treat as padding, and its problem.
    pub fn padded(&self, encoded: &[Encoded], reads_tokens: bool) -> Option<(usize, Problem)> {
        let Padding {
            token,
            moves_positions,
            is_read_over,
        } = self.padding;
        let counts = moves_positions || (is_read_over && !reads_tokens);
        let token = token.filter(|_| counts)?;
        let place = encoded
            .iter()
            .position(|text| text.tokens.contains(&token))?;
        let name = self.tokenizer.id_to_token(token).unwrap_or_default();
        let message = format!("the text contains the padding token `{name}`, which the backbone would treat as padding");
        let problem = Problem::new("delta::data::padding_in_text", message);
        Some((place, problem.help("remove it from the text")))
    }
}

impl TextEncoder {
    /// The first text that does not end with the token whose row the classifier reads, and its problem.
    pub fn unended(&self, encoded: &[Encoded]) -> Option<(usize, Problem)> {
        let end = self.end_token?;
        let place = encoded
            .iter()
            .position(|text| text.tokens.last() != Some(&end))?;
        let name = self.tokenizer.id_to_token(end).unwrap_or_default();
        let message = format!("the text does not end with the backbone's `eos_token_id` {end} (`{name}`), the token that its classifier reads");
        let problem = Problem::new("delta::data::no_end", message);
        Some((
            place,
            problem.help("use a tokenizer that ends every text with this token"),
        ))
    }
}
