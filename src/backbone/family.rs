//! A backbone family: what a transformer of this kind is made of, as data.

use std::sync::OnceLock;

use indexmap::IndexMap;
use serde::Deserialize;

pub use super::architecture::{FeedForwardKind, NormKind, NormPlace};

/// A family's description, one YAML file each in `families/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The family's name.
    pub name: String,
    /// Values of `model_type` in `config.json` that belong to it.
    pub model_types: Vec<String>,
    /// What stands before the backbone's names in a checkpoint that has a head.
    pub base_model_prefix: String,
    /// What the names of transformers' classes begin with.
    pub architecture: String,
    /// Which key of `config.json` holds which dimension or setting.
    pub config: ConfigKeys,
    /// Keys of `config.json` that change nothing of what is computed, beside those of every family.
    #[serde(default)]
    pub neutral: Vec<String>,
    /// Keys of `config.json` with the only values under which the family computes what is described here, beside
    /// those of every family.
    #[serde(default)]
    pub only: IndexMap<String, Vec<serde_json::Value>>,
    /// Whether a position sees only what is before it.
    pub causal: bool,
    /// What its norms are, and where.
    pub norm: NormEntry,
    /// Whether scores are divided by the root of a head's width.
    #[serde(default = "yes")]
    pub scaled_attention: bool,
    /// The parts of its feed-forwards.
    #[serde(default)]
    pub feed_forward: FeedForwardEntry,
    /// Whether positions are counted from the padding token's number on, and padding has none.
    #[serde(default)]
    pub positions_follow_padding: bool,
    /// The module tree, in the order of the forward pass; `N` in a name stands for the number of the block.
    pub modules: IndexMap<String, ModuleEntry>,
    /// How the names of modules end whose inputs PEFT's (IA)³ scales where an adapter does not say it.
    pub peft_feedforward: String,
    /// What can be read off the last hidden state.
    pub heads: Heads,
}

/// The keys of `config.json` for each dimension and setting.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ConfigKeys {
    pub hidden: Key,
    pub layers: Key,
    /// Of a family with an encoder and a decoder, whose `layers` are the encoder's; as many where it is not there.
    pub decoder_layers: Option<Key>,
    pub heads: Key,
    /// As many as there are heads where it is not there.
    pub key_value_heads: Option<Key>,
    /// The hidden width over the heads where it is not there.
    pub head_width: Option<Key>,
    /// Without a default: four times the hidden width.
    pub inner: Key,
    pub vocabulary: Key,
    /// Of a family that knows positions only up to a last one.
    pub positions: Option<Key>,
    /// Of a family whose scores have a bias by the distance of a key.
    pub distance_buckets: Option<Key>,
    pub longest_distance: Option<Key>,
    /// Of a family with rotary embeddings; it then has `rope_scaling` and `rope_parameters` as well.
    pub rope_theta: Option<Key>,
    pub attention_bias: Option<Key>,
    pub feed_forward_bias: Option<Key>,
    pub types: Option<Key>,
    pub norm_epsilon: Key,
    pub activation: Key,
    /// That of feed-forwards where it is there, whatever `activation` says, and whether they are gated.
    pub inner_activation: Option<Key>,
    pub gated: Option<Key>,
    /// 0 where the family has none.
    pub dropout: Option<Key>,
    /// That of hidden states where it is not there.
    pub embedding_dropout: Option<Key>,
    pub attention_dropout: Key,
    /// 0 where the family has none.
    pub inner_dropout: Option<Key>,
    /// 0 where the family has none.
    pub last_dropout: Option<Key>,
    /// That of hidden states where it is not there.
    pub classifier_dropout: Option<Key>,
    /// The deviation of fresh weights that have no `fan`.
    pub initializer_range: Option<Key>,
    /// Times the deviation of fresh weights that have a `fan`.
    pub initializer_factor: Option<Key>,
    pub pad_token: Key,
    /// What a decoder's sequences begin with.
    pub start_token: Option<Key>,
    /// What texts end with, where the classifier reads off that.
    pub end_token: Option<Key>,
    /// Whether a language model's head has the word embedding for its weight; it has where there is no such key.
    pub tied: Option<Key>,
    /// Whether a language model's head reads hidden states times the root of 1 over their width.
    pub scaled_logits: Option<Key>,
}

