//! What each command does.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::arguments::{
    CheckOptions, DeviceOptions, Format, PipelineOptions, PlanOptions, ProfileOptions, RunOptions,
    SourceOptions,
};
use super::{show, Ended};
use crate::data::DataSummary;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::engine::{measure_limits, measure_rate, Device};
use crate::graph::this_machine;
use crate::plan::{Plan, StagePlan};
use crate::ranks::{self, world};
use crate::report::{against_precision, describe, example, Assumptions, Progress};
use crate::run::{
    check_pipeline, open_run, read_text, Checked, InputSettings, Listener, Loaded, RunEnd, Source,
    ROWS_AT_EACH_END,
};
use crate::settings::Overrides;
use crate::terminal::{self, print, say};
use crate::text::{bytes, counted, quoted_list, wrapped};
use crate::{peft, run, script, syntax};

/// Reads a pipeline.
fn open(options: &PipelineOptions) -> Result<Source, Problems> {
    let Some(path) = &options.file else {
        return Err(
            Problem::new("delta::cli::no_file", "the command needs a `.delta` file")
                .help("name the file after the command")
                .into(),
        );
    };
    let mut source = Source::read(path)?;
    source.overrides = overrides(options)?;
    source.integrity = options.integrity.integrity();
    Ok(source)
}

/// Params from `--set NAME=VALUE`.
pub(super) fn settings(pairs: &[String]) -> Result<Overrides, Problem> {
    let mut all = Overrides::new();
    for pair in pairs {
        let Some((name, value)) = pair.split_once('=') else {
            let message = format!("`--set {pair}` has no `=`");
            return Err(Problem::new("delta::cli::set", message).help("write `--set name=value`"));
        };
        all.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    Ok(all)
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
            .help("write one `name: value` per line")
        };
        let map: std::collections::BTreeMap<String, serde_yaml::Value> = crate::text::yaml(&text)
            .and_then(|value| serde_yaml::from_value(value).map_err(|e| e.to_string()))
            .map_err(wrong)?;
        for (name, value) in map {
            let text = match value {
                serde_yaml::Value::String(text) => text,
                serde_yaml::Value::Number(number) => number.to_string(),
                serde_yaml::Value::Bool(truth) => truth.to_string(),
                _ => {
                    return Err(wrong(format!(
                        "`{name}` must be a number, a string or a boolean"
                    )))
                }
            };
            all.insert(name, text);
        }
    }
    all.extend(settings(&options.set)?);
    if let Some(seed) = options.seed {
        all.insert("seed".to_owned(), seed.to_string());
    }
    Ok(all)
}

/// Shows warnings to people.
fn warn(warnings: &Problems) {
    if !warnings.problems.is_empty() {
        show(warnings, Format::Text);
    }
}

/// `deltarun check`
pub(super) fn check(options: &CheckOptions) -> Result<Ended, Problems> {
    let mut source = open(&options.pipeline)?;
    source.config_only = options.config_only;
    let (warnings, rows) = match options.config_only {
        true => (source.warnings(&source.plan()?), None),
        false => {
            let most = if options.all_rows {
                usize::MAX
            } else {
                ROWS_AT_EACH_END
            };
            let checked = source.checked_plan(most)?;
            (checked.warnings, Some(checked.rows))
        }
    };
    match options.format {
        Format::Text => {
            warn(&warnings);
            let looked_at = match rows {
                Some(rows) => format!("checked {} of data", counted(rows, "row")),
                None => format!("not checked: {NOT_LOOKED_AT}"),
            };
            print(&format!(
                "{}: no mistakes found ({looked_at})\n",
                source.name
            ));
        }
        format => show(&warnings, format),
    }
    Ok(Ended::Done)
}

/// What is not read with `--config-only`.
const NOT_LOOKED_AT: &str =
    "the tokenizer, the checkpoint's tensors, the data, and the runs that deltas start from";

