//! A backbone's dimensions, from `config.json`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::architecture::{Distances, FeedForwardKind, Stack};
use super::blocks::{read_blocks, BlockKind};
use super::checks::check_only;
use super::derived::{distances, gating, initializer_range, pad_token, rotary};
use super::family::{families, Dimension, Family, FeedForwardEntry};
use super::keys::Keys;
use super::rotary::{RopeScaling, Rotary};
use crate::engine::Activation;
use crate::text::{did_you_mean, quoted_list};

/// What the plan knows of a backbone: its family and its dimensions, without a single weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The family's name.
    pub family: String,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Number of blocks; the encoder's if there is also a decoder.
    pub layers: usize,
    /// Number of blocks of the decoder, if the family has an encoder and a decoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_layers: Option<usize>,
    /// Attention heads in each block.
    pub heads: usize,
    /// Heads of keys and values, if there are fewer of them than of queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_value_heads: Option<usize>,
    /// Columns of a head, if they are not `hidden / heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_width: Option<usize>,
    /// Width inside the feed-forward.
    pub inner: usize,
    /// Entries of the word embedding.
    pub vocabulary: usize,
    /// Number of positions. These are the entries of the position embedding, if the family has one.
    pub positions: usize,
    /// The biases of scores by distance, if the family has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distances: Option<Distances>,
    /// The rotary embeddings, if the family has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotary: Option<Rotary>,
    /// The rotary embeddings of blocks with a window, if they are not those of the other blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_rotary: Option<Rotary>,
    /// The kind of every block; empty if none has a window and all rotate alike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<BlockKind>,
    /// Scores are divided by the square root of this, if it is not a head's width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_width: Option<f32>,
    /// Scores `s` become `cap · tanh(s / cap)`, if there is a cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score_cap: Option<f32>,
    /// Logits `l` of a language-model head become `cap · tanh(l / cap)`, if there is a cap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_cap: Option<f32>,
    /// Entries of the token-type embedding; 0 if the family has none.
    pub types: usize,
    /// Whether the linear layers of attentions have biases, in families where `config.json` decides that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub attention_bias: bool,
    /// Whether the linear layers of feed-forwards have biases, in families where `config.json` decides that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub feed_forward_bias: bool,
    /// ε of every norm.
    pub norm_epsilon: f32,
    /// The feed-forward's non-linearity.
    pub activation: Activation,
    /// Whether `config.json` says that feed-forwards are gated.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gated: bool,
    /// Dropout of hidden states.
    pub dropout: f32,
    /// Dropout of attention weights.
    pub attention_dropout: f32,
    /// Dropout inside a feed-forward, before its last layer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inner_dropout: f32,
    /// Dropout after the last norm.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_dropout: f32,
    /// Dropout before a classifier.
    pub classifier_dropout: f32,
    /// Standard deviation of fresh weights, or its factor if it depends on their shapes.
    pub initializer_range: f32,
    /// Dropout after the embeddings. Plans of version 0.1.0 lack it, because they used the dropout of hidden states.
    #[serde(default)]
    pub embedding_dropout: Option<f32>,
    /// The number of the padding token, if there is one.
    #[serde(default)]
    pub pad_token: Option<u32>,
    /// Whether a classifier reads the mean of a sequence's rows instead of the first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pools_mean: bool,
    /// The number of the token with which a decoder's sequences begin, if the family has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_token: Option<u32>,
    /// The number of the token with which texts end, if the classifier reads its row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_token: Option<u32>,
    /// The labels of the checkpoint's head in the order of its outputs, if they have names.
    #[serde(default)]
    pub labels: Option<Vec<String>>,
    /// Whether `config.json` says that a language-model head has a weight of its own instead of the word embedding.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_untied: bool,
    /// Whether a language-model head divides hidden states by the square root of their width.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scales_logits: bool,
    /// Whether the checkpoint has a language-model head weight other than the word embedding, although `config.json`
    /// ties them.
    #[serde(
        default,
        alias = "has_decoder",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub has_head_weight: bool,
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// One sentence: the text is not JSON, the family is not supported, a dimension is missing or impossible, or
    /// with the value of some key the family computes something that we do not.
    pub fn parse(text: &str) -> Result<Self, String> {
        let json = read_json(text)?;
        let family = find_family(&json)?;
        check_only(&json, family)?;
        let keys = Keys(&json);
        let stated = &family.config;
        let hidden = keys.count(&stated.hidden)?;
        let activation = keys.text(&stated.activation)?;
        let dropout = keys.fraction_or(&stated.dropout, 0.0)?;
        let positions = match &stated.positions {
            Some(key) => keys.count(key)?,
            None => LARGEST,
        };
        let meant = family.activations.get(&activation);
        let (mut activation, is_gated) = gating(family, meant.unwrap_or(&activation));
        let inner_activation = keys.some_text(&stated.inner_activation)?;
        activation = inner_activation.as_deref().unwrap_or(activation);
        let layers = keys.count(&stated.layers)?;
        let heads = keys.count(&stated.heads)?;
        let around = (family.windows.as_ref(), family.unrotated.as_ref());
        let (blocks, local_rotary) = read_blocks(&keys, around, (layers, positions))?;
        let config = Config {
            blocks,
            local_rotary,
            score_width: keys.some_positive(&stated.score_width)?,
            score_cap: keys.some_positive(&stated.score_cap)?,
            logit_cap: keys.some_positive(&stated.logit_cap)?,
            hidden,
            layers,
            decoder_layers: match &stated.decoder_layers {
                Some(_) => Some(keys.some_count(&stated.decoder_layers)?.unwrap_or(layers)),
                None => None,
            },
            heads,
            key_value_heads: keys
                .some_count(&stated.key_value_heads)?
                .filter(|shared| *shared != heads),
            head_width: keys
                .some_count(&stated.head_width)?
                .filter(|width| width * heads != hidden),
            inner: match keys.find(&stated.inner)? {
                None if stated.inner.default.is_none() => 4 * hidden,
                _ => keys.count(&stated.inner)?,
            },
            vocabulary: keys.count(&stated.vocabulary)?,
            positions,
            distances: distances(&keys, stated)?,
            rotary: rotary(&keys, family, positions)?,
            attention_bias: keys.switch_or(&stated.attention_bias, false)?,
            feed_forward_bias: keys.switch_or(&stated.feed_forward_bias, false)?,
            types: match &stated.types {
                Some(key) => keys.count(key)?,
                None => 0,
            },
            norm_epsilon: keys.fraction(&stated.norm_epsilon)?,
            is_gated: keys.switch_or(&stated.gated, is_gated)?,
            activation: Activation::from_name(activation)
                .ok_or_else(|| format!("its activation `{activation}` is not supported"))?,
            dropout,
            embedding_dropout: Some(keys.fraction_or(&stated.embedding_dropout, dropout)?),
            attention_dropout: keys.fraction(&stated.attention_dropout)?,
            inner_dropout: keys.fraction_or(&stated.inner_dropout, 0.0)?,
            last_dropout: keys.fraction_or(&stated.last_dropout, 0.0)?,
            classifier_dropout: keys.fraction_or(&stated.classifier_dropout, dropout)?,
            initializer_range: initializer_range(&keys, stated)?,
            is_untied: !keys.switch_or(&stated.tied, true)?,
            scales_logits: keys.switch_or(&stated.scaled_logits, false)?,
            has_head_weight: false,
            labels: labels(&json),
            pad_token: pad_token(&keys, family)?,
            pools_mean: match &stated.pooling {
                Some(key) => keys.word(key, ["cls", "mean"])? == "mean",
                None => false,
            },
            start_token: keys.some_token(&stated.start_token)?,
            end_token: keys.some_token(&stated.end_token)?,
            family: family.name.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// The keys of a `config.json` that its family's description does not cover. A version of transformers
    /// later than the description may write such keys.
    pub fn unknown_keys(text: &str) -> Vec<String> {
        let Ok(json) = read_json(text) else {
            return Vec::new();
        };
        let Ok(family) = find_family(&json) else {
            return Vec::new();
        };
        let keys = json.as_object().into_iter().flat_map(|map| map.keys());
        keys.filter(|key| !family.knows(key)).cloned().collect()
    }

    /// Whether a language-model head has a weight of its own.
    pub fn is_head_own(&self) -> bool {
        self.is_untied || self.has_head_weight
    }

    /// Heads of keys and values.
    pub fn key_value_heads(&self) -> usize {
        self.key_value_heads.unwrap_or(self.heads)
    }

    /// Columns of a head.
    pub fn head_width(&self) -> usize {
        self.head_width.unwrap_or(self.hidden / self.heads)
    }

    /// The parts of its feed-forwards.
    pub fn feed_forward(&self) -> FeedForwardKind {
        match self.family().feed_forward {
            FeedForwardEntry::Gated => FeedForwardKind::Gated,
            FeedForwardEntry::Named if self.is_gated => FeedForwardKind::Gated,
            FeedForwardEntry::Named | FeedForwardEntry::Plain => FeedForwardKind::Plain,
        }
    }

    /// Checks that a decoder's sequences have a token to begin with.
    ///
    /// # Errors
    /// One sentence, if there is a decoder but no start token.
    pub fn check_start(&self) -> Result<(), String> {
        match (self.decoder_layers, self.start_token) {
            (Some(_), None) => Err("its `config.json` has no `decoder_start_token_id`, the first token of every decoder input".to_owned()),
            _ => Ok(()),
        }
    }

    /// The stacks of blocks, in the order of the forward pass.
    pub fn stacks(&self) -> Vec<Stack> {
        match self.decoder_layers {
            None => vec![Stack {
                path: "",
                blocks: 0..self.layers,
                is_causal: self.family().causal,
                reads_encoder: false,
            }],
            Some(layers) => vec![
                Stack {
                    path: "encoder.",
                    blocks: 0..self.layers,
                    is_causal: self.family().causal,
                    reads_encoder: false,
                },
                Stack {
                    path: "decoder.",
                    blocks: self.layers..self.layers + layers,
                    is_causal: true,
                    reads_encoder: true,
                },
            ],
        }
    }

    /// Whether it is a single stack whose positions see only what is before them.
    pub fn is_decoder(&self) -> bool {
        self.decoder_layers.is_none() && self.family().causal
    }

    /// The kind of a block, numbered over all stacks.
    pub fn block_kind(&self, block: usize) -> BlockKind {
        self.blocks.get(block).copied().unwrap_or_default()
    }

    /// The number of blocks of all stacks together.
    pub fn block_count(&self) -> usize {
        self.layers + self.decoder_layers.unwrap_or(0)
    }

    /// The paths of all blocks, in the order of the forward pass: `block.0`, or `encoder.block.0`.
    pub fn block_paths(&self) -> Vec<String> {
        let stacks = self.stacks().into_iter();
        stacks.flat_map(|stack| stack.block_paths()).collect()
    }

    /// The number of the block that contains a path, in the order of the forward pass; `None` if no block does.
    pub fn block_of(&self, path: &str) -> Option<usize> {
        let stacks = self.stacks();
        let below = |stack: &Stack| {
            path.strip_prefix(stack.path)?
                .strip_prefix("block.")
                .map(|rest| (stack.blocks.start, rest))
        };
        let (first, rest) = stacks.iter().find_map(below)?;
        Some(first + rest.split('.').next()?.parse::<usize>().ok()?)
    }

    /// The number of the first block that uses the module or parameter at a path. That is the block that contains it,
    /// or else the first block after it. Past the last block, it is the number of blocks.
    pub fn reader_of(&self, path: &str) -> usize {
        let stacks = self.stacks();
        let stack = stacks.iter().find(|stack| path.starts_with(stack.path));
        match (self.block_of(path), stack) {
            (Some(block), _) => block,
            (None, _) if path.starts_with("embeddings") => 0,
            (None, Some(stack))
                if path.ends_with("position.weight") || path.ends_with("position") =>
            {
                stack.blocks.start
            }
            (None, Some(stack)) => stack.blocks.end,
            (None, None) => self.block_count(),
        }
    }

    /// The dropout after the embeddings.
    pub fn embedding_dropout(&self) -> f32 {
        self.embedding_dropout.unwrap_or(self.dropout)
    }

    /// The position number of a sequence's first token.
    pub fn first_position(&self) -> usize {
        match self.family().positions_follow_padding {
            true => self.pad_token.map_or(2, |pad| pad as usize + 1),
            false => 0,
        }
    }

    /// The family's description.
    pub fn family(&self) -> &'static Family {
        families()
            .iter()
            .find(|family| family.name == self.family)
            .expect("a config is only made for a family that exists")
    }

    /// The size of a dimension; `labels` is the task's number of outputs.
    pub fn size(&self, dimension: Dimension, labels: usize) -> usize {
        match dimension {
            Dimension::Hidden => self.hidden,
            Dimension::Queries => self.heads * self.head_width(),
            Dimension::Keys => self.key_value_heads() * self.head_width(),
            Dimension::Head => self.head_width(),
            Dimension::Heads => self.heads,
            Dimension::Inner => self.inner,
            Dimension::Vocabulary => self.vocabulary,
            Dimension::Positions => self.positions,
            Dimension::Buckets => self.distances.map_or(0, |distances| distances.buckets),
            Dimension::Types => self.types,
            Dimension::Labels => labels,
        }
    }

    /// The longest sequence that the backbone was made for, in tokens.
    pub fn longest(&self) -> usize {
        let stated = self.positions.saturating_sub(self.first_position());
        match self.long_rope() {
            Some(original) => stated.min(original),
            None => stated,
        }
    }

    /// The positions within which LongRoPE has the angles that we compute.
    fn long_rope(&self) -> Option<usize> {
        match self.rotary.as_ref()?.scaling {
            RopeScaling::Long { original, .. } => Some(original as usize),
            _ => None,
        }
    }

    /// The longest sequence that can be computed, in tokens. Rotary embeddings have an angle for every position, those
    /// beyond the texts of the pre-training included; LongRoPE has other angles there, which we do not compute.
    pub fn limit(&self) -> usize {
        match (&self.rotary, self.long_rope()) {
            (_, Some(original)) => original,
            (Some(_), None) => LARGEST,
            (None, None) => self.longest(),
        }
    }
}

