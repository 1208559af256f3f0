//! A stage of a plan, and its settings.

use serde::{Deserialize, Serialize};

use crate::diagnostic::Span;
use crate::syntax::ast::Unit;

/// A stage of a plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Its name.
    pub name: String,
    /// The deltas that it trains.
    pub train: Vec<String>,
    /// Whether it trains the task's head.
    pub train_head: bool,
    /// Deltas of earlier stages that are not in place.
    pub without: Vec<String>,
    /// The name of its data set.
    pub data: String,
    /// The name of its task.
    pub task: String,
    /// How long it goes on.
    pub length: Length,
    /// Examples in a batch.
    pub batch: usize,
    /// Batches whose gradients make one step.
    pub accumulate: usize,
    /// How parameters follow gradients.
    pub optimizer: Optimizer,
    /// The learning rate over the steps.
    pub schedule: Schedule,
    /// The largest norm that the gradient of a step may have.
    pub clip: Option<f32>,
    /// How often the dev set is evaluated.
    pub evaluate: Interval,
    /// Which of the evaluated states the stage leaves.
    pub keep: Keep,
    /// Evaluations without a better metric after which it stops.
    pub patience: Option<usize>,
    /// The place of the statement.
    pub span: Span,
}

/// How long a stage goes on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Length {
    Steps(usize),
    Epochs(f64),
}

/// Every so many steps or epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Interval {
    pub count: usize,
    pub unit: Unit,
}

/// How parameters follow gradients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
    AdamW {
        /// Learning rate.
        lr: f32,
        /// Decay of the running mean and of the running square.
        betas: (f32, f32),
        /// Added to the root of the running square.
        epsilon: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Learning rate.
        lr: f32,
        /// Share of the last step that is kept.
        momentum: f32,
        /// Weight decay, added to the gradient.
        weight_decay: f32,
    },
}

impl Optimizer {
    /// The peak learning rate.
    pub fn lr(&self) -> f32 {
        match self {
            Optimizer::AdamW { lr, .. } | Optimizer::Sgd { lr, .. } => *lr,
        }
    }
}

/// The learning rate over the steps of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// What follows the warm-up.
    pub shape: ScheduleShape,
    /// The warm-up, from 0 to the full rate.
    pub warmup: Warmup,
}

/// What follows the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleShape {
    /// The full rate to the end.
    Constant,
    /// A straight line to 0 at the end.
    Linear,
    /// Half a cosine to 0 at the end.
    Cosine,
}

/// How long the warm-up is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Warmup {
    Steps(usize),
    Fraction(f32),
}

/// Which state a stage leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The one with the best metric on the dev set.
    Best,
    /// The last one.
    Last,
}
