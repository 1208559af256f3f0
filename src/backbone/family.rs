//! A backbone family: what a transformer of this kind is made of, as data.

use indexmap::IndexMap;
use serde::Deserialize;

/// A family's description, one YAML file each in `families/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Family {
    /// The family's name.
    pub name: String,
    /// Values of `model_type` in `config.json` that belong to it.
    pub model_types: Vec<String>,
    /// What stands before the backbone's names in a checkpoint that has a head.
    pub prefix: String,
    /// What the names of transformers' classes begin with.
    pub architecture: String,
    /// Which key of `config.json` holds which dimension.
    pub config: ConfigKeys,
    /// Whether a position sees only what is before it.
    pub causal: bool,
    /// Where the norms are.
    pub norm: NormPlace,
    /// The position number of a sequence's first token.
    pub position_offset: usize,
    /// The module tree; `N` in a name stands for the number of the block.
    pub modules: IndexMap<String, ModuleEntry>,
    /// What can be read off the last hidden state.
    pub heads: Heads,
}

/// The keys of `config.json` for each dimension.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ConfigKeys {
    pub hidden: String,
    pub layers: String,
    pub heads: String,
    pub inner: String,
    pub vocabulary: String,
    pub positions: String,
    pub types: Option<String>,
    pub norm_epsilon: String,
    pub activation: String,
    pub dropout: String,
    pub attention_dropout: String,
}

/// Whether a norm follows the residual sum or precedes the sub-layer.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum NormPlace {
    Post,
    Pre,
}

/// What a module with parameters of its own is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `weight (out, in)`, and mostly `bias (out)`.
    Linear,
    /// `weight (hidden)` and `bias (hidden)`.
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
    Inner,
    Vocabulary,
    Positions,
    Types,
    Labels,
}

/// A module of the tree.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    /// What it is.
    pub kind: Kind,
    /// Its name in a checkpoint, without the family's prefix.
    pub name: String,
    /// The shape of its weight (of its bias, where it has only that).
    pub shape: Vec<Dimension>,
    /// Whether it has a bias.
    #[serde(default = "yes")]
    pub bias: bool,
    /// Whether the checkpoint stores the weight as `(in, out)`.
    #[serde(default)]
    pub transposed: bool,
    /// Which of `parts` equal parts of a fused weight's outputs this is.
    #[serde(default)]
    pub part: usize,
    /// How many modules share the fused weight.
    #[serde(default = "one")]
    pub parts: usize,
}

fn yes() -> bool {
    true
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
}

impl Heads {
    /// The language-model head that the family has.
    pub fn language_model(&self) -> Option<&Head> {
        self.masked_lm.as_ref().or(self.causal_lm.as_ref())
    }
}

/// A head: which rows it reads, and the steps from them to logits.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
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
    /// Whether it has a bias.
    #[serde(default = "yes")]
    pub bias: bool,
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

const FAMILIES: [&str; 3] = [
    include_str!("families/bert.yaml"),
    include_str!("families/roberta.yaml"),
    include_str!("families/gpt2.yaml"),
];

/// All families that are built in.
pub fn families() -> Vec<Family> {
    FAMILIES
        .iter()
        .map(|text| {
            serde_yaml::from_str(text)
                .expect("a built-in family is well-formed; a test reads them all")
        })
        .collect()
}
