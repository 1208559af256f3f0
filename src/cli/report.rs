//! `deltarun report`: a finished run as one HTML page.

use serde_json::Value;

use super::arguments::ReportOptions;
use super::commands::{device, open_source};
use super::eval::file_of;
use super::lines::{answers_to, Answering};
use super::predict::Predictor;
use super::Ended;
use crate::data::objects;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::plan::{FilePlan, Metric, Plan};
use crate::report::{label_tables, metric_value, plot, Page, Series, Table};
use crate::run::{FinishedRun, Loaded, Loader, Log};
use crate::terminal::print;
use crate::text::counted;

/// The most points of a curve. Of more, each is the mean of some.
const POINTS: usize = 200;

/// The most wrong answers that are shown.
const MOST_WRONG: usize = 25;

/// Letters of a text that are shown.
const LETTERS: usize = 300;

pub(super) fn report(options: &ReportOptions) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device(&options.source.device)?)?;
    let directory = &options.source.run;
    let Some(run) = &loaded.run else {
        let message = format!("`{}` is not a finished run", directory.display());
        return Err(Problem::new("delta::cli::report", message)
            .help("name the directory of a run, such as `runs/NAME`")
            .into());
    };
    let mut page = Page::new(&loaded.plan.name);
    add_result(&mut page, &loaded.plan, run)?;
    add_curves(&mut page, &run.text(Log::FILE)?, loaded.task()?.metric)?;
    if let Some(file) = file_of(&loaded, options.data.as_deref())? {
        add_quality(&mut page, &loaded, &file)?;
    }
    page.heading("Pipeline");
    page.verbatim(&run.text("pipeline.delta")?);
    let out = options.out.clone();
    let out = out.unwrap_or_else(|| directory.join("report.html"));
    let unwritten = |e| disk::failed("written", &out, &e);
    disk::replace(&out, page.to_string().as_bytes()).map_err(unwritten)?;
    print(&format!("{}\n", out.display()));
    Ok(Ended::Done)
}

/// The figures that the end of a run shows.
fn add_result(page: &mut Page, plan: &Plan, run: &FinishedRun) -> Result<(), Problem> {
    let summary = run.summary()?;
    page.paragraph(&format!(
        "Backbone {}, seed {}.",
        plan.backbone.location, plan.seed
    ));
    page.table(summary.stages_table().rows());
    if let Some(test) = &summary.test {
        let value = metric_value(summary.metric, test.get(summary.metric));
        page.paragraph(&format!("Test {}: {value}", summary.metric.name()));
    }
    Ok(())
}

/// The course of the training, over the steps of all stages.
fn add_curves(page: &mut Page, log: &str, metric: Metric) -> Result<(), Problem> {
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let curve = |of: &dyn Fn(&Value) -> Option<f64>| -> Vec<(f64, f64)> {
        let (mut points, mut before) = (Vec::new(), 0.0);
        for line in &lines {
            // A stage counts its steps from 1.
            if let Some(steps) = line["steps"].as_f64() {
                before += steps;
            } else if let (Some(step), Some(value)) = (line["step"].as_f64(), of(line)) {
                points.push((before + step, value));
            }
        }
        thinned(points)
    };
    let name = metric.name();
    let mut losses = vec![("train".to_owned(), curve(&|line| line["loss"].as_f64()))];
    losses.push((
        "dev".to_owned(),
        curve(&|line| line["dev"]["loss"].as_f64()),
    ));
    let on_dev = vec![("dev".to_owned(), curve(&|line| line["dev"][name].as_f64()))];
    let rate = vec![("rate".to_owned(), curve(&|line| line["lr"].as_f64()))];
    let norm = curve(&|line| line["gradient_norm"].as_f64());
    let norm = vec![("norm".to_owned(), norm)];
    let has_own = metric != Metric::Loss;
    for (title, mut series) in [
        ("Loss", losses),
        (name, on_dev),
        ("Learning rate", rate),
        ("Norm of the gradient", norm),
    ] {
        series.retain(|(_, points): &Series| points.len() > 1);
        if series.is_empty() || (title == name && !has_own) {
            continue;
        }
        match plot(title, ["step", title], false, &series) {
            Ok(drawn) => page.picture(&drawn),
            Err(reason) => page.paragraph(&format!("{title}: {reason}")),
        }
    }
    Ok(())
}

/// At most [`POINTS`] points, each the mean of as many.
fn thinned(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        let sum = part
            .iter()
            .fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / count, sum.1 / count)
    };
    points.chunks(size).map(mean).collect()
}

/// The metrics of a set, how well each label is predicted, and the answers that are wrong.
fn add_quality(page: &mut Page, loaded: &Loaded, file: &FilePlan) -> Result<(), Problem> {
    let plan = &loaded.plan;
    let task = loaded.task()?;
    let mut loader = Loader::new(plan)?;
    let evaluation = loader.evaluate(plan, &loaded.graph, task, file)?;
    page.heading(&format!(
        "{}: {}",
        file.name(),
        counted(evaluation.examples, "example")
    ));
    let mut metrics = Table::new(["metric", "value"]);
    for (name, value) in &evaluation.metrics {
        metrics.row([name.clone(), format!("{value:.4}")]);
    }
    page.table(metrics.rows());
    for table in label_tables(&evaluation.by_label, evaluation.confusion.as_ref()) {
        page.table(table.rows());
    }
    if evaluation.confusion.is_some() {
        add_mistakes(page, loaded, file, loader)?;
    }
    Ok(())
}

/// The rows of a set that got another label than their own, with the most certain mistakes first.
fn add_mistakes(
    page: &mut Page,
    loaded: &Loaded,
    file: &FilePlan,
    mut loader: Loader,
) -> Result<(), Problem> {
    let task = loaded.task()?;
    let whole = FilePlan {
        few: None,
        part: None,
        ..file.clone()
    };
    let places = loader.file(&whole, task)?.places(file, task)?;
    let predictor = Predictor::new(loaded, loader);
    let rows = objects(&whole, &predictor.wanted())?;
    let rows = places.iter().filter_map(|place| rows.get(*place)).cloned();
    let rows: Vec<(usize, Value)> = rows.collect();
    let answers = answers_to(&predictor, rows.clone())?;
    let mut wrong: Vec<(f64, Vec<String>)> = Vec::new();
    for ((number, row), answer) in rows.iter().zip(&answers) {
        let (Some(label), Some(gold)) = (answer["label"].as_str(), answer["gold"].as_str()) else {
            continue;
        };
        if label == gold {
            continue;
        }
        let certainty = answer["probabilities"][label].as_f64().unwrap_or(0.0);
        let texts = task.kind.texts().iter().map(|name| shown(&row[name]));
        let texts: Vec<String> = texts.collect();
        wrong.push((
            certainty,
            vec![
                texts.join(" ⏐ "),
                number.to_string(),
                gold.to_owned(),
                label.to_owned(),
                format!("{certainty:.3}"),
            ],
        ));
    }
    wrong.sort_by(|a, b| b.0.total_cmp(&a.0));
    let count = counted(wrong.len(), "wrong answer");
    page.heading(&match wrong.len() > MOST_WRONG {
        true => format!("{count}, the {MOST_WRONG} most certain first"),
        false => count,
    });
    let mut table = Table::new(["text", "line", "label", "predicted", "probability"]);
    for (_, cells) in wrong.into_iter().take(MOST_WRONG) {
        table.row(cells);
    }
    page.table(table.rows());
    Ok(())
}

/// The beginning of a text.
fn shown(value: &Value) -> String {
    let text = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
