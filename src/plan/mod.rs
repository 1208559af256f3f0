//! Planning: resolves names, types settings, checks everything and estimates costs.
//!
//! In: a syntax tree and the backbone's dimensions. Out: a [`Plan`], which is plain data that can be
//! printed, stored and hashed; or every mistake of the file. Planning knows no weights, tensors or devices.

mod backbone;
mod build;
mod cost;
mod data;
mod files;
mod labels;
mod no_match;
mod placing;
mod selection;
mod stage;
mod stages;
mod storage;
mod stored;
mod surroundings;
mod tasks;
mod translate;
mod uses;
mod words;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backbone::{Config, Module, Site};
use crate::delta::{gate, Method, NewParameter, OnHost, ParameterId};
use crate::diagnostic::Span;
use crate::engine::{Precision, Storage};
pub use crate::syntax::ast::Unit;

pub use crate::task::{Cloze, Edit, Label, Metric, Piece, Task};
pub use build::plan;
pub use cost::{Cost, Machine, BETWEEN_PROCESSES};
pub use files::{DataPlan, Few, FileFormat, FilePlan, Part, TextEncoding};
pub use stage::{Interval, Keep, Length, Optimizer, Schedule, ScheduleShape, StagePlan, Warmup};
pub use surroundings::{Surroundings, Words};

/// The smallest `max_length`: one token of text and the two special tokens around it.
pub const SHORTEST: usize = 3;

/// A pipeline that is known to be consistent with its backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// The seed of everything random.
    pub seed: u64,
    /// The params and their values.
    pub params: BTreeMap<String, String>,
    /// The pre-trained model.
    pub backbone: BackbonePlan,
    /// Data sets by name; the one without a name is `data`.
    pub data: BTreeMap<String, DataPlan>,
    /// Tasks by name; the one without a name is `task`.
    pub tasks: BTreeMap<String, TaskPlan>,
    /// Deltas in the order of the file.
    pub deltas: Vec<DeltaPlan>,
    /// Stages in the order of the file.
    pub stages: Vec<StagePlan>,
}

impl Plan {
    /// The task that a finished run does: the last stage's, or without stages the first by name.
    pub fn final_task(&self) -> Option<(&str, &TaskPlan)> {
        let name = match self.stages.last() {
            Some(stage) => stage.task.as_str(),
            None => self.tasks.keys().next()?,
        };
        self.tasks
            .get_key_value(name)
            .map(|(name, task)| (name.as_str(), task))
    }

    /// The prefix of the backbone's tensor names in a checkpoint that has the head of the final task.
    pub fn name_prefix(&self) -> &str {
        let family = self.backbone.config.family();
        let task = self.final_task();
        let head = task.and_then(|(_, task)| family.heads.of(task.kind.head()));
        let own = head.and_then(|head| head.base_model_prefix.as_deref());
        own.unwrap_or(&family.base_model_prefix)
    }

    /// The data set of the last stage, or without stages the first by name.
    pub fn final_data(&self) -> Option<&DataPlan> {
        match self.stages.last() {
            Some(stage) => self.data.get(&stage.data),
            None => self.data.values().next(),
        }
    }

    /// The deltas in place during stage number `stage`: those that it or an earlier stage trains, and those
    /// that come from other runs, without those in its `without` list. `stages.len()` means after the last
    /// stage, where the last stage's deltas stay in place. Without stages, all deltas are in place.
    pub fn active(&self, stage: usize) -> Vec<&DeltaPlan> {
        let last = stage.min(self.stages.len().saturating_sub(1));
        let Some(current) = self.stages.get(last) else {
            return self.deltas.iter().collect();
        };
        let so_far = self.stages[..=last].iter();
        let trained: HashSet<&String> = so_far.flat_map(|stage| &stage.train).collect();
        let is_in_place =
            |delta: &&DeltaPlan| delta.origin.is_some() || trained.contains(&delta.name);
        let is_wanted = |delta: &&DeltaPlan| !current.without.contains(&delta.name);
        let in_place = self.deltas.iter().filter(is_in_place);
        in_place.filter(is_wanted).collect()
    }

    /// The deltas that a stage trains and whose method has a part that runs on the host.
    pub fn trained_on_host(&self, stage: &StagePlan) -> Vec<&DeltaPlan> {
        let trained = self
            .deltas
            .iter()
            .filter(|delta| stage.train.contains(&delta.name));
        trained.filter(|delta| delta.on_host().is_some()).collect()
    }

    /// The peak learning rate of a parameter in a stage.
    pub fn rate(&self, stage: &StagePlan, id: &ParameterId) -> f32 {
        let name = id.delta().unwrap_or("head");
        let own = stage.rates.get(name).copied();
        let rate = own.unwrap_or_else(|| stage.optimizer.lr());
        let method = self
            .deltas
            .iter()
            .find(|delta| delta.name == name)
            .and_then(DeltaPlan::method);
        match (stage.lora_plus, method.and_then(Method::second_factor)) {
            (Some(factor), Some(second)) if id.name() == second => factor * rate,
            _ => rate,
        }
    }

