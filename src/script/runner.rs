//! Runs of a script: several side by side, none twice, one backbone in memory for all, and what
//! its frozen blocks make of an example where no delta has a part in it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::rehearsal::Rehearsal;
use crate::diagnostic::{Problem, Problems};
use crate::engine::Device;
use crate::graph::this_machine;
use crate::plan::Plan;
use crate::report::{metric_value, Progress};
use crate::run::{self, Directory, FinishedRun, Manifest, Shared, Source, Summary};
use crate::terminal::say;
use crate::text::{counted, hexadecimal};
use crate::train::KEPT_IN_MEMORY;

/// What runs need of the script.
pub(super) struct Runner {
    /// Where runs and pages go.
    pub out: PathBuf,
    pub is_quiet: bool,
    pub interrupted: &'static AtomicBool,
    pub shared: Shared,
    /// What was said already: runs of one pipeline are odd in the same ways.
    pub warned: Mutex<BTreeSet<String>>,
    /// Records the runs instead of running them, if the script is only read.
    pub rehearsal: Option<Rehearsal>,
}

/// A run that is complete.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub directory: PathBuf,
    pub summary: Summary,
    pub source: Source,
    pub plan: Plan,
    /// The figure that stands for all results of a run that is not finished, while the script is only read.
    pub made_up: Option<f64>,
}

impl Runner {
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The plan of a pipeline, after a look at all that it reads; warnings are shown once.
    fn plan(&self, source: &Source) -> Result<Plan, Problems> {
        let checked = source.runnable_plan()?;
        self.warn(&checked.warnings);
        Ok(checked.plan)
    }

    fn warn(&self, warnings: &Problems) {
        for problem in &warnings.problems {
            let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.is_quiet && warned.insert(problem.message.clone()) {
                let one = Problems {
                    problems: vec![problem.clone()],
                    ..warnings.clone()
                };
                say(one.render(false).trim_end());
            }
        }
    }

    /// Runs what has not been run, in the order given, several side by side where there is memory
    /// for it.
    pub fn run_all(&self, sources: &[Source]) -> Result<Vec<Finished>, Problems> {
        if let Some(rehearsal) = &self.rehearsal {
            let run = |source| rehearsal.run(self, source, false);
            return sources.iter().map(run).collect();
        }
        let plans = sources.iter().map(|source| self.plan(source));
        let plans: Vec<Plan> = plans.collect::<Result<_, Problems>>()?;
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Finished, Problems>>>> =
            Mutex::new(sources.iter().map(|_| None).collect());
        let elsewhere: Mutex<VecDeque<usize>> = Mutex::default();
        let has_failed = AtomicBool::new(false);
        let try_run = |index: usize| {
            let result = self.run(&sources[index], &plans[index]);
            match &result {
                Ok(finished) => self.show(finished, index + 1, sources.len()),
                Err(problems) if is_locked(problems) => {
                    let mut elsewhere = elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
                    return elsewhere.push_back(index);
                }
                // Nothing more is begun.
                Err(_) => {
                    has_failed.store(true, Ordering::Relaxed);
                    next.store(sources.len(), Ordering::Relaxed);
                }
            }
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
        };
        let work = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= sources.len() || self.is_interrupted() {
                return;
            }
            try_run(index);
        };
        std::thread::scope(|scope| {
            for _ in 1..workers(&plans) {
                scope.spawn(work);
            }
            work();
        });
        self.await_others(&elsewhere, &has_failed, try_run);
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (done, stopped): (Vec<_>, Vec<_>) = results.into_iter().partition(Option::is_some);
        let finished: Vec<Finished> = done.into_iter().flatten().collect::<Result<_, _>>()?;
        match stopped.is_empty() {
            true => Ok(finished),
            false => Err(stop().into()),
        }
    }

    /// Waits for the runs that other processes are at, and goes on with those that they give up.
    fn await_others(
        &self,
        elsewhere: &Mutex<VecDeque<usize>>,
        has_failed: &AtomicBool,
        try_run: impl Fn(usize),
    ) {
        let next = || {
            let mut elsewhere = elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
            (elsewhere.pop_front(), elsewhere.len() + 1)
        };
        let mut is_said = self.is_quiet;
        while let (Some(index), left) = next() {
            if self.is_interrupted() || has_failed.load(Ordering::Relaxed) {
                return;
            }
            if !std::mem::replace(&mut is_said, true) {
                say(&format!(
                    "waiting for {} of other processes",
                    counted(left, "run")
                ));
            }
            std::thread::sleep(BETWEEN_LOOKS);
            try_run(index);
        }
    }

    /// Runs a pipeline with nothing shared and nothing beside it, so that the most memory
    /// that the process has is the run's.
    pub fn run_alone(&self, source: &Source) -> Result<Finished, Problems> {
        if let Some(rehearsal) = &self.rehearsal {
            return rehearsal.run(self, source, true);
        }
        let plan = self.plan(source)?;
        crate::memory::release();
        // Linux then counts the most memory anew; elsewhere it is that of the whole process.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let alone = Runner {
            out: Runner::directory_alone(&self.out),
            is_quiet: self.is_quiet,
            interrupted: self.interrupted,
            shared: Shared {
                integrity: source.integrity,
                ..Shared::default()
            },
            warned: Mutex::default(),
            rehearsal: None,
        };
        let finished = loop {
            match alone.run(source, &plan) {
                Err(problems) if is_locked(&problems) && !self.is_interrupted() => {
                    std::thread::sleep(BETWEEN_LOOKS);
                }
                ended => break ended?,
            }
        };
        self.show(&finished, 1, 1);
        Ok(finished)
    }

    /// Where runs go that have no other run beside them, below the directory of all runs.
    pub fn directory_alone(out: &Path) -> PathBuf {
        out.join("alone")
    }

    /// The directory of a run below that of all runs.
    pub fn directory(out: &Path, source: &Source, plan: &Plan) -> Result<PathBuf, Problems> {
        let manifest = Manifest::new(plan, &source.text);
        let manifest = manifest.map_err(|problem| source.locate(vec![problem]))?;
        Ok(out.join(format!("{}-{}", plan.name, identity(&manifest))))
    }

    /// Runs a plan, or finds the run of it that is complete.
    fn run(&self, source: &Source, plan: &Plan) -> Result<Finished, Problems> {
        let located = |problem: Problem| source.locate(vec![problem]);
        let directory = Runner::directory(&self.out, source, plan)?;
        let summary = match directory.exists() {
            true => FinishedRun::open(&directory, source.integrity)?.summary()?,
            false => {
                let ended = run::run(
                    plan,
                    &source.text,
                    Device::Cpu,
                    &self.shared,
                    &directory,
                    self.interrupted,
                    Progress::new(true),
                );
                match ended {
                    Ok(run::RunEnd::Complete {
                        summary, warnings, ..
                    }) => {
                        self.warn(&source.locate(warnings));
                        *summary
                    }
                    Ok(run::RunEnd::Interrupted(_)) => return Err(stop().into()),
                    // Another process finished it since we looked.
                    Err(problem) if problem.code == Directory::EXISTS => {
                        FinishedRun::open(&directory, source.integrity)?.summary()?
                    }
                    Err(problem) => return Err(located(problem)),
                }
            }
        };
        Ok(Finished {
            directory,
            summary,
            source: source.clone(),
            plan: plan.clone(),
            made_up: None,
        })
    }

    fn show(&self, finished: &Finished, number: usize, count: usize) {
        if self.is_quiet {
            return;
        }
        let Finished {
            plan,
            summary,
            source,
            ..
        } = finished;
        let value = summary
            .value()
            .map(|value| metric_value(summary.metric, value));
        say(&format!(
            "run {number} of {count}: {} {} {}",
            plan.name,
            shown(&source.overrides),
            value.unwrap_or_default(),
        ));
    }
}

