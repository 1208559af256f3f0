//! `deltarun eval`: the metrics of a finished run, or of an adapter, on a file.

use std::path::{Path, PathBuf};

use serde_json::{json, Map, Value};

use super::arguments::{EvalOptions, Format};
use super::commands::{device, open_source};
use super::input::read_as_run;
use super::Ended;
use crate::data::{files_of, recognize};
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::engine::Device;
use crate::hub::local;
use crate::plan::FilePlan;
use crate::ranks::{agree, world};
use crate::report::{label_report, metric_value};
use crate::run::{Loaded, Loader};
use crate::task::OfLabel;
use crate::terminal::print;

pub(super) fn eval(options: &EvalOptions) -> Result<Ended, Problems> {
    eval_on(options, device(&options.source.device)?)
}

fn eval_on(options: &EvalOptions, device: Device) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device)?;
    let plan = &loaded.plan;
    let (_, task) = plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    let file = file_of(&loaded, options.data.as_deref())?.ok_or_else(|| {
        Problem::new("delta::cli::no_data", "the run has no dev or test set")
            .help("name a file with `--data FILE`")
    })?;
    check_others(&file)?;
    let evaluation = Loader::new(plan)?.evaluate(plan, &loaded.graph, task, &file)?;
    if options.format != Format::Text {
        let mut json = json!({
            "file": file.path, "examples": evaluation.examples, "metrics": evaluation.metrics,
        });
        if !file.more.is_empty() {
            json["more_files"] = json!(file.more);
        }
        if !evaluation.by_label.is_empty() {
            let of_label = |own: &OfLabel| {
                let measures = json!({
                    "precision": own.precision(), "recall": own.recall(), "f1": own.f1(), "examples": own.examples,
                });
                (own.name.clone(), measures)
            };
            let labels = evaluation.by_label.iter().map(of_label);
            json["labels"] = labels.collect::<Map<String, Value>>().into();
        }
        if let Some(confusion) = &evaluation.confusion {
            json["confusion"] = json!(confusion);
        }
        print_once(&format!("{json}\n"));
        return Ok(Ended::Done);
    }
    let mut text = format!("{}: {} examples\n", file.name(), evaluation.examples);
    for (name, value) in &evaluation.metrics {
        let metric = if *name == task.metric.name() {
            metric_value(task.metric, *value)
        } else {
            format!("{value:.4}")
        };
        text += &format!("  {name} {metric}\n");
    }
    if !evaluation.by_label.is_empty() {
        let report = label_report(&evaluation.by_label, evaluation.confusion.as_ref());
        text += &format!("\n{report}");
    }
    print_once(&text);
    Ok(Ended::Done)
}

/// The file that a command evaluates on: the one that it names, or the run's dev or test set.
pub(super) fn file_of(loaded: &Loaded, named: Option<&Path>) -> Result<Option<FilePlan>, Problem> {
    let plan = &loaded.plan;
    let sets = plan.final_data();
    let file = match named {
        Some(path) => Some(read_as_run(plan, recognize(path)?)?),
        None => sets.and_then(|data| data.dev.clone().or_else(|| data.test.clone())),
    };
    if let (Some(run), Some(file)) = (&loaded.run, &file) {
        match named {
            None => run.check_set(file)?,
            Some(_) => run.check_data(&file.path)?,
        }
    }
    Ok(file)
}

/// Checks that every process evaluates the same rows.
fn check_others(file: &FilePlan) -> Result<(), Problem> {
    if world().size() == 1 {
        return Ok(());
    }
    let hash = |path: &PathBuf| {
        let path = local(path)?;
        disk::hash(&path).map_err(|e| disk::failed("read", &path, &e))
    };
    let read = || {
        files_of(file)?
            .iter()
            .map(hash)
            .collect::<Result<Vec<_>, Problem>>()
    };
    let all = world().all_gather(agree(read())?.join(" ").as_bytes());
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => {
            let message = format!("process {rank} has another {}", file.shown());
            Err(Problem::new("delta::run::ranks", message)
                .help("give every process the same program and the same files"))
        }
    }
}

/// Prints what every process knows.
fn print_once(text: &str) {
    if world().rank() == 0 {
        print(text);
    }
}
