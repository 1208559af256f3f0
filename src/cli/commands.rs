//! What each command does.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use dfdx::prelude::Cpu;

use super::arguments::{
    CombineOptions, EvalOptions, PipelineOptions, PlanOptions, ProfileOptions, RunOptions,
    SourceOptions,
};
use super::Ended;
use crate::diagnostic::{Problem, Problems, Span};
use crate::disk;
use crate::engine::cpu::{measure_limits, measure_rate};
use crate::graph::Executor;
use crate::plan::{FileFormat, FilePlan, Overrides, Plan};
use crate::report::{
    self, against_precision, describe, metric_value, print, profile_table, say, Progress,
};
use crate::run::{open_run, read_text, Ended as RunEnded, Integrity, Loaded, Loader, Source};
use crate::text::{bytes, quoted_list};
use crate::{peft, run, script, syntax};

/// Reads a pipeline.
fn open(options: &PipelineOptions) -> Result<Source, Problems> {
    let Some(path) = &options.file else {
        return Err(
            Problem::new("delta::cli::no_file", "a `.delta` file is missing")
                .help("give one")
                .into(),
        );
    };
    let mut source = Source::read(path)?;
    source.overrides = overrides(options)?;
    source.integrity = options.integrity.integrity();
    Ok(source)
}

/// Params from `--params`, then `--set`, then `--seed`.
fn overrides(options: &PipelineOptions) -> Result<Overrides, Problem> {
    let mut all = Overrides::new();
    if let Some(path) = &options.params {
        let text = read_text(path)?;
        let wrong = |message: String| {
            Problem::new(
                "delta::cli::params",
                format!("`{}`: {message}", path.display()),
            )
            .help("write one `name: value` to a line")
        };
        let map: std::collections::BTreeMap<String, serde_yaml::Value> =
            serde_yaml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        for (name, value) in map {
            let text = match value {
                serde_yaml::Value::String(text) => text,
                serde_yaml::Value::Number(number) => number.to_string(),
                serde_yaml::Value::Bool(truth) => truth.to_string(),
                _ => return Err(wrong(format!("`{name}` must be a number or a text"))),
            };
            all.insert(name, text);
        }
    }
    for pair in &options.set {
        let Some((name, value)) = pair.split_once('=') else {
            let message = format!("`--set {pair}` has no `=`");
            return Err(Problem::new("delta::cli::set", message).help("write `--set name=value`"));
        };
        all.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    if let Some(seed) = options.seed {
        all.insert("seed".to_owned(), seed.to_string());
    }
    Ok(all)
}

/// Shows warnings.
fn warn(warnings: &Problems) {
    if !warnings.problems.is_empty() {
        say(warnings
            .render(std::io::stderr().is_terminal())
            .trim_end_matches('\n'));
    }
}

/// `deltarun check`
pub(super) fn check(options: &PipelineOptions) -> Result<Ended, Problems> {
    let source = open(options)?;
    let plan = source.checked_plan()?;
    warn(&source.warnings(&plan));
    print(&format!("{}: no mistakes found\n", source.name));
    Ok(Ended::Done)
}

/// `deltarun plan`
pub(super) fn plan(options: &PlanOptions) -> Result<Ended, Problems> {
    let source = open(&options.pipeline)?;
    let plan = source.plan()?;
    warn(&source.warnings(&plan));
    let heads = run::head_origins(&plan);
    print(&describe(
        &plan,
        &heads,
        rayon::current_num_threads(),
        measure_rate,
    ));
    Ok(Ended::Done)
}

/// `deltarun profile`
pub(super) fn profile(options: &ProfileOptions) -> Result<Ended, Problems> {
    let source = open(&options.pipeline)?;
    let plan = source.checked_plan()?;
    let names = || plan.stages.iter().map(|stage| stage.name.as_str());
    let index = match &options.stage {
        None if plan.stages.is_empty() => None,
        None => Some(0),
        Some(name) => names().position(|stage| stage == name),
    };
    let index = index.ok_or_else(|| {
        let message = match &options.stage {
            Some(name) => format!("`{}` has no stage `{name}`", source.name),
            None => format!("`{}` has no stage", source.name),
        };
        let problem = Problem::new("delta::cli::stage", message);
        match plan.stages.is_empty() {
            true => problem.help("add a `stage` block: nothing is trained without one"),
            false => problem.help(format!("the stages are {}", quoted_list(names()))),
        }
    })?;
    let profile = run::profile(&plan, index, options.steps as usize)
        .map_err(|problem| source.locate(vec![problem]))?;
    let threads = rayon::current_num_threads();
    let limits = measure_limits(plan.backbone.precision);
    print(&profile_table(&profile, threads, &limits));
    Ok(Ended::Done)
}

/// `deltarun fmt`
pub(super) fn fmt(files: &[PathBuf], check: bool) -> Result<Ended, Problems> {
    for path in files {
        let text = read_text(path)?;
        let name = path.display().to_string();
        let formatted =
            syntax::format(&text).map_err(|p| Problems::in_source(&name, &text, vec![p]))?;
        if formatted == text {
            continue;
        }
        if check {
            let message = format!("`{name}` is not in canonical form");
            let problem = Problem::new("delta::cli::fmt", message);
            return Err(problem.help(format!("run `deltarun fmt {name}`")).into());
        }
        disk::replace(path, formatted.as_bytes()).map_err(|e| disk::failed("written", path, &e))?;
    }
    Ok(Ended::Done)
}

/// Ctrl-C, SIGTERM and SIGHUP ask for a stop at the end of the step; a second one ends the process at once.
fn interruption() -> &'static AtomicBool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    // An error means that a handler is set already, which does the same.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(super::INTERRUPTED));
        }
        say("\nstopping after this step; Ctrl-C again stops at once");
    });
    &INTERRUPTED
}