/// `deltarun plan`
pub(super) fn plan(options: &PlanOptions) -> Result<Ended, Problems> {
    let mut source = open(&options.pipeline)?;
    source.config_only = options.config_only;
    let plan = source.plan()?;
    let warnings = source.warnings(&plan);
    let heads = match options.config_only {
        true => Vec::new(),
        false => [run::head_origins(&plan), run::found_labels(&plan)].concat(),
    };
    let first_examples = match options.config_only {
        true => Vec::new(),
        false => run::first_examples(&plan),
    };
    if options.format != Format::Text {
        let mut json = warnings.to_json();
        json["plan"] = serde_json::to_value(&plan).map_err(Problem::internal)?;
        json["heads"] = heads.into();
        json["costs"] = costs(&plan, options.processes);
        json["first_examples"] = json!(first_examples);
        print(&format!("{json}\n"));
        return Ok(Ended::Done);
    }
    warn(&warnings);
    let data = match options.config_only {
        true => DataSummary::default(),
        false => run::summarize(&plan),
    };
    print(&describe(
        &plan,
        &heads,
        &Assumptions {
            data: &data,
            threads: rayon::current_num_threads(),
            processes: options.processes.unwrap_or(1),
        },
        measure_rate,
    ));
    for (file, tokens) in &first_examples {
        print(&format!(
            "{}\n",
            example(&format!("`{}`", file.display()), tokens)
        ));
    }
    if options.config_only {
        print(&format!("{}\n", wrapped("not read: ", NOT_LOOKED_AT)));
        for delta in plan.deltas.iter().filter(|delta| !delta.texts().is_empty()) {
            print(&format!(
                "unknown without the tokenizer: the tokens of the words of `{}`, and the number of their parameters\n",
                delta.name
            ));
        }
    }
    Ok(Ended::Done)
}

/// What each stage trains and takes, for programs.
fn costs(plan: &Plan, processes: Option<usize>) -> serde_json::Value {
    let threads = rayon::current_num_threads();
    let tokens = plan.backbone.max_length;
    let of_stage = |(index, stage): (usize, &StagePlan)| {
        let cost = plan.cost(index, tokens, &this_machine(threads));
        let mut json = json!({
            "stage": stage.name, "trained": cost.trained, "total": cost.total, "memory": cost.memory,
            "groups": cost.groups, "received": cost.received,
        });
        if let Some(most) = processes {
            let rate = measure_rate(plan.backbone.precision);
            let times = cost.by_processes(most, rate).into_iter();
            let times = times.map(|(number, seconds)| (number.to_string(), json!(seconds)));
            json["seconds_by_processes"] = times.collect::<serde_json::Map<_, _>>().into();
        }
        json
    };
    plan.stages.iter().enumerate().map(of_stage).collect()
}

/// `deltarun profile`
pub(super) fn profile(options: &ProfileOptions) -> Result<Ended, Problems> {
    let source = open(&options.pipeline)?;
    let plan = source.checked_plan(ROWS_AT_EACH_END)?.plan;
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
            false => problem.help(format!("choose one of the stages {}", quoted_list(names()))),
        }
    })?;
    let profile = run::profile(&plan, index, options.steps as usize)
        .map_err(|problem| source.locate(vec![problem]))?;
    let threads = rayon::current_num_threads();
    let limits = measure_limits(plan.backbone.precision);
    print(&crate::run::profile_table(&profile, threads, &limits));
    Ok(Ended::Done)
}

/// `deltarun fmt`
pub(super) fn fmt(files: &[PathBuf], check: bool) -> Result<Ended, Problems> {
    for path in files {
        check_pipeline(path)?;
        let text = read_text(path)?;
        let name = path.display().to_string();
        let formatted = syntax::format(&text).map_err(|p| Problems::in_source(&name, &text, p))?;
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
pub(super) fn interruption() -> &'static AtomicBool {
    static INTERRUPTED: AtomicBool = AtomicBool::new(false);
    #[cfg(unix)]
    // SAFETY: asks for the disposition of a signal and sets it back.
    let is_hangup_ignored = unsafe {
        let before = libc::signal(libc::SIGHUP, libc::SIG_IGN);
        libc::signal(libc::SIGHUP, before);
        before == libc::SIG_IGN
    };
    // An error means that a handler is set already, which does the same.
    let _ = ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(super::INTERRUPTED));
        }
        say("\nstopping soon, with all that is done kept; press Ctrl-C again to stop at once");
    });
    #[cfg(unix)]
    if is_hangup_ignored {
        // `nohup` wants that.
        // SAFETY: no handler runs; a signal is ignored.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    &INTERRUPTED
}

