//! The methods of delta tuning, one file each: its settings, where it may sit, its parameters and
//! their init, its forward pass in engine operations, its form in PEFT.
//!
//! In: typed settings, activations. Out: parameters to train, activations. It knows nothing of
//! training. A new method is a file beside [`lora`] and a line in the list below.

mod adalora;
mod bottleneck;
mod compacter;
mod dora;
pub(crate) mod gate;
mod houlsby;
mod ia3;
mod id;
mod intrinsic_dimension;
mod list;
mod loha;
mod lokr;
mod lora;
mod low_rank_adapter;
mod miss;
mod p_tuning;
mod parallel;
mod parameter;
mod pfeiffer;
mod prefix;
mod prompt;
mod trainable_tokens;
mod vera;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Device, Layout, Matrix, Outcome, Vector, Weight};
use crate::settings::Fields;
pub use crate::syntax::ast::Preposition;

pub use ia3::Ia3;
pub use id::ParameterId;
pub(crate) use lora::{transposed, INITIAL};
pub use lora::{Lora, LoraInit, Scaling};
pub use parameter::{Init, NewParameter};
pub use prefix::Prefix;
pub use prompt::{Prompt, PromptInit};
pub use trainable_tokens::TrainableTokens;

list::methods! {
    lora::Lora,
    dora::Dora,
    adalora::AdaLora,
    loha::Loha,
    lokr::Lokr,
    vera::Vera,
    miss::Miss,
    ia3::Ia3,
    intrinsic_dimension::IntrinsicDimension,
    trainable_tokens::TrainableTokens,
    houlsby::Houlsby,
    pfeiffer::Pfeiffer,
    parallel::Parallel,
    low_rank_adapter::LowRankAdapter,
    compacter::Compacter,
    prefix::Prefix,
    prompt::Prompt,
    p_tuning::PTuning,
}

/// What a method is. What a method does not do has a default.
pub trait DeltaMethod: Sized {
    /// Its name in the language.
    const NAME: &'static str;
    /// How it stands to its modules.
    const PREPOSITION: Preposition;
    /// The paper that it is from.
    const PAPER: &'static str;
    /// Where it can sit, as advice: "choose linear layers, such as `block.*.attn.{q,v}`".
    const SITES: &'static str;

    /// What PEFT calls it (`peft_type`), for a method that sits at linear layers or embedding tables
    /// and has a [`peft`](DeltaMethod::peft) form.
    const PEFT_KIND: Option<&'static str> = None;

    /// Whether a gate can weigh what it changes: not what it does to embeddings or to inputs.
    const CAN_BE_GATED: bool = true;

    /// Reads its settings from a block; what is wrong is reported through `fields`.
    fn read(fields: &Fields, config: &Config) -> Self;

    /// Whether it can sit there.
    fn accepts(site: Site) -> bool;

    /// What is wrong with these settings on this module, in one sentence.
    ///
    /// # Errors
    /// The sentence.
    fn check(&self, _module: &Module) -> Result<(), String> {
        Ok(())
    }

    /// The parameters that it adds at a module.
    fn parameters(&self, module: &Module) -> Vec<NewParameter>;

    /// The parameters that its modules share.
    fn shared(&self, _modules: &[&Module]) -> Vec<NewParameter> {
        Vec::new()
    }

