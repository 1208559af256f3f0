//! Stages: steps, evaluations, checkpoints.
//!
//! In: a [`Graph`], a [`Plan`], examples. Out: trained parameters and measurements. This module knows nothing of the
//! language.

mod checkpoint;
mod comparison;
mod evaluate;
mod frozen;
mod length;
pub mod optimizer;
pub mod schedule;
mod stage;

use serde::{Deserialize, Serialize};

pub use checkpoint::{load, save, Position, Snapshot, State};
pub use comparison::{likelihoods, reference};
pub use evaluate::{evaluate, predict, Evaluation, Measuring};
pub use frozen::{ActivationCache, ActivationCaches, KEPT_IN_MEMORY};
pub use length::{check_steps, steps, warn_of_warmup};
pub use stage::{train, Data, Event, Watcher};

/// The result of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// The stage's name.
    pub stage: String,
    /// The number of parameters that it trained.
    pub trained: usize,
    /// The number of steps that it took.
    pub steps: usize,
    /// The step whose parameters it kept.
    pub kept_step: usize,
    /// The evaluation of those parameters on the dev set.
    pub dev: Option<Evaluation>,
    /// Seconds, evaluations included.
    pub seconds: f64,
}
