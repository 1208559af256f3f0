//! The files of a Hugging Face directory that say what a GGUF file's metadata says. Whoever reads `DIRECTORY/config.json`
//! may read `model.gguf/config.json` alike.

use std::io::{Error, ErrorKind};
use std::path::Path;

use serde_json::{json, Map, Value};

use super::names::{architecture, lacks, number, Architecture};
use super::tokenizer::{tokenizer, tokenizer_config};
use super::{is_gguf, wrong, Gguf, ROPE_FACTORS};
use crate::backbone::config::LARGEST;
use crate::diagnostic::Problem;

/// The text of a file beside a backbone's weights.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub fn read_text(path: &Path) -> std::io::Result<String> {
    match text_in_gguf(path) {
        None => std::fs::read_to_string(path),
        Some(Ok(Some(text))) => Ok(text),
        Some(Ok(None)) => Err(Error::from(ErrorKind::NotFound)),
        Some(Err(problem)) => Err(Error::new(ErrorKind::InvalidData, problem.message)),
    }
}

/// The text of a file beside a GGUF file's weights, if it has such a text; `None` for other backbones.
pub fn text_in_gguf(path: &Path) -> Option<Result<Option<String>, Problem>> {
    let parent = path.parent().filter(|parent| is_gguf(parent))?;
    let read = || {
        let file = Gguf::open(parent)?;
        Ok(match path.file_name().and_then(|name| name.to_str()) {
            Some("config.json") => Some(config(&file)?.to_string()),
            Some("generation_config.json") => Some(generation_config(&file).to_string()),
            Some("tokenizer.json") => Some(tokenizer(&file)?.to_string()),
            Some("tokenizer_config.json") => Some(tokenizer_config(&file).to_string()),
            _ => None,
        })
    };
    Some(read())
}

/// Whether there is a file beside a backbone's weights.
pub fn exists(path: &Path) -> bool {
    match path.parent().filter(|parent| is_gguf(parent)) {
        Some(_) => {
            let names = [
                "config.json",
                "generation_config.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ];
            path.file_name()
                .is_some_and(|name| names.iter().any(|own| name == *own))
        }
        None => path.exists(),
    }
}

/// `config.json`, in the spelling of transformers.
fn config(file: &Gguf) -> Result<Value, Problem> {
    let architecture = architecture(file)?;
    let own = Own { file, architecture };
    own.check_keys()?;
    let heads = own.number("attention.head_count")?;
    let width = own.number("embedding_length")?;
    let tokens = file.metadata.get("tokenizer.ggml.tokens");
    let tokens = tokens.and_then(Value::as_array).map(Vec::len);
    let table = file.tensors.get("token_embd.weight");
    let table = table.and_then(|table| table.shape.first().copied());
    let vocabulary = table.or(tokens).ok_or_else(|| own.lacks("vocab_size"))?;
    if let Some(stated) = own
        .optional("vocab_size")?
        .filter(|stated| *stated != vocabulary)
    {
        return Err(own.refused(format!(
            "its metadata states {stated} tokens, and its embeddings have {vocabulary} rows"
        )));
    }
    let head_width = own.optional("attention.key_length")?;
    let head_width = head_width.unwrap_or(width / heads.max(1));
    let rotated = own.optional("rope.dimension_count")?.unwrap_or(head_width);
    let value_width = own.optional("attention.value_length")?;
    if rotated != head_width {
        let message = format!("it rotates {rotated} of a head's {head_width} columns");
        return Err(own.refused(message));
    }
    if let Some(width) = value_width.filter(|width| *width != head_width) {
        let message = format!("a head's keys have {head_width} columns, and its values {width}");
        return Err(own.refused(message));
    }
    let has = |name: &str| file.tensors.contains_key(name);
    let special = |name: &str| {
        file.metadata
            .get(&format!("tokenizer.ggml.{name}_token_id"))
    };
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_type,
        "hidden_size": width,
        "intermediate_size": own.number("feed_forward_length")?,
        "num_hidden_layers": own.number("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": own.optional("attention.head_count_kv")?.unwrap_or(heads),
        "max_position_embeddings": own.number("context_length")?,
        "rms_norm_eps": own.float("attention.layer_norm_rms_epsilon")?.ok_or_else(|| own.lacks("attention.layer_norm_rms_epsilon"))?,
        "rope_theta": own.float("rope.freq_base")?.unwrap_or(match architecture.name {
            "gemma3" => 1_000_000.0,
            _ => 10_000.0,
        }),
        "vocab_size": vocabulary,
        "hidden_act": architecture.activation,
        "head_dim": head_width,
        "tie_word_embeddings": !has("output.weight"),
        "bos_token_id": special("bos"),
        "eos_token_id": special("eos"),
        "pad_token_id": special("padding"),
    });
    match architecture.name {
        "qwen2" | "qwen3" => config["use_sliding_window"] = json!(false),
        "llama" => config["mlp_bias"] = json!(false),
        "gemma2" | "gemma3" => own.gemma(&mut config)?,
        _ => {}
    }
    if architecture.name != "qwen2" {
        config["attention_bias"] = json!(has("blk.0.attn_q.bias"));
    }
    if let Some(scaling) = own.scaling()? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

/// `generation_config.json`: the tokens that end an answer.
fn generation_config(file: &Gguf) -> Value {
    let special = |name: &str| {
        file.metadata
            .get(&format!("tokenizer.ggml.{name}_token_id"))
    };
    let ends: Vec<&Value> = ["eos", "eot", "eom"]
        .into_iter()
        .filter_map(special)
        .collect();
    json!({ "bos_token_id": special("bos"), "eos_token_id": ends })
}

/// The keys of a file's own architecture.
struct Own<'a> {
    file: &'a Gguf,
    architecture: &'static Architecture,
}

