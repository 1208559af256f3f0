//! Stages: steps, evaluations, checkpoints.
//!
//! In: a [`Graph`], a [`Plan`], examples. Out: trained parameters and what was measured. It knows
//! nothing of the language.

mod checkpoint;
mod evaluate;
mod frozen;
pub mod metrics;
pub mod optimizer;
pub mod schedule;
mod stage;

use serde::{Deserialize, Serialize};

pub use checkpoint::{load, save, Position, Snapshot, State};
pub use evaluate::{evaluate, highest, predict, softmax, Evaluation};
pub use frozen::{ActivationCache, ActivationCaches, KEPT_IN_MEMORY};
pub use stage::{check_steps, train, Data, Event, Watcher};

/// What a stage came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// The stage's name.
    pub stage: String,
    /// Parameters that it trained.
    pub trained: usize,
    /// Steps that it took.
    pub steps: usize,
    /// The step whose parameters it left.
    pub kept_step: usize,
    /// Those parameters on the dev set.
    pub dev: Option<Evaluation>,
    /// Seconds, evaluations included.
    pub seconds: f64,
}
