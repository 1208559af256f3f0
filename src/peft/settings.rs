//! Checks the keys of an `adapter_config.json`. `settings.yaml`, made from PEFT's configuration classes, says which
//! keys are read, which may be ignored, and which are refused. We ignore a key that it does not list only if the value
//! means "off".

use std::path::Path;
use std::sync::OnceLock;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::import::problem;
use crate::backbone::family::Dimension;
use crate::backbone::Config;
use crate::delta::PeftConfig;
use crate::diagnostic::Problem;
use crate::pattern::Pattern;
use crate::text::{list, quoted_list};

/// The values that a key may have.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rule {
    /// Any value: the key does not change what a saved adapter computes.
    Passed,
    /// Any value: the key is read elsewhere.
    Any,
    /// A whole number above 0.
    Count,
    /// A finite number.
    Number,
    /// `true` or `false`.
    Switch,
    /// A text or a list of texts.
    Names,
    /// A whole number or a list of them.
    Layers,
    /// Numbers by patterns of names.
    Patterns,
    /// The ranks that AdaLoRA kept, by names.
    Ranks,
    /// How a LoRA was initialized.
    Init,
    /// Which biases are trained: `none`, `all`, or only those of the adapted layers.
    Bias,
    /// Rows of the word embeddings.
    Tokens,
    /// One of PEFT's kinds of task.
    Task,
    /// `Blocks` and `Width` are the backbone's number of blocks and its width.
    Blocks,
    Width,
    /// The backbone's heads of keys and values, and (`KeyWidth`) the width of all of them.
    KeyValueHeads,
    KeyWidth,
    /// The backbone's number of stacks. `Prompts` also accepts 1, because only the first part of a prompt is read.
    Stacks,
    Prompts,
    /// Only these values.
    Only(Vec<Value>),
}

/// PEFT's name of a causal language model's task.
pub(super) const CAUSAL_LM: &str = "CAUSAL_LM";

/// PEFT's name of the task of a model with an encoder and a decoder.
pub(super) const SEQ_2_SEQ_LM: &str = "SEQ_2_SEQ_LM";

/// PEFT's name of the task of a model that labels tokens.
pub(super) const TOKEN_CLS: &str = "TOKEN_CLS";

/// PEFT's name of the language-model task of this family.
pub(super) fn language_model_task(config: &Config) -> &'static str {
    match config.family().heads.seq2seq {
        Some(_) => SEQ_2_SEQ_LM,
        None => CAUSAL_LM,
    }
}

type Rules = IndexMap<String, IndexMap<String, Rule>>;

fn rules() -> &'static Rules {
    static RULES: OnceLock<Rules> = OnceLock::new();
    RULES.get_or_init(|| {
        let document = serde_yaml::Deserializer::from_str(include_str!("settings.yaml"));
        serde_yaml::with::singleton_map_recursive::deserialize(document)
            .expect("what is built in is well-formed; a test reads it")
    })
}

/// A suggestion for adapters that we cannot read: PEFT itself folds them into the weights. It does not help if the
/// adapter changes a table that other modules also read.
pub(super) const MERGE_IN_PYTHON: &str = "merge it in Python: `PeftModel.from_pretrained(model, DIR).merge_and_unload().save_pretrained(OUT)`, and use OUT as the backbone";

/// The kinds of adapter that we cannot read and that PEFT 0.21.2 converts to a LoRA (`supports_lora_conversion`).
const CONVERTED: [&str; 12] = [
    "C3A",
    "DELORA",
    "FOURIERFT",
    "GRALORA",
    "HIRA",
    "PSOFT",
    "RANDLORA",
    "SHIRA",
    "TINYLORA",
    "UNILORA",
    "VBLORA",
    "WAVEFT",
];

/// The way out for these: a LoRA stays a small adapter, which a merged model is not.
const CONVERT_IN_PYTHON: &str = "convert it to a LoRA in Python: `peft.save_as_lora(OUT, PeftModel.from_pretrained(model, DIR), rank=16)`; a higher rank comes closer";

/// The kinds of adapter that we can read.
pub(super) fn kinds() -> impl Iterator<Item = &'static str> {
    let all = rules().keys().map(String::as_str);
    all.filter(|kind| *kind != "every")
}

