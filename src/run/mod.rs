//! One run, from a plan to a directory: examples, graph, training, results.
//!
//! A run writes into `NAME.partial`, which is renamed to `NAME` when the run is complete. An interrupted run
//! continues from `NAME.partial` and ends with the same bits.

mod combine;
mod directory;
mod examples;
mod finished;
mod gguf;
mod heads;
mod load;
mod log;
mod manifest;
mod merge;
mod origin;
mod precision;
mod profile;
mod profile_table;
mod reference;
mod replay;
mod source;
mod tying;
mod warnings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::backbone::fetch_weights;
use crate::diagnostic::Problem;
use crate::engine::Device;
use crate::graph::{Backbones, Graph};
use crate::plan::{FilePlan, Metric, Plan};
use crate::report::{metric_value, Progress, Table};
use crate::text::thousands;
use crate::train::{
    check_steps, train, ActivationCaches, Data, Evaluation, Event, Snapshot, StageResult, Watcher,
};

pub use combine::{combine, combined, Combination, Rule};
pub use directory::Directory;
pub use examples::{check_data, first_examples, mean_lengths, Loader};
pub use finished::{FinishedRun, Integrity};
pub use gguf::{export_gguf, merge_gguf};
pub use heads::{backbone_warnings, check_backbone, head_origins};
pub use load::{open_run, Loaded, Reads};
pub use log::Log;
pub use manifest::Manifest;
pub use merge::merge;
pub use precision::PrecisionError;
pub use profile::{profile, Profile};
pub use profile_table::profile_table;
pub use reference::reference;
pub use replay::{replay, Compared, Replayed};
pub use source::{read_text, whole, Checked, Confined, Source, ROWS_AT_EACH_END};
pub use tying::has_head_weight;

/// The results of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The pipeline's name.
    pub name: String,
    /// The metric of the last stage's task.
    pub metric: Metric,
    /// That metric on the dev set when the guess is always the most frequent label of the training data.
    pub majority: Option<f64>,
    /// Results on the dev set without any training, if the plan has no stage.
    pub zero_shot: Option<Evaluation>,
    /// Results of each stage on its dev set.
    pub stages: Vec<StageResult>,
    /// Results of the final parameters on the test set, if there is one.
    pub test: Option<Evaluation>,
    /// The difference between logits and those in f32, if products are in 16 bits.
    #[serde(default)]
    pub precision_error: Option<PrecisionError>,
    /// The peak memory of the process so far, in bytes, if the system reports it.
    #[serde(default)]
    pub peak_memory: Option<u64>,
}

/// How a run ended.
pub enum Ended {
    /// The run is complete: its results, its directory and its warnings.
    Complete(Box<Summary>, PathBuf, Vec<Problem>),
    /// The run was interrupted and can continue from this directory.
    Interrupted(PathBuf),
}

/// State that the runs of one process share.
pub struct Shared {
    /// Loaded backbones.
    pub backbones: Backbones,
    /// Cached activations of frozen blocks.
    pub caches: ActivationCaches,
    /// Whether files of earlier runs must be unchanged.
    pub integrity: Integrity,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            backbones: Backbones::default(),
            caches: ActivationCaches::default(),
            integrity: Integrity::Checked,
        }
    }
}

/// Runs a plan on a device and writes the directory `out`. Does not load or compute again what `shared` already has.
///
/// # Errors
/// A mistake in the data, the weights or the output directory; a failure of the device or the disk;
/// a loss that is not a number.
pub fn run(
    plan: &Plan,
    source: &str,
    device: Device,
    shared: &Shared,
    out: &Path,
    interrupted: &AtomicBool,
    progress: Progress,
) -> Result<Ended, Problem> {
    let integrity = shared.integrity;
    let directory = Directory::claim(out)?;
    precision::check_precision(plan, &device)?;
    let mut loader = Loader::new(plan)?;
    let data = loader.stages(plan)?;
    let examples: Vec<usize> = data.iter().map(|data| data.train.len()).collect();
    check_steps(plan, &examples)?;
    fetch_weights(&plan.backbone.location).map_err(|problem| problem.or_at(plan.backbone.span))?;
    let mut graph = Graph::load_beside(plan, device, &shared.backbones)
        .map_err(|problem| problem.or_at(plan.backbone.span))?;
    let manifest = Manifest::new(plan, source)?;
    origin::load_origins(plan, &manifest, &mut graph, integrity)?;
    graph.check_heads(plan)?;
    // All input has been checked, so the run may begin.
    directory.begin(&manifest, plan, source, integrity)?;
    let state = directory.resume()?.unwrap_or_default();
    let mut recorder = Recorder {
        log: directory.open_log(state.position.log_length)?,
        directory: &directory,
        interrupted,
        progress,
        metrics: plan
            .stages
            .iter()
            .map(|stage| (stage.name.clone(), plan.tasks[&stage.task].metric))
            .collect(),
        saved: Instant::now(),
    };
    let Some(state) = train(
        plan,
        &mut graph,
        &data,
        state,
        &shared.caches,
        &mut recorder,
    )?
    else {
        return Ok(Ended::Interrupted(directory.partial().to_path_buf()));
    };
    let (_, task) = plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    let mut final_result = |file: Option<&FilePlan>| -> Result<Option<Evaluation>, Problem> {
        let Some(file) = file else { return Ok(None) };
        loader.evaluate(plan, &graph, task, file).map(Some)
    };
    let files = plan.final_data();
    let is_zero_shot = plan.stages.is_empty();
    let zero_shot = final_result(
        files
            .and_then(|data| data.dev.as_ref())
            .filter(|_| is_zero_shot),
    )?;
    let test = final_result(files.and_then(|data| data.test.as_ref()))?;
    let seen = data
        .last()
        .and_then(|data| data.dev.as_ref().or(Some(&data.train)));
    let precision_error = match seen {
        Some(seen) => precision::precision_error(plan, &mut graph, &seen.all)?,
        None => None,
    };
    let summary = Summary {
        name: plan.name.clone(),
        metric: task.metric,
        majority: majority(plan, data.last()),
        zero_shot,
        stages: state.position.results,
        test,
        precision_error,
        peak_memory: peak_memory(),
    };
    let mut odd: Vec<Problem> = data
        .iter()
        .filter_map(|data| warnings::cut_texts(plan, &data.train))
        .collect();
    odd.dedup();
    odd.extend(warnings::collapse(plan, task, &summary));
    recorder.log.sync()?;
    directory.finish(plan, source, &graph, Some(&summary), &manifest)?;
    Ok(Ended::Complete(Box::new(summary), out.to_path_buf(), odd))
}