/// Params as people set them.
pub fn shown(params: &BTreeMap<String, String>) -> String {
    let pairs = params.iter().map(|(key, value)| format!("{key}={value}"));
    pairs.collect::<Vec<_>>().join(" ")
}

/// The time between two looks at a run of another process.
const BETWEEN_LOOKS: Duration = Duration::from_millis(300);

/// Whether another process is at a run.
fn is_locked(problems: &Problems) -> bool {
    let mut problems = problems.problems.iter();
    problems.any(|problem| problem.code == Directory::LOCKED)
}

pub(super) fn stop() -> Problem {
    Problem::failure("delta::script::stopped", "the script was interrupted")
        .help("run the same command again to continue")
}

/// What a run's directory is known by: a hash of its plan, its backbone and its data.
fn identity(manifest: &Manifest) -> String {
    let mut hasher = Sha256::new();
    hasher.update(&manifest.plan_hash);
    hasher.update(&manifest.backbone_hash);
    let files = manifest.backbone_files.values();
    for hash in files.chain(manifest.data_hashes.values()) {
        hasher.update(hash);
    }
    hexadecimal(&hasher.finalize())[..12].to_owned()
}

/// How many runs go side by side: one for each thread, while there is memory for the largest.
fn workers(plans: &[Plan]) -> usize {
    let threads = rayon::current_num_threads();
    let largest = plans.iter().map(memory_of).max().unwrap_or(0).max(1);
    let fitting = free_memory().map_or(1, |free| free / 2 / largest);
    threads.min(fitting).min(plans.len()).max(1)
}

/// The estimated memory of a run in bytes, with what it keeps of frozen blocks.
pub(super) fn memory_of(plan: &Plan) -> usize {
    let threads = rayon::current_num_threads();
    let tokens = plan.backbone.max_length;
    let of = |stage| {
        let kept = match plan.first_trained_block(stage) {
            0 => 0,
            _ => KEPT_IN_MEMORY,
        };
        plan.cost(stage, tokens, &this_machine(threads)).memory + kept
    };
    (0..plan.stages.len()).map(of).max().unwrap_or(0)
}

/// What this process may still take, in bytes: of the machine's memory, and of what Slurm gave its job.
fn free_memory() -> Option<usize> {
    let of_job = std::env::var("SLURM_MEM_PER_NODE").ok();
    let of_job = of_job.and_then(|mebibytes| Some(mebibytes.parse::<usize>().ok()? << 20));
    let of_machine = available_memory()?;
    Some(of_job.map_or(of_machine, |of_job| of_job.min(of_machine)))
}

/// What Linux says is available, in bytes.
fn available_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(1024 * kilobytes)
}
