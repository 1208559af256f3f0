//! The backbone's own tokenizer.

use std::path::Path;

use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{
    Encoding, PostProcessor, Token, Tokenizer, TruncationDirection, TruncationParams,
};

use super::tokenizer_config::TokenizerConfig;
use crate::backbone::family::Reads;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::plan::{BackbonePlan, Cloze, Edit, Piece, Words};
use crate::text::quoted_list;

/// Encodes texts as tokens.
pub struct TextEncoder {
    /// It cuts nothing.
    tokenizer: Tokenizer,
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
    is_causal: bool,
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
        let (first, second) = (tokens(first)?, second.map(tokens).transpose()?);
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
    fn long_enough<'t>(&self, text: &'t str) -> Result<&'t str, Problem> {
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

    fn max_length(&self) -> usize {
        self.truncation.max_length
    }

    /// Whether a text that is too long is cut at its beginning instead of its end.
    fn cuts_start(&self) -> bool {
        self.truncation.direction == TruncationDirection::Left
    }

    /// Encodes texts in a template. If the whole is too long, cuts words from the longest text, never from the
    /// template. Cuts them from the end, unless the tokenizer truncates on the left.
    ///
    /// # Errors
    /// A text has the mask in it; the template alone is too long; what [`TextEncoder::encode`]
    /// reports. The number of the text comes with the problem.
    pub fn encode_cloze(
        &self,
        cloze: &Cloze,
        texts: &[Vec<String>],
    ) -> Result<Vec<Encoded>, (Option<usize>, Problem)> {
        let mask = match (self.is_causal, self.mask()) {
            (true, _) => None,
            (false, Some(mask)) => Some(mask),
            (false, None) => return Err((None, self.no_mask(cloze))),
        };
        let template = Template {
            cloze,
            columns: cloze.columns(),
            mask,
            tokenizer: &self.tokenizer,
        };
        let one = |texts: &Vec<String>| -> Result<Encoded, Problem> {
            let parts = texts.iter().map(|text| self.long_enough(text));
            let mut texts: Vec<String> = parts
                .map(|part| part.map(str::to_owned))
                .collect::<Result<_, _>>()?;
            if let Some((name, _)) = mask.filter(|(name, _)| texts.iter().any(|t| t.contains(name)))
            {
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
                    return Ok(encoded);
                }
                let longest = texts.iter_mut().max_by_key(|text| text.len());
                match longest.filter(|text| !text.is_empty()) {
                    Some(text) if self.cuts_start() => cut_first_words(text, excess),
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

    fn plain(&self, text: &str) -> Result<Encoding, Problem> {
        let text = format!(" {text}");
        self.tokenizer.encode(text, false).map_err(refused)
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

    fn check(&self, encoded: &[Encoded]) -> Result<(), Problem> {
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
            soft: None,
        }
    }
}

fn refused(error: tokenizers::Error) -> Problem {
    Problem::new(
        "delta::data::tokenizer",
        format!("the tokenizer rejected a text: {error}"),
    )
    .help("look for unusual characters in the data")
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
        let mut encoded = Encoded::from(&joined);
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
        encoded.mask = match self.mask {
            Some((_, mask)) => encoded.tokens.iter().position(|token| *token == mask),
            None => (first + own.len()).checked_sub(1),
        };
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
