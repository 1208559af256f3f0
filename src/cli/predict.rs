//! `deltarun predict`: JSON lines in, JSON lines out, each answered as it comes.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc::{sync_channel, Receiver};

use serde_json::{json, Map, Value};

use super::arguments::PredictOptions;
use super::commands::{device, open_source};
use super::Ended;
use crate::data::{json_text, Examples, TextEncoder};
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, Pending};
use crate::engine::Device;
use crate::plan::TaskPlan;
use crate::run::{Loaded, Loader};
use crate::train::predict as logits_of;

/// The most lines that are predicted together: those that wait while the last ones were.
const MOST: usize = 512;

/// The key that an answer has of its line: the line's own, or its number.
const ID: &str = "id";

pub(super) fn predict(options: &PredictOptions) -> Result<Ended, Problems> {
    if let (Some(input), Some(output)) = (&options.input, &options.output) {
        check_apart(input, output)?;
    }
    predict_on(options, device(&options.source.device)?)
}

/// What is written must not be what is read.
fn check_apart(input: &Path, output: &Path) -> Result<(), Problem> {
    let (input, found) = (input.canonicalize(), output.canonicalize());
    if matches!((&input, &found), (Ok(input), Ok(output)) if input == output) {
        let message = format!("`{}` is both the input and the output", output.display());
        return Err(Problem::new("delta::cli::same_file", message)
            .help("choose another file for the output"));
    }
    Ok(())
}

fn predict_on(options: &PredictOptions, device: Device) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device)?;
    let input: Box<dyn Read + Send> = match &options.input {
        Some(path) => Box::new(std::fs::File::open(path).map_err(|e| {
            let message = format!("`{}` cannot be read: {e}", path.display());
            Problem::new("delta::cli::unreadable", message).help("check the path")
        })?),
        None => Box::new(std::io::stdin()),
    };
    match &options.output {
        Some(path) => {
            let failed = |e: &std::io::Error| disk::failed("written", path, e);
            let mut file = BufWriter::new(Pending::new(path).map_err(|e| failed(&e))?);
            let answered = answer_all(&loaded, input, &mut file);
            // What came before a bad line is kept, as on standard output.
            let is_begun = !matches!(&answered, Err((0, _)));
            let file = file.into_inner().map_err(|e| failed(e.error()))?;
            if is_begun {
                file.complete().map_err(|e| failed(&e))?;
            }
            answered.map(drop).map_err(|(_, problem)| problem)?;
        }
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            let answered = answer_all(&loaded, input, &mut output);
            answered.map(drop).map_err(|(_, problem)| problem)?;
        }
    }
    Ok(Ended::Done)
}

/// A line of the input.
struct Line {
    number: usize,
    text: Result<String, Problem>,
}

