//! The runs of a script without running them.
//!
//! A script may choose runs by the results of others. So we read it several times, each time with other made-up results
//! of the runs that are not finished. The runs that it asks for every time depend on no such result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::runner::{Finished, Runner};
use super::Options;
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
    /// Those that depend on no result, in the order of the script; each once.
    pub known: Vec<Job>,
    /// Whether there are more, which depend on results.
    pub has_more: bool,
}

/// How often a script is read: in pairs, of which the second turns the order of the made-up results around.
const TIMES: u64 = 2 * SCALES.len() as u64;

/// The sizes of made-up results: like true ones, better than all of them, worse than all of them.
const SCALES: [f64; 4] = [1.0, 1e6, 1e-6, 1.0];

/// What a run is known by before it is planned: its file, its text, its params, and whether it runs alone.
type Key = (String, String, BTreeMap<String, String>, bool);

/// What the times that a script is read share.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<BTreeMap<Key, Job>>>);

impl Known {
    fn jobs(&self) -> MutexGuard<'_, BTreeMap<Key, Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the place of running, while a script is only read.
pub(super) struct Rehearsal {
    /// Results are made up from it.
    seed: u64,
    known: Known,
    /// The runs that the script asked for.
    asked: Mutex<Vec<Job>>,
}

/// The runs of a script.
///
/// # Errors
/// A mistake in the script, or in a pipeline that it runs.
pub fn jobs(path: &Path, options: &Options<'static>) -> Result<Jobs, Problems> {
    let known = Known::default();
    let mut all: Vec<Vec<Job>> = Vec::new();
    let mut has_more = false;
    for seed in 0..TIMES {
        let rehearsal = Rehearsal {
            seed,
            known: known.clone(),
            asked: Mutex::default(),
        };
        let (asked, ended) = super::rehearse(path, options, rehearsal)?;
        match ended {
            Err(problems) if asked.iter().all(|job| job.is_finished) => return Err(problems),
            // A made-up result may lead a script where no true one does.
            ended => has_more |= ended.is_err(),
        }
        all.push(asked);
    }
    let (first, others) = all
        .split_first()
        .ok_or_else(|| Problem::internal("a script unread"))?;
    let is_in =
        |job: &Job, jobs: &Vec<Job>| jobs.iter().any(|other| other.directory == job.directory);
    let is_sure = |job: &&Job| others.iter().all(|jobs| is_in(job, jobs));
    let sure: Vec<Job> = first.iter().filter(is_sure).cloned().collect();
    has_more |= all.iter().any(|jobs| jobs.len() > sure.len());
    Ok(Jobs {
        known: sure,
        has_more,
    })
}

impl Rehearsal {
    /// The runs that the script asked for, each once.
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
        let known = self.known.jobs().get(&key).cloned();
        let job = match known {
            Some(job) => job,
            None => {
                let job = job(runner, source, is_alone)?;
                self.known.jobs().insert(key, job.clone());
                job
            }
        };
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|other| other.directory == job.directory) {
            asked.push(job.clone());
        }
        let (summary, made_up) = match job.is_finished {
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

fn job(runner: &Runner, source: &Source, is_alone: bool) -> Result<Job, Problems> {
    let checked = source.runnable_plan()?;
    let plan = checked.plan;
    let threads = rayon::current_num_threads();
    let rate = measure_rate(plan.backbone.precision);
    let (mut all, mut seconds, mut memory) = (0, 0.0, 0);
    for (index, (stage, examples)) in plan.stages.iter().zip(&checked.examples).enumerate() {
        let cost = plan.cost(index, plan.backbone.max_length, &this_machine(threads));
        let (_, of_stage) = steps(stage, *examples);
        all += of_stage;
        seconds += of_stage as f64 * cost.operations / rate;
        memory = memory.max(cost.memory);
    }
    let out = match is_alone {
        true => Runner::alone(&runner.out),
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
        memory,
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