    /// Texts in its settings whose tokens it needs; they are looked up before anything runs.
    fn texts(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Takes the tokens of its [`texts`](DeltaMethod::texts), each at least one.
    ///
    /// # Errors
    /// What is wrong with them, in one sentence.
    fn set_tokens(&mut self, _tokens: Vec<Vec<usize>>) -> Result<(), String> {
        Ok(())
    }

    /// The number of rows that it puts before every sequence, or before its keys. They take places
    /// of the position table.
    fn tokens(&self) -> usize {
        0
    }

    /// What the module reads, `x (rows, in)`, with the delta.
    ///
    /// # Errors
    /// What the device reports.
    fn input(&self, _at: &At, x: Matrix) -> Outcome<Matrix> {
        Ok(x)
    }

    /// The module's result with the delta: `x (rows, in)` is what the module reads, `y (rows, out)`
    /// what it gives, deltas that stand earlier in the file included.
    ///
    /// # Errors
    /// What the device reports.
    fn forward(&self, _at: &At, _x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        Ok(y)
    }

    /// What an embedding table gives with the delta: `y (rows, width)` are its rows `indices`.
    ///
    /// # Errors
    /// What the device reports.
    fn look_up(&self, _at: &At, _indices: &[usize], y: Matrix) -> Outcome<Matrix> {
        Ok(y)
    }

    /// Keys and values, `(tokens, hidden)` each, that an attention sees before its own.
    ///
    /// # Errors
    /// What the device reports.
    fn prefix(&self, _at: &At) -> Outcome<Option<[Matrix; 2]>> {
        Ok(None)
    }

    /// Embeddings, `(tokens, hidden)`, that stand before those of every sequence.
    ///
    /// # Errors
    /// What the device reports.
    fn prompt(&self, _at: &At) -> Outcome<Option<Matrix>> {
        Ok(None)
    }

    /// The probability of a dropout of its own, which is drawn anew in every step.
    fn dropout(&self) -> f32 {
        0.0
    }

    /// What it does on the host in every step of a stage that trains it.
    fn on_host(&self) -> Option<&dyn OnHost> {
        None
    }

    /// Folds the delta into a linear layer or an embedding table, where that can be done; `tensor` gives a parameter's
    /// elements. Returns whether it was done.
    fn fold(
        &self,
        _module: &Module,
        _layer: &mut Folded,
        _tensor: &dyn Fn(&str) -> Vec<f32>,
    ) -> bool {
        false
    }

    /// The kind of PEFT's adapters that holds it.
    fn peft_adapter(&self) -> PeftAdapter<'_> {
        match self.peft() {
            Some(_) => PeftAdapter::Tensors,
            None => PeftAdapter::None,
        }
    }

    /// Of a method that has a setting in PEFT which lists some of its modules: the setting, and whether a module is
    /// in it.
    fn peft_list(&self, _module: &Module) -> Option<(&'static str, bool)> {
        None
    }

    /// Its form in PEFT, for a method that sits at linear layers or embedding tables.
    fn peft(&self) -> Option<PeftForm> {
        None
    }

    /// How PEFT stores one of its parameters at a module: as ours, under the suffix that
    /// [`peft`](DeltaMethod::peft) has for it.
    fn peft_tensor(&self, _module: &Module, parameter: &NewParameter) -> Option<PeftTensor> {
        self.peft()?.tensor(parameter)
    }

    /// The method that PEFT configured for a module, if it is this one.
    fn from_peft(_config: &PeftConfig, _module: &PeftModule) -> Option<Self> {
        None
    }
}

/// What a method does on the host in every step of a stage that trains it.
pub trait OnHost {
    /// What is wrong with a stage of so many steps, in one sentence.
    ///
    /// # Errors
    /// The sentence.
    fn check_steps(&self, steps: usize) -> Result<(), String>;

    /// Adds the gradient of a penalty on its parameters to the gradients, and gives the penalty,
    /// which is a part of the loss.
    ///
    /// # Errors
    /// What the device reports.
    fn penalty(&self, step: &mut Step) -> Outcome<f32>;

    /// Changes its parameters after the optimizer did.
    fn allocate(&self, step: &mut Step);
}

/// A delta in a step of a stage that trains it, on the host.
pub struct Step<'a> {
    /// The step, from 1.
    pub number: usize,
    /// The steps of the stage.
    pub steps: usize,
    /// The delta's trained parameters.
    pub values: BTreeMap<ParameterId, Vec<f32>>,
    /// Their gradients, and those of others.
    pub gradients: &'a mut BTreeMap<ParameterId, Vec<f32>>,
    /// Where they are computed.
    pub device: &'a Device,
    /// What is to be known in the next step.
    pub memory: &'a mut BTreeMap<String, Vec<f32>>,
}

/// What a PEFT configuration says of one module, patterns applied.
pub struct PeftModule {
    /// `r`
    pub rank: usize,
    /// `lora_alpha`, or `alpha`
    pub alpha: f32,
    /// Whether `feedforward_modules` names it.
    pub is_feedforward: bool,
    /// Whether it is an embedding table.
    pub is_embedding: bool,
}

/// An `adapter_config.json`.
pub type PeftConfig = serde_json::Map<String, serde_json::Value>;

