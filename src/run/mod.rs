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
mod listener;
mod load;
mod log;
mod manifest;
mod merge;
mod models;
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
use crate::disk::failed;
use crate::engine::Device;
use crate::graph::{Backbones, Graph};
use crate::plan::{FilePlan, Metric, Plan, StagePlan};
use crate::ranks::{agree, any, world};
use crate::report::{metric_value, Progress, Table};
use crate::text::thousands;
use crate::train::{
    check_steps, load, train, ActivationCaches, Data, Evaluation, Event, Snapshot, StageResult,
    State, Watcher,
};

pub use combine::{combine, combined, Combination, Rule};
pub use directory::{is_partial, Directory};
pub use examples::{check_data, first_examples, summarize, Loader};
pub use finished::{FinishedRun, Integrity};
pub use gguf::{export_gguf, merge_gguf};
pub use heads::{backbone_warnings, check_backbone, found_labels, head_origins};
pub use listener::Listener;
pub use load::{open_run, InputSettings, Loaded};
pub use log::Log;
pub use manifest::{has_same_backbone, Manifest};
pub use merge::merge;
pub use precision::PrecisionError;
pub use profile::{profile, Profile};
pub use profile_table::profile_table;
pub use reference::reference;
pub use replay::{replay, Replayed, ReplayedFigure};
pub use source::{check_pipeline, read_text, whole, Checked, Confined, Source, ROWS_AT_EACH_END};
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
pub enum RunEnd {
    /// The run is complete.
    Complete {
        /// Its results.
        summary: Box<Summary>,
        /// Its directory.
        directory: PathBuf,
        /// What is odd about it.
        warnings: Vec<Problem>,
    },
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
    /// Who is told the events.
    pub listener: Option<Listener>,
}

