//! Names resolved, settings typed, everything checked, costs estimated.
//!
//! In: a syntax tree and the backbone's dimensions. Out: a [`Plan`], plain data that can be printed,
//! stored and hashed, or every mistake of the file. It knows no weights, tensors or devices.

mod build;
mod cloze;
mod cost;
mod placing;
mod selection;
mod stage;
mod stages;
mod stored;
mod surroundings;
mod tasks;
mod template;
mod uses;
mod words;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::backbone::{Config, Module, Site};
use crate::delta::{gate, Method, NewParameter, OnHost};
use crate::diagnostic::Span;
use crate::engine::Precision;
pub use crate::syntax::ast::Unit;

pub use build::plan;
pub use cloze::Cloze;
pub use cost::{Cost, Machine};
pub use stage::{Interval, Keep, Length, Optimizer, Schedule, ScheduleShape, StagePlan, Warmup};
pub use surroundings::{Surroundings, Words};
pub use template::{Edit, Piece};

/// The fewest tokens after which a text can be cut: one, and the two that stand around it.
pub const SHORTEST: usize = 3;

/// A pipeline that is known to be consistent with its backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's name.
    pub name: String,
    /// What everything random is drawn from.
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
    /// The task of the last stage, or the only one there is: what a finished run is asked to do.
    pub fn final_task(&self) -> Option<(&str, &TaskPlan)> {
        let name = match self.stages.last() {
            Some(stage) => stage.task.as_str(),
            None => self.tasks.keys().next()?,
        };
        self.tasks
            .get_key_value(name)
            .map(|(name, task)| (name.as_str(), task))
    }

    /// What stands before the backbone's names in a checkpoint with the head of the final task.
    pub fn name_prefix(&self) -> &str {
        let family = self.backbone.config.family();
        let task = self.final_task();
        let head = task.and_then(|(_, task)| family.heads.of(task.uses_language_model()));
        let own = head.and_then(|head| head.base_model_prefix.as_deref());
        own.unwrap_or(&family.base_model_prefix)
    }

    /// The data set of the last stage, or the only one there is.
    pub fn final_data(&self) -> Option<&DataPlan> {
        match self.stages.last() {
            Some(stage) => self.data.get(&stage.data),
            None => self.data.values().next(),
        }
    }

    /// The deltas that are in place during a stage: its own, those of earlier stages and those that
    /// come from other runs, less those that it does without. After the last stage, `stages.len()`,
    /// what the last stage had.
    pub fn active(&self, stage: usize) -> Vec<&DeltaPlan> {
        let last = stage.min(self.stages.len().saturating_sub(1));
        let Some(current) = self.stages.get(last) else {
            return self.deltas.iter().collect();
        };
        let is_in_place = |delta: &&DeltaPlan| {
            let mut so_far = self.stages[..=last].iter();
            delta.origin.is_some() || so_far.any(|stage| stage.train.contains(&delta.name))
        };
        let is_wanted = |delta: &&DeltaPlan| !current.without.contains(&delta.name);
        let in_place = self.deltas.iter().filter(is_in_place);
        in_place.filter(is_wanted).collect()
    }

    /// The deltas that a stage trains and that do something on the host.
    pub fn trained_on_host(&self, stage: &StagePlan) -> Vec<&DeltaPlan> {
        let trained = self
            .deltas
            .iter()
            .filter(|delta| stage.train.contains(&delta.name));
        trained.filter(|delta| delta.on_host().is_some()).collect()
    }

    /// The positions that deltas in place take during a stage.
    pub fn tokens(&self, stage: usize) -> usize {
        self.tokens_of(stage, |_| true)
    }

    /// Those of them that are taken by keys and values alone.
    pub fn prefix_tokens(&self, stage: usize) -> usize {
        self.tokens_of(stage, |method| method.accepts(Site::Attention))
    }

    fn tokens_of(&self, stage: usize, counts: impl Fn(&Method) -> bool) -> usize {
        let of = |delta: &&DeltaPlan| match &delta.change {
            Change::Method { method, .. } if counts(method) => method.tokens(),
            _ => 0,
        };
        self.active(stage).iter().map(of).sum()
    }
}

/// The backbone of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackbonePlan {
    /// What the file says.
    pub location: String,
    /// Where it is.
    pub directory: PathBuf,
    /// Its dimensions, dropout as the file wants it.
    pub config: Config,
    /// Tokens after which a text is cut.
    pub max_length: usize,
    /// Whether the weights are drawn from the seed instead of read.
    pub random: bool,
    /// How products with frozen weights are computed.
    #[serde(default)]
    pub precision: Precision,
    /// The place of the statement.
    pub span: Span,
}

