//! The training loop, one stage after the other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::checkpoint::{Position, Snapshot, State};
use super::comparison::reference;
use super::evaluate::{evaluate_with, Evaluation, Measuring};
use super::frozen::{ActivationCache, ActivationCaches};
use super::length::steps;
use super::optimizer::{clip, Stepper};
use super::schedule::factor;
use super::StageResult;
use crate::data::{groups, order, Example, Examples, Noising, Prediction};
use crate::delta::{OnHost, ParameterId, Step};
use crate::diagnostic::Problem;
use crate::engine::{mix, Outcome};
use crate::generate::Writer;
use crate::graph::optimizations::frozen_blocks;
use crate::graph::{device_problem, Graph};
use crate::plan::{DeltaPlan, Keep, Plan, StagePlan, TaskPlan, Unit};
use crate::ranks::own_of;
use crate::task::{Compared, Comparison, Metric, Shares};

/// The examples of one stage.
#[derive(Clone, Default)]
pub struct Data {
    /// What it trains on.
    pub train: std::sync::Arc<Examples>,
    /// What it is evaluated on.
    pub dev: Option<std::sync::Arc<Examples>>,
    /// What is hidden from the model, if anything is.
    pub noising: Option<Noising>,
    /// What writes texts, for a metric of texts.
    pub writer: Option<Writer>,
    /// How much each class counts in the loss of the training.
    pub shares: Option<Shares>,
}

/// An event of a training run.
#[allow(missing_docs)]
pub enum Event<'a> {
    /// A stage begins (or goes on) at this step.
    Begin {
        stage: &'a StagePlan,
        step: usize,
        steps: usize,
    },
    /// A step is done.
    Step {
        stage: &'a StagePlan,
        step: usize,
        epoch: f64,
        loss: f32,
        lr: f32,
        norm: f32,
        seconds: f64,
        /// How the step's answers compared, if the task compares some.
        compared: Compared,
    },
    /// The dev set was evaluated.
    Evaluated {
        stage: &'a StagePlan,
        step: usize,
        evaluation: &'a Evaluation,
        is_best: bool,
    },
    /// A stage is over.
    End {
        stage: &'a StagePlan,
        result: &'a StageResult,
    },
}

/// Observes a training run, and may stop it.
pub trait Watcher {
    /// Handles an event.
    ///
    /// # Errors
    /// The event cannot be recorded.
    fn event(&mut self, event: Event) -> Result<(), Problem>;

    /// Called when the state may be saved; with `must`, it has to be saved.
    ///
    /// # Errors
    /// The state cannot be written.
    fn save<'s>(&mut self, state: &dyn Fn() -> Snapshot<'s>, must: bool) -> Result<(), Problem>;

    /// Whether to stop after this step.
    fn is_interrupted(&self) -> bool;
}

/// Trains all stages of a plan, starting from `state`. Runs share the activations of frozen blocks through `caches`.
/// Returns the final state, whose values are left in the graph, or `None` if the run was interrupted; the state has
/// then been saved.
///
/// # Errors
/// The device's error; a loss or gradient that is not a number; an error of the watcher.
pub fn train(
    plan: &Plan,
    graph: &mut Graph,
    data: &[Data],
    mut state: State,
    caches: &ActivationCaches,
    watcher: &mut dyn Watcher,
) -> Result<Option<State>, Problem> {
    graph.set(std::mem::take(&mut state.values))?;
    for (index, data) in data.iter().enumerate().skip(state.position.stage) {
        graph.activate(plan, index)?;
        let mut stage = Stage::new(plan, index, data, state, caches);
        let finished = stage.run(graph, watcher)?;
        state = stage.state;
        if !finished {
            return Ok(None);
        }
    }
    graph.activate(plan, plan.stages.len())?;
    Ok(Some(state))
}

/// Where a stage remembers the log-probabilities of the answers that it compares a model with: those of the training
/// set, and those of the dev set.
const REFERENCE: [&str; 2] = ["reference of train", "reference of dev"];

/// The pair of an example among those of all.
fn pair_of(all: &[f32], number: usize) -> [f32; 2] {
    [all[2 * number], all[2 * number + 1]]
}

