//! Measures a few steps of a stage, operation by operation.

use super::Loader;
use crate::backbone::fetch_weights;
use crate::diagnostic::Problem;
use crate::engine::profile::{self, Op, Spent};
use crate::engine::Device;
use crate::graph::Graph;
use crate::plan::Plan;
use crate::train::{
    check_steps, train, ActivationCaches, Event, Position, Snapshot, State, Watcher,
};

/// The measurements of a stage's steps.
pub struct Profile {
    /// The stage.
    pub stage: String,
    /// The number of measured steps.
    pub steps: usize,
    /// Seconds of each step.
    pub seconds: Vec<f64>,
    /// The cost of each class of operations, summed over all steps and threads.
    pub spent: Vec<(Op, Spent)>,
}

/// The number of first steps that are not measured, because they pack weights and allocate buffers.
const SKIPPED: usize = 2;

/// Runs a few steps of stage number `index` with freshly initialized deltas, and writes no files.
///
/// # Errors
/// What a run reports before its first step; a loss that is not a number; a stage with too few steps to measure.
pub fn profile(plan: &Plan, index: usize, steps: usize) -> Result<Profile, Problem> {
    super::precision::check_precision(plan, &Device::Cpu)?;
    let mut data = Loader::new(plan)?.stages(plan)?;
    let examples: Vec<usize> = data.iter().map(|data| data.train.len()).collect();
    check_steps(plan, &examples)?;
    data.iter_mut().for_each(|data| data.dev = None);
    fetch_weights(&plan.backbone.location).map_err(|problem| problem.or_at(plan.backbone.span))?;
    let mut graph =
        Graph::load(plan, Device::Cpu).map_err(|problem| problem.or_at(plan.backbone.span))?;
    let position = Position {
        stage: index,
        ..Position::default()
    };
    let state = State {
        position,
        ..State::default()
    };
    let mut clock = Clock {
        last: SKIPPED + steps,
        seconds: Vec::new(),
        spent: Vec::new(),
    };
    train(
        plan,
        &mut graph,
        &data,
        state,
        &ActivationCaches::default(),
        &mut clock,
    )?;
    if clock.seconds.is_empty() {
        let message = format!(
            "stage `{}` has no steps after the {SKIPPED} warm-up steps, which are not measured",
            plan.stages[index].name
        );
        return Err(Problem::new("delta::run::profile", message)
            .at(plan.stages[index].span, "this stage")
            .help("give it more `steps`, or a smaller `batch`"));
    }
    if clock.spent.is_empty() {
        clock.spent = profile::stop();
    }
    Ok(Profile {
        stage: plan.stages[index].name.clone(),
        steps: clock.seconds.len(),
        seconds: clock.seconds,
        spent: clock.spent,
    })
}

/// Measures the steps after the first [`SKIPPED`] ones, and stops the training after the last.
struct Clock {
    last: usize,
    seconds: Vec<f64>,
    spent: Vec<(Op, Spent)>,
}

impl Watcher for Clock {
    fn event(&mut self, event: Event) -> Result<(), Problem> {
        if let Event::Step { step, seconds, .. } = event {
            if step > SKIPPED && self.spent.is_empty() {
                self.seconds.push(seconds);
            }
            if step == SKIPPED {
                profile::start();
            }
            if step == self.last {
                self.spent = profile::stop();
            }
        }
        // The next stage trains other deltas.
        if matches!(event, Event::End { .. }) && self.spent.is_empty() {
            self.spent = profile::stop();
        }
        Ok(())
    }

    fn save<'s>(&mut self, _: &dyn Fn() -> Snapshot<'s>, _: bool) -> Result<(), Problem> {
        Ok(())
    }

    fn is_interrupted(&self) -> bool {
        !self.spent.is_empty()
    }
}
