//! A backbone's dimensions, from `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::family::{families, Dimension, Family};
use crate::engine::Activation;
use crate::text::{did_you_mean, quoted_list};

/// What the plan knows of a backbone: its family and its dimensions, without a single weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The family's name.
    pub family: String,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads in each block.
    pub heads: usize,
    /// Width inside the feed-forward.
    pub inner: usize,
    /// Entries of the word embedding.
    pub vocabulary: usize,
    /// Entries of the position embedding.
    pub positions: usize,
    /// Entries of the token-type embedding; 0 where the family has none.
    pub types: usize,
    /// ε of every layer norm.
    pub norm_epsilon: f32,
    /// The feed-forward's non-linearity.
    pub activation: Activation,
    /// Dropout of hidden states.
    pub dropout: f32,
    /// Dropout of attention weights.
    pub attention_dropout: f32,
    /// Dropout before a classifier.
    pub classifier_dropout: f32,
    /// Standard deviation of freshly drawn weights.
    pub initializer_range: f32,
    /// Whether a language-model head has a weight of its own instead of the word embedding.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_untied: bool,
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// One sentence: not JSON, an unsupported family, a missing or impossible dimension.
    pub fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
        let family = find_family(&json)?;
        let keys = &family.config;
        let hidden = count(&json, &keys.hidden)?;
        let activation = json[&keys.activation].as_str().unwrap_or("gelu");
        let dropout = fraction(&json, &keys.dropout, 0.1)?;
        let config = Config {
            hidden,
            layers: count(&json, &keys.layers)?,
            heads: count(&json, &keys.heads)?,
            inner: match &json[&keys.inner] {
                Value::Null => 4 * hidden,
                _ => count(&json, &keys.inner)?,
            },
            vocabulary: count(&json, &keys.vocabulary)?,
            positions: count(&json, &keys.positions)?,
            types: match &keys.types {
                Some(key) => count(&json, key)?,
                None => 0,
            },
            norm_epsilon: fraction(&json, &keys.norm_epsilon, 1e-5)?,
            activation: Activation::from_name(activation)
                .ok_or_else(|| format!("its activation `{activation}` is not supported"))?,
            dropout,
            attention_dropout: fraction(&json, &keys.attention_dropout, 0.1)?,
            classifier_dropout: match &json["classifier_dropout"] {
                Value::Null => dropout,
                _ => fraction(&json, "classifier_dropout", 0.1)?,
            },
            initializer_range: fraction(&json, "initializer_range", 0.02)?,
            is_untied: json["tie_word_embeddings"] == Value::Bool(false),
            family: family.name,
        };
        if !config.hidden.is_multiple_of(config.heads) {
            return Err(format!(
                "its {} attention heads do not divide its hidden width {}",
                config.heads, config.hidden
            ));
        }
        if matches!(json["position_embedding_type"].as_str(), Some(kind) if kind != "absolute") {
            return Err(format!(
                "its `position_embedding_type` {} is not supported: only \"absolute\" is",
                json["position_embedding_type"]
            ));
        }
        Ok(config)
    }

    /// The family's description.
    pub fn family(&self) -> Family {
        families()
            .into_iter()
            .find(|family| family.name == self.family)
            .expect("a config is only made for a family that exists")
    }

    /// The size of a dimension; `labels` is the task's number of outputs.
    pub fn size(&self, dimension: Dimension, labels: usize) -> usize {
        match dimension {
            Dimension::Hidden => self.hidden,
            Dimension::Inner => self.inner,
            Dimension::Vocabulary => self.vocabulary,
            Dimension::Positions => self.positions,
            Dimension::Types => self.types,
            Dimension::Labels => labels,
        }
    }

    /// The longest sequence that the position embedding has room for, in tokens.
    pub fn longest(&self) -> usize {
        self.positions.saturating_sub(self.family().position_offset)
    }
}

fn find_family(json: &Value) -> Result<Family, String> {
    let known = families();
    let names = || {
        known
            .iter()
            .flat_map(|f| f.model_types.iter().map(String::as_str))
    };
    let Some(model_type) = json["model_type"].as_str() else {
        let supported = quoted_list(names());
        return Err(format!("it has no `model_type`; supported are {supported}"));
    };
    if !names().any(|name| name == model_type) {
        let hint = did_you_mean(model_type, names()).map(|n| format!("; did you mean `{n}`?"));
        return Err(format!(
            "the model type `{model_type}` is not supported{}; supported are {}",
            hint.unwrap_or_default(),
            quoted_list(names())
        ));
    }
    let belongs = |family: &Family| family.model_types.iter().any(|name| name == model_type);
    Ok(known
        .into_iter()
        .find(belongs)
        .expect("just found among the names"))
}

fn count(json: &Value, key: &str) -> Result<usize, String> {
    let value = &json[key];
    // 2²⁴ is far above any real dimension and keeps every product of two within a `usize`.
    match value.as_u64() {
        Some(count @ 1..=16_777_216) => Ok(count as usize),
        _ if value.is_null() => Err(format!("it has no `{key}`")),
        _ => Err(format!(
            "its `{key}` must be a whole number of at least 1, found {value}"
        )),
    }
}

fn fraction(json: &Value, key: &str, default: f32) -> Result<f32, String> {
    match &json[key] {
        Value::Null => Ok(default),
        value => match value.as_f64() {
            Some(number) if (0.0..1.0).contains(&number) => Ok(number as f32),
            _ => Err(format!(
                "its `{key}` must be a number from 0 to 1, found {value}"
            )),
        },
    }
}