/// Calls `$body` with the device that was asked for.
macro_rules! on_device {
    ($options:expr, |$device:ident| $body:expr) => {{
        let name: &str = &$options.device;
        match name
            .split_once(':')
            .map_or((name, None), |(kind, number)| (kind, Some(number)))
        {
            ("cpu", None) => {
                let $device = crate::cli::commands::cpu();
                $body
            }
            #[cfg(feature = "cuda")]
            ("cuda", number) => {
                let $device = crate::cli::commands::cuda(number)?;
                $body
            }
            _ => Err(crate::cli::commands::no_device(name).into()),
        }
    }};
}
pub(super) use on_device;

/// The CPU, its kernels and their buffers.
pub(super) fn cpu() -> Cpu {
    Cpu::default()
}

/// A CUDA device.
#[cfg(feature = "cuda")]
pub(super) fn cuda(number: Option<&str>) -> Result<dfdx::tensor::Cuda, Problem> {
    match number.unwrap_or("0").parse::<usize>() {
        Ok(0) => dfdx::tensor::Cuda::try_seed_from_u64(0)
            .map_err(|e| Problem::failure("delta::cli::cuda", format!("CUDA cannot be used: {e:?}"))),
        _ => Err(Problem::new("delta::cli::device", "dfdx 0.13 uses the first CUDA device only")
            .help("choose the card with the environment variable `CUDA_VISIBLE_DEVICES`, and `--device cuda`")),
    }
}

pub(super) fn no_device(name: &str) -> Problem {
    let problem = Problem::new("delta::cli::device", format!("there is no device `{name}`"));
    match cfg!(feature = "cuda") {
        true => problem.help("use `cpu` or `cuda`"),
        false => problem
            .help("use `cpu`; for `cuda`, build with `cargo build --release --features cuda`"),
    }
}

/// `deltarun FILE.delta`
pub(super) fn run(options: &RunOptions) -> Result<Ended, Problems> {
    let is_script = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "rhai");
    if let Some(path) = options
        .pipeline
        .file
        .as_ref()
        .filter(|path| is_script(path))
    {
        return run_script(path, options);
    }
    if let Some(preset) = &options.preset {
        let message = format!("`--preset {preset}` is for scripts");
        let problem = Problem::new("delta::cli::preset", message);
        return Err(problem.help("set params with `--set` or `--params`").into());
    }
    let source = open(&options.pipeline)?;
    let plan = source.checked_plan()?;
    warn(&source.warnings(&plan));
    if options.device.device == "cpu" && !options.quiet {
        if let Some(note) = against_precision(&plan, measure_rate) {
            report::note(&note);
        }
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&plan.name));
    on_device!(options.device, |device| run_on(
        &source,
        &plan,
        device,
        &out,
        options.quiet
    ))
}

/// `deltarun FILE.rhai`
fn run_script(path: &Path, options: &RunOptions) -> Result<Ended, Problems> {
    if options.device.device != "cpu" {
        let problem = Problem::new("delta::cli::device", "scripts run on the CPU");
        return Err(problem.help("leave `--device` out").into());
    }
    let stem = path.file_stem().unwrap_or_default();
    let default = || Path::new("runs").join(stem);
    let options = script::Options {
        set: overrides(&options.pipeline)?,
        preset: options.preset.clone(),
        out: options.out.clone().unwrap_or_else(default),
        integrity: options.pipeline.integrity.integrity(),
        is_quiet: options.quiet,
        interrupted: interruption(),
    };
    match script::run(path, &options)? {
        script::Ended::Complete => Ok(Ended::Done),
        script::Ended::Interrupted => {
            say("interrupted; the same command goes on");
            Ok(Ended::Interrupted)
        }
    }
}

