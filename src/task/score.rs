//! What a model predicted, gathered for the metrics.

use super::{Comparison, Likelihoods, Texts};
use crate::ranks::Portable;

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

/// The prediction from the logits of a row whose class is known.
pub struct Guess {
    is_finite: bool,
    /// `−log` of the class's probability.
    loss: f64,
    predicted: usize,
    class: usize,
}

impl Portable for Vec<Guess> {
    fn to_bytes(&self) -> Vec<u8> {
        let bytes = self.iter().flat_map(|guess| {
            let numbers = [
                guess.predicted as u64,
                guess.class as u64,
                guess.loss.to_bits(),
            ];
            let numbers = numbers.into_iter().flat_map(u64::to_le_bytes);
            numbers.chain([u8::from(guess.is_finite)])
        });
        bytes.collect()
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let guess = |bytes: &[u8]| {
            let number = |place: usize| {
                let bytes = bytes[8 * place..][..8].try_into();
                u64::from_le_bytes(bytes.expect("8 bytes"))
            };
            Guess {
                predicted: number(0) as usize,
                class: number(1) as usize,
                loss: f64::from_bits(number(2)),
                is_finite: bytes[24] == 1,
            }
        };
        bytes.chunks_exact(25).map(guess).collect()
    }
}

impl Guess {
    /// The guess of a row of logits.
    pub fn new(logits: &[f32], class: usize) -> Self {
        let probabilities = softmax(logits);
        Guess {
            is_finite: logits.iter().all(|logit| logit.is_finite()),
            loss: -probabilities[class].max(f64::MIN_POSITIVE).ln(),
            predicted: highest(logits),
            class,
        }
    }
}

/// How well a label is predicted, as scikit-learn's `classification_report` has it, or a type of spans, as seqeval's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfLabel {
    /// Its name.
    pub name: String,
    /// How often it was predicted where it is.
    pub right: usize,
    /// How often it was predicted.
    pub predicted: usize,
    /// How often it is there.
    pub examples: usize,
}

impl OfLabel {
    /// The share of right ones among the predicted; 0 where nothing was predicted.
    pub fn precision(&self) -> f64 {
        self.right as f64 / self.predicted.max(1) as f64
    }

    /// The share of predicted ones among those that are there.
    pub fn recall(&self) -> f64 {
        self.right as f64 / self.examples.max(1) as f64
    }

    /// The harmonic mean of both.
    pub fn f1(&self) -> f64 {
        2.0 * self.right as f64 / (self.examples + self.predicted).max(1) as f64
    }
}

/// All predictions of an evaluation, beside what was to be predicted.
#[derive(Default)]
pub struct Predictions {
    /// Whether a logit was NaN or infinite.
    pub has_infinite: bool,
    /// The sum of the losses of all predictions.
    pub loss: f64,
    /// Predicted classes, or tokens.
    pub predicted: Vec<usize>,
    /// The classes or tokens that were to be predicted.
    pub classes: Vec<usize>,
    /// How many of the classes each example has, if it may have several.
    pub sequences: Vec<usize>,
    /// For each example, whether it was predicted to have each label, and whether it has it.
    pub sets: Vec<Vec<(bool, bool)>>,
    /// The scores of the answers to each prompt, and which of them is the right one.
    pub scores: Vec<(Vec<f64>, usize)>,
    /// Written texts and the wanted ones, where a metric asks for them.
    pub texts: Vec<Texts>,
    /// Predicted numbers.
    pub predicted_numbers: Vec<f64>,
    /// The numbers that were to be predicted.
    pub numbers: Vec<f64>,
}

impl Predictions {
    /// Adds a class or a token.
    pub fn class(&mut self, guess: Guess) {
        self.has_infinite |= !guess.is_finite;
        self.loss += guess.loss;
        self.predicted.push(guess.predicted);
        self.classes.push(guess.class);
    }

    /// Adds the labels of an example; each is predicted if its probability is above a half.
    pub fn set(&mut self, logits: &[f32], set: &[bool]) {
        self.has_infinite |= logits.iter().any(|logit| !logit.is_finite());
        let of_label = |(logit, has): (&f32, &bool)| {
            let logit = f64::from(*logit);
            // −log σ(x) for a label that it has, −log σ(−x) for another.
            let signed = if *has { -logit } else { logit };
            signed.max(0.0) + (-signed.abs()).exp().ln_1p()
        };
        let losses: f64 = logits.iter().zip(set).map(of_label).sum();
        self.loss += losses / set.len().max(1) as f64;
        let pairs = logits
            .iter()
            .map(|logit| *logit > 0.0)
            .zip(set.iter().copied());
        self.sets.push(pairs.collect());
    }

    /// Adds the answers to a prompt.
    pub fn answers(&mut self, found: &Likelihoods, comparison: Comparison) {
        let scores = comparison.scores(found);
        let loss = comparison.loss(found, &scores);
        self.has_infinite |= !loss.is_finite() || scores.iter().any(|score| !score.is_finite());
        self.loss += loss;
        self.scores.push((scores, found.right));
    }

    /// Adds a number.
    pub fn number(&mut self, predicted: f32, number: f32) {
        self.has_infinite |= !predicted.is_finite();
        let difference = f64::from(predicted) - f64::from(number);
        self.loss += difference * difference;
        self.predicted_numbers.push(f64::from(predicted));
        self.numbers.push(f64::from(number));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        let counts = [
            self.classes.len(),
            self.numbers.len(),
            self.sets.len(),
            self.scores.len(),
        ];
        counts.into_iter().max().unwrap_or(0)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The share of prompts whose right answer has a higher score than all others.
    pub fn right_answers(&self) -> f64 {
        let is_right = |(scores, right): &&(Vec<f64>, usize)| {
            let mut others = scores
                .iter()
                .enumerate()
                .filter(|(number, _)| number != right);
            others.all(|(_, score)| scores[*right] > *score)
        };
        let right = self.scores.iter().filter(is_right).count();
        right as f64 / self.scores.len().max(1) as f64
    }

    /// `exp` of the mean loss.
    pub fn perplexity(&self) -> f64 {
        (self.loss / self.len().max(1) as f64).exp()
    }

    /// The one class that was predicted for every example, though they have others.
    pub fn collapsed_to(&self) -> Option<usize> {
        let first = *self.predicted.first()?;
        let is_first = |class: &usize| *class == first;
        let is_collapsed =
            self.predicted.iter().all(is_first) && !self.classes.iter().all(is_first);
        is_collapsed.then_some(first)
    }
}