/// Checks that every key of a configuration is one that we read or may ignore.
///
/// # Errors
/// The first key that is not, with the reason.
pub(super) fn check(
    directory: &Path,
    adapter: &PeftConfig,
    config: &Config,
) -> Result<(), Problem> {
    let kind = adapter.get("peft_type").and_then(Value::as_str);
    let kind = kind.unwrap_or("nothing");
    let Some(own) = rules().get(kind).filter(|_| kind != "every") else {
        let message = format!("the `peft_type` is {kind}, which deltarun cannot read");
        let help = match CONVERTED.contains(&kind) {
            true => CONVERT_IN_PYTHON.to_owned(),
            false => format!("use one of {}, or {MERGE_IN_PYTHON}", quoted_list(kinds())),
        };
        return Err(problem(directory, message).help(help));
    };
    for (key, value) in adapter {
        let rule = own.get(key).or_else(|| rules()["every"].get(key));
        let Some(rule) = rule else {
            if is_off(value) {
                continue;
            }
            let message = format!(
                "`{key}` is {value}, and deltarun does not know this key, which may change what the adapter computes"
            );
            return Err(problem(directory, message).help(MERGE_IN_PYTHON));
        };
        check_value(key, value, rule, config).map_err(|(message, help)| {
            problem(directory, format!("`{key}` {message}")).help(help)
        })?;
    }
    Ok(())
}

/// Whether a value means "off", so that we may ignore its unknown key.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

type Refusal = (String, String);

fn check_value(key: &str, value: &Value, rule: &Rule, config: &Config) -> Result<(), Refusal> {
    let wrong = |wanted: &str| {
        let help = format!("write {wanted}, as PEFT's `save_pretrained` does");
        Err((format!("is {value}, not {wanted}"), help))
    };
    let texts = |items: &Vec<Value>| items.iter().all(Value::is_string);
    let wholes = |items: &Vec<Value>| items.iter().all(Value::is_u64);
    match (rule, value) {
        (Rule::Passed | Rule::Any, _) => Ok(()),
        (Rule::Only(allowed), value) => only(key, value, allowed),
        (Rule::Init, value) => init(value),
        (Rule::Count, Value::Number(number)) if number.as_u64().is_some_and(|n| n > 0) => Ok(()),
        (Rule::Count, _) => wrong("a whole number above 0"),
        (Rule::Number, Value::Number(_)) => Ok(()),
        (Rule::Number, _) => wrong("a number"),
        (Rule::Switch, Value::Bool(_) | Value::Null) => Ok(()),
        (Rule::Switch, _) => wrong("`true` or `false`"),
        (Rule::Names, Value::Null | Value::String(_)) => Ok(()),
        (Rule::Names, Value::Array(items)) if texts(items) => Ok(()),
        (Rule::Names, _) => wrong("a string or a list of strings"),
        (Rule::Layers, Value::Null) => Ok(()),
        (Rule::Layers, Value::Number(number)) if number.is_i64() => Ok(()),
        (Rule::Layers, Value::Array(items)) if items.iter().all(Value::is_i64) => Ok(()),
        (Rule::Layers, _) => wrong("a whole number or a list of them"),
        (Rule::Patterns, Value::Object(items)) => patterns(items),
        (Rule::Patterns, _) => wrong("an object that maps name patterns to numbers"),
        (Rule::Ranks, Value::Null | Value::Object(_)) => Ok(()),
        (Rule::Ranks, _) => wrong("an object that maps names to the kept ranks"),
        (Rule::Bias, Value::String(text))
            if text == "none" || text == "all" || text.ends_with("_only") =>
        {
            Ok(())
        }
        (Rule::Bias, _) => wrong("one of `none`, `all` and `lora_only`"),
        (Rule::Tokens, Value::Null | Value::Object(_)) => Ok(()),
        (Rule::Tokens, Value::Array(items)) if wholes(items) => Ok(()),
        (Rule::Tokens, _) => wrong("a list of whole numbers"),
        (Rule::Task, Value::Null) => Ok(()),
        (Rule::Task, Value::String(task)) => match task.as_str() {
            "SEQ_CLS" | "FEATURE_EXTRACTION" => Ok(()),
            CAUSAL_LM if config.family().heads.causal_lm.is_some() => Ok(()),
            SEQ_2_SEQ_LM if config.family().heads.seq2seq.is_some() => Ok(()),
            TOKEN_CLS if config.family().heads.tag.is_some() => Ok(()),
            _ => Err((
                format!(
                    "is \"{task}\", which deltarun cannot evaluate on the family {}",
                    config.family().name
                ),
                format!("use an adapter with `task_type` `SEQ_CLS`, or {MERGE_IN_PYTHON}"),
            )),
        },
        (Rule::Task, _) => wrong("a task type"),
        (Rule::KeyValueHeads, value) => same(value, config.key_value_heads(), "key-value heads"),
        (Rule::KeyWidth, value) => {
            same(value, config.size(Dimension::Keys, 0), "key-value columns")
        }
        (Rule::Blocks, value) => {
            let decoder = config.decoder_layers.unwrap_or(config.layers);
            same(value, decoder, "blocks with prefixes")
        }
        (Rule::Stacks | Rule::Prompts, value) => {
            let stacks = config.stacks().len();
            let is_one = matches!(rule, Rule::Prompts) && *value == 1;
            match value.is_null() || is_one || *value == stacks {
                true => Ok(()),
                false => Err((
                    format!("is {value}, but must be `{stacks}` on this backbone"),
                    MERGE_IN_PYTHON.to_owned(),
                )),
            }
        }
        (Rule::Width, value) => same(value, config.hidden, "columns"),
    }
}