struct Stage<'a> {
    plan: &'a StagePlan,
    task: &'a TaskPlan,
    data: &'a Data,
    seed: u64,
    /// The number of steps in an epoch.
    epoch_steps: usize,
    steps: usize,
    stepper: Stepper,
    /// The plan, which knows the rate of each parameter.
    rates: &'a Plan,
    state: State,
    started: Instant,
    order: (usize, Vec<usize>),
    /// The trained deltas whose methods also work on the host.
    on_host: Vec<&'a DeltaPlan>,
    /// The activations below the lowest trained site.
    cache: Arc<ActivationCache>,
    /// Whether these are kept for the examples that the stage trains on.
    keeps_train: bool,
    /// Whether they are kept for those that it is evaluated on.
    keeps_dev: bool,
}

impl<'a> Stage<'a> {
    fn new(
        plan: &'a Plan,
        index: usize,
        data: &'a Data,
        mut state: State,
        caches: &ActivationCaches,
    ) -> Self {
        let stage = &plan.stages[index];
        let (epoch_steps, steps) = steps(stage, data.train.len());
        let mut stepper = Stepper::new(stage.optimizer);
        stepper.moments = std::mem::take(&mut state.moments);
        stepper.steps = state.position.step;
        let of_train = frozen_blocks::check(plan, index).is_ok() && steps > epoch_steps;
        let task = &plan.tasks[&stage.task];
        let first = plan.first_trained_block(index);
        let fits = frozen_blocks::fits(&plan.backbone.config).is_ok();
        // Nothing is random in an evaluation.
        let of_dev = first > 0 && fits && !task.kind.predicts_tokens();
        Stage {
            plan: stage,
            task,
            data,
            seed: mix(plan.seed ^ mix(index as u64 + 1)),
            epoch_steps,
            steps,
            stepper,
            rates: plan,
            state,
            started: Instant::now(),
            order: (usize::MAX, Vec::new()),
            on_host: plan.trained_on_host(stage),
            cache: caches.get(plan, index),
            keeps_train: of_train,
            keeps_dev: of_dev,
        }
    }

    /// Returns whether the stage was finished.
    fn run(&mut self, graph: &mut Graph, watcher: &mut dyn Watcher) -> Result<bool, Problem> {
        let first = self.state.position.step;
        watcher.event(Event::Begin {
            stage: self.plan,
            step: first,
            steps: self.steps,
        })?;
        self.remember_reference(graph)?;
        for step in first..self.steps {
            self.step(step, graph, watcher)?;
            self.state.position.step = step + 1;
            let mut is_over = step + 1 == self.steps;
            if self.is_due(step + 1) || is_over {
                is_over |= self.evaluate(graph, watcher)?;
            }
            if is_over {
                break;
            }
            let interrupted = watcher.is_interrupted();
            watcher.save(&|| self.snapshot(graph), interrupted)?;
            if interrupted {
                return Ok(false);
            }
        }
        self.finish(graph, watcher)?;
        Ok(true)
    }

    /// Computes what a model as it stands makes of all pairs, if the stage compares it with that. A run that goes on has
    /// it from its checkpoint.
    fn remember_reference(&mut self, graph: &Graph) -> Result<(), Problem> {
        let comparison = self.task.kind.comparison();
        let dev = self.data.dev.as_ref();
        let sets = [Some(&self.data.train), dev];
        for (name, examples) in REFERENCE.into_iter().zip(sets) {
            let Some(examples) = examples.filter(|_| !self.state.memory.contains_key(name)) else {
                continue;
            };
            let found = reference(graph, examples, comparison)?;
            if !found.is_empty() {
                self.state.memory.insert(name.to_owned(), found.concat());
            }
        }
        Ok(())
    }

