//! Experiments: rhai scripts that run pipelines, compare their results and leave a report.
//!
//! In: a script, params. Out: runs under one directory, tables, pages. A script reaches no file but
//! through pipelines of its own folder and pages of its own output; what it adds to a pipeline may read from there and
//! from folders that the caller allows. It cannot run for ever.

mod error;
mod experiment;
mod functions;
mod pages;
mod rehearsal;
mod runner;
mod session;

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rhai::module_resolvers::DummyModuleResolver;
use rhai::{Engine, EvalAltResult, Scope};

use crate::diagnostic::{Problem, Problems};
use crate::run::{read_text, Integrity};
use crate::settings::Overrides;
use crate::terminal::print;
use rehearsal::Rehearsal;
use session::Session;

pub use rehearsal::{jobs, Job, Jobs};
pub use runner::shown;

/// What a script is given.
pub struct Options<'a> {
    /// Params by name.
    pub set: Overrides,
    /// The preset of its params.
    pub preset: Option<String>,
    /// Where its runs and pages go.
    pub out: PathBuf,
    /// Folders that its pipelines may read from, beside those that their own text names.
    pub allowed: Vec<PathBuf>,
    /// Whether its finished runs must be as they were left.
    pub integrity: Integrity,
    /// Whether nothing is shown but what the script prints.
    pub is_quiet: bool,
    /// Asks for a stop at the end of a step.
    pub interrupted: &'a AtomicBool,
}

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScriptEnd {
    /// To its end.
    Complete,
    /// It was interrupted; the same command goes on.
    Interrupted,
}

/// Operations that a script may take, runs aside.
const MOST_OPERATIONS: u64 = 20_000_000;

/// Runs a script.
///
/// # Errors
/// A mistake in the script or in a pipeline that it runs, with its place in the script.
pub fn run(path: &Path, options: &Options<'static>) -> Result<ScriptEnd, Problems> {
    let session = Rc::new(Session::new(path, options, None)?);
    execute(path, &session)
}

/// A part of a script's runs: every `of`th one of those of a level (see [`jobs`]), from `number` on, which counts from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which part.
    pub number: usize,
    /// How many parts there are.
    pub of: usize,
}

/// Runs a part of a script's runs, and returns how many these are, and of how many. The script itself goes on when it is
/// run without a part.
///
/// # Errors
/// As for [`run`].
pub fn run_shard(
    path: &Path,
    options: &Options<'static>,
    shard: Shard,
) -> Result<(ScriptEnd, usize, usize), Problems> {
    let is_interrupted = || options.interrupted.load(Ordering::Relaxed);
    let jobs = match jobs(path, options) {
        Err(_) if is_interrupted() => return Ok((ScriptEnd::Interrupted, 0, 0)),
        jobs => jobs?,
    };
    let own = jobs.level.iter().skip(shard.number - 1).step_by(shard.of);
    let own: Vec<&Job> = own.collect();
    let session = Session::new(path, options, None)?;
    let (alone, beside): (Vec<&Job>, Vec<&Job>) = own.iter().partition(|job| job.is_alone);
    let sources: Vec<_> = beside.iter().map(|job| job.source.clone()).collect();
    let mut ended = session.runner.run_all(&sources).map(drop);
    for job in alone {
        ended = ended.and_then(|()| session.runner.run_alone(&job.source).map(drop));
    }
    let counts = (own.len(), jobs.level.len());
    match ended {
        Err(_) if is_interrupted() => Ok((ScriptEnd::Interrupted, counts.0, counts.1)),
        Err(problems) => Err(problems),
        Ok(()) => Ok((ScriptEnd::Complete, counts.0, counts.1)),
    }
}

/// Reads a script: the runs that it began, and how it ended.
fn rehearse(
    path: &Path,
    options: &Options<'static>,
    rehearsal: Rehearsal,
) -> Result<(Vec<Job>, Result<ScriptEnd, Problems>), Problem> {
    let session = Rc::new(Session::new(path, options, Some(rehearsal))?);
    let ended = execute(path, &session);
    let asked = session.runner.rehearsal.as_ref();
    Ok((asked.map(Rehearsal::asked).unwrap_or_default(), ended))
}

fn execute(path: &Path, session: &Rc<Session>) -> Result<ScriptEnd, Problems> {
    let text = read_text(path)?;
    let name = path.display().to_string();
    let engine = engine(session);
    let located = |error: Box<EvalAltResult>| error::problems(&name, &text, &error);
    let ast = engine.compile(&text).map_err(|e| located(e.into()))?;
    let mut scope = Scope::new();
    match engine.run_ast_with_scope(&mut scope, &ast) {
        Ok(()) => session
            .check_params()
            .map(|()| ScriptEnd::Complete)
            .map_err(|problem| Problems {
                source: Some((name.clone(), text.clone())),
                problems: vec![problem],
            }),
        Err(_) if session.is_interrupted() => Ok(ScriptEnd::Interrupted),
        Err(error) if session.has_taken_too_long() => {
            let mut problems = located(error);
            for problem in &mut problems.problems {
                problem.code = "delta::script::endless";
                problem.message = format!(
                    "the script itself ran for more than {} seconds, not counting its runs",
                    session::LONGEST.as_secs()
                );
                problem.help = Some("look for a loop that never ends".to_owned());
            }
            Err(problems)
        }
        Err(error) => Err(located(error)),
    }
}

fn engine(session: &Rc<Session>) -> Engine {
    let mut engine = Engine::new();
    engine.set_module_resolver(DummyModuleResolver::new());
    engine.set_max_operations(MOST_OPERATIONS);
    engine.set_max_call_levels(64);
    engine.set_max_expr_depths(128, 64);
    engine.set_max_string_size(10_000_000);
    engine.set_max_array_size(functions::LONGEST_LIST);
    engine.set_fail_on_invalid_map_property(true);
    engine.set_max_map_size(100_000);
    engine.disable_symbol("eval");
    let is_read_only = session.runner.rehearsal.is_some();
    engine.on_print(move |text| {
        if !is_read_only {
            print(&format!("{text}\n"));
        }
    });
    let own = session.clone();
    engine.on_progress(move |_| {
        (own.is_interrupted() || own.has_taken_too_long()).then_some(rhai::Dynamic::UNIT)
    });
    functions::register(&mut engine);
    pages::register(&mut engine, session);
    experiment::register(&mut engine, session);
    engine
}
