//! Losses that compare a model's answers to one prompt by their log-probabilities.

use serde::{Deserialize, Serialize};

/// How answers are compared. In preferences there are two: `c` is the log-probability of the preferred answer, and `r`
/// that of the other one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// `−log σ(β ((c − r) − (c' − r')))`, with `c'` and `r'` of the model as it stands when the stage begins; smoothed
    /// labels take a share of the opposite (Rafailov et al., arXiv 2305.18290, eq. 7; Mitchell's note on cDPO).
    Dpo {
        /// β.
        beta: f32,
        /// The share of pairs that are assumed to be the wrong way round.
        smoothing: f32,
    },
    /// The mean loss of all tokens of the preferred text, and `−β log σ(odds)` with the logarithm of the ratio of the
    /// odds of both, by means per token (Hong et al., arXiv 2403.07691, eq. 6).
    Orpo {
        /// β; the paper's λ.
        beta: f32,
    },
    /// `−log σ(β (c − r) − γ)` with means per token (Meng et al., arXiv 2405.14734, eq. 6).
    Simpo {
        /// β.
        beta: f32,
        /// γ.
        gamma: f32,
        /// As in DPO.
        smoothing: f32,
    },
    /// The cross-entropy of the right answer among all, whose logits are their log-probabilities.
    Choice {
        /// Whether a logit is the mean per token instead of the sum.
        is_mean: bool,
    },
}

/// What a model makes of the answers to one prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Likelihoods {
    /// The sum of the log-probabilities of the tokens of each answer.
    pub sums: Vec<f64>,
    /// The number of tokens of each answer.
    pub tokens: Vec<usize>,
    /// The same sums of the model that it is compared with; empty if there is none.
    pub reference: Vec<f64>,
    /// The mean loss of all tokens of the right text.
    pub whole: f64,
    /// The right answer; the preferred one is the first.
    pub right: usize,
}

/// What the answers to some prompts of a step were found to be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Compared {
    /// The number of prompts.
    pub prompts: usize,
    /// Those whose right answer has the highest score.
    pub right: usize,
    /// The sum of the scores of right answers that have others beside them.
    pub chosen: f64,
    /// The sum of the best scores of the others.
    pub rejected: f64,
}

impl Compared {
    /// Adds a prompt: the scores of its answers, and the right one.
    pub fn add(&mut self, scores: &[f64], right: usize) {
        let others = scores
            .iter()
            .enumerate()
            .filter(|(answer, _)| *answer != right);
        let best = others.fold(f64::NEG_INFINITY, |best, (_, score)| best.max(*score));
        self.prompts += 1;
        self.right += usize::from(scores[right] > best);
        if best.is_finite() {
            self.chosen += scores[right];
            self.rejected += best;
        }
    }

    /// Adds the prompts of another part of the step.
    pub fn join(&mut self, other: Compared) {
        self.prompts += other.prompts;
        self.right += other.right;
        self.chosen += other.chosen;
        self.rejected += other.rejected;
    }
}

/// The logarithm of a probability above which odds do not grow: nearer to 1, f32 has no other number.
const NEAREST_TO_CERTAIN: f32 = -1e-6;

impl Comparison {
    /// Whether a model is compared with another one.
    pub fn has_reference(self) -> bool {
        matches!(self, Comparison::Dpo { .. })
    }

    /// Whether the prompt's tokens count as well.
    pub fn reads_prompts(self) -> bool {
        matches!(self, Comparison::Orpo { .. })
    }

    /// Whether answers count by their means per token instead of their sums.
    pub fn is_mean(self) -> bool {
        match self {
            Comparison::Dpo { .. } => false,
            Comparison::Simpo { .. } | Comparison::Orpo { .. } => true,
            Comparison::Choice { is_mean } => is_mean,
        }
    }

    /// The score of each answer: its reward, as TRL logs it, or its logit.
    pub fn scores(self, found: &Likelihoods) -> Vec<f64> {
        let beta = self.beta();
        let score = |number: usize| {
            let reference = found.reference.get(number).copied().unwrap_or(0.0);
            beta * match self.is_mean() {
                true => found.mean(number),
                false => found.sums[number] - reference,
            }
        };
        (0..found.sums.len()).map(score).collect()
    }

    /// The factor of a score.
    pub fn beta(self) -> f64 {
        match self {
            Comparison::Dpo { beta, .. }
            | Comparison::Orpo { beta }
            | Comparison::Simpo { beta, .. } => f64::from(beta),
            Comparison::Choice { .. } => 1.0,
        }
    }

    /// The loss of the answers, whose scores are `scores`.
    pub fn loss(self, found: &Likelihoods, scores: &[f64]) -> f64 {
        let smoothed = |x: f64, smoothing: f32| {
            let smoothing = f64::from(smoothing);
            (1.0 - smoothing) * softplus(-x) + smoothing * softplus(x)
        };
        match self {
            Comparison::Dpo { smoothing, .. } => smoothed(scores[0] - scores[1], smoothing),
            Comparison::Simpo {
                gamma, smoothing, ..
            } => smoothed(scores[0] - scores[1] - f64::from(gamma), smoothing),
            Comparison::Orpo { beta } => {
                let odds = |log: f64| {
                    let log = log.min(f64::from(NEAREST_TO_CERTAIN));
                    log - (-log.exp()).ln_1p()
                };
                let ratio = odds(found.mean(0)) - odds(found.mean(1));
                found.whole + f64::from(beta) * softplus(-ratio)
            }
            Comparison::Choice { .. } => {
                let highest = scores.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let sum: f64 = scores.iter().map(|score| (score - highest).exp()).sum();
                highest + sum.ln() - scores[found.right]
            }
        }
    }
}

impl Likelihoods {
    /// The mean log-probability of the tokens of an answer.
    fn mean(&self, number: usize) -> f64 {
        self.sums[number] / self.tokens[number].max(1) as f64
    }
}

/// `log (1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