/// Reads lines on a thread of its own, so that those that have come wait together.
fn read_lines(input: Box<dyn Read + Send>) -> Receiver<Line> {
    let (sender, receiver) = sync_channel(MOST);
    std::thread::spawn(move || {
        for (index, text) in BufReader::new(input).lines().enumerate() {
            let number = index + 1;
            let text = text.map_err(|e| at_line(number, e).help("convert the input to UTF-8"));
            let is_last = text.is_err();
            // Nobody waits any more once an answer could not be written.
            if sender.send(Line { number, text }).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// Answers every line; gives how many were, with what is wrong with the next one.
fn answer_all(
    loaded: &Loaded,
    input: Box<dyn Read + Send>,
    output: &mut impl Write,
) -> Result<usize, (usize, Problem)> {
    let begin = || -> Result<(&TaskPlan, Loader), Problem> {
        let task = loaded.plan.final_task().map(|(_, task)| task);
        let task = task.ok_or_else(|| Problem::internal("a run without a task"))?;
        if task.kind.predicts_tokens() {
            let message = "a language model has no labels to predict";
            return Err(Problem::new("delta::cli::task", message)
                .help("use a run whose last task is `classify` or `regress`"));
        }
        Ok((task, Loader::new(&loaded.plan)?))
    };
    let (task, loader) = begin().map_err(|problem| (0, problem))?;
    let lines = read_lines(input);
    let mut answered = 0;
    while let Ok(first) = lines.recv() {
        let waiting = std::iter::once(first).chain(lines.try_iter().take(MOST - 1));
        let mut chunk = Chunk::default();
        let bad = waiting
            .map(|line| chunk.add(line, task))
            .find_map(Result::err);
        let count = chunk.texts.len();
        match chunk.write(loaded, task, loader.encoder(), output) {
            Ok(()) => answered += count,
            // A reader that has gone away wants no more.
            Err(Stop::Gone) => return Ok(answered),
            Err(Stop::Problem(at, problem)) => return Err((answered + at, problem)),
        }
        if let Some(problem) = bad {
            return Err((answered, problem));
        }
    }
    Ok(answered)
}

/// A problem in a line of the input.
fn at_line(number: usize, message: impl std::fmt::Display) -> Problem {
    Problem::new(
        "delta::cli::input",
        format!("input, line {number}: {message}"),
    )
}

/// Why no more is written.
enum Stop {
    /// Nobody reads any more.
    Gone,
    /// After so many of the chunk's lines.
    Problem(usize, Problem),
}

/// Lines that are predicted together.
#[derive(Default)]
struct Chunk {
    /// Their numbers in the input, and what their answers carry.
    numbers: Vec<(usize, Value)>,
    texts: Vec<Vec<String>>,
}

impl Chunk {
    fn add(&mut self, line: Line, task: &TaskPlan) -> Result<(), Problem> {
        let Line { number, text } = line;
        let text = text?;
        let text = match number {
            1 => text.trim_start_matches('\u{feff}'),
            _ => text.as_str(),
        };
        if text.trim().is_empty() {
            return Ok(());
        }
        let object: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
            let key = |key: &String| format!("\"{key}\": \"...\"");
            let keys: Vec<String> = task.kind.texts().iter().map(key).collect();
            at_line(number, format!("the line is not a JSON object: {e}"))
                .help(format!("write `{{{}}}`", keys.join(", ")))
        })?;
        let text = |key: &String| {
            json_text(&object, key).map_err(|(message, help)| at_line(number, message).help(help))
        };
        let texts = task
            .kind
            .texts()
            .iter()
            .map(text)
            .collect::<Result<_, _>>()?;
        let id = object.get(ID).cloned().unwrap_or(json!(number));
        self.numbers.push((number, id));
        self.texts.push(texts);
        Ok(())
    }

    fn write(
        mut self,
        loaded: &Loaded,
        task: &TaskPlan,
        encoder: &TextEncoder,
        output: &mut impl Write,
    ) -> Result<(), Stop> {
        let examples = match Examples::of_texts(&self.texts, task, encoder) {
            Ok(examples) => examples,
            // Those before the one that is to blame are answered.
            Err((Some(index), mut problem)) if index < self.texts.len() => {
                problem.message = at_line(self.numbers[index].0, &problem.message).message;
                self.texts.truncate(index);
                self.numbers.truncate(index);
                self.write(loaded, task, encoder, output)?;
                return Err(Stop::Problem(index, problem));
            }
            Err((_, problem)) => return Err(Stop::Problem(0, problem)),
        };
        let logits = logits_of(&loaded.graph, &examples.all).map_err(|e| Stop::Problem(0, e))?;
        for (at, (logits, (_, id))) in logits.iter().zip(&self.numbers).enumerate() {
            let answer = describe(logits, task, id).map_err(|e| Stop::Problem(at, e))?;
            writeln!(output, "{answer}").map_err(|e| stopped(at, &e))?;
        }
        output.flush().map_err(|e| stopped(self.texts.len(), &e))
    }
}

fn stopped(at: usize, error: &std::io::Error) -> Stop {
    match error.kind() {
        ErrorKind::BrokenPipe => Stop::Gone,
        _ => Stop::Problem(at, disk::failed("written", Path::new("the output"), error)),
    }
}

/// What is said of one text: label, probabilities and raw logits, or a number.
fn describe(logits: &[f32], task: &TaskPlan, id: &Value) -> Result<Value, Problem> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        let problem = Problem::failure(
            "delta::cli::not_finite",
            "the model computed a logit that is NaN or infinite",
        );
        return Err(
            problem.help("look for NaN or infinity in the weights of the run and of its backbone")
        );
    }
    let answer = task.kind.answer(logits).unwrap_or_default();
    let id = (ID.to_owned(), id.clone());
    let fields: Map<String, Value> = std::iter::once(id).chain(answer).collect();
    Ok(Value::Object(fields))
}
