//! A target text for a source text: each target token, given the source and the target tokens before it. A decoder reads
//! both as one text, divided by a separator.

use serde::{Deserialize, Serialize};

use super::{
    column, metrics_of_tokens, no_head, Encoder, Example, Marked, Metric, Predictions, Refusal,
    Target, TaskKind, Wishes, METRICS_OF_TEXTS,
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
    /// The text between source and target where one decoder reads both; none where an encoder reads the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<String>,
    /// How it writes targets.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub generate: Wishes,
}

impl TaskKind for Seq2seq {
    const NAME: &'static str = "seq2seq";
    const METRICS: &'static [Metric] = METRICS_OF_TEXTS;

    fn read(fields: &Fields) -> Self {
        let prefix = fields.text("prefix");
        Seq2seq {
            text: vec![column(fields, "source", "en")],
            label: column(fields, "target", "de"),
            prefix: prefix.map_or(String::new(), |text| text.node),
            separator: fields.text("separator").map(|text| text.node),
            generate: Wishes::read(fields),
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
        if let (Some(separator), Some(target)) = (&self.separator, row.get(1)) {
            return self.joined(&row[0], separator, target, encoder);
        }
        let source = self.source(&row[0]);
        let text = encoder.texts(std::slice::from_ref(&source))?;
        let cut = encoder.cut_of(&source, &text)?;
        let Some(target) = row.get(1) else {
            return Ok(Example {
                decoder: Vec::new(),
                text,
                target: Target::None,
                cut,
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
            cut: cut.max(encoder.cut_of(target, &answer)?),
            others: Vec::new(),
        })
    }

    fn writes(&self) -> bool {
        true
    }

    fn wishes(&self) -> Wishes {
        self.generate.clone()
    }

    fn open(&self, row: &[String], _encoder: &dyn Encoder) -> Result<Marked, Problem> {
        let text = match &self.separator {
            Some(separator) => format!("{}{separator}", self.source(&row[0])),
            None => self.source(&row[0]),
        };
        Ok(Marked {
            // The target's first token includes the space before it.
            text: match self.separator {
                Some(_) => text.trim_end_matches(' ').to_owned(),
                None => text,
            },
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
        let heads = &config.family().heads;
        match (&heads.seq2seq, &heads.causal_lm, &self.separator) {
            (Some(_), _, None) | (None, Some(_), Some(_)) => Ok(()),
            (Some(_), _, Some(_)) => {
                let message = "the backbone's encoder reads the source apart from the target";
                Err(Problem::new("delta::plan::separator", message).help("remove `separator`"))
            }
            (None, Some(_), None) => {
                let message = "the backbone reads source and target as one text, and nothing says what stands between them";
                Err(Problem::new("delta::plan::separator", message)
                    .help("add `separator = \"\\n\"`, or another text"))
            }
            (None, None, _) => Err(no_head(config, "sequence-to-sequence")),
        }
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        metrics_of_tokens(found)
    }
}

impl Seq2seq {
    fn source(&self, text: &str) -> String {
        format!("{}{text}", self.prefix)
    }

    /// Source and target as one text, and the token that ends a text.
    fn joined(
        &self,
        source: &str,
        separator: &str,
        target: &str,
        encoder: &dyn Encoder,
    ) -> Result<Example, Problem> {
        let before = format!("{}{separator}", self.source(source));
        let start = before.trim_end_matches(' ').len();
        let end = encoder.end().unwrap_or_default();
        let text = format!("{before}{target}{end}");
        let example = encoder.marked(&Marked {
            answers: std::iter::once(start..text.len()).collect(),
            text,
            is_whole: false,
        })?;
        match example.predicted() {
            0 => Err(example.cut_before("its target")),
            _ => Ok(example),
        }
    }
}