/// A kind of PEFT's adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PeftAdapter<'m> {
    /// Low-rank products; several at a module become one.
    LowRank(&'m Lora),
    /// Rows of an embedding table, alone or beside low-rank products.
    Rows(&'m TrainableTokens),
    /// Rows before the embeddings.
    Prompt,
    /// Keys and values before those of attentions.
    Prefix,
    /// Tensors at modules, one after the other, by the names that [`DeltaMethod::peft`] has for them.
    Tensors,
    /// PEFT has none.
    None,
}

/// How PEFT stores a method.
pub struct PeftForm {
    /// The tensors of a site: our name, and PEFT's suffix.
    pub tensors: &'static [(&'static str, &'static str)],
    /// The tensors that sites share.
    pub shared: &'static [(&'static str, &'static str)],
    /// The settings in `adapter_config.json`.
    pub settings: serde_json::Value,
}

impl PeftForm {
    /// A parameter as it is, under its suffix.
    fn tensor(&self, parameter: &NewParameter) -> Option<PeftTensor> {
        let found = self
            .tensors
            .iter()
            .find(|(ours, _)| *ours == parameter.name);
        found.map(|(_, suffix)| PeftTensor {
            suffix,
            shape: parameter.shape.clone(),
            is_transposed: false,
        })
    }
}

/// How PEFT stores one parameter.
pub struct PeftTensor {
    /// What stands behind the module's name.
    pub suffix: &'static str,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Whether rows and columns are exchanged.
    pub is_transposed: bool,
}

/// Whether a PEFT configuration is of this kind.
fn is_kind(config: &PeftConfig, kind: Option<&str>) -> bool {
    config.get("peft_type").and_then(|value| value.as_str()) == kind
}

/// A switch of a PEFT configuration; off where it is absent.
fn is_on(config: &PeftConfig, key: &str) -> bool {
    config.get(key).and_then(|value| value.as_bool()) == Some(true)
}

/// A linear layer or an embedding table into which deltas are folded, one after the other.
pub struct Folded {
    /// The backbone's own weight, `(out, in)`, or `(entries, width)`.
    pub base: Vec<f32>,
    /// The backbone's own bias, `(out)`.
    pub base_bias: Option<Vec<f32>>,
    /// The weight so far.
    pub weight: Vec<f32>,
    /// The bias so far.
    pub bias: Option<Vec<f32>>,
}

impl Folded {
    /// Adds `change (out, in)` to the weight.
    pub fn add(&mut self, change: &[f32]) {
        let pairs = self.weight.iter_mut().zip(change);
        pairs.for_each(|(weight, change)| *weight += change);
    }
}

/// What a method sees of the graph at one site.
pub struct At<'a> {
    /// The values that the delta and its module have.
    pub values: &'a dyn Values,
    /// Which rows make up which sequence.
    pub layout: &'a Layout,
    /// The sub-layer's residual, where the site is one.
    pub residual: Option<&'a Matrix>,
}

/// Parameters and places of one site.
pub trait Values {
    /// A parameter `(out, in)` of the site, or one that the delta's sites share.
    fn weight(&self, name: &str) -> Weight;
    /// A parameter `(out)` of the site, or one that the delta's sites share.
    fn vector(&self, name: &str) -> Vector;
    /// The path of the module.
    fn site(&self) -> &str;
    /// The module's own weight, `(out, in)`.
    fn module_weight(&self) -> Weight;
    /// The module's own bias, `(out)`.
    fn module_bias(&self) -> Option<Vector>;
    /// The layer norm behind the residual sum, where the family has one there.
    ///
    /// # Errors
    /// What the device reports.
    fn norm(&self, sum: &Matrix) -> Outcome<Matrix>;
    /// Dropout, active in training only.
    ///
    /// # Errors
    /// What the device reports.
    fn dropout(&self, x: &Matrix, layout: &Layout, probability: f32) -> Outcome<Matrix>;
}

impl At<'_> {
    /// See [`Values::weight`].
    pub fn weight(&self, name: &str) -> Weight {
        self.values.weight(name)
    }

    /// The same as a tensor.
    ///
    /// # Errors
    /// What the device reports.
    pub fn matrix(&self, name: &str) -> Outcome<Matrix> {
        self.values.weight(name).matrix()
    }

    /// See [`Values::vector`].
    pub fn vector(&self, name: &str) -> Vector {
        self.values.vector(name)
    }

    /// `W x + b` with the parameters of these names.
    ///
    /// # Errors
    /// What the device reports.
    pub fn linear(&self, [weight, bias]: [&str; 2], x: &Matrix) -> Outcome<Matrix> {
        ops::linear(x, &self.weight(weight), Some(&self.vector(bias)))
    }

    /// Dropout, active in training only.
    ///
    /// # Errors
    /// What the device reports.
    pub fn dropout(&self, x: &Matrix, probability: f32) -> Outcome<Matrix> {
        self.values.dropout(x, self.layout, probability)
    }
}
