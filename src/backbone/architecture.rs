//! The computations of a transformer, as types. They come from the family's description and `config.json`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::blocks::BlockKind;
use super::config::Config;
use super::family::OutputDropout;
use super::rotary::Rotary;
use crate::engine::Activation;

/// The computations of a transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its norms.
    pub norm: Norm,
    /// How it represents the order of tokens.
    pub positions: Positions,
    /// The attentions of its blocks.
    pub attention: Attention,
    /// The feed-forwards of its blocks.
    pub feed_forward: FeedForward,
    /// Its stacks of blocks, in the order of the forward pass: a single stack, or an encoder and a decoder.
    pub stacks: Vec<Stack>,
    /// The kind of each block, by its number over all stacks.
    pub blocks: Vec<BlockKind>,
    /// The factor of word embeddings.
    pub embedding_scale: f32,
    /// The factor of hidden states before the output layer of a language-model head.
    pub logit_scale: f32,
    /// Logits `l` of a language-model head become `cap · tanh(l / cap)`.
    pub logit_cap: Option<f32>,
    /// Dropout after the last norm of a stack.
    pub last_dropout: f32,
}

/// A sequence of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// The prefix of its modules' paths: empty, `encoder.` or `decoder.`.
    pub path: &'static str,
    /// The numbers of its blocks, counted over all stacks.
    pub blocks: Range<usize>,
    /// Whether a position attends only to itself and earlier positions.
    pub is_causal: bool,
    /// Whether its blocks also attend to the encoder's output.
    pub reads_encoder: bool,
}

impl Stack {
    /// The paths of its blocks.
    pub fn block_paths(&self) -> impl Iterator<Item = String> {
        let path = self.path;
        (0..self.blocks.len()).map(move |block| format!("{path}block.{block}"))
    }
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    /// What it computes.
    pub kind: NormKind,
    /// Where it is.
    pub place: NormPlace,
    /// ε.
    pub epsilon: f32,
    /// Whether 1 is added to the weight.
    pub is_offset: bool,
}

/// What a norm computes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum NormKind {
    /// Mean 0 and variance 1 (Ba et al., arXiv 1607.06450).
    Layer,
    /// A mean square of 1 (Zhang and Sennrich, arXiv 1910.07467).
    Rms,
}

/// Whether a norm follows the residual sum or precedes the sub-layer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum NormPlace {
    Post,
    Pre,
}

/// How a transformer represents the order of tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// Adds an embedding of the position to that of the token.
    Learned {
        /// The number of a sequence's first position.
        first: usize,
    },
    /// Rotates queries and keys by angles that grow with the position.
    Rotary {
        /// Of all blocks, but for those with [`Rotation::Local`](super::Rotation::Local) or none.
        usual: Rotary,
        /// Of blocks with [`Rotation::Local`](super::Rotation::Local).
        local: Option<Rotary>,
    },
    /// Adds a bias to each score by the distance of the key. All blocks of a stack share the biases.
    Distances(Distances),
}

/// Biases of scores by the distance of the key. Long distances share a bias
/// (Raffel et al., arXiv 1910.10683, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Distances {
    /// The number of biases of each head.
    pub buckets: usize,
    /// All keys at this distance or farther share one bias.
    pub longest: usize,
}

impl Distances {
    /// Checks that the number of buckets fits the longest distance.
    ///
    /// # Errors
    /// One sentence that says why it does not.
    pub(super) fn check(&self) -> Result<(), String> {
        let Distances { buckets, longest } = *self;
        match buckets >= 4 && buckets.is_multiple_of(2) && longest > buckets / 2 {
            true => Ok(()),
            false => Err(format!(
                "its {buckets} buckets of relative distances do not fit a maximum distance of {longest}"
            )),
        }
    }

