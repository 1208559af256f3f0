//! Predictions of a graph on examples, and their metrics.

use std::collections::BTreeMap;

use super::comparison::likelihoods;
use super::frozen::ActivationCache;
use crate::data::{batch, Example, Noising, Prediction};
use crate::diagnostic::Problem;
use crate::generate::Writer;
use crate::graph::{Batch, Graph, Targets};
use crate::plan::{Metric, TaskPlan};
use crate::ranks::own_of;
use crate::task::{Guess, Likelihoods, OfLabel, Predictions, Target};

/// The result of an evaluation.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Evaluation {
    /// The number of examples.
    pub examples: usize,
    /// Metrics by name, the mean loss among them.
    pub metrics: BTreeMap<String, f64>,
    /// In a classification, the number of the label that was predicted for every example, unless all examples have that
    /// label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collapsed_to: Option<usize>,
    /// In a classification of one label, for each label how many of its examples were predicted to have each label. Only
    /// the evaluation itself has it, and no log or checkpoint.
    #[serde(skip)]
    pub confusion: Option<Vec<Vec<usize>>>,
    /// How well each label, or type of spans, was predicted. Only the evaluation itself has it as well.
    #[serde(skip)]
    pub by_label: Vec<OfLabel>,
}

impl Evaluation {
    /// The value of a metric.
    pub fn get(&self, metric: Metric) -> f64 {
        self.metrics.get(metric.name()).copied().unwrap_or(f64::NAN)
    }
}

/// The largest number of rows in a group, if the device sets no limit.
const MOST_ROWS: usize = 8192;

/// Examples in their order, in batches of about as many rows as a group has.
pub(super) fn batches(graph: &Graph, examples: &[Example], prediction: Prediction) -> Vec<Batch> {
    let limit = graph.device().group_rows().min(MOST_ROWS);
    let prediction = Prediction {
        predicts_first: graph.predicts_first(),
        ..prediction
    };
    let mut batches = Vec::new();
    let mut start = 0;
    while start < examples.len() {
        let mut rows = 0;
        let mut end = start;
        while end < examples.len() && (end == start || rows + examples[end].rows() <= limit) {
            rows += examples[end].rows();
            end += 1;
        }
        let members: Vec<&Example> = examples[start..end].iter().collect();
        let places: Vec<usize> = (start..end).collect();
        // The seed is constant, so that every evaluation uses the same masks.
        batches.push(batch(&members, &places, 0, prediction));
        start = end;
    }
    batches
}

/// The logits of every example, in order: `(rows that the head reads, outputs)` each, or those of its answers.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn predict(graph: &Graph, examples: &[Example]) -> Result<Vec<Vec<f32>>, Problem> {
    let Some(comparison) = graph.task().and_then(|task| task.kind.comparison()) else {
        return predict_with(graph, examples, None);
    };
    let found = likelihoods(graph, examples, comparison, &[])?;
    let scores = |own: &Likelihoods| {
        let scores = comparison.scores(own).into_iter();
        scores.map(|score| score as f32).collect()
    };
    Ok(found.iter().map(scores).collect())
}

fn predict_with(
    graph: &Graph,
    examples: &[Example],
    kept: Option<&ActivationCache>,
) -> Result<Vec<Vec<f32>>, Problem> {
    let mut batches = batches(graph, examples, Prediction::default());
    if let Some(kept) = kept {
        kept.attach(graph, own_of(0, &mut batches))?;
    }
    let logits = graph.logits(&batches)?;
    let mut rows = Vec::with_capacity(examples.len());
    for (batch, logits) in batches.iter().zip(logits) {
        let counts = batch.read_counts();
        let width = logits.len() / counts.iter().sum::<usize>().max(1);
        let mut rest = logits.as_slice();
        for count in counts {
            let (own, others) = rest.split_at(count * width);
            rows.push(own.to_vec());
            rest = others;
        }
    }
    Ok(rows)
}

