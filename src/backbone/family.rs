//! Backbone families: the parts of a kind of transformer, described as data.

use std::sync::OnceLock;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_yaml::{Mapping, Value as Yaml};

pub use super::architecture::{FeedForwardKind, NormKind, NormPlace};
use super::blocks::{Unrotated, Windows};
pub use super::config_keys::{ConfigKeys, Key};

/// A family's description, one YAML file each in `families/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The family's name.
    pub name: String,
    /// Values of `model_type` in `config.json` that belong to it.
    pub model_types: Vec<String>,
    /// The prefix of the backbone's names in a checkpoint that has a head.
    pub base_model_prefix: String,
    /// The beginning of the names of transformers' classes.
    pub architecture: String,
    /// Which key of `config.json` holds which dimension or setting.
    pub config: ConfigKeys,
    /// Keys of `config.json` that do not change the computation, in addition to those of every family.
    #[serde(default)]
    pub neutral: Vec<String>,
    /// Keys of `config.json` with their only supported values, in addition to those of every family. With another
    /// value, the model would compute something that this description does not cover.
    #[serde(default)]
    pub only: IndexMap<String, Vec<serde_json::Value>>,
    /// Whether a position attends only to itself and earlier positions.
    pub causal: bool,
    /// The kind and the place of its norms.
    pub norm: NormEntry,
    /// Which blocks attend within a window, in families that have such blocks.
    pub windows: Option<Windows>,
    /// Which blocks do not rotate queries and keys, in families that have such blocks.
    pub unrotated: Option<Unrotated>,
    /// The kinds of rotary scaling that it has; empty for all.
    #[serde(default)]
    pub rope_types: Vec<String>,
    /// Whether rotary embeddings may rotate a part of each head's columns.
    #[serde(default)]
    pub partial_rotary: bool,
    /// Whether word embeddings are multiplied by the square root of their width.
    #[serde(default)]
    pub scaled_embeddings: bool,
    /// Names of activations that mean another one in this family.
    #[serde(default)]
    pub activations: IndexMap<String, String>,
    /// The dropout of an attention's output.
    #[serde(default)]
    pub attention_output: OutputDropout,
    /// Whether scores are divided by the square root of a head's width.
    #[serde(default = "yes")]
    pub scaled_attention: bool,
    /// The parts of its feed-forwards.
    #[serde(default)]
    pub feed_forward: FeedForwardEntry,
    /// Whether the model ignores the types that a tokenizer gives tokens.
    #[serde(default)]
    pub ignores_types: bool,
    /// Whether the first position has the padding token's number plus 1. Padding itself takes no position.
    #[serde(default)]
    pub positions_follow_padding: bool,
    /// The module tree, in the order of the forward pass. `N` in a name stands for the number of the block.
    pub modules: IndexMap<String, ModuleEntry>,
    /// Whether transformers' model takes the keys and values of a prefix, as PEFT hands it them.
    #[serde(default = "yes")]
    pub takes_prefixes: bool,
    /// The end of the names of those modules whose input PEFT's (IA)³ scales, unless an adapter lists them itself.
    pub peft_feedforward: String,
    /// The heads that can read the last hidden state.
    pub heads: Heads,
}

impl Family {
    /// Whether the description covers a key of `config.json`: we read it, it changes nothing, or we accept only its
    /// harmless values.
    pub fn knows(&self, key: &str) -> bool {
        let is_named = |known: &&Key| {
            let others = known.also.iter().chain(&known.otherwise);
            known.key == key || others.into_iter().any(|other| other == key)
        };
        let is_rope = [
            "rope_scaling",
            "rope_parameters",
            "partial_rotary_factor",
            "original_max_position_embeddings",
        ];
        let is_rope = is_rope.contains(&key);
        let of_blocks = self.windows.iter().flat_map(Windows::keys);
        let of_blocks = of_blocks.chain(self.unrotated.iter().flat_map(Unrotated::keys));
        self.config
            .all()
            .chain(of_blocks)
            .any(|known| is_named(&known))
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
    /// Whether a checkpoint stores weights less 1.
    #[serde(default)]
    pub is_offset: bool,
}

/// Which feed-forwards of a family are gated.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardEntry {
    /// All are plain.
    #[default]
    Plain,
    /// All are gated.
    Gated,
    /// They are gated if the name of the activation begins with `gated-`.
    Named,
}

/// The dropout of an attention's output.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum OutputDropout {
    /// That of hidden states.
    #[default]
    Hidden,
    /// That of attention weights.
    Attention,
    /// None.
    Off,
}

fn yes() -> bool {
    true
}

/// The kind of a module that has parameters of its own.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `weight (out, in)`, and usually `bias (out)`.
    Linear,
    /// `weight (hidden)`, and usually `bias (hidden)`.
    Norm,
    /// `weight (entries, hidden)`.
    Embedding,
    /// The weight of an embedding, with a `bias (out)` of its own.
    Tied,
}

