//! The runs of a script without running them.
//!
//! A script may choose runs by the results of others. So we read it several times, each time with other made-up results
//! of the runs that are not finished. The runs that it asks for every time depend on no such result.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Outcome;
use super::runner::{memory_of, stop, Finished, Runner};
use super::{Options, ScriptEnd};
use crate::diagnostic::{Problem, Problems};
use crate::engine::{measure_rate, mix};
use crate::graph::this_machine;
use crate::plan::{Metric, Plan};
use crate::run::{FinishedRun, Source, Summary};
use crate::train::{steps, Evaluation, StageResult};

/// A run that a script asks for.
#[derive(Clone, Debug)]
pub struct Job {
    /// Where it goes.
    pub directory: PathBuf,
    /// The name of its pipeline.
    pub name: String,
    /// The params that the script set.
    pub params: BTreeMap<String, String>,
    /// Whether it is finished.
    pub is_finished: bool,
    /// Its steps, of all stages.
    pub steps: usize,
    /// The estimated time of the steps on this machine, in seconds.
    pub seconds: f64,
    /// The estimated memory, in bytes.
    pub memory: usize,
    /// Whether it runs with no other run beside it.
    pub is_alone: bool,
    pub(super) source: Source,
    plan: Plan,
}

/// The runs of a script.
#[derive(Debug)]
pub struct Jobs {
    /// The runs whose choice depends on no missing result, in the order of the script, each once.
    pub known: Vec<Job>,
    /// The runs of the first level that is not finished; empty if all known runs are finished.
    pub level: Vec<Job>,
    /// Whether the script asks for further runs, whose choice depends on missing results.
    pub has_more: bool,
}

/// The number of readings: two for each scale. The second reverses the order of the made-up results.
const READINGS: u64 = 2 * SCALES.len() as u64;

/// The sizes of made-up results: like true ones, better than all of them, worse than all of them.
const SCALES: [f64; 4] = [1.0, 1e6, 1e-6, 1.0];

/// The code of the problem that a script needs more of a run than a made-up result.
const UNFINISHED: &str = "delta::script::unfinished";

/// What a run is known by before it is planned: its file, its text, its params, and whether it runs alone.
type Key = (String, String, BTreeMap<String, String>, bool);

/// What the readings of a script share.
#[derive(Clone, Default)]
struct Planned(Arc<Mutex<Plans>>);

#[derive(Default)]
struct Plans {
    jobs: BTreeMap<Key, Job>,
    /// The results of evaluations of finished runs, by the run and the set or pipeline.
    evaluations: BTreeMap<(PathBuf, String), f64>,
}

impl Planned {
    fn lock(&self) -> MutexGuard<'_, Plans> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the place of running, while a script is only read.
pub(super) struct Rehearsal {
    /// Results are made up from it.
    seed: u64,
    planned: Planned,
    /// The finished runs whose true results the script gets.
    believed: BTreeSet<PathBuf>,
    /// The runs that the script began.
    asked: Mutex<Vec<Job>>,
}

/// The runs of a script, level by level: those that depend on no result; if all of them are finished, those that depend
/// on their results; and so on. A level is the same whichever of its runs are finished.
///
/// # Errors
/// A mistake in the script, or in a pipeline that it runs.
pub fn jobs(path: &Path, options: &Options<'static>) -> Result<Jobs, Problems> {
    let planned = Planned::default();
    let mut believed = BTreeSet::new();
    loop {
        let (known, has_more) = level(path, options, &planned, &believed)?;
        let is_new = |job: &&Job| !believed.contains(&job.directory);
        let new: Vec<&Job> = known.iter().filter(is_new).collect();
        if new.is_empty() || new.iter().any(|job| !job.is_finished) {
            return Ok(Jobs {
                level: new.into_iter().cloned().collect(),
                known,
                has_more,
            });
        }
        believed.extend(new.into_iter().map(|job| job.directory.clone()));
    }
}

/// The runs of a script that depend on no results but the believed ones, and whether there are more.
fn level(
    path: &Path,
    options: &Options<'static>,
    planned: &Planned,
    believed: &BTreeSet<PathBuf>,
) -> Result<(Vec<Job>, bool), Problems> {
    let mut all: Vec<Vec<Job>> = Vec::new();
    let mut failures = Vec::new();
    for seed in 0..READINGS {
        let rehearsal = Rehearsal {
            seed,
            planned: planned.clone(),
            believed: believed.clone(),
            asked: Mutex::default(),
        };
        let (asked, ended) = super::rehearse(path, options, rehearsal)?;
        match ended {
            Ok(ScriptEnd::Complete) => {}
            Ok(ScriptEnd::Interrupted) => return Err(stop().into()),
            Err(problems) => failures.push(problems),
        }
        all.push(asked);
    }
    let is_sure = |job: &&Job| {
        let is_in = |jobs: &Vec<Job>| jobs.iter().any(|other| other.directory == job.directory);
        all.iter().all(is_in)
    };
    let sure: Vec<Job> = all[0].iter().filter(is_sure).cloned().collect();
    // A made-up result may lead a script where no true one does. A mistake is there whatever the results are.
    let is_mistake = |first: &Problems| {
        let code = |problems: &Problems| {
            problems
                .problems
                .first()
                .map(|problem| (problem.code, problem.message.clone()))
        };
        let is_same = failures.len() as u64 == READINGS
            && failures.iter().all(|other| code(other) == code(first));
        is_same
            && first
                .problems
                .iter()
                .all(|problem| problem.code != UNFINISHED)
    };
    if let Some(mistake) = failures.first().filter(|first| is_mistake(first)) {
        return Err(mistake.clone());
    }
    let has_more = !failures.is_empty() || all.iter().any(|jobs| jobs.len() > sure.len());
    Ok((sure, has_more))
}

impl Rehearsal {
    /// The runs that the script began, each once.
    pub fn asked(&self) -> Vec<Job> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Notes a run, and returns its result: the true one if it is finished.
    pub fn run(
        &self,
        runner: &Runner,
        source: &Source,
        is_alone: bool,
    ) -> Result<Finished, Problems> {
        let Source {
            name,
            text,
            overrides,
            ..
        } = source.clone();
        let key = (name, text, overrides, is_alone);
        let planned = self.planned.lock().jobs.get(&key).cloned();
        let job = match planned {
            Some(job) => job,
            None => {
                let job = job(runner, source, is_alone)?;
                self.planned.lock().jobs.insert(key, job.clone());
                job
            }
        };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|other| other.directory == job.directory) {
            asked.push(job.clone());
        }
        let (summary, made_up) = match self.believed.contains(&job.directory) {
            true => (
                FinishedRun::open(&job.directory, source.integrity)?.summary()?,
                None,
            ),
            false => {
                let value = self.value(&job);
                (made_up(&job, value), Some(value))
            }
        };
        Ok(Finished {
            directory: job.directory,
            summary,
            source: source.clone(),
            plan: job.plan,
            made_up,
        })
    }