fn find_family(json: &Value) -> Result<&'static Family, String> {
    let known = families();
    let names = || {
        known
            .iter()
            .flat_map(|f| f.model_types.iter().map(String::as_str))
    };
    let Some(model_type) = json["model_type"].as_str() else {
        let supported = quoted_list(names());
        return Err(format!(
            "it has no `model_type`; deltarun supports {supported}"
        ));
    };
    if !names().any(|name| name == model_type) {
        let hint = did_you_mean(model_type, names()).map(|n| format!("; did you mean `{n}`?"));
        return Err(format!(
            "the model type `{model_type}` is not supported{}; deltarun supports {}",
            hint.unwrap_or_default(),
            quoted_list(names())
        ));
    }
    let belongs = |family: &Family| family.model_types.iter().any(|name| name == model_type);
    Ok(known
        .iter()
        .find(|family| belongs(family))
        .expect("just found among the names"))
}

fn is_zero(value: &f32) -> bool {
    *value == 0.0
}

/// The largest dimension that we accept: far above any real one, but a product of two fits into a `usize`.
pub const LARGEST: usize = 1 << 24;

/// The names of a head's outputs, from `id2label`. If `num_labels` is another number, transformers ignores the names,
/// and so do we. We also ignore the names `LABEL_0` and so on, which transformers makes up.
fn labels(json: &Value) -> Option<Vec<String>> {
    let map = json.get("id2label")?.as_object()?;
    if json
        .get("num_labels")
        .is_some_and(|count| *count != map.len())
    {
        return None;
    }
    let name = |number: usize| match map.get(&number.to_string())? {
        Value::String(name) => Some(name.clone()),
        Value::Number(name) => Some(name.to_string()),
        _ => None,
    };
    let names: Vec<String> = (0..map.len()).map(name).collect::<Option<_>>()?;
    let is_made_up = |(number, name): (usize, &String)| *name == format!("LABEL_{number}");
    let are_made_up = names.iter().enumerate().all(is_made_up);
    (!are_made_up).then_some(names)
}

fn read_json(text: &str) -> Result<Value, String> {
    crate::text::json(text).map_err(|e| format!("it is not JSON: {e}"))
}