    /// The number, among a head's biases, of the bias for a key `distance` positions after the query (before it if
    /// negative). The first half of the biases stand for one distance each. The others stand for ranges of distances
    /// that grow logarithmically. If a position sees both sides, half of all biases are for keys after it.
    pub fn bucket(&self, distance: isize, sees_both_sides: bool) -> usize {
        let (buckets, first) = match sees_both_sides {
            true if distance > 0 => (self.buckets / 2, self.buckets / 2),
            true => (self.buckets / 2, 0),
            false => (self.buckets, 0),
        };
        let far = match sees_both_sides {
            true => distance.unsigned_abs(),
            false => (-distance).max(0) as usize,
        };
        let exact = buckets / 2;
        if far < exact {
            return first + far;
        }
        // We compute in f32 like transformers, because at the bounds of a range rounding decides.
        let octaves = (self.longest as f64 / exact as f64).ln() as f32;
        let shared = (far as f32 / exact as f32).ln() / octaves * (buckets - exact) as f32;
        first + (exact + shared as usize).min(buckets - 1)
    }
}

/// The attention of every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values. Each serves the same number of query heads
    /// (grouped-query attention: Ainslie et al., arXiv 2305.13245).
    pub key_value_heads: usize,
    /// Columns of a head.
    pub width: usize,
    /// The factor of scores before the softmax.
    pub scale: f32,
    /// Scores `s` become `cap · tanh(s / cap)`.
    pub cap: Option<f32>,
    /// Dropout of the attention weights.
    pub dropout: f32,
    /// Dropout of its output.
    pub output_dropout: f32,
}

/// The feed-forward of every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForward {
    /// Its parts.
    pub kind: FeedForwardKind,
    /// Its non-linearity.
    pub activation: Activation,
    /// Dropout before its last layer.
    pub dropout: f32,
}

/// The parts of a feed-forward.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardKind {
    /// `down(f(up(x)))`
    Plain,
    /// `down(f(gate(x)) ⊙ up(x))` (Shazeer, arXiv 2002.05202).
    Gated,
}

impl Architecture {
    /// The architecture of a backbone with these dimensions.
    pub fn new(config: &Config) -> Self {
        let family = config.family();
        let width = config.head_width();
        Architecture {
            norm: Norm {
                kind: family.norm.kind,
                place: family.norm.place,
                epsilon: config.norm_epsilon,
                is_offset: family.norm.is_offset,
            },
            positions: match (&config.rotary, config.distances) {
                (Some(rotary), _) => Positions::Rotary {
                    usual: rotary.clone(),
                    local: config.local_rotary.clone(),
                },
                (None, Some(distances)) => Positions::Distances(distances),
                (None, None) => Positions::Learned {
                    first: config.first_position(),
                },
            },
            attention: Attention {
                heads: config.heads,
                key_value_heads: config.key_value_heads(),
                width,
                scale: match family.scaled_attention {
                    true => 1.0 / config.score_width.unwrap_or(width as f32).sqrt(),
                    false => 1.0,
                },
                cap: config.score_cap,
                dropout: config.attention_dropout,
                output_dropout: match family.attention_output {
                    OutputDropout::Hidden => config.dropout,
                    OutputDropout::Attention => config.attention_dropout,
                    OutputDropout::Off => 0.0,
                },
            },
            feed_forward: FeedForward {
                kind: config.feed_forward(),
                activation: config.activation,
                dropout: config.inner_dropout,
            },
            stacks: config.stacks(),
            blocks: (0..config.block_count())
                .map(|block| config.block_kind(block))
                .collect(),
            embedding_scale: match family.scaled_embeddings {
                true => (config.hidden as f32).sqrt(),
                false => 1.0,
            },
            logit_cap: config.logit_cap,
            logit_scale: match config.scales_logits {
                true => 1.0 / (config.hidden as f32).sqrt(),
                false => 1.0,
            },
            last_dropout: config.last_dropout,
        }
    }

    /// Checks that attention from a single query of a sequence can do without keys and values. It can if scores
    /// are linear in the input of the keys, and if every head has keys of its own.
    ///
    /// # Errors
    /// The reason it cannot, as a phrase.
    pub fn absorbs_keys(&self) -> Result<(), String> {
        match (&self.positions, &self.attention) {
            (Positions::Rotary { .. }, _) => Err("rotary embeddings rotate the keys".to_owned()),
            (Positions::Distances(_), _) => {
                Err("attention scores have a relative position bias".to_owned())
            }
            (_, attention) if attention.key_value_heads != attention.heads => {
                Err("attention heads share keys and values".to_owned())
            }
            _ => Ok(()),
        }
    }
}