impl ConfigKeys {
    fn all(&self) -> impl Iterator<Item = &Key> {
        let always = [
            &self.hidden,
            &self.layers,
            &self.heads,
            &self.inner,
            &self.vocabulary,
            &self.norm_epsilon,
            &self.activation,
            &self.attention_dropout,
            &self.pad_token,
        ];
        let sometimes = [
            &self.decoder_layers,
            &self.positions,
            &self.distance_buckets,
            &self.longest_distance,
            &self.inner_activation,
            &self.gated,
            &self.inner_dropout,
            &self.last_dropout,
            &self.initializer_range,
            &self.initializer_factor,
            &self.start_token,
            &self.end_token,
            &self.tied,
            &self.scaled_logits,
            &self.dropout,
            &self.key_value_heads,
            &self.head_width,
            &self.rope_theta,
            &self.attention_bias,
            &self.feed_forward_bias,
            &self.types,
            &self.embedding_dropout,
            &self.classifier_dropout,
        ];
        always.into_iter().chain(sometimes.into_iter().flatten())
    }
}

/// A key of `config.json`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    /// Its name.
    pub key: String,
    /// Other names that transformers knows it by.
    #[serde(default)]
    pub also: Vec<String>,
    /// A key whose value transformers takes where it is absent.
    #[serde(default)]
    pub otherwise: Option<String>,
    /// What transformers takes where it is absent; where there is none, it must be there.
    #[serde(default)]
    pub default: Option<serde_json::Value>,
}

impl Family {
    /// Whether a key of `config.json` is honoured, changes nothing, or is held to the values that change nothing.
    pub fn knows(&self, key: &str) -> bool {
        let is_named = |known: &&Key| {
            let others = known.also.iter().chain(&known.otherwise);
            known.key == key || others.into_iter().any(|other| other == key)
        };
        let is_rope = [
            "rope_scaling",
            "rope_parameters",
            "original_max_position_embeddings",
        ];
        let is_rope = is_rope.contains(&key);
        self.config.all().any(|known| is_named(&known))
            || (is_rope && self.config.rope_theta.is_some())
            || self.neutral.iter().any(|neutral| neutral == key)
            || self.only.contains_key(key)
    }
}

/// The norms of a family.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormEntry {
    /// What they compute.
    pub kind: NormKind,
    /// Where they are.
    pub place: NormPlace,
}

/// What a family says of its feed-forwards.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardEntry {
    /// All are plain.
    #[default]
    Plain,
    /// All are gated.
    Gated,
    /// They are gated where the name of the activation begins with `gated-`.
    Named,
}

fn yes() -> bool {
    true
}

/// What a module with parameters of its own is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `weight (out, in)`, and mostly `bias (out)`.
    Linear,
    /// `weight (hidden)`, and mostly `bias (hidden)`.
    Norm,
    /// `weight (entries, hidden)`.
    Embedding,
    /// A `bias (out)` of its own beside the weight of an embedding.
    Tied,
}

/// A dimension that shapes are written in.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Dimension {
    Hidden,
    /// All heads of the queries.
    Queries,
    /// All heads of the keys, or of the values.
    Keys,
    /// A head.
    Head,
    Heads,
    Inner,
    Vocabulary,
    Positions,
    /// Distances that have a bias of their own.
    Buckets,
    Types,
    Labels,
}

/// A module of the tree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    /// What it is.
    pub kind: Kind,
    /// Its name in a checkpoint, without the family's prefix; none where there is no such module without a gate.
    #[serde(default)]
    pub name: Option<String>,
    /// Its name where feed-forwards are gated, if it is another.
    #[serde(default)]
    pub gated: Option<String>,
    /// Modules that have the same weight in a checkpoint, if they are there: transformers reads those, and we read one.
    #[serde(default)]
    pub copies: Vec<String>,
    /// The shape of its weight (of its bias, where it has only that).
    pub shape: Vec<Dimension>,
    /// Whether it has a bias.
    #[serde(default)]
    pub bias: Bias,
    /// Whether the checkpoint stores the weight as `(in, out)`.
    #[serde(default)]
    pub transposed: bool,
    /// Which of `parts` equal parts of a fused weight's outputs this is.
    #[serde(default)]
    pub part: usize,
    /// How many modules share the fused weight.
    #[serde(default = "one")]
    pub parts: usize,
    /// Fresh weights have the deviation of the root of 1 over the product of these; absent: the backbone's.
    #[serde(default)]
    pub fan: Option<Vec<Dimension>>,
}