    fn step(
        &mut self,
        step: usize,
        graph: &mut Graph,
        watcher: &mut dyn Watcher,
    ) -> Result<(), Problem> {
        let started = Instant::now();
        let numbers = self.examples(step);
        let train = &self.data.train;
        let examples: Vec<Example> = numbers.iter().map(|number| train.get(*number)).collect();
        let examples: Vec<&Example> = examples.iter().collect();
        let random = mix(self.seed ^ mix(step as u64));
        let of_train = self.state.memory.get(REFERENCE[0]);
        let reference: Vec<[f32; 2]> = match of_train {
            Some(all) => numbers.iter().map(|number| pair_of(all, *number)).collect(),
            None => Vec::new(),
        };
        let comparison = self.task.kind.comparison();
        let mut groups = groups(
            &examples,
            random,
            Prediction {
                noising: self.data.noising.as_ref(),
                predicts_first: graph.predicts_first(),
                shares: self.data.shares.as_ref(),
                reads_prompts: comparison.is_some_and(Comparison::reads_prompts),
                reference: &reference,
            },
            graph.device().group_rows(),
        );
        if self.keeps_train {
            self.cache.attach(graph, own_of(0, &mut groups))?;
        }
        let ((mut loss, mut gradients), compared) = graph.gradients_and_answers(&groups)?;
        self.on_host(step, graph, &mut gradients, |method, step| {
            loss += method.penalty(step)?;
            Ok(())
        })?;
        let norm = clip(&mut gradients, self.plan.clip);
        if !loss.is_finite() || !norm.is_finite() {
            return Err(self.not_a_number(step + 1, loss));
        }
        let share = factor(&self.plan.schedule, step, self.steps);
        self.stepper.begin();
        let (stepper, rates) = (&mut self.stepper, &self.rates);
        graph.update(&gradients, |id, values, gradient, columns| {
            let lr = share * rates.rate(self.plan, id);
            stepper.update(id.path(), values, gradient, columns, lr)
        })?;
        self.on_host(step, graph, &mut gradients, |method, step| {
            method.allocate(step);
            Ok(())
        })?;
        let epoch = (step + 1) as f64 / self.epoch_steps as f64;
        watcher.event(Event::Step {
            stage: self.plan,
            step: step + 1,
            epoch,
            loss,
            lr: share * self.plan.optimizer.lr(),
            norm,
            seconds: started.elapsed().as_secs_f64(),
            compared,
        })
    }

    /// Calls `act` for the method of each trained delta that works on the host, and stores the values that it changes.
    fn on_host(
        &mut self,
        step: usize,
        graph: &mut Graph,
        gradients: &mut BTreeMap<ParameterId, Vec<f32>>,
        mut act: impl FnMut(&dyn OnHost, &mut Step) -> Outcome<()>,
    ) -> Result<(), Problem> {
        for delta in &self.on_host {
            let Some(method) = delta.on_host() else {
                continue;
            };
            let (before, device) = (graph.trained_values_of(&delta.name), graph.device().clone());
            let mut step = Step {
                number: step + 1,
                steps: self.steps,
                values: before.clone(),
                gradients,
                device: &device,
                memory: &mut self.state.memory,
            };
            act(method, &mut step).map_err(device_problem)?;
            let mut changed = step.values;
            changed.retain(|id, new| before.get(id).is_some_and(|old| old != new));
            graph.update(&changed, |_, values, new, _| values.copy_from_slice(new))?;
        }
        Ok(())
    }

    /// The numbers of the examples of a step: the next ones in the order of its epoch.
    fn examples(&mut self, step: usize) -> Vec<usize> {
        let (epoch, within) = (step / self.epoch_steps, step % self.epoch_steps);
        if self.order.0 != epoch {
            let all = self.data.train.len();
            self.order = (epoch, order(all, self.seed, epoch));
        }
        let count = self.plan.batch * self.plan.accumulate;
        self.order
            .1
            .iter()
            .skip(within * count)
            .take(count)
            .copied()
            .collect()
    }

    fn not_a_number(&self, step: usize, loss: f32) -> Problem {
        let message = format!(
            "stage `{}`, step {step}: the loss ({loss}) or its gradient is not finite",
            self.plan.name
        );
        Problem::failure("delta::train::not_a_number", message)
            .at(self.plan.span, "in this stage")
            .help("lower `lr` or `clip`, or add a `warmup`, and run it with another `--out`: this run's directory belongs to the old settings")
    }