/// A dimension in the shapes of a description.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Dimension {
    Hidden,
    /// Width of all query heads together.
    Queries,
    /// Width of all key heads together, or of all value heads.
    Keys,
    /// Width of one head.
    Head,
    Heads,
    Inner,
    Vocabulary,
    Positions,
    /// Number of biases by distance.
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
    /// Its name in a checkpoint, without the family's prefix. Absent if only gated feed-forwards have the module.
    #[serde(default)]
    pub name: Option<String>,
    /// Its name if feed-forwards are gated and the name then differs.
    #[serde(default)]
    pub gated: Option<String>,
    /// Modules that may have a copy of the weight in a checkpoint. transformers reads these copies. We read only one
    /// weight, so they must be equal.
    #[serde(default)]
    pub copies: Vec<String>,
    /// The shape of its weight, or of its bias if it has no weight.
    pub shape: Vec<Dimension>,
    /// Whether it has a bias.
    #[serde(default)]
    pub bias: Bias,
    /// Whether the checkpoint stores the weight as `(in, out)`.
    #[serde(default)]
    pub transposed: bool,
    /// Its place among the parts of a fused weight, from 0.
    #[serde(default)]
    pub part: usize,
    /// The outputs of each part of that weight; empty if the weight is its own.
    #[serde(default)]
    pub of: Vec<Dimension>,
    /// Whether the first block has no such module.
    #[serde(default)]
    pub not_first: bool,
    /// Fresh weights have the backbone's standard deviation, divided by the square root of the product of these. If
    /// absent, nothing is divided.
    #[serde(default)]
    pub fan: Option<Vec<Dimension>>,
}

/// Whether a module has a bias.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Bias {
    /// It has one.
    #[default]
    Yes,
    /// It has none.
    No,
    /// It has one if `attention_bias` is on.
    Attention,
    /// It has one if `feed_forward_bias` is on.
    FeedForward,
}

/// The heads that a family has.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Classification and regression.
    pub classify: Head,
    /// A label for each of some tokens.
    pub tag: Option<Head>,
    /// The language-model head of a family whose positions see both sides.
    pub masked_lm: Option<Head>,
    /// The language-model head of a causal family.
    pub causal_lm: Option<Head>,
    /// The language-model head of a family with an encoder and a decoder.
    pub seq2seq: Option<Head>,
}

/// The kinds of heads that tasks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadKind {
    /// Classification and regression: a few outputs for a sequence.
    Classify,
    /// A few outputs for each of some tokens.
    Tag,
    /// Tokens of the vocabulary.
    LanguageModel,
}

impl Heads {
    /// The head of a kind, if the family has it.
    pub fn of(&self, kind: HeadKind) -> Option<&Head> {
        match kind {
            HeadKind::LanguageModel => self.language_model(),
            HeadKind::Classify => Some(&self.classify),
            HeadKind::Tag => self.tag.as_ref(),
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
    /// The end of the name of transformers' class with this head.
    pub class: String,
    /// The prefix of the backbone's names in a checkpoint with this head, if it is not the family's.
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
    /// The rows that an example names.
    Each,
    /// Every row that has a next row, to predict the next row's token.
    Next,
    /// The mean of all rows of each sequence.
    Mean,
}

/// One step of a head: a module of its own, or one of the backbone's.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadStep {
    /// The module's path.
    pub module: String,
    /// Its kind; absent if the module belongs to the backbone.
    pub kind: Option<Kind>,
    /// Its full name in a checkpoint.
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
    /// The step's name in a checkpoint that stores an untied weight for it.
    pub untied: Option<String>,
    /// Applied to the step's result: an activation's name, or `config` for the backbone's own.
    pub activation: Option<String>,
    /// The dropout that precedes it.
    pub dropout: Option<StepDropout>,
}

/// The dropout before a step of a head.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StepDropout {
    /// The one before classifiers.
    Classifier,
    /// The one of hidden states.
    Hidden,
}

const FAMILIES: [&str; 16] = [
    include_str!("families/bert.yaml"),
    include_str!("families/roberta.yaml"),
    include_str!("families/gpt2.yaml"),
    include_str!("families/llama.yaml"),
    include_str!("families/qwen2.yaml"),
    include_str!("families/qwen3.yaml"),
    include_str!("families/mistral.yaml"),
    include_str!("families/smollm3.yaml"),
    include_str!("families/gemma.yaml"),
    include_str!("families/gemma2.yaml"),
    include_str!("families/gemma3.yaml"),
    include_str!("families/phi3.yaml"),
    include_str!("families/distilbert.yaml"),
    include_str!("families/modernbert.yaml"),
    include_str!("families/t5.yaml"),
    include_str!("families/mt5.yaml"),
];

/// Entries that hold for the `config.json` of every family.
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
        let mut descriptions: Vec<Mapping> = Vec::new();
        let mut read = |text: &&str| {
            let own: Mapping = serde_yaml::from_str(text)
                .expect("a built-in family is well-formed; a test reads them all");
            let whole = description(own, &descriptions);
            descriptions.push(whole.clone());
            let mut family: Family = serde_yaml::from_value(whole.into())
                .expect("a built-in family is well-formed; a test reads them all");
            // A family's own word counts before what holds for all.
            for (key, values) in &every.only {
                if !family.knows(key) {
                    family.only.insert(key.clone(), values.clone());
                }
            }
            family.neutral.extend(every.neutral.iter().cloned());
            family
        };
        FAMILIES.iter().map(&mut read).collect()
    })
}

/// A family's whole description: what it says itself, and for the rest what the family says that it is `like`. Its keys of
/// `config.json` are added to those of the other, and `null` takes one away.
fn description(mut own: Mapping, others: &[Mapping]) -> Mapping {
    let Some(name) = own.remove("like") else {
        return own;
    };
    let other = others.iter().find(|other| other.get("name") == Some(&name));
    let mut whole = other.expect("a family is like one before it").clone();
    for (key, value) in own {
        match (whole.get_mut(&key), value) {
            (Some(Yaml::Mapping(keys)), Yaml::Mapping(value)) if key == "config" => {
                keys.extend(value);
                keys.retain(|_, value| !value.is_null());
            }
            (_, value) => {
                whole.insert(key, value);
            }
        }
    }
    whole
}