fn run_on<D: Executor>(
    source: &Source,
    plan: &Plan,
    device: D,
    out: &Path,
    is_quiet: bool,
) -> Result<Ended, Problems> {
    let progress = Progress::new(is_quiet);
    let heads = run::head_origins(plan);
    heads.iter().for_each(|head| progress.line(head));
    let ended = run::run(
        plan,
        &source.text,
        device,
        &run::Shared::default(),
        out,
        source.integrity,
        interruption(),
        progress,
    );
    match ended.map_err(|problem| source.locate(vec![problem]))? {
        RunEnded::Interrupted(partial) => {
            say(&format!(
                "interrupted; the same command goes on from `{}`",
                partial.display()
            ));
            Ok(Ended::Interrupted)
        }
        RunEnded::Complete(summary, out) => {
            let mut text = format!("\n{}\n\n{}\n", summary.name, summary.table());
            let delta = out.join("delta.safetensors");
            let size = std::fs::metadata(&delta).map_or(0, |file| file.len());
            text += &format!("  delta: {} ({})\n", delta.display(), bytes(size as usize));
            text += &match peft::why_not(plan) {
                None => format!("  for PEFT: {}\n", out.join("peft").display()),
                Some(reason) => format!("  not in PEFT's format: {reason}\n"),
            };
            print(&text);
            Ok(Ended::Done)
        }
    }
}

/// Reads the run that `eval` and `predict` ask.
pub(super) fn open_source<D: Executor>(
    source: &SourceOptions,
    device: D,
) -> Result<Loaded<D>, Problem> {
    let (backbone, text) = (source.backbone.as_deref(), source.text.as_deref());
    open_run(
        &source.run,
        backbone,
        text,
        source.integrity.integrity(),
        device,
    )
}

/// `deltarun eval`
pub(super) fn eval(options: &EvalOptions) -> Result<Ended, Problems> {
    on_device!(options.source.device, |device| eval_on(options, device))
}

fn eval_on<D: Executor>(options: &EvalOptions, device: D) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device)?;
    let plan = &loaded.plan;
    let (_, task) = plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    let file = match &options.data {
        Some(path) => data_file(path)?,
        None => plan
            .final_data()
            .and_then(|data| data.dev.clone().or_else(|| data.test.clone()))
            .ok_or_else(|| {
                Problem::new("delta::cli::no_data", "the run has no dev set")
                    .help("give a file with `--data FILE`")
            })?,
    };
    let mut loader = Loader::new(plan)?;
    let examples = loader.file(&file, task)?;
    let evaluation =
        crate::train::evaluate(&loaded.graph, &examples.all, task, loader.masking(task)?)?;
    let mut text = format!(
        "{}: {} examples\n",
        file.path.display(),
        evaluation.examples
    );
    for (name, value) in &evaluation.metrics {
        let metric = if *name == task.metric.name() {
            metric_value(task.metric, *value)
        } else {
            format!("{value:.4}")
        };
        text += &format!("  {name} {metric}\n");
    }
    print(&text);
    Ok(Ended::Done)
}

/// A data file whose ending says how it is read.
fn data_file(path: &Path) -> Result<FilePlan, Problem> {
    let format = match path.extension().and_then(|ending| ending.to_str()) {
        Some("tsv") => FileFormat::Tsv,
        Some("csv") => FileFormat::Csv,
        Some("jsonl" | "json") => FileFormat::Jsonl,
        Some("txt") => FileFormat::Text,
        _ => {
            let message = format!("`{}` has no known ending", path.display());
            return Err(Problem::new("delta::cli::data", message)
                .help("name it `.tsv`, `.csv`, `.jsonl` or `.txt`"));
        }
    };
    Ok(FilePlan {
        format,
        path: path.to_path_buf(),
        columns: None,
        few: None,
        span: Span::default(),
    })
}

/// `deltarun merge`
pub(super) fn merge(
    directory: &Path,
    out: &Path,
    backbone: Option<&str>,
    integrity: Integrity,
) -> Result<Ended, Problems> {
    let loaded = open_run(directory, backbone, None, integrity, cpu())?;
    run::merge(&loaded.plan, &loaded.graph, out)?;
    print(&format!("{}\n", out.display()));
    Ok(Ended::Done)
}

pub(super) fn combine(options: &CombineOptions) -> Result<Ended, Problems> {
    let open = |run: &PathBuf| {
        open_run(
            run,
            options.backbone.as_deref(),
            None,
            options.integrity.integrity(),
            cpu(),
        )
    };
    let runs = options
        .runs
        .iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
    let combination = run::Combination {
        rule: options.by,
        weights: options.weights.clone(),
        density: options.density,
        rank: options.rank,
        seed: options.seed,
    };
    run::combine(&runs, &combination, cpu(), &options.out)?;
    print(&format!("{}\n", options.out.display()));
    Ok(Ended::Done)
}