/// A data set of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataPlan {
    /// What stages train on.
    pub train: Option<FilePlan>,
    /// What stages are evaluated on.
    pub dev: Option<FilePlan>,
    /// What is only looked at in the end.
    pub test: Option<FilePlan>,
}

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilePlan {
    /// How it is read.
    pub format: FileFormat,
    /// Where it is.
    pub path: PathBuf,
    /// Names of the columns, where the file has no header.
    pub columns: Option<Vec<String>>,
    /// Which of its examples are used, where not all are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few: Option<Few>,
    /// The place of the path.
    pub span: Span,
}

/// A few examples of each label, drawn from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Few {
    /// Examples of each label.
    pub per_class: usize,
    /// Examples of each label that are left to another set, in the order that is drawn.
    pub skipped: usize,
    /// What the order is drawn from.
    pub seed: u64,
}

/// How a file of examples is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// Tabs between columns, no quotes.
    Tsv,
    /// Commas between columns, quotes where needed.
    Csv,
    /// A JSON object to a line.
    Jsonl,
    /// A text to a line; its one column is `text`.
    Text,
}

/// A task of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskPlan {
    /// What is asked.
    pub kind: TaskKind,
    /// One or two columns with texts.
    pub text: Vec<String>,
    /// The column with the label.
    pub label: String,
    /// What the column may hold, and what it means, in the order of the logits.
    pub labels: Vec<Label>,
    /// What `evaluate` computes and `keep = best` compares.
    pub metric: Metric,
    /// How labels are read off the language-model head, instead of a classifier.
    pub cloze: Option<Cloze>,
    /// The share of tokens that are masked, for a masked language model.
    pub mask: f32,
    /// Of a sequence-to-sequence task: what stands before every source.
    #[serde(default, rename = "prefix", skip_serializing_if = "String::is_empty")]
    pub source_prefix: String,
    /// The place of the statement.
    pub span: Span,
}

impl TaskPlan {
    /// Whether the task reads the language-model head.
    pub fn uses_language_model(&self) -> bool {
        self.kind.is_language_model() || self.cloze.is_some()
    }

    /// The number of logits for a classification or regression head.
    pub fn outputs(&self) -> usize {
        match self.kind {
            TaskKind::Regress => 1,
            _ => self.labels.len(),
        }
    }
}

/// What a task asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One of several labels.
    Classify,
    /// A number.
    Regress,
    /// The tokens that were masked.
    MaskedLm,
    /// The token after each.
    CausalLm,
    /// Another text, given one: each of its tokens from those before it.
    Seq2seq,
}

impl TaskKind {
    /// Whether it asks for tokens of the text itself.
    pub fn is_language_model(self) -> bool {
        matches!(
            self,
            TaskKind::MaskedLm | TaskKind::CausalLm | TaskKind::Seq2seq
        )
    }
}

/// A label: as the data has it, and its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// As the data has it.
    pub value: String,
    /// Its name in results.
    pub name: String,
}

/// A measure of how good predictions are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Metric {
    Accuracy,
    F1,
    Matthews,
    Pearson,
    Spearman,
    /// Mean cross-entropy; the only one of which less is better.
    Loss,
}

impl Metric {
    /// Its name in the language and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::Loss => "loss",
        }
    }

    /// Whether `new` is better than `old`.
    pub fn better(self, new: f64, old: f64) -> bool {
        match self {
            Metric::Loss => new < old,
            _ => new > old,
        }
    }
}

/// A delta of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaPlan {
    /// Its name.
    pub name: String,
    /// What it does.
    pub change: Change,
    /// Whether a gate weighs what it changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_gated: bool,
    /// The run from which its parameters begin, if not as its method begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The place of the statement.
    pub span: Span,
}

/// A finished run from which a delta begins.
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
    /// The parameters that it adds at a module, its gate's among them.
    pub fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let Change::Method { method, .. } = &self.change else {
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
        match &self.change {
            Change::Method { method, .. } => method.texts(),
            Change::Unfreeze { .. } => Vec::new(),
        }
    }

    /// What its method does on the host, if it does.
    pub fn on_host(&self) -> Option<&dyn OnHost> {
        match &self.change {
            Change::Method { method, .. } => method.on_host(),
            Change::Unfreeze { .. } => None,
        }
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
