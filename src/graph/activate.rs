//! Puts a stage's deltas and head in place, and marks the parameters that it trains.

use std::collections::BTreeSet;

use super::optimizations::{absorbed_keys, is_gated_at_the_top};
use super::{AbsorbsKeys, Active, Graph, ParameterValue, Placed, LARGE};
use crate::delta::ParameterId;
use crate::diagnostic::Problem;
use crate::plan::{Change, Plan, StagePlan, TaskPlan};

impl Graph {
    /// Puts a stage's deltas and head in place, and marks the parameters that it trains. The index one past
    /// the last stage keeps the last stage's deltas and trains nothing.
    ///
    /// # Errors
    /// The task's head is neither in the checkpoint nor trained by any stage so far.
    pub fn activate(&mut self, plan: &Plan, stage: usize) -> Result<(), Problem> {
        let current = plan.stages.get(stage);
        let (task_name, task) = self.checked_task(plan, stage)?;
        let mut active = Active {
            prefix_tokens: plan.prefix_tokens(stage),
            prompt_rows: plan.tokens(stage) - plan.prefix_tokens(stage),
            recomputes: current.is_some_and(|stage| stage.recompute),
            task: Some(task.clone()),
            ..Active::default()
        };
        for parameter in self.head_parameters(task) {
            let id = ParameterId::of_head(task_name, &parameter.path);
            let index = self.values.get_index_of(&id);
            let index = index.expect("a graph has the heads of its plan's tasks");
            if current.is_some_and(|stage| stage.train_head) {
                active.trained.insert(index);
            }
            active.replaced.insert(parameter.path, index);
        }
        for delta in plan.active(stage) {
            match &delta.change {
                Change::Unfreeze { parameters } => {
                    for path in parameters {
                        let id = ParameterId::of_delta(&delta.name, path);
                        if let Some(index) = self.values.get_index_of(&id) {
                            active.replaced.insert(path.clone(), index);
                        }
                    }
                }
                Change::Method { method, sites } => {
                    for site in sites {
                        let place = active.sites.entry(site.clone()).or_default();
                        place.push(Placed {
                            delta: delta.name.clone(),
                            method: method.clone(),
                            is_gated: delta.is_gated,
                        });
                    }
                }
            }
            if current.is_some_and(|stage| stage.train.contains(&delta.name)) {
                active.trained.extend(self.trainable(&delta.name));
            }
        }
        active.deferred = self.deferred(&active);
        active.is_gated_at_the_top = is_gated_at_the_top(plan, stage);
        let absorbs = |drops: bool| absorbed_keys::check(plan, stage, drops).is_ok();
        active.absorbs_keys = AbsorbsKeys {
            inference: absorbs(false),
            training: absorbs(true),
        };
        self.active = active;
        self.layers = Some(self.layers_in_place());
        Ok(())
    }

    /// Whether the first token of a sequence has rows before it, a prompt's, which predict it as well.
    pub fn predicts_first(&self) -> bool {
        self.active.prompt_rows > 0
    }

    /// Indices of a delta's parameters that training may change.
    pub(super) fn trainable<'a>(&'a self, delta: &'a str) -> impl Iterator<Item = usize> + 'a {
        let ids = self.values.keys().enumerate();
        let own = ids.filter(move |(_, id)| id.delta() == Some(delta));
        own.filter(|(_, id)| !self.constants.contains(*id))
            .map(|(index, _)| index)
    }

    /// Indices of the large trained matrices that replace a weight. No method may act on that weight's module, because
    /// a method could read the weight other than in a product or look-up.
    fn deferred(&self, active: &Active) -> BTreeSet<usize> {
        if !self.device.defers_gradients() {
            return BTreeSet::new();
        }
        let is_free = |path: &str| {
            let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
            !active.sites.contains_key(module)
        };
        let is_large = |index: usize| match &self.values[index] {
            ParameterValue::Matrix(elements, _) => {
                let (out, input) = elements.shape();
                out * input >= LARGE
            }
            ParameterValue::Vector(_) => false,
        };
        let replaced = active.replaced.iter();
        replaced
            .filter(|(path, index)| is_free(path) && is_large(**index))
            .map(|(_, index)| *index)
            .filter(|index| active.trained.contains(index))
            .collect()
    }

    /// Whether every stage can be activated.
    ///
    /// # Errors
    /// See [`Graph::activate`].
    pub fn check_heads(&self, plan: &Plan) -> Result<(), Problem> {
        (0..=plan.stages.len()).try_for_each(|stage| self.checked_task(plan, stage).map(drop))
    }

    /// The task of a stage, after a check that its head was loaded or has been trained.
    fn checked_task<'p>(
        &self,
        plan: &'p Plan,
        stage: usize,
    ) -> Result<(&'p str, &'p TaskPlan), Problem> {
        let task = match plan.stages.get(stage) {
            Some(stage) => plan
                .tasks
                .get_key_value(&stage.task)
                .map(|(name, task)| (name.as_str(), task)),
            None => plan.final_task(),
        };
        let (name, task) = task.ok_or_else(|| {
            Problem::new("delta::graph::no_task", "the pipeline has no task")
                .help("add a `task` block")
        })?;
        self.check_head(plan, stage, name)?;
        Ok((name, task))
    }

    fn check_head(&self, plan: &Plan, stage: usize, task: &str) -> Result<(), Problem> {
        match self.fresh_heads.get(task) {
            Some(reason) => check_trained(plan, stage, task, reason),
            None => Ok(()),
        }
    }
}

/// Checks that a stage or one before it trains a head that was drawn for this `reason`.
///
/// # Errors
/// None does.
pub fn check_trained(plan: &Plan, stage: usize, task: &str, reason: &str) -> Result<(), Problem> {
    let so_far = &plan.stages[..plan.stages.len().min(stage + 1)];
    let trains = |stage: &StagePlan| stage.train_head && stage.task == task;
    if so_far.iter().any(trains) {
        return Ok(());
    }
    let message = format!(
        "the head of `{task}` is newly initialized ({reason}), and no stage has trained it"
    );
    let problem = Problem::new("delta::graph::untrained_head", message);
    Err(match plan.stages.get(stage) {
        Some(stage) => {
            let trained = stage.train.iter().map(String::as_str);
            let trained: Vec<&str> = trained.chain(["head"]).collect();
            problem
                .at(stage.span, "in this stage")
                .help(format!("write `train = [{}]`", trained.join(", ")))
        }
        None => problem.help("add `head` to the `train` list of a stage"),
    })
}