/// Checks that a number is the backbone's.
fn same(value: &Value, own: usize, what: &str) -> Result<(), Refusal> {
    if value.is_null() || *value == own {
        return Ok(());
    }
    let help = "name the backbone that the adapter was trained on with `--backbone DIR`".to_owned();
    Err((
        format!("is {value}, but the backbone has {own} {what}"),
        help,
    ))
}

fn only(key: &str, value: &Value, allowed: &[Value]) -> Result<(), Refusal> {
    let is_empty_list = value.as_array().is_some_and(Vec::is_empty);
    if value.is_null() || is_empty_list || allowed.contains(value) {
        return Ok(());
    }
    let why = match key {
        "kasa_config" => {
            "is set: the adapter is a KaSA, which removes singular components from the weights"
                .to_owned()
        }
        "lora_bias" => {
            "is true: the adapter adds its own biases after the low-rank products".to_owned()
        }
        "save_projection" => "is false, so the adapter lacks its projections".to_owned(),
        _ => {
            let allowed: Vec<String> = allowed.iter().map(|value| format!("`{value}`")).collect();
            let wanted = match allowed.is_empty() {
                true => "without it".to_owned(),
                false => format!("with {}", list(&allowed)),
            };
            format!("is {value}, but deltarun reads an adapter only {wanted}")
        }
    };
    let help = match key {
        "save_projection" => "save the adapter with `save_projection=True`",
        _ => MERGE_IN_PYTHON,
    };
    Err((why, help.to_owned()))
}

/// Checks how a LoRA was initialized. If that left the backbone's weights unchanged, it is a plain LoRA. If it changed
/// the weights, we must know the change: we can compute PiSSA's, but not the others.
fn init(value: &Value) -> Result<(), Refusal> {
    let text = match value {
        Value::Null | Value::Bool(_) => return Ok(()),
        Value::String(text) => text,
        _ => {
            return Err((
                format!("is {value}, which is not an initialization"),
                MERGE_IN_PYTHON.to_owned(),
            ))
        }
    };
    let lower = text.to_lowercase();
    match lower.as_str() {
        "gaussian" | "orthogonal" | "mica" | "eva" => Ok(()),
        "pissa" if text == "pissa" => Ok(()),
        _ => {
            let why = "this initialization changed the backbone's weights before training";
            let help = "save it with `path_initial_model_for_weight_conversion=DIR`, which converts it to a plain LoRA";
            Err((format!("is \"{text}\": {why}"), help.to_owned()))
        }
    }
}

fn patterns(items: &serde_json::Map<String, Value>) -> Result<(), Refusal> {
    for (pattern, value) in items {
        if !value.is_number() {
            let help = "write a number, as PEFT's `save_pretrained` does".to_owned();
            return Err((
                format!("maps `{pattern}` to {value}, which is not a number"),
                help,
            ));
        }
        if Pattern::new(pattern).is_err() {
            let help = "write a name or a regular expression".to_owned();
            return Err((
                format!("contains `{pattern}`, which is not a regular expression"),
                help,
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_can_be_read() {
        assert_eq!(kinds().count(), 12);
        assert!(kinds().all(|kind| !rules()[kind].is_empty()));
    }
}
