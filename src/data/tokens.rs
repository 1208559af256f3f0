//! The backbone's own tokenizer.

use std::borrow::Cow;
use std::path::Path;

use tokenizers::utils::truncation::truncate_encodings;
use tokenizers::{Encoding, PostProcessor, Tokenizer, TruncationDirection, TruncationParams};

use super::chat::ChatTemplates;
use super::endless::{longest_word, without_endless_words};
use super::tokenizer_config::TokenizerConfig;
use crate::backbone::family::Reads;
use crate::backbone::{exists, is_gguf, read_text, text_in_gguf, Config};
use crate::diagnostic::Problem;
use crate::plan::{BackbonePlan, Cloze, Words};
use crate::task::{Conversation, Encoded, Encoder, Example, Marked, Sentence, Subwords, Target};
use crate::text::quoted_list;

/// Bytes up to which a text is read whole.
const LONG: usize = 16 << 10;

/// Encodes texts as tokens.
pub struct TextEncoder {
    /// It cuts nothing.
    pub(super) tokenizer: Tokenizer,
    truncation: TruncationParams,
    longest_word: Option<usize>,
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
    /// The text of the tokenizer's `eos_token`.
    eos: Option<String>,
    /// See [`TokenizerConfig::before_word`].
    pub(super) before_word: &'static str,
    /// The tokenizer's chat templates, or what is wrong with them.
    chat: Result<Option<ChatTemplates>, Problem>,
    /// Whether the token before a cloze's word predicts it. Otherwise a mask in its place does.
    pub(super) is_causal: bool,
}

