//! What a stage has in place, and what of it is trained.

use std::collections::BTreeSet;

use super::optimizations::absorbed_keys;
use super::{Active, Graph, Placed, Value, LARGE};
use crate::diagnostic::Problem;
use crate::plan::{Change, Plan};

impl Graph {
    /// Puts in place what a stage has in place, and trains what it trains. For the index one past
    /// the last stage: what the last stage had, nothing trained.
    ///
    /// # Errors
    /// The task's head is neither in the checkpoint nor trained by any stage so far.
    pub fn activate(&mut self, plan: &Plan, stage: usize) -> Result<(), Problem> {
        let current = plan.stages.get(stage);
        let (task_name, task) = match current {
            Some(stage) => plan
                .tasks
                .get_key_value(&stage.task)
                .map(|(n, t)| (n.as_str(), t)),
            None => plan.final_task(),
        }
        .ok_or_else(|| {
            Problem::new("delta::graph::no_task", "the pipeline has no task")
                .help("add a `task` block")
        })?;
        self.check_head(plan, stage, task_name)?;
        let mut active = Active {
            prefix_tokens: plan.prefix_tokens(stage),
            task: Some(task.clone()),
            ..Active::default()
        };
        for parameter in self.head_parameters(task) {
            let key = format!("{task_name}.{}", parameter.path);
            if current.is_some_and(|stage| stage.train_head) {
                active.trained.insert(key.clone());
            }
            active.redirects.insert(parameter.path, key);
        }
        for delta in plan.active(stage) {
            let trained = current.is_some_and(|stage| stage.train.contains(&delta.name));
            match &delta.change {
                Change::Unfreeze { parameters } => {
                    for path in parameters {
                        let key = format!("{}.{path}", delta.name);
                        if self.values.contains_key(&key) {
                            active.redirects.insert(path.clone(), key);
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
            if trained {
                let keys = self.trainable.get(&delta.name).into_iter().flatten();
                active.trained.extend(keys.cloned());
            }
        }
        active.deferred = self.deferred(&active);
        active.absorbs_keys =
            [false, true].map(|drops| absorbed_keys::check(plan, stage, drops).is_ok());
        self.active = active;
        Ok(())
    }

    /// The large matrices among what is trained that stand for weights where no method acts.
    fn deferred(&self, active: &Active) -> BTreeSet<String> {
        if !self.device.defers_gradients() {
            return BTreeSet::new();
        }
        let is_free = |path: &str| {
            let module = path.rsplit_once('.').map_or(path, |(module, _)| module);
            !active.sites.contains_key(module)
        };
        let is_large = |key: &String| match self.values.get(key) {
            Some(Value::Matrix(elements, _)) => {
                let (out, input) = elements.shape();
                out * input >= LARGE
            }
            _ => false,
        };
        let replaced = active.redirects.iter();
        let keys = replaced.filter(|(path, key)| is_free(path) && is_large(key));
        keys.map(|(_, key)| key.clone())
            .filter(|key| active.trained.contains(key))
            .collect()
    }

    fn check_head(&self, plan: &Plan, stage: usize, task: &str) -> Result<(), Problem> {
        let so_far = &plan.stages[..plan.stages.len().min(stage + 1)];
        let trained = so_far
            .iter()
            .any(|stage| stage.train_head && stage.task == task);
        let Some(reason) = self.fresh_heads.get(task).filter(|_| !trained) else {
            return Ok(());
        };
        let message =
            format!("the head of `{task}` is drawn anew ({reason}), and no stage has trained it");
        let problem = Problem::new("delta::graph::untrained_head", message);
        let problem = problem.help("add `head` to the `train` list of a stage");
        Err(match plan.stages.get(stage) {
            Some(stage) => problem.at(stage.span, "in this stage"),
            None => problem,
        })
    }
}
