//! Measures of the quality of predictions.

use serde::{Deserialize, Serialize};

/// A measure of the quality of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Metric {
    Accuracy,
    F1,
    /// The mean over labels of each label's F1.
    MacroF1,
    Precision,
    Recall,
    /// The mean difference of the rewards of two answers.
    Margin,
    Matthews,
    Pearson,
    Spearman,
    /// The share of written texts that are the wanted ones, as SQuAD compares them.
    ExactMatch,
    /// The mean F1 of the words of written texts, as SQuAD counts them.
    F1OfWords,
    /// BLEU of written texts.
    Bleu,
    /// chrF of written texts.
    Chrf,
    /// The mean F-measure of the longest common subsequence of words.
    RougeL,
    /// Mean loss per prediction. Less is better, for this metric and the next.
    Loss,
    /// `exp` of the loss.
    Perplexity,
}

impl Metric {
    /// Its name in the language and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::F1 => "f1",
            Metric::MacroF1 => "macro_f1",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::Margin => "margin",
            Metric::Matthews => "matthews",
            Metric::Pearson => "pearson",
            Metric::Spearman => "spearman",
            Metric::ExactMatch => "exact_match",
            Metric::F1OfWords => "f1_of_words",
            Metric::Bleu => "bleu",
            Metric::Chrf => "chrf",
            Metric::RougeL => "rouge_l",
            Metric::Loss => "loss",
            Metric::Perplexity => "perplexity",
        }
    }

    /// Whether it measures texts that the model writes.
    pub fn is_of_texts(self) -> bool {
        matches!(
            self,
            Metric::ExactMatch | Metric::F1OfWords | Metric::Bleu | Metric::Chrf | Metric::RougeL
        )
    }

    /// Whether `new` is better than `old`.
    pub fn better(self, new: f64, old: f64) -> bool {
        match self.less_is_better() {
            true => new < old,
            false => new > old,
        }
    }

    /// Whether a lower value is better.
    pub fn less_is_better(self) -> bool {
        matches!(self, Metric::Loss | Metric::Perplexity)
    }
}