/// The device that the options name.
pub(super) fn device(options: &DeviceOptions) -> Result<Device, Problem> {
    let name = options.device.as_str();
    let (kind, number) = match name.split_once(':') {
        Some((kind, number)) => (kind, Some(number)),
        None => (name, None),
    };
    match (kind, number) {
        ("cpu", None) => Ok(Device::Cpu),
        ("dfdx-cpu", None) => Ok(Device::DfdxCpu),
        #[cfg(feature = "dfdx-cuda")]
        ("cuda" | "dfdx-cuda", number) => cuda(number),
        _ => Err(no_device(name)),
    }
}

#[cfg(feature = "dfdx-cuda")]
fn cuda(number: Option<&str>) -> Result<Device, Problem> {
    let number = number.unwrap_or("0");
    let ordinal = number
        .parse()
        .map_err(|_| no_device(&format!("cuda:{number}")))?;
    Device::cuda(ordinal).map_err(|e| {
        let message = format!("CUDA device {number} cannot be used: {e}");
        Problem::failure("delta::cli::cuda", message)
            .help("run `nvidia-smi` to list the devices, or use `--device cpu`")
    })
}

fn no_device(name: &str) -> Problem {
    let problem = Problem::new("delta::cli::device", format!("there is no device `{name}`"));
    match cfg!(feature = "dfdx-cuda") {
        true => problem.help("use `cpu`, `cuda` or `dfdx-cpu`"),
        false => problem.help(
            "use `cpu` or `dfdx-cpu`; for `cuda`, build with `cargo build --release --features dfdx-cuda`",
        ),
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
        let message = format!("`--preset {preset}` applies only to scripts");
        let problem = Problem::new("delta::cli::preset", message);
        return Err(problem.help("set params with `--set` or `--params`").into());
    }
    if options.shard.is_some() {
        let problem = Problem::new("delta::cli::shard", "`--shard` applies only to scripts");
        return Err(problem.help("remove it: a pipeline is one run").into());
    }
    let is_first = world().rank() == 0;
    let is_quiet = options.quiet || !is_first;
    let read = || {
        let source = open(&options.pipeline)?;
        let checked = source.runnable_plan()?;
        Ok::<_, Problems>((source, checked))
    };
    // The first process downloads what is missing, and reports what is wrong.
    let first = ranks::agree(if is_first { read().map(Some) } else { Ok(None) })?;
    let others = ranks::agree(if is_first { Ok(None) } else { read().map(Some) })?;
    let (source, Checked { plan, warnings, .. }) = first
        .or(others)
        .ok_or_else(|| Problem::internal("a process that reads nothing"))?;
    if is_first {
        warn(&warnings);
    }
    if options.device.device == "cpu" && !is_quiet {
        if let Some(note) = against_precision(&plan, measure_rate) {
            terminal::note(&note);
        }
    }
    let out = options
        .out
        .clone()
        .unwrap_or_else(|| Path::new("runs").join(&plan.name));
    let device = device(&options.device)?;
    let command = options.on_event.as_deref().filter(|_| is_first);
    let listener = command.map(Listener::start).transpose()?;
    run_on(&source, &plan, device, (&out, listener), is_quiet)
}

