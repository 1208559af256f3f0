//! Tokens beside a vocabulary: those of `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`,
//! collected as transformers 5 collects them (`PreTrainedTokenizerBase._from_pretrained` and
//! `TokenizersBackend.__init__`). A token that the vocabulary lacks gets the next free id, whatever id a file states.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer_config::{read, Class};
use crate::backbone::read_text;
use crate::diagnostic::Problem;

/// The names of special tokens that every tokenizer may have, in the order in which new ones get their ids.
const NAMED: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Whether a name is that of a special token.
fn is_named(key: &str) -> bool {
    NAMED.contains(&key)
}

/// The key of a model's own special tokens with their names.
const OWN_NAMES: &str = "model_specific_special_tokens";

/// Whether a key is the name of a model's own special token: of an image, of a tool.
fn is_own(key: &str, value: &Value) -> bool {
    let is_token = value.is_string() || value["__type"] == "AddedToken";
    key.ends_with("_token") && !is_named(key) && is_token
}

/// Adds to a tokenizer what the files beside `tokenizer.json` add. A class that rebuilds its tokenizer has none of the
/// tokens that `tokenizer.json` adds before this. Returns the texts of the special tokens with a name.
///
/// # Errors
/// A file that cannot be read.
pub(super) fn add(
    directory: &Path,
    class: Class,
    config: &Value,
    tokenizer: &mut Tokenizer,
) -> Result<BTreeMap<String, String>, Problem> {
    let mut settings = config.as_object().cloned().unwrap_or_default();
    replace_old_name(&mut settings);
    // Other names of a model's own tokens replace these.
    if settings.iter().any(|(key, value)| is_own(key, value))
        || settings
            .get("extra_special_tokens")
            .is_some_and(|extra| extra.as_object().is_some_and(|names| !names.is_empty()))
    {
        settings.remove(OWN_NAMES);
    }
    let mut listed = Vec::new();
    match config["added_tokens_decoder"].as_object() {
        Some(stated) => listed.extend(stated.iter().filter_map(|(id, token)| {
            let id: u32 = id.parse().ok()?;
            Some((id, added(token, false)?))
        })),
        None => read_old_files(directory, &mut settings, &mut listed)?,
    }
    // A later entry of the same id replaces an earlier one.
    listed.sort_by_key(|(id, _)| *id);
    let listed: Vec<AddedToken> = (0..listed.len())
        .filter(|place| listed.get(place + 1).map(|next| next.0) != Some(listed[*place].0))
        .map(|place| listed[place].1.clone())
        .collect();
    let named = named(class, &settings, tokenizer);
    let extra = extra(class, &settings);

    let mut known: Vec<String> = listed.iter().map(|token| token.content.clone()).collect();
    if class == Class::AsStored {
        known.extend(
            tokenizer
                .get_added_tokens_decoder()
                .into_values()
                .map(|token| token.content),
        );
    }
    let is_special = |token: &AddedToken| named.iter().any(|named| named.content == token.content);
    let mut tokens: Vec<AddedToken> = listed
        .into_iter()
        .map(|token| AddedToken {
            special: token.special || is_special(&token),
            ..token
        })
        .collect();
    for token in named.iter().chain(&extra) {
        if !known.contains(&token.content) {
            known.push(token.content.clone());
            tokens.push(token.clone());
        }
    }
    if class == Class::Qwen2 {
        let special = named.iter().chain(&extra);
        tokens.extend(special.map(|token| AddedToken::from(token.content.clone(), true)));
    }
    // One call for each: within one call, a token is not seen again with other settings.
    for token in tokens {
        tokenizer.add_tokens([token]).map_err(Problem::internal)?;
    }
    let names = NAMED.iter().filter_map(|name| {
        let stated = settings.get(*name).and_then(content).map(str::to_owned);
        let own = || class.special_token(name).map(str::to_owned);
        Some(((*name).to_owned(), stated.or_else(own)?))
    });
    Ok(names.collect())
}

/// `additional_special_tokens` is the name that version 4 had for `extra_special_tokens`.
fn replace_old_name(settings: &mut Map<String, Value>) {
    let is_empty = |value: &Value| match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        other => other.is_null(),
    };
    if settings.get("extra_special_tokens").is_none_or(is_empty) {
        if let Some(value) = settings.remove("additional_special_tokens") {
            settings.insert("extra_special_tokens".to_owned(), value);
        }
    }
}

/// The part of `tokenizer.json` that is read here. The rest, which may be large, is passed over.
#[derive(Default, Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<Value>,
}

