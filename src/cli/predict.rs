//! `deltarun predict`: JSON lines in, JSON lines out.

use std::io::{BufRead, BufReader, BufWriter, Read, Write};

use serde_json::{json, Map, Value};

use super::arguments::PredictOptions;
use super::commands::{on_device, open_source};
use super::Ended;
use crate::data::{Examples, TextEncoder};
use crate::diagnostic::{Problem, Problems};
use crate::graph::Executor;
use crate::plan::{TaskKind, TaskPlan};
use crate::run::{Loaded, Loader};
use crate::text::did_you_mean;
use crate::train::{highest, predict as logits_of, softmax};

/// The most lines that are predicted together.
const CHUNK: usize = 512;

pub(super) fn predict(options: &PredictOptions) -> Result<Ended, Problems> {
    on_device!(options.source.device, |device| predict_on(options, device))
}

fn predict_on<D: Executor>(options: &PredictOptions, device: D) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device)?;
    let failed = |what: &str, e: std::io::Error| {
        Problem::failure("delta::cli::io", format!("{what}: {e}"))
            .help("check the path and the permissions")
    };
    let input: Box<dyn Read> = match &options.input {
        Some(path) => Box::new(std::fs::File::open(path).map_err(|e| {
            Problem::new(
                "delta::cli::unreadable",
                format!("`{}` cannot be read: {e}", path.display()),
            )
            .help("check the path")
        })?),
        None => Box::new(std::io::stdin()),
    };
    // A file gets its name when it is complete.
    let temporary = options
        .output
        .as_ref()
        .map(|path| path.with_extension("writing"));
    let output: Box<dyn Write> = match &temporary {
        Some(path) => Box::new(
            std::fs::File::create(path).map_err(|e| failed("the output cannot be written", e))?,
        ),
        None => Box::new(std::io::stdout().lock()),
    };
    let written = write_all(&loaded, BufReader::new(input), BufWriter::new(output));
    if let (Some(temporary), Some(path)) = (temporary, &options.output) {
        match &written {
            Ok(()) => std::fs::rename(temporary, path),
            Err(_) => std::fs::remove_file(temporary),
        }
        .map_err(|e| failed("the output cannot be written", e))?;
    }
    written?;
    Ok(Ended::Done)
}

fn write_all<D: Executor>(
    loaded: &Loaded<D>,
    input: impl BufRead,
    mut output: impl Write,
) -> Result<(), Problem> {
    let (_, task) = loaded
        .plan
        .final_task()
        .ok_or_else(|| Problem::internal("a run without a task"))?;
    if task.kind.is_language_model() {
        return Err(Problem::new(
            "delta::cli::task",
            "a language model has no labels to predict",
        )
        .help("give a run whose last stage classifies or regresses"));
    }
    let loader = Loader::new(&loaded.plan)?;
    let mut chunk = Chunk::default();
    for (index, line) in input.lines().enumerate() {
        let number = index + 1;
        let line = line.map_err(|e| at_line(number, e).help("give UTF-8 text"))?;
        if line.trim().is_empty() {
            continue;
        }
        chunk.texts.push(texts(&line, number, task)?);
        chunk.numbers.push(number);
        if chunk.texts.len() == CHUNK {
            std::mem::take(&mut chunk).write(loaded, task, loader.encoder(), &mut output)?;
        }
    }
    chunk.write(loaded, task, loader.encoder(), &mut output)
}

/// A problem in a line of the input.
fn at_line(number: usize, message: impl std::fmt::Display) -> Problem {
    Problem::new(
        "delta::cli::input",
        format!("input, line {number}: {message}"),
    )
}

/// The texts of one line.
fn texts(line: &str, number: usize, task: &TaskPlan) -> Result<Vec<String>, Problem> {
    let wrong = |message: String| at_line(number, message);
    let object: Map<String, Value> = serde_json::from_str(line).map_err(|e| {
        let keys: Vec<String> = task
            .text
            .iter()
            .map(|key| format!("\"{key}\": \"...\""))
            .collect();
        wrong(format!("it is not a JSON object: {e}"))
            .help(format!("write `{{{}}}`", keys.join(", ")))
    })?;
    let text = |key: &String| match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        _ => {
            let problem = wrong(format!("the object has no text `{key}`"));
            Err(match did_you_mean(key, object.keys().map(String::as_str)) {
                Some(near) => problem.help(format!("rename `{near}` to `{key}`")),
                None => problem.help(format!("give every line a text `{key}`")),
            })
        }
    };
    task.text.iter().map(text).collect()
}

/// Lines that are predicted together.
#[derive(Default)]
struct Chunk {
    /// Their numbers in the input.
    numbers: Vec<usize>,
    texts: Vec<Vec<String>>,
}

impl Chunk {
    fn write<D: Executor>(
        self,
        loaded: &Loaded<D>,
        task: &TaskPlan,
        encoder: &TextEncoder,
        output: &mut impl Write,
    ) -> Result<(), Problem> {
        let failed = |e: std::io::Error| {
            Problem::failure(
                "delta::cli::io",
                format!("the output cannot be written: {e}"),
            )
            .help("check the path, the permissions and the space on the disk")
        };
        let examples =
            Examples::of_texts(&self.texts, task, encoder).map_err(|(index, mut problem)| {
                if let Some(number) = index.and_then(|index| self.numbers.get(index)) {
                    problem.message = at_line(*number, &problem.message).message;
                }
                problem
            })?;
        for logits in logits_of(&loaded.graph, &examples.all)? {
            if logits.iter().any(|logit| !logit.is_finite()) {
                let problem =
                    Problem::failure("delta::cli::not_finite", "a logit is not a finite number");
                return Err(problem.help("look at the weights of the run and of its backbone"));
            }
            writeln!(output, "{}", describe(&logits, task)).map_err(failed)?;
        }
        output.flush().map_err(failed)
    }
}

/// What is said of one text: label, probabilities and raw logits, or a number.
fn describe(logits: &[f32], task: &TaskPlan) -> Value {
    if task.kind == TaskKind::Regress {
        return json!({ "value": logits[0], "logits": logits });
    }
    let probabilities: Map<String, Value> = task
        .labels
        .iter()
        .zip(softmax(logits))
        .map(|(label, p)| (label.name.clone(), json!(p)))
        .collect();
    json!({ "label": task.labels[highest(logits)].name, "probabilities": probabilities, "logits": logits })
}