    /// The result of an evaluation of a finished run, computed at the first reading that asks for it.
    pub fn evaluated(
        &self,
        run: &Path,
        what: &str,
        evaluate: impl FnOnce() -> Outcome<f64>,
    ) -> Outcome<f64> {
        let key = (run.to_path_buf(), what.to_owned());
        if let Some(value) = self.planned.lock().evaluations.get(&key) {
            return Ok(*value);
        }
        let value = evaluate()?;
        self.planned.lock().evaluations.insert(key, value);
        Ok(value)
    }

    /// A made-up result of a run.
    fn value(&self, job: &Job) -> f64 {
        let pair = self.seed / 2;
        let bytes = job.directory.as_os_str().as_encoded_bytes();
        let hash = bytes
            .iter()
            .fold(mix(pair), |hash, byte| mix(hash ^ u64::from(*byte)));
        let value = (hash >> 11) as f64 / (1u64 << 53) as f64;
        let value = if self.seed.is_multiple_of(2) {
            value
        } else {
            1.0 - value
        };
        SCALES[pair as usize] * (0.01 + 0.98 * value)
    }
}

/// The problem of a script that needs more of a run than a made-up result.
pub(super) fn unfinished() -> Problem {
    Problem::new(UNFINISHED, "the run is not finished").help("run the script")
}

fn job(runner: &Runner, source: &Source, is_alone: bool) -> Result<Job, Problems> {
    let checked = source.runnable_plan()?;
    let plan = checked.plan;
    let threads = rayon::current_num_threads();
    let rate = measure_rate(plan.backbone.precision);
    let (mut all, mut seconds) = (0, 0.0);
    for (index, (stage, examples)) in plan.stages.iter().zip(&checked.examples).enumerate() {
        let cost = plan.cost(index, plan.backbone.max_length, &this_machine(threads));
        let (_, of_stage) = steps(stage, *examples);
        all += of_stage;
        seconds += of_stage as f64 * cost.operations / rate;
    }
    let out = match is_alone {
        true => Runner::directory_alone(&runner.out),
        false => runner.out.clone(),
    };
    let directory = Runner::directory(&out, source, &plan)?;
    Ok(Job {
        is_finished: directory.exists(),
        directory,
        name: plan.name.clone(),
        params: source.overrides.clone(),
        steps: all,
        seconds,
        memory: memory_of(&plan),
        is_alone,
        source: source.clone(),
        plan,
    })
}

/// A summary in which every figure is `value`.
fn made_up(job: &Job, value: f64) -> Summary {
    let task = job.plan.final_task();
    let metric = task.map_or(Metric::Loss, |(_, task)| task.metric);
    let evaluation = || Evaluation {
        examples: 1,
        metrics: [(metric.name().to_owned(), value)].into(),
        collapsed_to: None,
        confusion: None,
        by_label: Vec::new(),
    };
    let stage = |stage: &crate::plan::StagePlan| StageResult {
        stage: stage.name.clone(),
        trained: 1,
        steps: 1,
        kept_step: 1,
        dev: Some(evaluation()),
        seconds: value,
    };
    Summary {
        name: job.plan.name.clone(),
        metric,
        majority: Some(value),
        zero_shot: job.plan.stages.is_empty().then(evaluation),
        stages: job.plan.stages.iter().map(stage).collect(),
        test: Some(evaluation()),
        precision_error: None,
        peak_memory: None,
    }
}
