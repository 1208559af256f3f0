//! A stage of a plan, and its settings.

use std::collections::BTreeMap;

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
    /// Deltas of earlier stages that this stage takes out.
    pub without: Vec<String>,
    /// The name of its data set.
    pub data: String,
    /// The name of its task.
    pub task: String,
    /// How long it runs.
    pub length: Length,
    /// Examples in a batch.
    pub batch: usize,
    /// The number of batches whose gradients make one optimizer step.
    pub accumulate: usize,
    /// Whether the backward pass computes the inside of every block again, so that no more than its input is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub recompute: bool,
    /// The optimizer and its settings.
    pub optimizer: Optimizer,
    /// The peak learning rates of deltas, and of `head`, where they are not the optimizer's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rates: BTreeMap<String, f32>,
    /// The factor of the learning rate of every LoRA's B (LoRA+: Hayou et al., arXiv 2402.12354).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_plus: Option<f32>,
    /// How the learning rate changes over the steps.
    pub schedule: Schedule,
    /// The norm to which the gradient of a step is clipped; `None` for no clipping.
    pub clip: Option<f32>,
    /// How often the dev set is evaluated.
    pub evaluate: Interval,
    /// Which of the evaluated states the stage keeps at its end.
    pub keep: Keep,
    /// The stage stops after this many evaluations in a row without a better metric.
    pub patience: Option<usize>,
    /// The place of the statement.
    pub span: Span,
}

/// How long a stage runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Length {
    Steps(usize),
    Epochs(f64),
}

/// An interval: every `count` steps or epochs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Interval {
    pub count: usize,
    pub unit: Unit,
}

/// An optimizer and its settings.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Optimizer {
    /// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2).
    AdamW {
        /// Learning rate.
        lr: f32,
        /// Decay rates of the running mean of gradients and of the running mean of their squares.
        betas: (f32, f32),
        /// Added to the square root of the running mean of squares.
        epsilon: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Learning rate.
        lr: f32,
        /// Factor of the previous step's update in this step's update.
        momentum: f32,
        /// Weight decay, added to the gradient.
        weight_decay: f32,
    },
    /// Lion (Chen et al., arXiv 2302.06675, algorithm 2).
    Lion {
        /// Learning rate.
        lr: f32,
        /// The weight of the running mean in a step, and its decay rate.
        betas: (f32, f32),
        /// Decoupled weight decay.
        weight_decay: f32,
    },
    /// Adafactor (Shazeer and Stern, arXiv 1804.04235), as transformers has it with a rate of its own.
    Adafactor {
        /// Learning rate.
        lr: f32,
        /// Whether the rate is relative to the size of a parameter.
        scale_parameter: bool,
        /// A step whose root mean square is larger is scaled down to it.
        threshold: f32,
        /// The power of the number of steps with which the running mean of squares decays.
        decay: f32,
        /// Decoupled weight decay.
        weight_decay: f32,
    },
}

impl Optimizer {
    /// The peak learning rate.
    pub fn lr(&self) -> f32 {
        match self {
            Optimizer::AdamW { lr, .. }
            | Optimizer::Sgd { lr, .. }
            | Optimizer::Lion { lr, .. }
            | Optimizer::Adafactor { lr, .. } => *lr,
        }
    }
}

/// How the learning rate changes over the steps of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The course of the rate after the warm-up.
    pub shape: ScheduleShape,
    /// The warm-up, from 0 to the full rate.
    pub warmup: Warmup,
}

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Stays at the full rate to the end.
    Constant,
    /// Falls in a straight line to 0 at the end.
    Linear,
    /// Falls along half a cosine to 0 at the end.
    Cosine,
    /// Falls with the square root of the number of steps, from the end of the warm-up on; without a warm-up, from 10,000
    /// steps before the first one.
    InverseSqrt,
}

/// How long the warm-up is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Warmup {
    Steps(usize),
    Fraction(f64),
}

/// Which state a stage keeps at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    /// The one with the best metric on the dev set.
    Best,
    /// The last one.
    Last,
}
