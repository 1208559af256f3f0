//! One of several labels for a text or a pair of texts: by a classification head, or by the words that fill a template.

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::cloze::{cloze, Cloze};
use super::label::{label_of, labels, Label};
use super::metrics::classification;
use super::{column, softmax, text_columns, Metric, Predictions, Refusal, Target, TaskKind};
use crate::backbone::family::HeadKind;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `classify { text = sentence, label = label, labels = [negative, positive] }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classify {
    /// One or two columns with texts.
    pub text: Vec<String>,
    /// The column with the label.
    pub label: String,
    /// The labels, in the order of the logits.
    pub labels: Vec<Label>,
    /// The template and words with which the language-model head predicts labels; `None` for a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloze: Option<Cloze>,
}

impl TaskKind for Classify {
    const NAME: &'static str = "classify";
    const METRICS: &'static [Metric] =
        &[Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Loss];

    fn read(fields: &Fields) -> Self {
        let label = column(fields, "label", "label");
        let labels = labels(fields);
        let cloze = cloze(fields, &labels);
        let text = match &cloze {
            Some(cloze) => cloze.columns(),
            None if fields.raw("template").is_some() => Vec::new(),
            None => text_columns(fields, 2),
        };
        Classify {
            text,
            label,
            labels,
            cloze,
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn target(&self) -> Option<&str> {
        Some(&self.label)
    }

    fn target_of(&self, value: Option<&str>) -> Result<Target, Refusal> {
        label_of(&self.labels, value.unwrap_or_default()).map(Target::Class)
    }

    fn head(&self) -> HeadKind {
        match self.cloze {
            Some(_) => HeadKind::LanguageModel,
            None => HeadKind::Classify,
        }
    }

    fn outputs(&self) -> usize {
        self.labels.len()
    }

    fn labels(&self) -> &[Label] {
        &self.labels
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
        classification(&found.predicted, &found.classes, self.labels.len())
    }

    /// The most probable label, all probabilities, and the logits.
    fn answer(&self, logits: &[f32]) -> Option<Vec<(String, Value)>> {
        let names = self.labels.iter().map(|label| label.name.clone());
        let probabilities: Map<String, Value> = names
            .zip(softmax(logits))
            .map(|(name, probability)| (name, json!(probability)))
            .collect();
        let label = &self.labels[super::highest(logits)].name;
        Some(vec![
            ("label".to_owned(), json!(label)),
            ("probabilities".to_owned(), Value::Object(probabilities)),
            ("logits".to_owned(), json!(logits)),
        ])
    }

    fn outputs_of_config(&self) -> Option<(Map<String, Value>, Vec<String>)> {
        let names = self.labels.iter().map(|label| label.name.clone());
        let kind = (
            "problem_type".to_owned(),
            json!("single_label_classification"),
        );
        Some(([kind].into_iter().collect(), names.collect()))
    }
}
