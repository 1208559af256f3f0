//! A number for a text or a pair of texts: by a head with one output, or by the probability of one of two words.

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value as Json};

use super::cloze::{cloze, Cloze};
use super::label::Label;
use super::metrics::regression;
use super::{column, text_columns, Example, Metric, Predictions, Refusal, Target, TaskKind};
use crate::backbone::family::HeadKind;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::syntax::ast::{Spanned, Value};

/// `regress { text = [sentence1, sentence2], label = score }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Regress {
    /// One or two columns with texts.
    pub text: Vec<String>,
    /// The column with the number.
    pub label: String,
    /// The template and the two words between which the number lies; `None` for a head with one output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloze: Option<Cloze>,
}

impl TaskKind for Regress {
    const NAME: &'static str = "regress";
    const METRICS: &'static [Metric] = &[Metric::Pearson, Metric::Spearman, Metric::Loss];

    fn read(fields: &Fields) -> Self {
        let label = column(fields, "label", "label");
        let cloze = interpolation(fields);
        let text = match &cloze {
            Some(cloze) => cloze.columns(),
            None if fields.raw("template").is_some() => Vec::new(),
            None => text_columns(fields, 2),
        };
        Regress { text, label, cloze }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn targets(&self) -> &[String] {
        std::slice::from_ref(&self.label)
    }

    fn target_of(&self, values: &[String]) -> Result<Target, Refusal> {
        let value = values.first().map_or("", |value| value.trim());
        match value.parse::<f32>() {
            Ok(number) if number.is_finite() => Ok(Target::Number(number)),
            _ => Err((
                format!("`{value}` in the column `{}` is not a number", self.label),
                "give every row a number, or use `task classify`".to_owned(),
            )),
        }
    }

    fn head(&self) -> HeadKind {
        match self.cloze {
            Some(_) => HeadKind::LanguageModel,
            None => HeadKind::Classify,
        }
    }

    fn outputs(&self) -> usize {
        1
    }

    fn cloze(&self) -> Option<&Cloze> {
        self.cloze.as_ref()
    }

    fn cloze_mut(&mut self) -> Option<&mut Cloze> {
        self.cloze.as_mut()
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        self.cloze
            .as_ref()
            .map_or(Ok(()), |cloze| cloze.check(config))
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        regression(&found.predicted_numbers, &found.numbers)
    }

    fn answer(&self, _: &[String], _: &Example, logits: &[f32]) -> Option<Vec<(String, Json)>> {
        Some(vec![
            ("value".to_owned(), json!(logits[0])),
            ("logits".to_owned(), json!(logits)),
        ])
    }

    fn outputs_of_config(&self) -> Option<(Map<String, Json>, Vec<String>)> {
        let kind = ("problem_type".to_owned(), json!("regression"));
        Some(([kind].into_iter().collect(), vec![self.label.clone()]))
    }
}

/// Reads a regression by cloze. It predicts `low + (high − low) · P(high)`, with the probability of the word for
/// `high` (Gao et al., LM-BFF, arXiv 2012.15723, section 3).
fn interpolation(fields: &Fields) -> Option<Cloze> {
    let ends = ["low", "high"].map(|name| Label {
        value: name.to_owned(),
        name: name.to_owned(),
    });
    let range = fields.value("range");
    let mut cloze = cloze(fields, &ends)?;
    let Some(range) = range else {
        fields.missing("range", "[0, 5]");
        return None;
    };
    let number = |value: &Spanned<Value>| match fields.scope.resolve(value).node {
        Value::Number(number) => Some(number as f32),
        _ => None,
    };
    let ends: Option<Vec<f32>> = match &range.node {
        Value::List(values) => values.iter().map(number).collect(),
        _ => None,
    };
    match ends.as_deref() {
        Some([low, high]) if low < high => cloze.range = Some((*low, *high)),
        _ => fields.wrong("range", &range, "two numbers, the lower first: `[0, 5]`"),
    }
    Some(cloze)
}