/// What an evaluation needs beside examples.
#[derive(Clone, Copy, Default)]
pub struct Measuring<'a> {
    /// What is hidden from the model, if anything is.
    pub noising: Option<&'a Noising>,
    /// What writes texts, for a metric of texts.
    pub writer: Option<&'a Writer>,
    /// See [`likelihoods`].
    pub reference: &'a [[f32; 2]],
}

/// Evaluates examples whose targets are known.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn evaluate(
    graph: &Graph,
    examples: &[Example],
    task: &TaskPlan,
    measuring: Measuring,
) -> Result<Evaluation, Problem> {
    evaluate_with(graph, examples, task, measuring, None)
}

/// [`evaluate`], with the activations that earlier evaluations of these examples kept.
pub(super) fn evaluate_with(
    graph: &Graph,
    examples: &[Example],
    task: &TaskPlan,
    measuring: Measuring,
    kept: Option<&ActivationCache>,
) -> Result<Evaluation, Problem> {
    let mut found = Predictions::default();
    match (task.kind.comparison(), task.kind.predicts_tokens()) {
        (Some(comparison), _) => {
            for own in likelihoods(graph, examples, comparison, measuring.reference)? {
                found.answers(&own, comparison);
            }
        }
        (None, true) => {
            find_tokens(&mut found, graph, examples, measuring.noising)?;
            if let Some(writer) = measuring.writer {
                found.texts = writer.texts(graph, examples)?;
            }
        }
        (None, false) => {
            for (example, logits) in examples.iter().zip(predict_with(graph, examples, kept)?) {
                find_target(&mut found, &example.target, &logits);
            }
        }
    }
    if found.has_infinite {
        let message = "the model computed a logit that is NaN or infinite";
        return Err(Problem::failure("delta::train::not_finite", message)
            .help("look for NaN or infinity in the weights of the run and of its backbone"));
    }
    let confusion = task.kind.has_one_label().then(|| {
        let count = task.kind.labels().len();
        let mut confusion = vec![vec![0; count]; count];
        let pairs = found.classes.iter().zip(&found.predicted);
        pairs.for_each(|(class, predicted)| confusion[*class][*predicted] += 1);
        confusion
    });
    let loss = (Metric::Loss, found.loss / found.len().max(1) as f64);
    let metrics = task.kind.metrics(&found).into_iter().chain([loss]);
    Ok(Evaluation {
        examples: examples.len(),
        confusion,
        by_label: task.kind.by_label(&found),
        collapsed_to: found
            .collapsed_to()
            .filter(|_| !task.kind.labels().is_empty()),
        metrics: metrics
            .map(|(metric, value)| (metric.name().to_owned(), value))
            .collect(),
    })
}

/// Adds the predictions of all tokens that a language model predicts.
fn find_tokens(
    found: &mut Predictions,
    graph: &Graph,
    examples: &[Example],
    noising: Option<&Noising>,
) -> Result<(), Problem> {
    let prediction = Prediction {
        noising,
        ..Prediction::default()
    };
    let batches = batches(graph, examples, prediction);
    let rows = |batch: &Batch, logits: Vec<f32>| match &batch.targets {
        Targets::Tokens { tokens, .. } => guesses(&logits, tokens).collect(),
        _ => Vec::new(),
    };
    for guess in graph.map_logits(&batches, rows)?.into_iter().flatten() {
        found.class(guess);
    }
    Ok(())
}

/// Adds the prediction of one example's target.
fn find_target(found: &mut Predictions, target: &Target, logits: &[f32]) {
    match target {
        Target::Class(class) => found.class(Guess::new(logits, *class)),
        Target::Classes(classes) => {
            guesses(logits, classes).for_each(|guess| found.class(guess));
            found.sequences.push(classes.len());
        }
        Target::Set(set) => found.set(logits, set),
        Target::Number(number) => found.number(logits[0], *number),
        _ => {}
    }
}

/// The guess of each of several rows of logits, with its class.
fn guesses<'l>(logits: &'l [f32], classes: &'l [usize]) -> impl Iterator<Item = Guess> + 'l {
    let width = logits.len() / classes.len().max(1);
    let rows = logits.chunks(width.max(1)).zip(classes);
    rows.map(|(row, class)| Guess::new(row, *class))
}