/// The peak memory of the process in bytes, on Linux: the line `VmHWM` of `/proc/self/status`, which is in kB.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(1024 * kilobytes)
}

/// The metric on the dev set when the guess is always the most frequent label of the training data.
fn majority(plan: &Plan, data: Option<&Data>) -> Option<f64> {
    use crate::data::Examples;
    use crate::task::Target;
    let (_, task) = plan.final_task()?;
    if task.kind.labels().is_empty() {
        return None;
    }
    let classes = |examples: &Examples| -> Vec<usize> {
        examples
            .all
            .iter()
            .filter_map(|e| {
                if let Target::Class(class) = e.target {
                    Some(class)
                } else {
                    None
                }
            })
            .collect()
    };
    let data = data?;
    let (train, dev) = (classes(&data.train), classes(data.dev.as_ref()?));
    let count = |class: usize| train.iter().filter(|c| **c == class).count();
    let most = (0..task.kind.labels().len())
        .rev()
        .max_by_key(|class| count(*class))?;
    let guesses = vec![most; dev.len()];
    crate::task::classification(&guesses, &dev, task.kind.labels().len())
        .into_iter()
        .find(|(metric, _)| *metric == task.metric)
        .map(|(_, value)| value)
}

impl Summary {
    /// The final metric on the dev set: the last stage's, or the one without training if there is no stage.
    pub fn value(&self) -> Option<f64> {
        let last = self.stages.last().and_then(|stage| stage.dev.as_ref());
        let evaluation = last.or(self.zero_shot.as_ref());
        evaluation.map(|evaluation| evaluation.get(self.metric))
    }

    /// The table that is shown at the end of a run.
    pub fn table(&self) -> String {
        let name = format!("dev {}", self.metric.name());
        let mut table = Table::new(["", name.as_str(), "trained parameters", "steps", "seconds"]);
        if let Some(majority) = self.majority {
            let cells = [
                "majority class".to_owned(),
                metric_value(self.metric, majority),
                "0".to_owned(),
            ];
            table.row(cells);
        }
        if let Some(zero_shot) = &self.zero_shot {
            let value = metric_value(self.metric, zero_shot.get(self.metric));
            table.row(["zero-shot".to_owned(), value, "0".to_owned()]);
        }
        for stage in &self.stages {
            let value = stage
                .dev
                .as_ref()
                .map(|dev| metric_value(self.metric, dev.get(self.metric)));
            table.row([
                format!("after stage {}", stage.stage),
                value.unwrap_or_else(|| "-".to_owned()),
                thousands(stage.trained),
                thousands(stage.steps),
                format!("{:.1}", stage.seconds),
            ]);
        }
        let mut text = table.to_string();
        if let Some(test) = &self.test {
            let value = metric_value(self.metric, test.get(self.metric));
            text.push_str(&format!("\n  test {}: {value}\n", self.metric.name()));
        }
        if let Some(error) = &self.precision_error {
            text.push_str(&format!(
                "\n  matrix products in bf16: logits within {:.1e} of the f32 logits ({} examples, logits up to {:.1})\n",
                error.largest, error.examples, error.logit
            ));
        }
        text
    }
}

/// The least time between two checkpoints, unless one is required.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Logs and shows the events of a run, and saves checkpoints.
struct Recorder<'a> {
    directory: &'a Directory,
    log: Log,
    interrupted: &'a AtomicBool,
    progress: Progress,
    metrics: BTreeMap<String, Metric>,
    saved: Instant,
}

impl Watcher for Recorder<'_> {
    fn event(&mut self, event: Event) -> Result<(), Problem> {
        if let Event::Begin { stage, .. } = &event {
            self.progress.show(
                self.metrics
                    .get(&stage.name)
                    .copied()
                    .unwrap_or(Metric::Loss),
            );
        }
        self.progress.event(&event);
        self.log.write(&event)
    }

    fn save<'s>(&mut self, state: &dyn Fn() -> Snapshot<'s>, must: bool) -> Result<(), Problem> {
        if !must && self.saved.elapsed() < SAVE_EVERY {
            return Ok(());
        }
        let mut state = state();
        state.position.log_length = self.log.sync()?;
        self.directory.save(&state)?;
        self.saved = Instant::now();
        Ok(())
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}
