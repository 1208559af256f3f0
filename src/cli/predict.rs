//! `deltarun predict`: rows in, answers out, each answered as it comes.

use std::io::Write;

use serde_json::{Map, Value};

use super::arguments::PredictOptions;
use super::commands::{device, open_source};
use super::input::read_as_run;
use super::lines::{answer_file, at_line, check_output, stopped, Answering, Asked, Stop, ID};
use super::Ended;
use crate::data::{json_value, Examples, Wanted};
use crate::diagnostic::{Problem, Problems};
use crate::plan::FilePlan;
use crate::run::{Loaded, Loader};
use crate::task::{label_of, Task};
use crate::train::predict as logits_of;

pub(super) fn predict(options: &PredictOptions) -> Result<Ended, Problems> {
    check_output(&options.files)?;
    let loaded = open_source(&options.source, device(&options.source.device)?)?;
    if !loaded.task()?.kind.predicts() {
        let message = "a language model has no labels to predict";
        return Err(Problem::new("delta::cli::task", message)
            .help("write texts with `deltarun generate`, or use a run whose last task is `classify`, `regress`, `tag` or `choose`")
            .into());
    }
    let predictor = Predictor::new(&loaded, Loader::new(&loaded.plan)?);
    answer_file(&predictor, &options.files)
}

/// Answers rows with the labels or numbers that a run predicts.
pub(super) struct Predictor<'a> {
    loaded: &'a Loaded,
    loader: Loader,
}

/// The values of some columns of an object.
pub(super) fn values<'c>(
    object: &Map<String, Value>,
    columns: impl IntoIterator<Item = &'c String>,
    task: &Task,
) -> Result<Vec<String>, (String, String)> {
    let value = |name: &'c String| json_value(object, &Wanted::of(name, task));
    columns.into_iter().map(value).collect()
}

/// An object with these columns, for messages.
pub(super) fn example<'c>(columns: impl IntoIterator<Item = &'c String>) -> String {
    let key = |key: &String| format!("\"{key}\": \"...\"");
    let keys: Vec<String> = columns.into_iter().map(key).collect();
    format!("{{{}}}", keys.join(", "))
}

impl<'a> Predictor<'a> {
    pub(super) fn new(loaded: &'a Loaded, loader: Loader) -> Self {
        Predictor { loaded, loader }
    }

    fn kind(&self) -> Result<&Task, Problem> {
        self.loaded.task().map(|task| &task.kind)
    }
}

impl Answering for Predictor<'_> {
    type Question = Vec<String>;

    fn most(&self) -> usize {
        512
    }

    fn example(&self) -> String {
        self.kind()
            .map_or(String::new(), |kind| example(kind.texts()))
    }

    fn file(&self, file: FilePlan) -> Result<FilePlan, Problem> {
        read_as_run(&self.loaded.plan, file)
    }

    fn wanted(&self) -> Vec<Wanted<'_>> {
        let Ok(kind) = self.kind() else {
            return Vec::new();
        };
        let columns = kind.texts().iter().chain(kind.targets());
        let names = columns.map(String::as_str).chain([ID]);
        names.map(|name| Wanted::of(name, kind)).collect()
    }

    fn gold(&self, object: &Map<String, Value>) -> Option<Value> {
        let kind = self.kind().ok()?;
        let [column] = kind.targets() else {
            return None;
        };
        // A label is called by its name, as in the answer.
        let named = |value: &Value| {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            match label_of(kind.labels(), &text) {
                Ok(number) => kind.labels()[number].name.clone().into(),
                Err(_) => value.clone(),
            }
        };
        let given = object.get(column).filter(|value| *value != "");
        Some(match given? {
            Value::Array(values) => values.iter().map(named).collect(),
            value => named(value),
        })
    }

    fn read(&self, object: &Map<String, Value>) -> Result<Vec<String>, (String, String)> {
        let kind = self
            .kind()
            .map_err(|problem| (problem.message, String::new()))?;
        values(object, kind.texts(), kind)
    }

    fn answer(&self, asked: &[Asked<Vec<String>>], output: &mut dyn Write) -> Result<(), Stop> {
        let task = self.loaded.task().map_err(|e| Stop::Problem(0, e))?;
        let texts: Vec<Vec<String>> = asked.iter().map(|line| line.question.clone()).collect();
        let examples = match Examples::of_texts(&texts, task, self.loader.encoder()) {
            Ok(examples) => examples,
            // Those before the one that is to blame are answered.
            Err((index, mut problem)) => {
                problem.message = at_line(asked[index].number, &problem.message).message;
                self.answer(&asked[..index], output)?;
                return Err(Stop::Problem(index, problem));
            }
        };
        let logits = logits_of(&self.loaded.graph, &examples).map_err(|e| Stop::Problem(0, e))?;
        for (at, (logits, line)) in logits.iter().zip(asked).enumerate() {
            check_finite(logits).map_err(|e| Stop::Problem(at, e))?;
            let answer = task.kind.answer(&texts[at], &examples[at], logits);
            let answer = line.answered(answer.unwrap_or_default());
            writeln!(output, "{answer}").map_err(|e| stopped(at, &e))?;
        }
        output.flush().map_err(|e| stopped(asked.len(), &e))
    }
}

fn check_finite(logits: &[f32]) -> Result<(), Problem> {
    if logits.iter().all(|logit| logit.is_finite()) {
        return Ok(());
    }
    let problem = Problem::failure(
        "delta::cli::not_finite",
        "the model computed a logit that is NaN or infinite",
    );
    Err(problem.help("look for NaN or infinity in the weights of the run and of its backbone"))
}