    fn is_due(&self, step: usize) -> bool {
        let interval = match self.plan.evaluate.unit {
            Unit::Steps => self.plan.evaluate.count,
            Unit::Epochs => self.plan.evaluate.count * self.epoch_steps,
        };
        step.is_multiple_of(interval)
    }

    /// Evaluates the dev set. Returns whether patience is exhausted.
    fn evaluate(&mut self, graph: &Graph, watcher: &mut dyn Watcher) -> Result<bool, Problem> {
        let Some(dev) = &self.data.dev else {
            return Ok(false);
        };
        let kept = self.keeps_dev.then_some(&*self.cache);
        let of_dev = self.state.memory.get(REFERENCE[1]);
        let reference: Vec<[f32; 2]> = match of_dev {
            Some(all) => (0..dev.len()).map(|number| pair_of(all, number)).collect(),
            None => Vec::new(),
        };
        let measuring = Measuring {
            noising: self.data.noising.as_ref(),
            writer: self.data.writer.as_ref(),
            reference: &reference,
        };
        let evaluation = evaluate_with(graph, &dev.unpacked(), self.task, measuring, kept)?;
        let value = evaluation.get(self.task.metric);
        let position = &mut self.state.position;
        // Equal scores are common where dev sets are small or rare labels are not predicted yet: the loss tells them apart.
        let metric = self.task.metric;
        let is_better = |best: &Evaluation| metric.better(value, best.get(metric));
        let is_as_good = |best: &Evaluation| {
            value == best.get(metric) && evaluation.get(Metric::Loss) < best.get(Metric::Loss)
        };
        let best = position.best.as_ref().map(|(best, _)| best);
        let is_missed = best.is_some_and(|best| !is_better(best));
        let is_best = best.is_none_or(|best| is_better(best) || is_as_good(best));
        position.misses = if is_missed { position.misses + 1 } else { 0 };
        if is_best {
            position.best = Some((evaluation.clone(), position.step));
            if self.plan.keep == Keep::Best {
                self.state.best = graph.trained_tensors();
            }
        }
        position.last = Some(evaluation.clone());
        let step = position.step;
        let is_over = self
            .plan
            .patience
            .is_some_and(|patience| position.misses >= patience);
        watcher.event(Event::Evaluated {
            stage: self.plan,
            step,
            evaluation: &evaluation,
            is_best,
        })?;
        Ok(is_over)
    }

    fn snapshot<'s>(&'s self, graph: &'s Graph) -> Snapshot<'s> {
        let mut position = self.state.position.clone();
        position.seconds += self.started.elapsed().as_secs_f64();
        Snapshot {
            position,
            values: graph.views(),
            moments: &self.stepper.moments,
            memory: &self.state.memory,
            best: &self.state.best,
        }
    }

    /// Sets the parameters that the stage keeps, and prepares the state for the next stage.
    fn finish(&mut self, graph: &mut Graph, watcher: &mut dyn Watcher) -> Result<(), Problem> {
        let position = &mut self.state.position;
        let steps = position.step;
        let (mut dev, mut kept_step) = (position.last.take(), steps);
        if let (Keep::Best, Some((best, step))) = (self.plan.keep, position.best.take()) {
            (dev, kept_step) = (Some(best), step);
            graph.set(std::mem::take(&mut self.state.best))?;
        }
        let result = StageResult {
            stage: self.plan.name.clone(),
            trained: graph.trained_count(),
            steps,
            kept_step,
            dev,
            seconds: position.seconds + self.started.elapsed().as_secs_f64(),
        };
        watcher.event(Event::End {
            stage: self.plan,
            result: &result,
        })?;
        let position = &mut self.state.position;
        let mut results = std::mem::take(&mut position.results);
        results.push(result);
        *position = Position {
            stage: position.stage + 1,
            results,
            ..Position::default()
        };
        self.stepper.moments = BTreeMap::new();
        self.state.memory = BTreeMap::new();
        self.started = Instant::now();
        watcher.save(&|| self.snapshot(graph), true)
    }
}
