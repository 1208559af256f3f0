//! The tokens of a text that were masked (Devlin et al., arXiv 1810.04805, section 3.1).

use serde::{Deserialize, Serialize};

use super::metrics::accuracy;
use super::{no_head, text_columns, Metric, Noise, Predictions, Refusal, Target, TaskKind};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::syntax::ast::Value;

/// `masked_lm { text = text, mask = 15% }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaskedLm {
    /// The column with the text.
    pub text: Vec<String>,
    /// The share of tokens that are masked.
    pub mask: f32,
}

/// BERT's share.
const USUAL: f32 = 0.15;

impl TaskKind for MaskedLm {
    const NAME: &'static str = "masked_lm";
    const METRICS: &'static [Metric] = &[Metric::Loss, Metric::Accuracy];

    fn read(fields: &Fields) -> Self {
        let mask = masked_share(fields).unwrap_or(USUAL);
        let text = text_columns(fields, 1);
        MaskedLm { text, mask }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::MaskedTokens)
    }

    fn noise(&self) -> Option<Noise> {
        Some(Noise::Tokens(self.mask))
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        match config.family().heads.masked_lm {
            Some(_) => Ok(()),
            None => Err(no_head(config, "masked-language-model")),
        }
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        vec![(Metric::Accuracy, accuracy(&found.predicted, &found.classes))]
    }
}

pub(super) fn masked_share(fields: &Fields) -> Option<f32> {
    let value = fields.value("mask")?;
    match value.node {
        Value::Percent(share) if share > 0.0 && share < 1.0 => Some(share as f32),
        _ => {
            fields.wrong("mask", &value, "a percentage above 0 and below 100");
            None
        }
    }
}