/// The files that counted before `tokenizer_config.json` had `added_tokens_decoder`, and `tokenizer.json`'s own list.
fn read_old_files(
    directory: &Path,
    settings: &mut Map<String, Value>,
    listed: &mut Vec<(u32, AddedToken)>,
) -> Result<(), Problem> {
    if let Value::Object(map) = read(directory, "special_tokens_map.json")? {
        for (key, mut value) in map {
            if let (Value::Object(token), true) = (&mut value, key != "extra_special_tokens") {
                token.insert("special".to_owned(), Value::Bool(true));
            }
            if let (Value::Array(more), "extra_special_tokens") = (&mut value, key.as_str()) {
                let stated = settings.get(&key).and_then(Value::as_array);
                let mut all = stated.cloned().unwrap_or_default();
                more.retain(|token| !all.contains(token));
                all.append(more);
                value = Value::Array(all);
            }
            settings.insert(key, value);
        }
        if !settings.contains_key("extra_special_tokens") {
            replace_old_name(settings);
        }
    }
    if let Value::Object(ids) = read(directory, "added_tokens.json")? {
        let named = NAMED.iter().filter_map(|key| content(settings.get(*key)?));
        let extra = settings
            .get("extra_special_tokens")
            .and_then(Value::as_array);
        let extra = extra.into_iter().flatten().filter_map(content);
        let special: Vec<&str> = named.chain(extra).collect();
        for (token, id) in &ids {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                continue;
            };
            listed.push((
                id,
                AddedToken::from(token.clone(), special.contains(&token.as_str())),
            ));
        }
    }
    let text = read_text(&directory.join("tokenizer.json")).unwrap_or_default();
    let stored: TokenizerFile = serde_json::from_str(&text).unwrap_or_default();
    for token in &stored.added_tokens {
        let id = token["id"].as_u64().and_then(|id| u32::try_from(id).ok());
        listed.extend(id.zip(added(token, false)));
    }
    Ok(())
}

/// The special tokens with a name, in the order in which they get ids.
fn named(class: Class, settings: &Map<String, Value>, tokenizer: &Tokenizer) -> Vec<AddedToken> {
    // The other classes state a padding token of their own, or none.
    let has_none = matches!(class, Class::AsStored | Class::Llama);
    let padding = tokenizer.get_padding().filter(|_| has_none);
    let of_name = |key: &&str| match settings.get(*key) {
        Some(stated) => added(stated, true),
        None => {
            let own = class.special_token(key).map(str::to_owned);
            let padding = padding.filter(|_| *key == "pad_token");
            let token = own.or(padding.map(|padding| padding.pad_token.clone()))?;
            Some(AddedToken::from(token, true))
        }
    };
    let own = settings.iter().filter(|(key, value)| is_own(key, value));
    let names = |key: &str| settings.get(key).and_then(Value::as_object);
    let names = [names(OWN_NAMES), names("extra_special_tokens")]
        .into_iter()
        .flatten();
    let own = own
        .map(|(_, value)| value)
        .chain(names.flat_map(Map::values));
    let own = own.filter_map(|value| added(value, true));
    NAMED.iter().filter_map(of_name).chain(own).collect()
}

/// The special tokens without a name.
fn extra(class: Class, settings: &Map<String, Value>) -> Vec<AddedToken> {
    let list = |key: &str| settings.get(key).and_then(Value::as_array).cloned();
    let mut extra = list("extra_special_tokens").unwrap_or_default();
    let is_sentinel =
        |value: &Value| content(value).is_some_and(|text| text.contains("<extra_id_"));
    if class == Class::T5
        && !settings.contains_key("extra_special_tokens")
        && !extra.iter().any(is_sentinel)
    {
        let count = settings
            .get("extra_ids")
            .and_then(Value::as_u64)
            .unwrap_or(100);
        extra.extend((0..count.min(10_000)).map(|id| Value::String(format!("<extra_id_{id}>"))));
    }
    extra
        .iter()
        .filter_map(|value| added(value, true))
        .collect()
}

/// The text of a token.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or(value["content"].as_str())
}

/// A token as a file states it: its text, or an object with its settings. `is_special` is for a text alone.
fn added(value: &Value, is_special: bool) -> Option<AddedToken> {
    let text = content(value)?.to_owned();
    if value.is_string() {
        return Some(AddedToken::from(text, is_special));
    }
    let switch = |key: &str| value[key].as_bool();
    let special = switch("special").unwrap_or(false);
    let token = AddedToken::from(text, special)
        .single_word(switch("single_word").unwrap_or(false))
        .lstrip(switch("lstrip").unwrap_or(false))
        .rstrip(switch("rstrip").unwrap_or(false))
        .normalized(switch("normalized").unwrap_or(!special));
    Some(AddedToken {
        special: special || is_special,
        ..token
    })
}
