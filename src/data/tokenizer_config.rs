//! Applies `tokenizer_config.json` to a tokenizer from `tokenizer.json`, as transformers 5 does.
//!
//! transformers uses `tokenizer.json` as it is for the class `PreTrainedTokenizerFast` and for unknown classes. For the
//! class of a model, it takes only the vocabulary and the merges from `tokenizer.json`, and builds the rest from
//! `tokenizer_config.json` (`tokenization_bert.py`, `tokenization_roberta.py`, `tokenization_gpt2.py`,
//! `tokenization_llama.py`, `tokenization_qwen2.py`, `tokenization_t5.py`, `tokenization_xlm_roberta.py`). It ignores `add_bos_token` and
//! `add_eos_token`, because `tokenizer.json` already says which tokens surround a text (`tokenization_utils_base.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::normalizers::Replace;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::bert::BertProcessing;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    ModelWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    TruncationDirection,
};

use super::added_tokens;
use crate::backbone::read_text;
use crate::diagnostic::Problem;

/// The settings that a [`Tokenizer`] does not hold itself.
pub(super) struct TokenizerConfig {
    /// Which end of a text is cut.
    pub direction: TruncationDirection,
    /// Whether the model gets token types, which tell the texts of a pair apart.
    pub passes_types: bool,
    /// What stands before each word of a sentence that comes as words: a space where transformers needs
    /// `add_prefix_space` for such a sentence.
    pub before_word: &'static str,
    /// The texts of the special tokens with a name, such as `eos_token`.
    pub special: BTreeMap<String, String>,
}

/// A tokenizer's class in transformers. Classes that we treat alike are one.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Class {
    Bert,
    Roberta,
    Gpt2,
    Llama,
    Gemma,
    Qwen2,
    T5,
    XlmRoberta,
    /// Any class that uses `tokenizer.json` as it is.
    AsStored,
}

impl Class {
    fn of(name: &str) -> Self {
        match name {
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" => Class::Bert,
            "RobertaTokenizer" | "BartTokenizer" => Class::Roberta,
            "GPT2Tokenizer" => Class::Gpt2,
            "LlamaTokenizer" => Class::Llama,
            "GemmaTokenizer" => Class::Gemma,
            "Qwen2Tokenizer" => Class::Qwen2,
            "T5Tokenizer" => Class::T5,
            "XLMRobertaTokenizer" => Class::XlmRoberta,
            _ => Class::AsStored,
        }
    }

    /// The text that the class gives a special token where no file states one.
    pub fn special_token(self, name: &str) -> Option<&'static str> {
        Some(match (self, name) {
            (Class::Bert, "unk_token") => "[UNK]",
            (Class::Bert, "sep_token") => "[SEP]",
            (Class::Bert, "pad_token") => "[PAD]",
            (Class::Bert, "cls_token") => "[CLS]",
            (Class::Bert, "mask_token") => "[MASK]",
            (Class::Roberta | Class::XlmRoberta, "bos_token" | "cls_token") => "<s>",
            (Class::Roberta | Class::XlmRoberta, "eos_token" | "sep_token") => "</s>",
            (Class::Roberta | Class::XlmRoberta, "mask_token") => "<mask>",
            (Class::Roberta | Class::XlmRoberta | Class::T5, "pad_token") => "<pad>",
            (Class::Roberta | Class::XlmRoberta | Class::Llama | Class::T5, "unk_token") => "<unk>",
            (Class::Llama, "bos_token") => "<s>",
            (Class::Gemma, "unk_token") => "<unk>",
            (Class::Gemma, "bos_token") => "<bos>",
            (Class::Gemma, "eos_token") => "<eos>",
            (Class::Gemma, "pad_token") => "<pad>",
            (Class::Gemma, "mask_token") => "<mask>",
            (Class::Llama | Class::T5, "eos_token") => "</s>",
            (Class::Gpt2, "unk_token" | "bos_token" | "eos_token") => "<|endoftext|>",
            (Class::Qwen2, "unk_token" | "eos_token" | "pad_token") => "<|endoftext|>",
            _ => return None,
        })
    }
}