impl Default for Shared {
    fn default() -> Self {
        Shared {
            backbones: Backbones::default(),
            caches: ActivationCaches::default(),
            integrity: Integrity::Checked,
            listener: None,
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
) -> Result<RunEnd, Problem> {
    let integrity = shared.integrity;
    let mut prepared = agree(prepare(plan, source, device, shared, out))?;
    agree(check_others(plan, &prepared.manifest))?;
    // All input has been checked, so the run may begin.
    let state = resume(plan, source, &prepared, integrity)?;
    let mut follower = Follower { interrupted };
    let log_length = state.position.log_length;
    let listener = shared.listener.as_ref();
    let recorder =
        |directory| Recorder::new(plan, directory, log_length, interrupted, progress, listener);
    let mut recorder = prepared.directory.as_ref().map(recorder).transpose()?;
    let watcher: &mut dyn Watcher = match &mut recorder {
        Some(recorder) => recorder,
        None => &mut follower,
    };
    let (graph, data) = (&mut prepared.graph, &prepared.data);
    let ended = train(plan, graph, data, state, &shared.caches, watcher)?;
    if let Some(mut recorder) = recorder {
        recorder.log.sync()?;
    }
    match ended {
        Some(state) => conclude(plan, source, prepared, state, out),
        None => Ok(RunEnd::Interrupted(Directory::partial_of(out))),
    }
}

/// What a run has before its first step.
struct Prepared {
    /// Of the process that writes: the first, if there are several.
    directory: Option<Directory>,
    manifest: Manifest,
    loader: Loader,
    data: Vec<Data>,
    graph: Graph,
}

/// Reads all that a plan names, and changes nothing.
fn prepare(
    plan: &Plan,
    source: &str,
    device: Device,
    shared: &Shared,
    out: &Path,
) -> Result<Prepared, Problem> {
    let directory = match world().rank() {
        0 => Some(Directory::claim(out)?),
        _ => None,
    };
    precision::check_precision(plan, &device)?;
    let mut loader = Loader::new(plan)?;
    let data = loader.stages(plan)?;
    let examples: Vec<usize> = data.iter().map(|data| data.train.len()).collect();
    check_steps(plan, &examples)?;
    fetch_weights(&plan.backbone.location).map_err(|problem| problem.or_at(plan.backbone.span))?;
    let mut graph = Graph::load_beside(plan, device, &shared.backbones)
        .map_err(|problem| problem.or_at(plan.backbone.span))?;
    let manifest = Manifest::new(plan, source)?;
    origin::load_origins(plan, &manifest, &mut graph, shared.integrity)?;
    graph.check_heads(plan)?;
    Ok(Prepared {
        directory,
        manifest,
        loader,
        data,
        graph,
    })
}

/// Checks that every process has the program, the plan and the input of the first. Their paths may differ.
fn check_others(plan: &Plan, own: &Manifest) -> Result<(), Problem> {
    if world().size() == 1 {
        return Ok(());
    }
    let text = serde_json::to_vec(&own.without_paths(plan)?).map_err(Problem::internal)?;
    let read = |bytes: &Vec<u8>| serde_json::from_slice(bytes).map_err(Problem::internal);
    let all = world().all_gather(&text);
    let all: Vec<Manifest> = all.iter().map(read).collect::<Result<_, _>>()?;
    for (rank, other) in all.iter().enumerate().skip(1) {
        let differences = all[0].differences(other);
        if !differences.is_empty() {
            let message = format!(
                "process {rank} differs from process 0 in {}",
                crate::text::list(&differences)
            );
            return Err(Problem::new("delta::run::ranks", message)
                .help("give every process the same program and the same files"));
        }
    }
    Ok(())
}

/// Begins the run, or goes on from the state that it saved, which the first process sends the others.
fn resume(
    plan: &Plan,
    source: &str,
    prepared: &Prepared,
    integrity: Integrity,
) -> Result<State, Problem> {
    let begin = || -> Result<Option<State>, Problem> {
        let Some(directory) = &prepared.directory else {
            return Ok(None);
        };
        directory.begin(&prepared.manifest, plan, source, integrity)?;
        directory.resume()
    };
    let own = agree(begin())?;
    if world().size() == 1 {
        return Ok(own.unwrap_or_default());
    }
    let saved = match &prepared.directory {
        Some(directory) => directory.saved(),
        None => Ok(Vec::new()),
    };
    let bytes = world().broadcast(agree(saved)?);
    match own {
        Some(own) => Ok(own),
        None if bytes.is_empty() => Ok(State::default()),
        None => {
            let unwritten = |e| failed("written", Path::new("a temporary file"), &e);
            let file = tempfile::NamedTempFile::new().map_err(unwritten)?;
            std::fs::write(file.path(), bytes).map_err(unwritten)?;
            load(file.path())
        }
    }
}

/// Evaluates what was trained, and writes the results.
fn conclude(
    plan: &Plan,
    source: &str,
    prepared: Prepared,
    state: State,
    out: &Path,
) -> Result<RunEnd, Problem> {
    let Prepared {
        directory,
        manifest,
        mut loader,
        data,
        mut graph,
    } = prepared;
    let (_, task) = plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    let mut final_result = |file: Option<&FilePlan>| -> Result<Option<Evaluation>, Problem> {
        let Some(file) = file else { return Ok(None) };
        loader.evaluate(plan, &graph, task, file).map(Some)
    };
    let files = plan.final_data();
    let is_zero_shot = plan.stages.is_empty();
    let dev = files.and_then(|data| data.dev.as_ref());
    let zero_shot = final_result(dev.filter(|_| is_zero_shot))?;
    let test = final_result(files.and_then(|data| data.test.as_ref()))?;
    let seen = data
        .last()
        .and_then(|data| data.dev.as_ref().or(Some(&data.train)));
    let precision_error = match seen {
        Some(seen) => precision::precision_error(plan, &mut graph, seen)?,
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
    let odd = warnings::collapse(plan, task, &summary);
    let odd = odd.into_iter().collect();
    if let Some(directory) = directory {
        directory.finish(plan, source, &graph, Some(&summary), &manifest)?;
    }
    Ok(RunEnd::Complete {
        summary: Box::new(summary),
        directory: out.to_path_buf(),
        warnings: odd,
    })
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
    if !task.kind.has_one_label() {
        return None;
    }
    let classes = |examples: &Examples| -> Vec<usize> {
        examples
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

    /// The table that is shown at the end of a run, and what else is known of it.
    pub fn table(&self) -> String {
        let mut text = self.stages_table().to_string();
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

    /// The results on the dev set: of the most frequent label, and after each stage.
    pub fn stages_table(&self) -> Table {
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
        table
    }
}

/// The least time between two checkpoints, unless one is required.
const SAVE_EVERY: Duration = Duration::from_secs(10);

/// Watches a run in every process but the first. Only the first process writes files and shows progress.
struct Follower<'a> {
    interrupted: &'a AtomicBool,
}

impl Watcher for Follower<'_> {
    fn event(&mut self, _: Event) -> Result<(), Problem> {
        Ok(())
    }

    fn save<'s>(&mut self, _: &dyn Fn() -> Snapshot<'s>, _: bool) -> Result<(), Problem> {
        Ok(())
    }

    fn is_interrupted(&self) -> bool {
        any(self.interrupted.load(Ordering::Relaxed))
    }
}

/// Logs and shows the events of a run, and saves checkpoints.
struct Recorder<'a> {
    directory: &'a Directory,
    log: Log,
    interrupted: &'a AtomicBool,
    progress: Progress,
    listener: Option<&'a Listener>,
    metrics: BTreeMap<String, Metric>,
    saved: Instant,
}

impl<'a> Recorder<'a> {
    fn new(
        plan: &Plan,
        directory: &'a Directory,
        log_length: u64,
        interrupted: &'a AtomicBool,
        progress: Progress,
        listener: Option<&'a Listener>,
    ) -> Result<Self, Problem> {
        let metric = |stage: &StagePlan| (stage.name.clone(), plan.tasks[&stage.task].metric);
        Ok(Recorder {
            log: directory.open_log(log_length)?,
            directory,
            interrupted,
            progress,
            listener,
            metrics: plan.stages.iter().map(metric).collect(),
            saved: Instant::now(),
        })
    }
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
        let Some(object) = Log::object(&event) else {
            return Ok(());
        };
        if let Some(listener) = self.listener {
            listener.tell(&object);
        }
        self.log.write(&object)
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
        any(self.interrupted.load(Ordering::Relaxed))
    }
}