impl TextEncoder {
    /// Whether conversations can be written, or the chat template that is there cannot be read.
    pub fn has_chat_template(&self) -> bool {
        !matches!(self.chat, Ok(None))
    }

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
        if !exists(&path) {
            let message = format!("`{}` has no `tokenizer.json`", directory.display());
            return Err(Problem::new("delta::data::tokenizer", message).help(
                "write one with transformers: `AutoTokenizer.from_pretrained(d).save_pretrained(d)`",
            ));
        }
        if let Some(Err(problem)) = text_in_gguf(&path) {
            return Err(problem);
        }
        let unreadable = |e: tokenizers::Error| {
            if is_gguf(directory) {
                let message = format!(
                    "the tokenizer of `{}` cannot be read: {e}",
                    directory.display()
                );
                return Problem::new("delta::data::tokenizer", message)
                    .help("name the directory of the model's own: `backbone \"model.gguf\" { tokenizer = \"DIRECTORY\" }`");
            }
            let message = format!("`{}` cannot be read: {e}", path.display());
            Problem::new("delta::data::tokenizer", message)
                .help("write it again with transformers: `AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIRECTORY)`")
        };
        let text = read_text(&path).map_err(|e| unreadable(e.into()))?;
        let mut tokenizer: Tokenizer = text.parse().map_err(unreadable)?;
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
            longest_word: longest_word(&tokenizer),
            first: around_nothing.get_ids().first().copied(),
            before_word: settings.before_word,
            tokenizer,
            truncation,
            passes_types: settings.passes_types && !config.family().ignores_types,
            vocabulary: config.vocabulary,
            types: config.types,
            padding: Padding::of(config),
            start_token: config.start_token,
            end_token: config.end_token,
            eos: settings.special.get("eos_token").cloned(),
            chat: ChatTemplates::read(directory, settings.special),
            is_causal: config.family().causal,
        })
    }

    /// One text or pair, cut to the longest sequence before the tokenizer's own tokens are put around it.
    fn encode_one(&self, first: &str, second: Option<&str>) -> Result<Encoded, Problem> {
        let tokens = |text: &str| {
            let text = self.long_enough(text)?;
            self.tokenizer.encode_fast(&*text, false).map_err(refused)
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
        let mut encoded = encoded(&whole.map_err(refused)?);
        if !self.passes_types {
            encoded.types.fill(0);
        }
        Ok(encoded)
    }

    /// The part of a long text that has all the tokens that are left after it is cut: what the tokenizer needs to read a
    /// text is many times the text's own size. Of a pair of texts that are both so long, the parts count as the texts.
    pub(super) fn long_enough<'t>(&self, text: &'t str) -> Result<Cow<'t, str>, Problem> {
        /// Tokens beyond those that are left, as the last ones may be others where a word is cut.
        const MARGIN: usize = 64;
        // A text that is one endless word has no shorter part with enough tokens.
        let text = match self.longest_word {
            Some(longest) if text.len() > LONG => Cow::Owned(without_endless_words(text, longest)),
            _ => Cow::Borrowed(text),
        };
        let mut size = LONG.max(16 * self.max_length());
        while size < text.len() {
            let is_between = |at: &usize| text.is_char_boundary(*at);
            let place = match self.cuts_start() {
                false => 0..(0..=size).rev().find(is_between).unwrap_or(0),
                true => (text.len() - size..).find(is_between).unwrap_or(text.len())..text.len(),
            };
            let part = &text[place.clone()];
            let encoding = self.tokenizer.encode_fast(part, false).map_err(refused)?;
            if encoding.len() >= self.max_length() + MARGIN {
                return Ok(match text {
                    Cow::Borrowed(text) => Cow::Borrowed(&text[place]),
                    Cow::Owned(text) => Cow::Owned(text[place].to_owned()),
                });
            }
            size *= 4;
        }
        Ok(text)
    }

    /// How many tokens the tokenizer puts around a text.
    pub(super) fn own_tokens(&self) -> usize {
        let own = self.tokenizer.get_post_processor();
        own.map_or(0, |own| own.added_tokens(false))
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

    pub(super) fn check(&self, encoded: &Encoded) -> Result<(), Problem> {
        let kind = encoded.types.iter().max();
        if let Some(kind) = kind.filter(|kind| **kind > 0 && **kind as usize >= self.types) {
            let message = format!(
                "the tokenizer assigns token type {kind}, but the backbone's number of token types is {}",
                self.types
            );
            return Err(Problem::new("delta::data::tokenizer", message)
                .help("use a backbone with two token types, or remove `token_type_ids` from `model_input_names` in `tokenizer_config.json`"));
        }
        let highest = encoded.tokens.iter().max();
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

    /// The text of tokens, without special tokens.
    ///
    /// # Errors
    /// The tokenizer cannot decode them.
    pub fn decode(&self, tokens: &[u32]) -> Result<String, Problem> {
        self.tokenizer.decode(tokens, true).map_err(refused)
    }

    /// The prompt of a text: a decoder begins with its start token behind it.
    ///
    /// # Errors
    /// See [`Encoder::texts`].
    pub fn prompt(&self, marked: &Marked) -> Result<Example, Problem> {
        match self.start_token {
            None => self.encode_marked(marked),
            Some(start) => Ok(Example {
                cut: self.excess(&marked.text)?,
                text: self.texts(std::slice::from_ref(&marked.text))?,
                // The last token of a decoder's sequence is predicted and never read.
                decoder: vec![start, start],
                target: Target::None,
                others: Vec::new(),
            }),
        }
    }

    /// How many tokens of a text are beyond the longest sequence.
    fn excess(&self, text: &str) -> Result<usize, Problem> {
        let whole = self.tokenizer.encode_fast(text, true).map_err(refused)?;
        Ok(whole.len().saturating_sub(self.max_length()))
    }

    /// A token as a text of its own.
    pub fn shown(&self, token: u32) -> String {
        let name = || self.tokenizer.id_to_token(token).unwrap_or_default();
        match self.tokenizer.decode(&[token], false) {
            Ok(text) if !text.is_empty() && !text.contains('\u{fffd}') => text,
            _ => name(),
        }
    }

    /// The token that ends an answer, if the tokenizer has one.
    pub fn end_token(&self) -> Option<u32> {
        self.tokenizer.token_to_id(self.eos.as_ref()?)
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

    /// The tokens that stand for spans that a T5 writes, in their order.
    pub fn span_tokens(&self) -> Vec<u32> {
        let number = |span: usize| self.tokenizer.token_to_id(&format!("<extra_id_{span}>"));
        (0..).map_while(number).collect()
    }

    pub(super) fn mask(&self) -> Option<(&'static str, u32)> {
        let names = ["[MASK]", "<mask>"].into_iter();
        names
            .filter_map(|name| Some((name, self.tokenizer.token_to_id(name)?)))
            .next()
    }
}

/// The tokens of an encoding.
pub(super) fn encoded(encoding: &Encoding) -> Encoded {
    Encoded {
        tokens: encoding.get_ids().to_vec(),
        types: encoding.get_type_ids().iter().map(|&t| t as u8).collect(),
        special: encoding
            .get_special_tokens_mask()
            .iter()
            .map(|&s| s == 1)
            .collect(),
        reads: Vec::new(),
        soft: None,
        words: Vec::new(),
    }
}

impl Encoder for TextEncoder {
    fn texts(&self, texts: &[String]) -> Result<Encoded, Problem> {
        let encoded = match texts {
            [first, second] => self.encode_one(first, Some(second))?,
            texts => self.encode_one(&texts.concat(), None)?,
        };
        self.check(&encoded)?;
        Ok(encoded)
    }

    fn cut_of(&self, text: &str, encoded: &Encoded) -> Result<usize, Problem> {
        match encoded.tokens.len() < self.max_length() {
            true => Ok(0),
            false => self.excess(text),
        }
    }

    fn words(&self, words: &[String], subwords: Subwords) -> Result<Sentence, Problem> {
        self.encode_words(words, subwords)
    }

    fn cloze(&self, cloze: &Cloze, texts: &[String]) -> Result<Encoded, Problem> {
        self.encode_cloze(cloze, texts)
    }

    fn decoded(&self, text: &Encoded) -> Vec<u32> {
        match self.start_token {
            Some(start) => [&[start], text.tokens.as_slice()].concat(),
            None => Vec::new(),
        }
    }

    fn converse(&self, conversation: &Conversation, is_open: bool) -> Result<Marked, Problem> {
        match &self.chat {
            Ok(Some(templates)) => templates.render(conversation, is_open),
            Ok(None) => {
                let message = "the backbone's tokenizer has no chat template";
                Err(Problem::new("delta::data::no_chat_template", message).help("use an instruct model, or write a template: `template = \"Q: {question}\\nA: {answer}\"`"))
            }
            Err(problem) => Err(problem.clone()),
        }
    }

    fn marked(&self, marked: &Marked) -> Result<Example, Problem> {
        self.encode_marked(marked)
    }

    fn reads_tools(&self) -> bool {
        let chat = self.chat.as_ref().ok().and_then(Option::as_ref);
        chat.is_some_and(ChatTemplates::reads_tools)
    }

    fn end(&self) -> Option<String> {
        self.eos.clone()
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
        let encoded = encoded(&self.plain(text)?);
        self.check(&encoded)?;
        Ok(encoded.tokens.iter().map(|token| *token as usize).collect())
    }

    fn framed(&self, text: &str) -> Result<Vec<usize>, Problem> {
        let encoded = encoded(&self.tokenizer.encode(text, true).map_err(refused)?);
        self.check(&encoded)?;
        Ok(encoded.tokens.iter().map(|token| *token as usize).collect())
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
    /// Refuses a text with a padding token that transformers would treat as padding.
    ///
    /// # Errors
    /// The text has one.
    pub fn check_padding(&self, text: &Encoded, reads_tokens: bool) -> Result<(), Problem> {
        let Padding {
            token,
            moves_positions,
            is_read_over,
        } = self.padding;
        let counts = moves_positions || (is_read_over && !reads_tokens);
        let Some(token) = token.filter(|token| counts && text.tokens.contains(token)) else {
            return Ok(());
        };
        let name = self.tokenizer.id_to_token(token).unwrap_or_default();
        let message = format!("the text contains the padding token `{name}`, which the backbone would treat as padding");
        let problem = Problem::new("delta::data::padding_in_text", message);
        Err(problem.help("remove it from the text"))
    }

    /// Refuses a text that does not end with the token whose row the classifier reads.
    ///
    /// # Errors
    /// It does not.
    pub(super) fn check_end(&self, text: &Encoded) -> Result<(), Problem> {
        let Some(end) = self.end_token.filter(|end| text.tokens.last() != Some(end)) else {
            return Ok(());
        };
        let name = self.tokenizer.id_to_token(end).unwrap_or_default();
        let message = format!("the text does not end with the backbone's `eos_token_id` {end} (`{name}`), the token that its classifier reads");
        let problem = Problem::new("delta::data::no_end", message);
        Err(problem.help("use a tokenizer that ends every text with this token"))
    }
}