/// Types of models for which transformers takes the class of the model whatever the files state: many of those on the
/// hub state another (`MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS`).
const STATED_WRONGLY: [&str; 3] = ["modernbert", "phi3", "qwen2"];

/// The class that transformers uses for a model that names none.
fn class_of_model(model_type: &str) -> &'static str {
    match model_type {
        "bert" | "distilbert" => "BertTokenizer",
        "roberta" => "RobertaTokenizer",
        "xlm-roberta" => "XLMRobertaTokenizer",
        "gpt2" => "GPT2Tokenizer",
        "llama" => "LlamaTokenizer",
        "qwen2" | "qwen3" => "Qwen2Tokenizer",
        "gemma" | "gemma2" | "gemma3_text" => "GemmaTokenizer",
        "t5" | "mt5" => "T5Tokenizer",
        _ => "",
    }
}

/// Reads a JSON file of a backbone; null if there is no such file.
pub(super) fn read(directory: &Path, name: &str) -> Result<Value, Problem> {
    let path = directory.join(name);
    let unreadable = |e: &dyn std::fmt::Display| {
        let message = format!("`{}` cannot be read: {e}", path.display());
        Problem::new("delta::data::tokenizer", message)
            .help("replace the file with the one of the original model")
    };
    match read_text(&path) {
        Ok(text) => crate::text::json(&text).map_err(|e| unreadable(&e)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(e) => Err(unreadable(&e)),
    }
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` and changes a tokenizer as transformers does.
    ///
    /// # Errors
    /// The file cannot be read, or has a setting that is not supported.
    pub fn apply(
        directory: &Path,
        backbone: &Path,
        tokenizer: &mut Tokenizer,
    ) -> Result<Self, Problem> {
        let json = read(directory, "tokenizer_config.json")?;
        let model = read(backbone, "config.json")?;
        let stated = json["tokenizer_class"].as_str();
        let stated = stated.or(model["tokenizer_class"].as_str());
        let model_type = model["model_type"].as_str().unwrap_or_default();
        let name = match stated {
            Some(name) if !STATED_WRONGLY.contains(&model_type) => name.trim_end_matches("Fast"),
            _ => class_of_model(model_type),
        }
        .to_owned();
        let class = Class::of(&name);
        let passes_types = matches!(name.as_str(), "BertTokenizer" | "ElectraTokenizer");
        // A class needs a model of its own kind. With another kind, use `tokenizer.json` as it is.
        let class = match (class, tokenizer.get_model()) {
            (Class::Bert, ModelWrapper::WordPiece(_)) => class,
            // A tokenizer that splits bytes is not Llama's, even if declared so. transformers checks this as well.
            (Class::Llama | Class::Gemma, ModelWrapper::BPE(_)) if !is_of_bytes(tokenizer) => class,
            (Class::Roberta | Class::Gpt2 | Class::Qwen2, ModelWrapper::BPE(_)) => class,
            (Class::T5 | Class::XlmRoberta, ModelWrapper::Unigram(_)) => class,
            _ => Class::AsStored,
        };
        let settings = Settings { json: &json };
        settings.refuse_what_splits()?;
        rebuild(class, &settings, tokenizer)?;
        let special = added_tokens::add(directory, class, &json, tokenizer)?;
        frame(class, &settings, tokenizer)?;
        refuse_drawn_tokens(tokenizer)?;
        let stored = tokenizer.get_truncation().map(|stored| stored.direction);
        let direction = match settings.word("truncation_side", ["left", "right"])? {
            Some("left") => TruncationDirection::Left,
            Some(_) => TruncationDirection::Right,
            None => stored.unwrap_or(TruncationDirection::Right),
        };
        let passes_types = match json.get("model_input_names").and_then(Value::as_array) {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            // BERT's class passes token types, even if it uses `tokenizer.json` as it is.
            None => passes_types,
        };
        Ok(TokenizerConfig {
            direction,
            passes_types,
            before_word: match class {
                Class::Roberta | Class::Gpt2 | Class::Qwen2 => " ",
                _ => "",
            },
            special,
        })
    }
}

/// Whether a tokenizer splits words into bytes.
fn is_of_bytes(tokenizer: &Tokenizer) -> bool {
    let words = tokenizer.get_pre_tokenizer();
    let is_bytes = |words: &PreTokenizerWrapper| matches!(words, PreTokenizerWrapper::ByteLevel(_));
    let in_words = words.is_some_and(|words| match words {
        PreTokenizerWrapper::Sequence(parts) => parts.as_ref().iter().any(is_bytes),
        one => is_bytes(one),
    });
    in_words || matches!(tokenizer.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
}

/// How Qwen2 splits a text into words.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Gives a tokenizer the parts that its class builds itself, and takes away the tokens that `tokenizer.json` adds.
fn rebuild(class: Class, settings: &Settings, tokenizer: &mut Tokenizer) -> Result<(), Problem> {
    if class == Class::AsStored {
        return Ok(());
    }
    let mut model = tokenizer.get_model().clone();
    reset_model(class, settings, &mut model)?;
    let mut fresh = Tokenizer::new(model);
    fresh.with_padding(tokenizer.get_padding().cloned());
    fresh.with_decoder(tokenizer.get_decoder().cloned());
    fresh.with_post_processor(tokenizer.get_post_processor().cloned());
    fresh
        .with_truncation(tokenizer.get_truncation().cloned())
        .map_err(unusable)?;
    let stored = tokenizer.get_normalizer();
    let (normalizer, words) = parts(class, settings, stored)?;
    fresh.with_normalizer(normalizer).map_err(unusable)?;
    fresh.with_pre_tokenizer(Some(words));
    *tokenizer = fresh;
    Ok(())
}

/// Leaves a model its vocabulary and merges, and gives it the class's own settings.
fn reset_model(class: Class, settings: &Settings, model: &mut ModelWrapper) -> Result<(), Problem> {
    match model {
        ModelWrapper::BPE(model) => {
            let has_pieces = matches!(class, Class::Llama | Class::Gemma);
            (model.fuse_unk, model.byte_fallback) = (has_pieces, has_pieces);
            (model.unk_token, model.dropout, model.ignore_merges) = (None, None, false);
            if class == Class::Gemma {
                model.unk_token = Some(settings.token("unk_token").unwrap_or("<unk>".to_owned()));
            }
            (model.continuing_subword_prefix, model.end_of_word_suffix) = (None, None);
        }
        ModelWrapper::WordPiece(model) => {
            model.unk_token = settings.token("unk_token").unwrap_or("[UNK]".to_owned());
            model.continuing_subword_prefix = "##".to_owned();
            model.max_input_chars_per_word = 100;
        }
        ModelWrapper::Unigram(stored) => {
            let unknown = if class == Class::T5 { 2 } else { 3 };
            let pieces = stored.iter().cloned().collect();
            *stored = Unigram::from(pieces, Some(unknown), false).map_err(unusable)?;
        }
        ModelWrapper::WordLevel(_) => {}
    }
    Ok(())
}

/// The normalizer that a class builds, and what divides a text into words. `stored` is the normalizer of the file.
fn parts(
    class: Class,
    settings: &Settings,
    stored: Option<&NormalizerWrapper>,
) -> Result<(Option<NormalizerWrapper>, PreTokenizerWrapper), Problem> {
    Ok(match class {
        Class::AsStored => return Err(Problem::internal("the class builds no parts")),
        Class::Llama => {
            let scheme = match (
                settings.switch("add_prefix_space")?.unwrap_or(true),
                settings.switch("legacy")?.unwrap_or(false),
            ) {
                (false, _) => PrependScheme::Never,
                (true, true) => PrependScheme::Always,
                (true, false) => PrependScheme::First,
            };
            (None, Metaspace::new('▁', scheme, false).into())
        }
        Class::Gemma => {
            let spaces = Replace::new(" ", "▁").map_err(Problem::internal)?;
            let pattern = SplitPattern::String(" ".to_owned());
            let words = Split::new(pattern, SplitDelimiterBehavior::MergedWithPrevious, false);
            (
                Some(spaces.into()),
                words.map_err(Problem::internal)?.into(),
            )
        }
        Class::Qwen2 => {
            let pattern = SplitPattern::Regex(QWEN2_WORDS.to_owned());
            let words = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(Problem::internal)?;
            let bytes = ByteLevel::default()
                .add_prefix_space(settings.prefix()?)
                .use_regex(false);
            let words = Sequence::new(vec![words.into(), bytes.into()]);
            (Some(NFC.into()), words.into())
        }
        Class::T5 | Class::XlmRoberta => {
            let is_prefixed =
                class == Class::T5 || settings.switch("add_prefix_space")?.unwrap_or(true);
            let scheme = match is_prefixed {
                true => PrependScheme::Always,
                false => PrependScheme::Never,
            };
            let words = Metaspace::new('▁', scheme, true);
            let words = Sequence::new(vec![WhitespaceSplit.into(), words.into()]);
            (stored.and_then(precompiled), words.into())
        }
        Class::Bert => {
            let normalizer = BertNormalizer::new(
                true,
                settings.switch("tokenize_chinese_chars")?.unwrap_or(true),
                settings.switch("strip_accents")?,
                settings.switch("do_lower_case")?.unwrap_or(true),
            );
            (Some(normalizer.into()), BertPreTokenizer.into())
        }
        Class::Roberta | Class::Gpt2 => {
            let words = ByteLevel::default().add_prefix_space(settings.prefix()?);
            (None, words.into())
        }
    })
}

/// Gives a tokenizer what its class puts around texts. Its special tokens have their ids by then.
fn frame(class: Class, settings: &Settings, tokenizer: &mut Tokenizer) -> Result<(), Problem> {
    let special = |name: &str| {
        let stated = settings.token(name);
        let content = stated.or_else(|| class.special_token(name).map(str::to_owned))?;
        let id = tokenizer.token_to_id(&content)?;
        Some((content, id))
    };
    match class {
        Class::T5 => {
            let end = special("eos_token");
            let (_, end) = end.ok_or_else(|| unusable("its vocabulary lacks the `eos_token`"))?;
            let frame = TemplateProcessing::builder()
                .try_single("$A </s>")
                .and_then(|frame| frame.try_pair("$A </s> $B </s>"))
                .map_err(unusable)?
                .special_tokens(vec![("</s>", end)])
                .build()
                .map_err(Problem::internal)?;
            tokenizer.with_post_processor(Some(frame));
        }
        Class::XlmRoberta => {
            let (start, end) = special("bos_token")
                .zip(special("eos_token"))
                .ok_or_else(|| {
                    unusable("its vocabulary lacks the `bos_token` or the `eos_token`")
                })?;
            let (bos, eos) = (start.0.as_str(), end.0.as_str());
            let single = [bos, "$A", eos].map(str::to_owned).to_vec();
            let pair = [bos, "$A", eos, eos, "$B", eos];
            let pair = pair.map(str::to_owned).to_vec();
            let frame = TemplateProcessing::builder()
                .try_single(single)
                .and_then(|frame| frame.try_pair(pair))
                .map_err(unusable)?
                .special_tokens(vec![start, end])
                .build()
                .map_err(Problem::internal)?;
            tokenizer.with_post_processor(Some(frame));
        }
        Class::Bert => {
            if let Some((sep, cls)) = special("sep_token").zip(special("cls_token")) {
                tokenizer.with_post_processor(Some(BertProcessing::new(sep, cls)));
            }
        }
        Class::Roberta => {
            if let Some((sep, cls)) = special("sep_token").zip(special("cls_token")) {
                let processing = RobertaProcessing::new(sep, cls);
                let processing = processing.add_prefix_space(settings.prefix()?);
                tokenizer.with_post_processor(Some(processing));
            }
        }
        Class::Gpt2 | Class::Llama | Class::Gemma | Class::Qwen2 | Class::AsStored => {}
    }
    Ok(())
}

/// A BPE's `dropout` draws other tokens each time, even for a text that is predicted.
fn refuse_drawn_tokens(tokenizer: &Tokenizer) -> Result<(), Problem> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) if model.dropout.is_some_and(|share| share > 0.0) => {
            let message =
                "`tokenizer.json` sets `dropout`, with which a text has other tokens each time";
            Err(Problem::new("delta::data::tokenizer", message)
                .help("set `dropout` of the `model` in `tokenizer.json` to `null`"))
        }
        _ => Ok(()),
    }
}

fn unusable(reason: impl std::fmt::Display) -> Problem {
    let message = format!("`tokenizer.json` does not fit its tokenizer class: {reason}");
    Problem::new("delta::data::tokenizer", message).help("use the model's own `tokenizer.json`, or set `tokenizer_class` to `PreTrainedTokenizerFast` in `tokenizer_config.json`")
}

/// SentencePiece's precompiled table of characters. T5's class keeps nothing else of a normalizer.
fn precompiled(normalizer: &NormalizerWrapper) -> Option<NormalizerWrapper> {
    match normalizer {
        NormalizerWrapper::Precompiled(_) => Some(normalizer.clone()),
        NormalizerWrapper::Sequence(parts) => parts.as_ref().iter().find_map(precompiled),
        _ => None,
    }
}

/// The keys of `tokenizer_config.json`.
struct Settings<'a> {
    json: &'a Value,
}

impl Settings<'_> {
    fn wrong(&self, key: &str, wanted: &str) -> Problem {
        let message = format!(
            "`{key}` of `tokenizer_config.json` is {}, not {wanted}",
            self.json[key]
        );
        Problem::new("delta::data::tokenizer", message).help(format!("set `{key}` to {wanted}"))
    }

    /// A switch; `None` if it is absent or null.
    fn switch(&self, key: &str) -> Result<Option<bool>, Problem> {
        match &self.json[key] {
            Value::Null => Ok(None),
            Value::Bool(on) => Ok(Some(*on)),
            _ => Err(self.wrong(key, "`true` or `false`")),
        }
    }

    /// Whether a text begins as if a space stood before it.
    fn prefix(&self) -> Result<bool, Problem> {
        Ok(self.switch("add_prefix_space")?.unwrap_or(false))
    }

    /// One of two words; `None` if the key is absent or null.
    fn word(&self, key: &str, words: [&'static str; 2]) -> Result<Option<&'static str>, Problem> {
        let found = &self.json[key];
        if found.is_null() {
            return Ok(None);
        }
        let known = words.into_iter().find(|word| found == word);
        let wanted = format!("\"{}\" or \"{}\"", words[0], words[1]);
        known.map(Some).ok_or_else(|| self.wrong(key, &wanted))
    }

    /// A special token's text.
    fn token(&self, key: &str) -> Option<String> {
        let value = &self.json[key];
        let text = value.as_str().or(value["content"].as_str());
        text.map(str::to_owned)
    }

    /// Refuses the setting that splits special tokens in a text, because we do not support it.
    fn refuse_what_splits(&self) -> Result<(), Problem> {
        match self.switch("split_special_tokens")? {
            Some(true) => Err(self.wrong(
                "split_special_tokens",
                "`false`, the only value that deltarun supports",
            )),
            _ => Ok(()),
        }
    }
}
