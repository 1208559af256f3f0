//! Runs of a script: several side by side, none twice, one backbone in memory for all, and what
//! its frozen blocks make of an example where no delta has a part in it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::diagnostic::{Problem, Problems};
use crate::engine::Device;
use crate::graph::this_machine;
use crate::plan::Plan;
use crate::report::{metric_value, Progress};
use crate::run::{self, FinishedRun, Manifest, Shared, Source, Summary};
use crate::terminal::say;
use crate::text::hexadecimal;
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
}

/// A run that is complete.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub directory: PathBuf,
    pub summary: Summary,
    pub source: Source,
    pub plan: Plan,
}

impl Runner {
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The plan of a pipeline, after a look at all that it reads; what is odd about it is said once.
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
        let plans = sources
            .iter()
            .map(|source| Ok(source.checked_plan(usize::MAX)?.plan));
        let plans: Vec<Plan> = plans.collect::<Result<_, Problems>>()?;
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Finished, Problems>>>> =
            Mutex::new(sources.iter().map(|_| None).collect());
        let work = || loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= sources.len() || self.is_interrupted() {
                return;
            }
            let result = self.run(&sources[index], &plans[index]);
            match &result {
                Ok(finished) => self.show(finished, index + 1, sources.len()),
                // Nothing more is begun.
                Err(_) => next.store(sources.len(), Ordering::Relaxed),
            }
            results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(result);
        };
        std::thread::scope(|scope| {
            for _ in 1..workers(&plans) {
                scope.spawn(work);
            }
            work();
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (done, stopped): (Vec<_>, Vec<_>) = results.into_iter().partition(Option::is_some);
        let finished: Vec<Finished> = done.into_iter().flatten().collect::<Result<_, _>>()?;
        match stopped.is_empty() {
            true => Ok(finished),
            false => Err(stop().into()),
        }
    }

    /// Runs a pipeline with nothing shared and nothing beside it, so that the most memory
    /// that the process has is the run's.
    pub fn run_alone(&self, source: &Source) -> Result<Finished, Problems> {
        let plan = self.plan(source)?;
        crate::memory::release();
        // Linux then counts the most memory anew; elsewhere it is that of the whole process.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let alone = Runner {
            out: self.out.join("alone"),
            is_quiet: self.is_quiet,
            interrupted: self.interrupted,
            shared: Shared {
                integrity: source.integrity,
                ..Shared::default()
            },
            warned: Mutex::default(),
        };
        let finished = alone.run(source, &plan)?;
        self.show(&finished, 1, 1);
        Ok(finished)
    }

    /// Runs a plan, or finds the run of it that is complete.
    fn run(&self, source: &Source, plan: &Plan) -> Result<Finished, Problems> {
        let located = |problem: Problem| source.locate(vec![problem]);
        let manifest = Manifest::new(plan, &source.text).map_err(located)?;
        let directory = self
            .out
            .join(format!("{}-{}", plan.name, identity(&manifest)));
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
                match ended.map_err(located)? {
                    run::Ended::Complete(summary, _, odd) => {
                        self.warn(&source.locate(odd));
                        *summary
                    }
                    run::Ended::Interrupted(_) => return Err(stop().into()),
                }
            }
        };
        Ok(Finished {
            directory,
            summary,
            source: source.clone(),
            plan: plan.clone(),
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
        let params = source
            .overrides
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let value = summary
            .value()
            .map(|value| metric_value(summary.metric, value));
        say(&format!(
            "run {number} of {count}: {} {} {}",
            plan.name,
            params.collect::<Vec<_>>().join(" "),
            value.unwrap_or_default(),
        ));
    }
}

fn stop() -> Problem {
    Problem::failure("delta::script::stopped", "the script was interrupted")
        .help("run the same command again to continue")
}

/// What a run's directory is known by: a hash of its plan, its backbone and its data.
fn identity(manifest: &Manifest) -> String {
    let mut hasher = Sha256::new();
    hasher.update(&manifest.plan_hash);
    hasher.update(&manifest.backbone_hash);
    for hash in manifest.data_hashes.values() {
        hasher.update(hash);
    }
    hexadecimal(&hasher.finalize())[..12].to_owned()
}

/// How many runs go side by side: one for each thread, while there is memory for the largest.
fn workers(plans: &[Plan]) -> usize {
    let threads = rayon::current_num_threads();
    let memory = |plan: &Plan| {
        let stages = 0..plan.stages.len();
        let tokens = plan.backbone.max_length;
        let of = |stage| {
            let kept = match plan.first_trained_block(stage) {
                0 => 0,
                _ => KEPT_IN_MEMORY,
            };
            plan.cost(stage, tokens, &this_machine(threads)).memory + kept
        };
        stages.map(of).max().unwrap_or(0)
    };
    let largest = plans.iter().map(memory).max().unwrap_or(0).max(1);
    let fitting = free_memory().map_or(1, |free| free / 2 / largest);
    threads.min(fitting).min(plans.len()).max(1)
}

/// What Linux says is available, in bytes.
fn free_memory() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(1024 * kilobytes)
}
