//! What a transformer computes, typed: what its family's description says, completed by `config.json`.

use serde::Deserialize;

use super::config::Config;
use super::rotary::Rotary;
use crate::engine::Activation;

/// What a transformer computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture {
    /// Its norms.
    pub norm: Norm,
    /// Where it knows the order of tokens from.
    pub positions: Positions,
    /// The attentions of its blocks.
    pub attention: Attention,
    /// The feed-forwards of its blocks.
    pub feed_forward: FeedForward,
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

/// Where a transformer knows the order of tokens from.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// An embedding of each position is added to that of its token.
    Learned {
        /// The number of a sequence's first position.
        first: usize,
    },
    /// Queries and keys are turned by angles that grow with the position.
    Rotary(Rotary),
}

/// The attention of every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, of which each serves as many heads of the queries
    /// (grouped-query attention: Ainslie et al., arXiv 2305.13245).
    pub key_value_heads: usize,
    /// Columns of a head.
    pub width: usize,
    /// Whether a position sees only itself and what is before it.
    pub causal: bool,
    /// What scores are multiplied by before the softmax.
    pub scale: f32,
    /// Dropout of the weights.
    pub dropout: f32,
}

/// The feed-forward of every block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FeedForward {
    /// Its parts.
    pub kind: FeedForwardKind,
    /// Its non-linearity.
    pub activation: Activation,
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
    /// That of a backbone with these dimensions.
    pub fn new(config: &Config) -> Self {
        let family = config.family();
        let width = config.head_width();
        Architecture {
            norm: Norm {
                kind: family.norm.kind,
                place: family.norm.place,
                epsilon: config.norm_epsilon,
            },
            positions: match &config.rotary {
                Some(rotary) => Positions::Rotary(rotary.clone()),
                None => Positions::Learned {
                    first: config.first_position(),
                },
            },
            attention: Attention {
                heads: config.heads,
                key_value_heads: config.key_value_heads(),
                width,
                causal: family.causal,
                scale: 1.0 / (width as f32).sqrt(),
                dropout: config.attention_dropout,
            },
            feed_forward: FeedForward {
                kind: family.feed_forward,
                activation: config.activation,
            },
        }
    }

    /// Why keys and values of a query alone in its sequence cannot be left out, where they cannot: that
    /// rests on scores that are linear in what the keys are made of, with keys of a head's own.
    ///
    /// # Errors
    /// Why, in a phrase.
    pub fn absorbs_keys(&self) -> Result<(), String> {
        match (&self.positions, &self.attention) {
            (Positions::Rotary(_), _) => Err("rotary embeddings turn the keys".to_owned()),
            (_, attention) if attention.key_value_heads != attention.heads => {
                Err("heads share their keys and values".to_owned())
            }
            _ => Ok(()),
        }
    }
}
