//! The spans of a text that were hidden, written by a decoder (Raffel et al., arXiv 1910.10683, section 3.1.4).

use serde::{Deserialize, Serialize};

use super::masked_lm::masked_share;
use super::{
    metrics_of_tokens, no_head, text_columns, Metric, Noise, Predictions, Refusal, Target, TaskKind,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `span_lm { text = text, mask = 15%, length = 3 }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpanLm {
    /// The column with the text.
    pub text: Vec<String>,
    /// The share of tokens that are in spans.
    pub mask: f32,
    /// The mean number of tokens of a span.
    pub length: f32,
}

/// T5's share and length.
const USUAL: (f32, f64) = (0.15, 3.0);

impl TaskKind for SpanLm {
    const NAME: &'static str = "span_lm";
    const METRICS: &'static [Metric] = &[Metric::Loss, Metric::Perplexity, Metric::Accuracy];

    fn read(fields: &Fields) -> Self {
        SpanLm {
            mask: masked_share(fields).unwrap_or(USUAL.0),
            length: fields.number("length", USUAL.1, 1.0..=1000.0) as f32,
            text: text_columns(fields, 1),
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::MaskedTokens)
    }

    fn noise(&self) -> Option<Noise> {
        Some(Noise::Spans {
            share: self.mask,
            length: self.length,
        })
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        match config.family().heads.seq2seq {
            Some(_) => Ok(()),
            None => Err(no_head(config, "sequence-to-sequence")),
        }
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        metrics_of_tokens(found)
    }
}
