//! `deltarun eval`: the metrics of a finished run, or of an adapter, on a file.

use std::path::Path;

use serde_json::{json, Map, Value};

use super::arguments::{EvalOptions, Format};
use super::commands::{device, open_source};
use super::Ended;
use crate::data::recognize;
use crate::diagnostic::{Problem, Problems};
use crate::engine::Device;
use crate::plan::{FilePlan, Plan};
use crate::ranks::world;
use crate::report::{label_report, metric_value};
use crate::run::Loader;
use crate::task::OfLabel;
use crate::terminal::print;

pub(super) fn eval(options: &EvalOptions) -> Result<Ended, Problems> {
    eval_on(options, device(&options.source.device)?)
}

/// How a file is read: as its name and its beginning say, and otherwise as the run read its own files of that format.
fn read_like(plan: &Plan, path: &Path) -> Result<FilePlan, Problem> {
    let file = recognize(path)?;
    let data = plan.final_data();
    let mut own = data
        .iter()
        .flat_map(|data| [&data.dev, &data.test, &data.train]);
    let like = own.find_map(|own| own.as_ref().filter(|own| own.format == file.format));
    Ok(match like {
        Some(like) => FilePlan {
            columns: like.columns.clone(),
            // Without a header, the first line shows less.
            separator: match like.columns {
                Some(_) => like.separator,
                None => file.separator,
            },
            encoding: file.encoding.map(|found| like.encoding.unwrap_or(found)),
            ..file
        },
        None => file,
    })
}

fn eval_on(options: &EvalOptions, device: Device) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device)?;
    let plan = &loaded.plan;
    let (_, task) = plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    let file = match &options.data {
        Some(path) => read_like(plan, path)?,
        None => plan
            .final_data()
            .and_then(|data| data.dev.clone().or_else(|| data.test.clone()))
            .ok_or_else(|| {
                Problem::new("delta::cli::no_data", "the run has no dev or test set")
                    .help("name a file with `--data FILE`")
            })?,
    };
    if let Some(run) = &loaded.run {
        run.check_files()?;
        match options.data {
            None => run.check_set(&file)?,
            Some(_) => run.check_data(&file.path)?,
        }
    }
    let evaluation = Loader::new(plan)?.evaluate(plan, &loaded.graph, task, &file)?;
    if options.format != Format::Text {
        let mut json = json!({
            "file": file.path, "examples": evaluation.examples, "metrics": evaluation.metrics,
        });
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
    if !evaluation.by_label.is_empty() {
        let report = label_report(&evaluation.by_label, evaluation.confusion.as_ref());
        text += &format!("\n{report}");
    }
    print_once(&text);
    Ok(Ended::Done)
}

/// Prints what every process knows.
fn print_once(text: &str) {
    if world().rank() == 0 {
        print(text);
    }
}
