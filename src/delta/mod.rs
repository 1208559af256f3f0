//! The methods of delta tuning, one file each. A file has the method's settings, its possible sites,
//! its parameters and their initialization, its forward pass in engine operations, and its form in PEFT.
//!
//! In: typed settings, activations. Out: parameters to train, activations. Methods know nothing of
//! training. To add a method, add a file beside [`lora`] and a line to the list below.

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
pub use prefix::{Prefix, PrefixText};
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

/// A method of delta tuning. Everything optional has a default implementation.
pub trait DeltaMethod: Sized {
    /// Its name in the language.
    const NAME: &'static str;
    /// Its position relative to its modules: on, after, beside or before them.
    const PREPOSITION: Preposition;
    /// The paper that it is from.
    const PAPER: &'static str;
    /// Advice on where to place it: "choose linear layers, such as `block.*.attn.{q,v}`".
    const SITES: &'static str;

    /// Its `peft_type` in PEFT, for a method that sits at linear layers or embedding tables and has a
    /// [`peft`](DeltaMethod::peft) form.
    const PEFT_KIND: Option<&'static str> = None;

    /// Whether a gate can scale its change. A change of embeddings or of a module's input cannot be gated.
    const CAN_BE_GATED: bool = true;

    /// Reads its settings from a block, and reports mistakes through `fields`.
    fn read(fields: &Fields, config: &Config) -> Self;

    /// Whether it can be placed at this kind of site.
    fn accepts(site: Site) -> bool;

    /// Checks these settings against a module.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    fn check(&self, _module: &Module) -> Result<(), String> {
        Ok(())
    }

    /// The parameters that it adds at a module.
    fn parameters(&self, module: &Module) -> Vec<NewParameter>;

    /// The parameters that its modules share.
    fn shared(&self, _modules: &[&Module]) -> Vec<NewParameter> {
        Vec::new()
    }

    /// Texts in its settings whose tokens it needs. Planning looks these tokens up.
    fn texts(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Takes the tokens of its [`texts`](DeltaMethod::texts), in the same order. Every text has at least one token.
    ///
    /// # Errors
    /// One sentence that says what is wrong with them.
    fn set_tokens(&mut self, _tokens: Vec<Vec<usize>>) -> Result<(), String> {
        Ok(())
    }

    /// The number of rows that it puts before every sequence or before every sequence's keys. Each takes a
    /// position.
    fn tokens(&self) -> usize {
        0
    }

    /// Changes the module's input, `x (rows, in)`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn input(&self, _at: &At, x: Matrix) -> Outcome<Matrix> {
        Ok(x)
    }

    /// Changes the module's output, `y (rows, out)`, to which deltas earlier in the file have already been
    /// applied. `x (rows, in)` is the module's input.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn forward(&self, _at: &At, _x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        Ok(y)
    }

    /// Changes rows looked up in an embedding table: `y (rows, width)`, the table's rows `indices`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn look_up(&self, _at: &At, _indices: &[usize], y: Matrix) -> Outcome<Matrix> {
        Ok(y)
    }

    /// Keys and values, `(tokens, hidden)` each, that an attention puts before every sequence's own.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn prefix(&self, _at: &At) -> Outcome<Option<[Matrix; 2]>> {
        Ok(None)
    }

    /// Embeddings, `(tokens, hidden)`, that are put before or inside every sequence.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn prompt(&self, _at: &At) -> Outcome<Option<Matrix>> {
        Ok(None)
    }

    /// The probability of the method's own dropout, whose mask is drawn anew in every step.
    fn dropout(&self) -> f32 {
        0.0
    }

    /// Whether its texts are read with what the tokenizer puts before a text, such as the first token of every text.
    fn reads_frame(&self) -> bool {
        false
    }

    /// The tokens as whose keys and values its parameters `keys` and `values` begin, if they do.
    fn begins_after(&self) -> Option<&[usize]> {
        None
    }

    /// The name of the parameter that begins as zeros in a product `B A`: LoRA+ gives it a larger rate.
    fn second_factor(&self) -> Option<&'static str> {
        None
    }

    /// The part of the method that runs on the host in every step of a stage that trains it, if there is one.
    fn on_host(&self) -> Option<&dyn OnHost> {
        None
    }

    /// Folds the delta into the weights of a linear layer or an embedding table. `tensor` gives the elements of the
    /// delta's parameter of that name. Returns false, and changes nothing, if the method cannot be folded.
    fn fold(
        &self,
        _module: &Module,
        _layer: &mut Folded,
        _tensor: &dyn Fn(&str) -> Vec<f32>,
    ) -> bool {
        false
    }

    /// The kind of PEFT adapter that can hold it.
    fn peft_adapter(&self) -> PeftAdapter<'_> {
        match self.peft() {
            Some(_) => PeftAdapter::Tensors,
            None => PeftAdapter::None,
        }
    }

    /// The PEFT setting that lists some of the method's modules, and whether it lists this module; `None` if the
    /// method has no such setting.
    fn peft_list(&self, _module: &Module) -> Option<(&'static str, bool)> {
        None
    }

    /// Its form in PEFT, for a method that sits at linear layers or embedding tables.
    fn peft(&self) -> Option<PeftForm> {
        None
    }

    /// How PEFT stores one of its parameters at a module. By default PEFT stores it as we do, under the
    /// suffix that [`peft`](DeltaMethod::peft) has for it.
    fn peft_tensor(&self, _module: &Module, parameter: &NewParameter) -> Option<PeftTensor> {
        self.peft()?.tensor(parameter)
    }

    /// The method that PEFT configured for a module, if it is this one.
    fn from_peft(_config: &PeftConfig, _module: &PeftModule) -> Option<Self> {
        None
    }
}

