//! The token after each token of a text.

use serde::{Deserialize, Serialize};

use super::{
    check_causal, metrics_of_tokens, text_columns, Metric, Predictions, Refusal, Target, TaskKind,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `causal_lm { text = text }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CausalLm {
    /// The column with the text.
    pub text: Vec<String>,
}

impl TaskKind for CausalLm {
    const NAME: &'static str = "causal_lm";
    const METRICS: &'static [Metric] = &[Metric::Loss, Metric::Perplexity, Metric::Accuracy];

    fn read(fields: &Fields) -> Self {
        let text = text_columns(fields, 1);
        CausalLm { text }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn writes(&self) -> bool {
        true
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::NextTokens)
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        check_causal(config)
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        metrics_of_tokens(found)
    }
}