    /// The number of positions that the deltas in place during a stage take.
    pub fn tokens(&self, stage: usize) -> usize {
        self.tokens_of(stage, |_| true)
    }

    /// The number of positions that prefixes take: they have keys and values, but no rows.
    pub fn prefix_tokens(&self, stage: usize) -> usize {
        self.tokens_of(stage, |method| method.accepts(Site::Attention))
    }

    fn tokens_of(&self, stage: usize, counts: impl Fn(&Method) -> bool) -> usize {
        let active = self.active(stage).into_iter();
        let counted = active.filter(|delta| delta.method().is_some_and(&counts));
        counted.map(DeltaPlan::tokens).sum()
    }
}

/// The backbone of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackbonePlan {
    /// The backbone's name or path in the file.
    pub location: String,
    /// The directory of the checkpoint.
    pub directory: PathBuf,
    /// The directory of the tokenizer, if it is not the checkpoint's: an adapter may have one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Its dimensions, with dropout as set in the file.
    pub config: Config,
    /// The number of tokens after which a text is cut.
    pub max_length: usize,
    /// Whether the weights are drawn from the seed instead of read.
    pub random: bool,
    /// The precision of products with frozen weights.
    #[serde(default)]
    pub precision: Precision,
    /// How frozen weights are kept in memory.
    #[serde(default)]
    pub storage: Storage,
    /// The place of the statement.
    pub span: Span,
}

/// A task of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// The task with its settings.
    #[serde(flatten)]
    pub kind: Task,
    /// Whether the labels were found in the data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_found_labels: bool,
    /// The metric that `evaluate` computes and `keep = best` compares.
    pub metric: Metric,
    /// The place of the statement.
    pub span: Span,
}

/// A delta of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaPlan {
    /// Its name.
    pub name: String,
    /// What it does.
    pub change: Change,
    /// Whether a gate scales its change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gated: bool,
    /// The run from which its initial parameters come; `None` if the method initializes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The place of the statement.
    pub span: Span,
}

/// A finished run from which a delta's initial parameters come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// Its directory.
    pub run: PathBuf,
    /// SHA-256 of its `delta.safetensors`.
    pub hash: String,
    /// The place of its path.
    pub span: Span,
}

impl DeltaPlan {
    /// A delta of a method that stands in no pipeline.
    pub fn of_method(name: &str, method: Method, sites: Vec<String>) -> Self {
        Self::standalone(name, Change::Method { method, sites })
    }

    /// A delta that unfreezes parameters and stands in no pipeline.
    pub fn unfreezing(name: &str, parameters: Vec<String>) -> Self {
        Self::standalone(name, Change::Unfreeze { parameters })
    }

    fn standalone(name: &str, change: Change) -> Self {
        DeltaPlan {
            name: name.to_owned(),
            change,
            is_gated: false,
            origin: None,
            span: Span::default(),
        }
    }

    /// Its method; `None` if it unfreezes parameters.
    pub fn method(&self) -> Option<&Method> {
        match &self.change {
            Change::Method { method, .. } => Some(method),
            Change::Unfreeze { .. } => None,
        }
    }

    /// The modules at which its method is.
    pub fn sites(&self) -> &[String] {
        match &self.change {
            Change::Method { sites, .. } => sites,
            Change::Unfreeze { .. } => &[],
        }
    }

    /// The parameters of the backbone that it unfreezes.
    pub fn unfrozen(&self) -> &[String] {
        match &self.change {
            Change::Unfreeze { parameters } => parameters,
            Change::Method { .. } => &[],
        }
    }

    /// The paths of all that it changes: modules or parameters.
    pub fn places(&self) -> &[String] {
        match &self.change {
            Change::Unfreeze { parameters } => parameters,
            Change::Method { sites, .. } => sites,
        }
    }

    /// The probability of its dropout.
    pub fn dropout(&self) -> f32 {
        self.method().map_or(0.0, Method::dropout)
    }

    /// How many positions of a sequence it takes.
    pub fn tokens(&self) -> usize {
        self.method().map_or(0, Method::tokens)
    }

    /// The parameters that it adds at a module, including its gate's.
    pub fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let Some(method) = self.method() else {
            return Vec::new();
        };
        let mut parameters = method.parameters(module);
        if self.is_gated {
            parameters.extend(gate::parameters(module, method.preposition()));
        }
        parameters
    }

    /// Texts in its settings whose tokens it needs.
    pub fn texts(&self) -> Vec<&str> {
        self.method().map_or(Vec::new(), Method::texts)
    }

    /// The part of its method that runs on the host, if there is one.
    pub fn on_host(&self) -> Option<&dyn OnHost> {
        self.method()?.on_host()
    }

    /// Whether it trains parameters of the backbone itself.
    pub fn unfreezes(&self) -> bool {
        matches!(self.change, Change::Unfreeze { .. })
    }
}

/// What a delta does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Trains parameters of the backbone itself.
    Unfreeze {
        /// Their paths.
        parameters: Vec<String>,
    },
    /// Adds parameters at modules.
    Method {
        /// The method with its settings.
        method: Method,
        /// The modules' paths.
        sites: Vec<String>,
    },
}