/// The part of a method that runs on the host in every step of a stage that trains it.
pub trait OnHost {
    /// Checks the settings against a stage of `steps` steps.
    ///
    /// # Errors
    /// One sentence that says what is wrong.
    fn check_steps(&self, steps: usize) -> Result<(), String>;

    /// Adds the gradient of a penalty on its parameters to the gradients. Returns the penalty, which is
    /// part of the loss.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn penalty(&self, step: &mut Step) -> Outcome<f32>;

    /// Changes its parameters after the optimizer's step.
    fn allocate(&self, step: &mut Step);
}

/// The state of a delta on the host, in one training step.
pub struct Step<'a> {
    /// The number of the step, from 1.
    pub number: usize,
    /// The steps of the stage.
    pub steps: usize,
    /// The delta's trained parameters.
    pub values: BTreeMap<ParameterId, Vec<f32>>,
    /// The gradients of these parameters, and those of all other trained ones.
    pub gradients: &'a mut BTreeMap<ParameterId, Vec<f32>>,
    /// The device for products.
    pub device: &'a Device,
    /// Values that the method keeps from one step to the next, under keys of its own.
    pub memory: &'a mut BTreeMap<String, Vec<f32>>,
}

/// The settings of a PEFT configuration for one module, with its patterns applied.
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
    /// Low-rank products. Several at one module are merged into one.
    LowRank(&'m Lora),
    /// Rows of an embedding table, alone or beside low-rank products.
    Rows(&'m TrainableTokens),
    /// Rows before the embeddings.
    Prompt,
    /// Keys and values before those of attentions.
    Prefix,
    /// Tensors at modules, each under the name that [`DeltaMethod::peft`] has for it.
    Tensors,
    /// PEFT has no adapter for the method.
    None,
}

/// How PEFT stores a method.
pub struct PeftForm {
    /// The tensors of a site: our name and PEFT's suffix of each.
    pub tensors: &'static [(&'static str, &'static str)],
    /// The tensors that all sites share: our name and PEFT's suffix of each.
    pub shared: &'static [(&'static str, &'static str)],
    /// The settings in `adapter_config.json`.
    pub settings: serde_json::Value,
}

impl PeftForm {
    /// A parameter that PEFT stores unchanged, under its suffix.
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
    /// The part of the tensor's name after the module's name.
    pub suffix: &'static str,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Whether PEFT stores it transposed.
    pub is_transposed: bool,
}

/// Whether a PEFT configuration is of this kind.
fn is_kind(config: &PeftConfig, kind: Option<&str>) -> bool {
    config.get("peft_type").and_then(|value| value.as_str()) == kind
}

/// Whether a switch of a PEFT configuration is on. An absent switch is off.
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

/// A method's view of the graph at one site.
pub struct At<'a> {
    /// The parameters of the delta and its module.
    pub values: &'a dyn Values,
    /// Which rows make up which sequence.
    pub layout: &'a Layout,
    /// The sub-layer's residual, if the site is a sub-layer.
    pub residual: Option<&'a Matrix>,
}

/// The parameters, norm and dropout of one site.
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
    /// Applies the norm after the residual sum. Pre-norm families have none there, and `sum` stays as it is.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn norm(&self, sum: &Matrix) -> Outcome<Matrix>;
    /// Dropout, active in training only.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    fn dropout(&self, x: &Matrix, layout: &Layout, probability: f32) -> Outcome<Matrix>;
}

impl At<'_> {
    /// See [`Values::weight`].
    pub fn weight(&self, name: &str) -> Weight {
        self.values.weight(name)
    }

    /// Like [`At::weight`], but as a tensor.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
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
    /// The device fails, for example for want of memory.
    pub fn linear(&self, [weight, bias]: [&str; 2], x: &Matrix) -> Outcome<Matrix> {
        ops::linear(x, &self.weight(weight), Some(&self.vector(bias)))
    }

    /// Dropout, active in training only.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn dropout(&self, x: &Matrix, probability: f32) -> Outcome<Matrix> {
        self.values.dropout(x, self.layout, probability)
    }
}
