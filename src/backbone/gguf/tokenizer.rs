//! `tokenizer.json` and `tokenizer_config.json` of a GGUF file's tokenizer.

use std::collections::HashMap;

use serde_json::{json, Map, Value};

use super::names::{lacks, number};
use super::{wrong, Gguf};
use crate::diagnostic::Problem;

/// How GPT-2's successors split a text into words, by llama.cpp's names.
const LLAMA_3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's types of tokens.
const NORMAL: u64 = 1;
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;
const BYTE: u64 = 6;

/// The tokens of a vocabulary.
struct Vocabulary<'a> {
    file: &'a Gguf,
    tokens: Vec<&'a str>,
    types: Vec<u64>,
}

impl<'a> Vocabulary<'a> {
    fn read(file: &'a Gguf) -> Option<Self> {
        let tokens = file.metadata.get("tokenizer.ggml.tokens")?.as_array()?;
        let tokens: Vec<&str> = tokens.iter().map(Value::as_str).collect::<Option<_>>()?;
        let types = file
            .metadata
            .get("tokenizer.ggml.token_type")
            .and_then(Value::as_array);
        let types: Vec<u64> = types
            .into_iter()
            .flatten()
            .map(|kind| kind.as_u64().unwrap_or(NORMAL))
            .collect();
        Some(Vocabulary {
            file,
            tokens,
            types,
        })
    }

    fn kind(&self, id: usize) -> u64 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// The token whose number is a key's value.
    fn special(&self, name: &str) -> Option<(usize, &'a str)> {
        let id = number(
            &self.file.metadata,
            &format!("tokenizer.ggml.{name}_token_id"),
        )?;
        Some((id, *self.tokens.get(id)?))
    }

    /// A switch of the tokenizer.
    fn switch(&self, name: &str) -> Option<bool> {
        self.file
            .metadata
            .get(&format!("tokenizer.ggml.{name}"))?
            .as_bool()
    }

    /// The tokens that are found in a text before it is split.
    fn added(&self) -> Vec<Value> {
        let is_added = |id: &usize| matches!(self.kind(*id), UNKNOWN | CONTROL | USER_DEFINED);
        let added = (0..self.tokens.len()).filter(is_added).map(|id| {
            json!({
                "id": id,
                "content": self.tokens[id],
                "single_word": false,
                "lstrip": false,
                "rstrip": false,
                "normalized": false,
                "special": self.kind(id) != USER_DEFINED,
            })
        });
        added.collect()
    }

    fn ids(&self) -> Map<String, Value> {
        let tokens = self.tokens.iter().enumerate();
        tokens
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect()
    }

    /// What is put around a text.
    fn frame(&self, usual: (bool, bool)) -> Value {
        let begins = self.switch("add_bos_token").unwrap_or(usual.0);
        let ends = self.switch("add_eos_token").unwrap_or(usual.1);
        let begin = self.special("bos").filter(|_| begins);
        let end = self.special("eos").filter(|_| ends);
        if begin.is_none() && end.is_none() {
            return Value::Null;
        }
        let special = |(_, token): (usize, &str), kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let one = |name: &str, kind: u8| {
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let parts = begin.map(|own| special(own, kind)).into_iter();
            let parts = parts.chain([text]).chain(end.map(|own| special(own, kind)));
            parts.collect::<Vec<Value>>()
        };
        let known = begin.into_iter().chain(end).map(|(id, token)| {
            let own = json!({"id": token, "ids": [id], "tokens": [token]});
            (token.to_owned(), own)
        });
        let pair = [one("A", 0), one("B", 1)].concat();
        json!({
            "type": "TemplateProcessing",
            "single": one("A", 0),
            "pair": pair,
            "special_tokens": known.collect::<Map<_, _>>(),
        })
    }
}

