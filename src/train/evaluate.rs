//! Predictions of a graph on examples, and their metrics.

use std::collections::BTreeMap;

use super::frozen::ActivationCache;
use super::metrics;
use crate::data::{batch, Example, Masking, Prediction, Target};
use crate::diagnostic::Problem;
use crate::graph::{Batch, Graph, Targets};
use crate::plan::{Metric, TaskKind, TaskPlan};

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
fn batches(graph: &Graph, examples: &[Example], masking: Option<Masking>) -> Vec<Batch> {
    let limit = graph.device().group_rows().min(MOST_ROWS);
    let prediction = Prediction {
        masking,
        predicts_first: graph.predicts_first(),
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

/// The logits of every example, in order.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn predict(graph: &Graph, examples: &[Example]) -> Result<Vec<Vec<f32>>, Problem> {
    predict_with(graph, examples, None)
}

fn predict_with(
    graph: &Graph,
    examples: &[Example],
    kept: Option<&ActivationCache>,
) -> Result<Vec<Vec<f32>>, Problem> {
    let mut batches = batches(graph, examples, None);
    if let Some(kept) = kept {
        kept.attach(graph, &mut batches)?;
    }
    let logits = graph.logits(&batches)?;
    let mut rows = Vec::with_capacity(examples.len());
    for (batch, logits) in batches.iter().zip(logits) {
        let width = logits.len() / batch.layout.sequences().max(1);
        rows.extend(logits.chunks(width.max(1)).map(<[f32]>::to_vec));
    }
    Ok(rows)
}

/// Evaluates examples whose targets are known.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn evaluate(
    graph: &Graph,
    examples: &[Example],
    task: &TaskPlan,
    masking: Option<Masking>,
) -> Result<Evaluation, Problem> {
    evaluate_with(graph, examples, task, masking, None)
}

/// [`evaluate`], with the activations that earlier evaluations of these examples kept.
pub(super) fn evaluate_with(
    graph: &Graph,
    examples: &[Example],
    task: &TaskPlan,
    masking: Option<Masking>,
    kept: Option<&ActivationCache>,
) -> Result<Evaluation, Problem> {
    let mut score = Score::new();
    match task.kind.is_language_model() {
        true => {
            let batches = batches(graph, examples, masking);
            let rows = |batch: &Batch, logits: Vec<f32>| match &batch.targets {
                Targets::Tokens { tokens, .. } => {
                    let width = logits.len() / tokens.len().max(1);
                    let rows = logits.chunks(width.max(1)).zip(tokens);
                    rows.map(|(row, token)| Guess::new(row, *token)).collect()
                }
                _ => Vec::new(),
            };
            for guess in graph.map_logits(&batches, rows)?.into_iter().flatten() {
                score.class(guess);
            }
        }
        false => {
            for (example, logits) in examples.iter().zip(predict_with(graph, examples, kept)?) {
                match example.target {
                    Target::Class(class) => score.class(Guess::new(&logits, class)),
                    Target::Number(number) => score.number(logits[0], number),
                    Target::MaskedTokens | Target::NextTokens | Target::None => {}
                }
            }
        }
    }
    if !score.is_finite {
        let message = "the model computed a logit that is NaN or infinite";
        return Err(Problem::failure("delta::train::not_finite", message)
            .help("look for NaN or infinity in the weights of the run and of its backbone"));
    }
    Ok(score.finish(examples.len(), task))
}

/// The prediction from the logits of an example whose class is known.
struct Guess {
    is_finite: bool,
    /// `−log` of the class's probability.
    loss: f64,
    predicted: usize,
    class: usize,
}

impl Guess {
    fn new(logits: &[f32], class: usize) -> Self {
        let probabilities = softmax(logits);
        Guess {
            is_finite: logits.iter().all(|logit| logit.is_finite()),
            loss: -probabilities[class].max(f64::MIN_POSITIVE).ln(),
            predicted: highest(logits),
            class,
        }
    }
}

struct Score {
    /// Whether all logits were finite.
    is_finite: bool,
    loss: f64,
    predicted: Vec<usize>,
    labels: Vec<usize>,
    predicted_numbers: Vec<f64>,
    numbers: Vec<f64>,
}

impl Score {
    fn new() -> Self {
        Score {
            is_finite: true,
            loss: 0.0,
            predicted: Vec::new(),
            labels: Vec::new(),
            predicted_numbers: Vec::new(),
            numbers: Vec::new(),
        }
    }

    fn class(&mut self, guess: Guess) {
        self.is_finite &= guess.is_finite;
        self.loss += guess.loss;
        self.predicted.push(guess.predicted);
        self.labels.push(guess.class);
    }

    fn number(&mut self, predicted: f32, number: f32) {
        self.is_finite &= predicted.is_finite();
        let difference = f64::from(predicted) - f64::from(number);
        self.loss += difference * difference;
        self.predicted_numbers.push(f64::from(predicted));
        self.numbers.push(f64::from(number));
    }

    fn finish(self, examples: usize, task: &TaskPlan) -> Evaluation {
        let count = self.labels.len().max(self.numbers.len()).max(1);
        let metrics = match task.kind {
            TaskKind::Classify => {
                metrics::classification(&self.predicted, &self.labels, task.labels.len())
            }
            TaskKind::Regress => metrics::regression(&self.predicted_numbers, &self.numbers),
            TaskKind::MaskedLm | TaskKind::CausalLm | TaskKind::Seq2seq => vec![(
                Metric::Accuracy,
                metrics::accuracy(&self.predicted, &self.labels),
            )],
        };
        let first = self.predicted.first().copied();
        let is_first = |class: &usize| Some(*class) == first;
        let is_collapsed = task.kind == TaskKind::Classify
            && self.predicted.iter().all(is_first)
            && !self.labels.iter().all(is_first);
        let loss = (Metric::Loss, self.loss / count as f64);
        let metrics = metrics.into_iter().chain([loss]);
        Evaluation {
            examples,
            collapsed_to: first.filter(|_| is_collapsed),
            metrics: metrics
                .map(|(m, value)| (m.name().to_owned(), value))
                .collect(),
        }
    }
}

/// The index of the highest logit; the first one, if several are equal.
pub fn highest(logits: &[f32]) -> usize {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, better)
}

/// The probabilities of the logits.
pub fn softmax(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    let powers: Vec<f64> = logits
        .iter()
        .map(|&x| f64::from(x - highest).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