/// `deltarun FILE.rhai`
fn run_script(path: &Path, options: &RunOptions) -> Result<Ended, Problems> {
    if options.on_event.is_some() {
        let problem = Problem::new(
            "delta::cli::events",
            "`--on-event` applies only to pipelines",
        );
        return Err(problem
            .help("remove it: each run of a script leaves its `log.jsonl`")
            .into());
    }
    if world().size() > 1 {
        let problem = Problem::new("delta::cli::ranks", "`mpirun` cannot share a script");
        return Err(problem
            .help("start each process on its own, with `--shard 1/4` and so on: docs/scaling.md")
            .into());
    }
    if options.device.device != "cpu" {
        let problem = Problem::new("delta::cli::device", "scripts run only on the CPU");
        return Err(problem.help("remove `--device`").into());
    }
    let settings = script::Options {
        set: overrides(&options.pipeline)?,
        preset: options.preset.clone(),
        out: script_out(path, options.out.as_deref()),
        allowed: options.allow.clone(),
        integrity: options.pipeline.integrity.integrity(),
        is_quiet: options.quiet,
        interrupted: interruption(),
    };
    let ended = match options.shard {
        None => script::run(path, &settings)?,
        Some(shard) => super::jobs::run_shard(path, &settings, shard)?,
    };
    match ended {
        script::ScriptEnd::Complete => Ok(Ended::Done),
        script::ScriptEnd::Interrupted => {
            say("interrupted; run the same command again to continue");
            Ok(Ended::Interrupted)
        }
    }
}

/// The directory of a script's runs.
pub(super) fn script_out(path: &Path, out: Option<&Path>) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default();
    out.map_or_else(|| Path::new("runs").join(stem), Path::to_path_buf)
}

fn run_on(
    source: &Source,
    plan: &Plan,
    device: Device,
    (out, listener): (&Path, Option<Listener>),
    is_quiet: bool,
) -> Result<Ended, Problems> {
    let progress = Progress::new(is_quiet);
    let found = [run::head_origins(plan), run::found_labels(plan)].concat();
    found.iter().for_each(|sentence| progress.line(sentence));
    let ended = run::run(
        plan,
        &source.text,
        device,
        &run::Shared {
            integrity: source.integrity,
            listener,
            ..run::Shared::default()
        },
        out,
        interruption(),
        progress,
    );
    match ended.map_err(|problem| source.locate(vec![problem]))? {
        RunEnd::Interrupted(partial) => {
            if world().rank() == 0 {
                say(&format!(
                    "interrupted; run the same command again to continue from `{}`",
                    partial.display()
                ));
            }
            Ok(Ended::Interrupted)
        }
        RunEnd::Complete { .. } if world().rank() > 0 => Ok(Ended::Done),
        RunEnd::Complete {
            summary,
            directory: out,
            warnings,
        } => {
            warn(&source.locate(warnings));
            let mut text = format!("\n{}\n\n{}\n", summary.name, summary.table());
            let delta = out.join("delta.safetensors");
            let size = std::fs::metadata(&delta).map_or(0, |file| file.len());
            text += &format!("  delta: {} ({})\n", delta.display(), bytes(size as usize));
            text += &match peft::why_not(plan) {
                None => format!("  for PEFT: {}\n", out.join("peft").display()),
                Some(reason) => format!("  not saved for PEFT: {reason}\n"),
            };
            text += &next_commands(plan, &out);
            print(&text);
            Ok(Ended::Done)
        }
    }
}

/// The commands that a finished run is for.
fn next_commands(plan: &Plan, out: &Path) -> String {
    let kind = plan.final_task().map(|(_, task)| &task.kind);
    let use_it = match kind.is_some_and(|kind| kind.predicts()) {
        true => "predict",
        false => "generate",
    };
    let has_use = kind.is_some_and(|kind| kind.predicts() || kind.writes());
    let run = out.display();
    let mut text = format!("  next: deltarun report {run}\n");
    if has_use {
        text += &format!("        deltarun {use_it} {run} --input FILE\n");
    }
    text
}

/// Reads the run that `eval` and `predict` ask.
pub(super) fn open_source(source: &SourceOptions, device: Device) -> Result<Loaded, Problem> {
    let reads = InputSettings {
        columns: source.text.as_deref(),
        label: source.label.as_deref(),
        source_prefix: source.source_prefix.as_deref(),
    };
    open_run(
        &source.run,
        source.backbone.as_deref(),
        reads,
        source.integrity.integrity(),
        device,
    )
}