/// `tokenizer.json`.
///
/// # Errors
/// The file has no tokenizer, or one of a kind that deltarun does not know.
pub(super) fn tokenizer(file: &Gguf) -> Result<Value, Problem> {
    let vocabulary =
        Vocabulary::read(file).ok_or_else(|| lacks(file.path(), "tokenizer.ggml.tokens"))?;
    let text = |key: &str| file.metadata.get(key).and_then(Value::as_str);
    let parts = match text("tokenizer.ggml.model") {
        Some("gpt2") => of_bytes(&vocabulary, text("tokenizer.ggml.pre").unwrap_or("default"))?,
        Some("llama") => sentence_piece(&vocabulary)?,
        other => {
            return Err(unknown(
                file,
                &format!("tokenizer `{}`", other.unwrap_or_default()),
            ))
        }
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added(),
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.words,
        "post_processor": parts.frame,
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

struct Parts {
    normalizer: Value,
    words: Value,
    frame: Value,
    decoder: Value,
    model: Value,
}

fn unknown(file: &Gguf, what: &str) -> Problem {
    wrong(file.path(), format!("deltarun does not know its {what}"))
        .help("name the directory of the model's own tokenizer: `backbone \"model.gguf\" { tokenizer = \"DIRECTORY\" }`")
}

/// A BPE of bytes, as GPT-2's.
fn of_bytes(vocabulary: &Vocabulary, pre: &str) -> Result<Parts, Problem> {
    let bytes = |splits: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits});
    let split = |pattern: &str| {
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let (normalizer, words, begins, ignores_merges) = match pre {
        "gpt-2" => (Value::Null, bytes(true), false, false),
        "smollm" => {
            let digits = json!({"type": "Digits", "individual_digits": true});
            let words = json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]});
            (Value::Null, words, false, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, split(LLAMA_3_WORDS), true, true),
        "qwen2" | "deepseek-r1-qwen" => (json!({"type": "NFC"}), split(QWEN_2_WORDS), false, false),
        other => {
            return Err(unknown(
                vocabulary.file,
                &format!("way to split words, `{other}`"),
            ));
        }
    };
    let merges = vocabulary.file.metadata.get("tokenizer.ggml.merges");
    let merges = merges.and_then(Value::as_array).filter(|all| {
        let is_pair = |merge: &Value| merge.as_str().is_some_and(|pair| pair.contains(' '));
        all.iter().all(is_pair)
    });
    let merges =
        merges.ok_or_else(|| unknown(vocabulary.file, "merges, `tokenizer.ggml.merges`"))?;
    Ok(Parts {
        normalizer,
        words,
        frame: vocabulary.frame((begins, false)),
        decoder: bytes(true),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": ignores_merges,
            "vocab": vocabulary.ids(),
            "merges": merges,
        }),
    })
}

/// SentencePiece's BPE, as Llama's: pieces are merged in the order of their scores.
fn sentence_piece(vocabulary: &Vocabulary) -> Result<Parts, Problem> {
    let file = vocabulary.file;
    let scores = file
        .metadata
        .get("tokenizer.ggml.scores")
        .and_then(Value::as_array);
    let scores = scores.ok_or_else(|| lacks(file.path(), "tokenizer.ggml.scores"))?;
    let tokens = || vocabulary.tokens.iter().enumerate();
    let ids: HashMap<&str, usize> = tokens().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(f64, usize, usize, [&str; 2])> = Vec::new();
    for (id, token) in tokens() {
        if matches!(vocabulary.kind(id), UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        let score = scores.get(id).and_then(Value::as_f64).unwrap_or(0.0);
        for (place, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(place);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                merges.push((score, *first, *second, [left, right]));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let merges: Vec<[&str; 2]> = merges.into_iter().map(|(.., pair)| pair).collect();
    let replaced = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let begins_with_space = vocabulary.switch("add_space_prefix").unwrap_or(true);
    let prepend = begins_with_space.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let normalizers: Vec<Value> = prepend.into_iter().chain([replaced(" ", "▁")]).collect();
    let mut decoders = vec![
        replaced("▁", " "),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if begins_with_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Parts {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        words: Value::Null,
        frame: vocabulary.frame((true, false)),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": vocabulary.special("unknown").map(|(_, token)| token),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.ids(),
            "merges": merges,
        }),
    })
}

/// `tokenizer_config.json`: the names of special tokens, and the chat template.
pub(super) fn tokenizer_config(file: &Gguf) -> Value {
    let mut config = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    let Some(vocabulary) = Vocabulary::read(file) else {
        return config;
    };
    let names = [
        ("bos", "bos"),
        ("eos", "eos"),
        ("unknown", "unk"),
        ("padding", "pad"),
        ("mask", "mask"),
    ];
    for (own, name) in names {
        if let Some((_, token)) = vocabulary.special(own) {
            config[format!("{name}_token")] = json!(token);
        }
    }
    let added = vocabulary.added().into_iter();
    let added: Map<String, Value> = added
        .map(|token| (token["id"].to_string(), token))
        .collect();
    config["added_tokens_decoder"] = Value::Object(added);
    let template = |key: &str| file.metadata.get(key).filter(|value| value.is_string());
    let named = file
        .metadata
        .get("tokenizer.chat_templates")
        .and_then(Value::as_array);
    let mut templates: Vec<Value> = named
        .into_iter()
        .flatten()
        .filter_map(|name| {
            let key = format!("tokenizer.chat_template.{}", name.as_str()?);
            Some(json!({"name": name, "template": template(&key)?}))
        })
        .collect();
    match (template("tokenizer.chat_template"), templates.is_empty()) {
        (Some(only), true) => config["chat_template"] = only.clone(),
        (Some(usual), false) => {
            templates.push(json!({"name": "default", "template": usual}));
            config["chat_template"] = Value::Array(templates);
        }
        (None, false) => config["chat_template"] = Value::Array(templates),
        (None, true) => {}
    }
    config
}