impl Own<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name)
    }

    fn metadata(&self) -> &Map<String, Value> {
        &self.file.metadata
    }

    /// A whole number, if the key is there.
    fn optional(&self, name: &str) -> Result<Option<usize>, Problem> {
        let key = self.key(name);
        match (self.metadata().get(&key), number(self.metadata(), &key)) {
            (Some(value), None) => Err(self.odd(&key, value, "a whole number")),
            (_, found) => Ok(found),
        }
    }

    fn number(&self, name: &str) -> Result<usize, Problem> {
        self.optional(name)?.ok_or_else(|| self.lacks(name))
    }

    /// A number in f32, as a person would write it, if the key is there.
    fn float(&self, name: &str) -> Result<Option<f64>, Problem> {
        let key = self.key(name);
        let Some(value) = self.metadata().get(&key) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .and_then(|own| format!("{}", own as f32).parse().ok());
        number
            .map(Some)
            .ok_or_else(|| self.odd(&key, value, "a number"))
    }

    fn odd(&self, key: &str, value: &Value, wanted: &str) -> Problem {
        let kind = match value {
            Value::Array(_) => "a list".to_owned(),
            other => other.to_string(),
        };
        self.refused(format!(
            "its metadata has {kind} as `{key}`, and not {wanted}"
        ))
    }

    fn lacks(&self, name: &str) -> Problem {
        lacks(self.file.path(), &self.key(name))
    }

    fn refused(&self, message: String) -> Problem {
        wrong(self.file.path(), message).help("use the model's Hugging Face directory")
    }

    /// What Gemma 2 and 3 have beside the others. llama.cpp does not state by what their scores are scaled, but knows the
    /// models of 27 billion parameters, which differ, by the number of their blocks (`src/models/gemma2.cpp`, `gemma3.cpp`).
    fn gemma(&self, config: &mut Value) -> Result<(), Problem> {
        let is_largest = matches!(
            (self.architecture.name, self.number("block_count")?),
            ("gemma2", 46) | ("gemma3", 62)
        );
        let (width, heads) = (&config["hidden_size"], &config["num_attention_heads"]);
        config["query_pre_attn_scalar"] = match (is_largest, width.as_u64().zip(heads.as_u64())) {
            (true, Some((width, heads))) => json!(width / heads.max(1)),
            _ => config["head_dim"].clone(),
        };
        // llama.cpp's defaults stand for keys that the file lacks.
        let window = self.optional("attention.sliding_window")?;
        if self.architecture.name == "gemma2" {
            config["sliding_window"] = json!(window.unwrap_or(4096));
            let cap = |key, usual| Ok(json!(self.float(key)?.unwrap_or(usual)));
            config["attn_logit_softcapping"] = cap("attn_logit_softcapping", 50.0)?;
            config["final_logit_softcapping"] = cap("final_logit_softcapping", 30.0)?;
        } else {
            match window.filter(|window| *window > 0) {
                Some(window) => config["sliding_window"] = json!(window),
                // Without a window, all blocks are alike.
                None => {
                    let blocks = self.number("block_count")?;
                    config["layer_types"] = json!(vec!["full_attention"; blocks]);
                }
            }
            config["final_logit_softcapping"] = json!(self.float("final_logit_softcapping")?);
            let every = self.optional("attention.sliding_window_pattern")?;
            config["sliding_window_pattern"] = json!(every.unwrap_or(6));
            let theta = self.float("rope.freq_base_swa")?.unwrap_or(10_000.0);
            config["rope_local_base_freq"] = json!(theta);
        }
        Ok(())
    }

    /// The divisors of the rotary frequencies, of Llama 3.1 and later: the same for texts of any length.
    fn rope_factors(&self) -> Result<Option<Value>, Problem> {
        let Some(tensor) = self.file.tensors.get(ROPE_FACTORS) else {
            return Ok(None);
        };
        let factors = self.file.values(tensor);
        let heads = self.number("attention.head_count")?;
        let width = match self.optional("attention.key_length")? {
            Some(width) => width,
            None => self.number("embedding_length")? / heads.max(1),
        };
        let is_usable = |factor: &f32| factor.is_finite() && *factor > 0.0;
        if factors.len() != width / 2 || !factors.iter().all(is_usable) {
            let message = format!(
                "its tensor `{ROPE_FACTORS}` must have {} numbers above 0, one for each pair of columns of a head",
                width / 2
            );
            return Err(self.refused(message));
        }
        Ok(Some(json!({
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": LARGEST,
        })))
    }

    /// `rope_scaling`.
    fn scaling(&self) -> Result<Option<Value>, Problem> {
        let key = self.key("rope.scaling.type");
        let kind = match self.metadata().get(&key) {
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(other) => return Err(self.odd(&key, other, "a text")),
            None => None,
        };
        let factor = self.float("rope.scaling.factor")?;
        let factor = factor.filter(|factor| *factor != 0.0 && *factor != 1.0);
        // llama.cpp takes a factor without a type as linear.
        if let Some(factors) = self.rope_factors()? {
            return match (kind, factor) {
                (None | Some("none" | "linear"), None) => Ok(Some(factors)),
                _ => Err(self.refused(format!(
                    "it scales its rotary frequencies twice: by a tensor `{ROPE_FACTORS}` and by `{key}`"
                ))),
            };
        }
        match (kind.or(factor.map(|_| "linear")), factor) {
            (None | Some("none" | "linear"), None) | (Some("none"), _) => Ok(None),
            (Some("linear"), Some(factor)) => {
                Ok(Some(json!({"rope_type": "linear", "factor": factor})))
            }
            (Some("yarn"), Some(factor)) => Ok(Some(json!({
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": self.number("rope.scaling.original_context_length")?,
            }))),
            (kind, _) => {
                let kind = kind.unwrap_or_default();
                Err(self.refused(format!("its rotary embeddings are scaled by `{kind}`")))
            }
        }
    }

    /// Refuses a key that may change the model and that deltarun does not know.
    fn check_keys(&self) -> Result<(), Problem> {
        const KNOWN: [&str; 17] = [
            "context_length",
            "embedding_length",
            "block_count",
            "feed_forward_length",
            "vocab_size",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.layer_norm_rms_epsilon",
            "rope.dimension_count",
            "rope.freq_base",
            "rope.scaling.type",
            "rope.scaling.factor",
            "rope.scaling.original_context_length",
            "rope.scaling.finetuned",
            "tensor_data_layout",
        ];
        /// Keys of Gemma 2 and 3.
        const GEMMA: [&str; 5] = [
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "rope.freq_base_swa",
        ];
        /// Counts of parts that a model lacks, and factors that change nothing.
        const NEUTRAL: [(&str, Option<f64>); 6] = [
            ("expert_count", Some(0.0)),
            ("expert_used_count", Some(0.0)),
            ("attention.sliding_window", Some(0.0)),
            ("logit_scale", Some(1.0)),
            ("embedding_scale", Some(1.0)),
            ("residual_scale", Some(1.0)),
        ];
        let prefix = self.key("");
        for (key, value) in self.metadata() {
            let Some(name) = key.strip_prefix(&prefix) else {
                continue;
            };
            let has_windows = matches!(self.architecture.name, "gemma2" | "gemma3");
            if has_windows && GEMMA.contains(&name) {
                continue;
            }
            if !KNOWN.contains(&name) && !NEUTRAL.contains(&(name, value.as_f64())) {
                return Err(self.refused(format!(
                    "its metadata has `{key}`, which deltarun does not know"
                )));
            }
        }
        Ok(())
    }
}