/// Whether a module has a bias.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// It has.
    #[default]
    Yes,
    /// It has not.
    No,
    /// It has where `attention_bias` is on.
    Attention,
    /// It has where `feed_forward_bias` is on.
    FeedForward,
}

fn one() -> usize {
    1
}

/// The heads that a family has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Classification and regression.
    pub classify: Head,
    /// The language-model head of a family that sees both sides of a position.
    pub masked_lm: Option<Head>,
    /// The language-model head of a family that sees only what is before a position.
    pub causal_lm: Option<Head>,
    /// The language-model head of a family with an encoder and a decoder.
    pub seq2seq: Option<Head>,
}

impl Heads {
    /// That of a language model, or of a classifier.
    pub fn of(&self, is_language_model: bool) -> Option<&Head> {
        match is_language_model {
            true => self.language_model(),
            false => Some(&self.classify),
        }
    }

    /// The language-model head that the family has.
    pub fn language_model(&self) -> Option<&Head> {
        let masked = self.masked_lm.as_ref();
        masked.or(self.causal_lm.as_ref()).or(self.seq2seq.as_ref())
    }
}

/// A head: which rows it reads, and the steps from them to logits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// How transformers' class ends that has it.
    pub class: String,
    /// What stands before the backbone's names in a checkpoint with this head, if not the family's.
    pub base_model_prefix: Option<String>,
    /// The rows of the last hidden state that it reads.
    pub reads: Reads,
    /// Its steps, in order.
    pub steps: Vec<HeadStep>,
}

/// Which rows a head reads.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Reads {
    /// The first row of each sequence.
    First,
    /// The last row of each sequence.
    Last,
    /// The rows of masked tokens.
    Masked,
    /// Every row with another behind it, to predict that one.
    Next,
}

/// One step of a head: a module of its own, or one of the backbone's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadStep {
    /// The module's path.
    pub module: String,
    /// What it is; absent where the module is the backbone's.
    pub kind: Option<Kind>,
    /// Its name in a checkpoint, complete.
    pub name: Option<String>,
    /// The shape of its weight.
    #[serde(default)]
    pub shape: Vec<Dimension>,
    /// See [`ModuleEntry::fan`].
    #[serde(default)]
    pub fan: Option<Vec<Dimension>>,
    /// Whether it has a bias.
    #[serde(default)]
    pub bias: Bias,
    /// The embedding whose weight a `tied` step multiplies by.
    pub weight: Option<String>,
    /// The step's name in a checkpoint that has a weight of its own for it.
    pub untied: Option<String>,
    /// Applied to the step's result: an activation's name, or `config` for the backbone's own.
    pub activation: Option<String>,
    /// Whether the classifier's dropout precedes it.
    #[serde(default)]
    pub dropout: bool,
}

const FAMILIES: [&str; 6] = [
    include_str!("families/bert.yaml"),
    include_str!("families/roberta.yaml"),
    include_str!("families/gpt2.yaml"),
    include_str!("families/llama.yaml"),
    include_str!("families/qwen2.yaml"),
    include_str!("families/t5.yaml"),
];

/// What holds of the `config.json` of every family.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Every {
    neutral: Vec<String>,
    only: IndexMap<String, Vec<serde_json::Value>>,
}

/// All families that are built in.
pub fn families() -> &'static [Family] {
    static ALL: OnceLock<Vec<Family>> = OnceLock::new();
    ALL.get_or_init(|| {
        let every: Every = serde_yaml::from_str(include_str!("families/every.yaml"))
            .expect("what is built in is well-formed; a test reads it");
        let read = |text: &&str| {
            let mut family: Family = serde_yaml::from_str(text)
                .expect("a built-in family is well-formed; a test reads them all");
            family.neutral.extend(every.neutral.iter().cloned());
            for (key, values) in &every.only {
                family.only.entry(key.clone()).or_insert(values.clone());
            }
            family
        };
        FAMILIES.iter().map(read).collect()
    })
}
