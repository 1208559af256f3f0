//! A target text for a source text: each target token, given the source and the target tokens before it.

use serde::{Deserialize, Serialize};

use super::{
    column, metrics_of_tokens, no_head, Encoder, Example, Marked, Metric, Predictions, Refusal,
    Target, TaskKind,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `seq2seq { source = en, target = de, prefix = "translate: " }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seq2seq {
    /// The column with the source.
    pub text: Vec<String>,
    /// The column with the target.
    pub label: String,
    /// The text before every source.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prefix: String,
}

impl TaskKind for Seq2seq {
    const NAME: &'static str = "seq2seq";
    const METRICS: &'static [Metric] = &[Metric::Loss, Metric::Perplexity, Metric::Accuracy];

    fn read(fields: &Fields) -> Self {
        let prefix = fields.text("prefix");
        Seq2seq {
            text: vec![column(fields, "source", "en")],
            label: column(fields, "target", "de"),
            prefix: prefix.map_or(String::new(), |text| text.node),
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn targets(&self) -> &[String] {
        std::slice::from_ref(&self.label)
    }

    fn has_text_target(&self) -> bool {
        true
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::NextTokens)
    }

    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let source = format!("{}{}", self.prefix, row[0]);
        let text = encoder.texts(&[source])?;
        let Some(target) = row.get(1) else {
            return Ok(Example {
                decoder: Vec::new(),
                text,
                target: Target::None,
                cut: 0,
                others: Vec::new(),
            });
        };
        let answer = encoder.texts(std::slice::from_ref(target))?;
        if answer.tokens.is_empty() {
            let message = "the tokenizer finds no tokens in the target";
            return Err(Problem::new("delta::data::no_tokens", message)
                .help("remove the row, or fill in its target"));
        }
        Ok(Example {
            decoder: encoder.decoded(&answer),
            text,
            target: Target::NextTokens,
            cut: 0,
            others: Vec::new(),
        })
    }

    fn writes(&self) -> bool {
        true
    }

    fn open(&self, row: &[String], _encoder: &dyn Encoder) -> Result<Marked, Problem> {
        Ok(Marked {
            text: format!("{}{}", self.prefix, row[0]),
            ..Marked::default()
        })
    }

    fn source_prefix(&self) -> &str {
        &self.prefix
    }

    fn set_source_prefix(&mut self, prefix: &str) -> bool {
        self.prefix = prefix.to_owned();
        true
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
