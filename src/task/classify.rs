//! One of several labels for a text or a pair of texts, by a classification head or by the words that fill a template; or
//! any number of them.

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::cloze::{cloze, Cloze};
use super::label::{label_of, labels, labels_or_none, Label};
use super::metrics::{classification, several};
use super::{
    column, softmax, text_columns, Example, Metric, OfLabel, Predictions, Refusal, Shares, Target,
    TaskKind,
};
use crate::backbone::family::HeadKind;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::syntax::ast::Value as Written;
use crate::text::quoted_list;

/// `classify { text = sentence, label = label, labels = [negative, positive] }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Classify {
    /// One or two columns with texts.
    pub text: Vec<String>,
    /// The column with the label, or the first of the columns with one for each label.
    pub label: String,
    /// The labels, in the order of the logits.
    pub labels: Vec<Label>,
    /// The template and words with which the language-model head predicts labels; `None` for a classifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloze: Option<Cloze>,
    /// Where the labels of a text are, if it may have several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub several: Option<Several>,
    /// How much each class counts in the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// The share of a label that all labels get alike in the loss.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub smoothing: f32,
}

fn is_zero(number: &f32) -> bool {
    *number == 0.0
}

/// Where the labels of a text are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Several {
    /// One column has a list of them.
    List,
    /// Each label has a column, with 1 or 0.
    Columns(Vec<String>),
}

/// How much classes count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// `examples / (labels · examples of the label)`, as scikit-learn's `balanced`.
    Balanced,
    /// By label.
    Each(Vec<f32>),
}

/// The least and the most that a class may count.
const SMALLEST_WEIGHT: f64 = 1e-6;
const LARGEST_WEIGHT: f64 = 1e6;

impl TaskKind for Classify {
    const NAME: &'static str = "classify";
    const METRICS: &'static [Metric] =
        &[Metric::Accuracy, Metric::F1, Metric::Matthews, Metric::Loss];

    fn read(fields: &Fields) -> Self {
        let has_several = fields.choice("several", &[("on", true), ("off", false)]);
        let several = has_several == Some(true);
        let (label, columns) = match several {
            true => label_columns(fields),
            false => (column(fields, "label", "label"), None),
        };
        // Words and weights are of labels with these names.
        let weights_each = fields
            .raw("weights")
            .is_some_and(|own| matches!(own.node, Written::Block(_)));
        let needs_names = weights_each
            || ["template", "words"]
                .into_iter()
                .any(|key| fields.raw(key).is_some());
        let labels = match &columns {
            Some(columns) if fields.raw("labels").is_none() => {
                let label = |name: &String| Label {
                    value: name.clone(),
                    name: name.clone(),
                };
                columns.iter().map(label).collect()
            }
            _ if needs_names => labels(fields),
            _ => labels_or_none(fields),
        };
        if let Some(columns) = columns.as_ref().filter(|all| all.len() != labels.len()) {
            let message = format!(
                "`label` names {} columns, and `labels` {} labels",
                columns.len(),
                labels.len()
            );
            let span = fields.raw("labels").map(|value| value.span);
            fields.report(
                Problem::new("delta::plan::labels", message)
                    .at(span.unwrap_or_default(), "here")
                    .help("name the label of each column, in the order of `label`"),
            );
        }
        let cloze = cloze(fields, &labels);
        if let (true, Some(template)) = (several, fields.raw("template")) {
            let message = "a template predicts one label, and `several = on` asks for any number";
            fields.report(
                Problem::new("delta::plan::template", message)
                    .at(template.span, "this template")
                    .help("name the text with `text` instead"),
            );
        }
        let text = match &cloze {
            Some(cloze) => cloze.columns(),
            None if fields.raw("template").is_some() => Vec::new(),
            None => text_columns(fields, 2),
        };
        let weights = weights(fields, &labels, several);
        let smoothing = smoothing(fields, several);
        Classify {
            text,
            label,
            labels,
            cloze,
            several: several.then(|| columns.map_or(Several::List, Several::Columns)),
            weights,
            smoothing,
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn targets(&self) -> &[String] {
        match &self.several {
            Some(Several::Columns(columns)) => columns,
            Some(Several::List) | None => std::slice::from_ref(&self.label),
        }
    }

    fn is_structured(&self, column: &str) -> bool {
        self.several == Some(Several::List) && column == self.label
    }

    fn target_of(&self, values: &[String]) -> Result<Target, Refusal> {
        let value = values.first().map_or("", String::as_str);
        match &self.several {
            None => label_of(&self.labels, value).map(Target::Class),
            Some(Several::List) => {
                let mut set = vec![false; self.labels.len()];
                for label in listed(value)? {
                    set[label_of(&self.labels, &label)?] = true;
                }
                Ok(Target::Set(set))
            }
            Some(Several::Columns(columns)) => {
                let has = |(value, column): (&String, &String)| match value.trim() {
                    "1" | "1.0" | "true" | "True" => Ok(true),
                    "0" | "0.0" | "false" | "False" => Ok(false),
                    other => Err((
                        format!("`{other}` in the column `{column}` is neither 1 nor 0"),
                        "write 1 if the text has the label, else 0".to_owned(),
                    )),
                };
                let set = values.iter().zip(columns).map(has);
                Ok(Target::Set(set.collect::<Result<_, _>>()?))
            }
        }
    }

    fn shares(&self, counts: &[usize]) -> Option<Shares> {
        if self.weights.is_none() && self.smoothing == 0.0 {
            return None;
        }
        let all: usize = counts.iter().sum();
        let balanced = |count: &usize| match count {
            0 => 1.0,
            _ => all as f32 / (counts.len() * count) as f32,
        };
        Some(Shares {
            weights: match &self.weights {
                None => vec![1.0; self.labels.len()],
                Some(Weights::Balanced) => counts.iter().map(balanced).collect(),
                Some(Weights::Each(weights)) => weights.clone(),
            },
            smoothing: self.smoothing,
        })
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

    fn lacks_labels(&self) -> bool {
        self.labels.is_empty()
    }

    fn labels_in(&self, values: &[String]) -> Result<Vec<String>, Refusal> {
        match (&self.several, values) {
            (Some(Several::List), [value, ..]) => listed(value),
            (_, values) => Ok(values.iter().map(|value| value.trim().to_owned()).collect()),
        }
    }

    fn set_labels(&mut self, labels: Vec<Label>) -> Result<(), Refusal> {
        self.labels = labels;
        Ok(())
    }

    fn has_one_label(&self) -> bool {
        self.several.is_none()
    }

    fn measures(&self) -> &'static [Metric] {
        match self.several {
            None => Self::METRICS,
            Some(_) => &[Metric::F1, Metric::MacroF1, Metric::Accuracy, Metric::Loss],
        }
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
        match self.several {
            None => classification(&found.predicted, &found.classes, self.labels.len()),
            Some(_) => several(&found.sets),
        }
    }

    fn by_label(&self, found: &Predictions) -> Vec<OfLabel> {
        // Whether each example was predicted to have the label, and whether it has it.
        let pairs = |label: usize| -> Vec<(bool, bool)> {
            match self.several {
                None => {
                    let both = found.predicted.iter().zip(&found.classes);
                    both.map(|(predicted, class)| (*predicted == label, *class == label))
                        .collect()
                }
                Some(_) => found.sets.iter().map(|set| set[label]).collect(),
            }
        };
        let of_label = |(label, own): (usize, &Label)| {
            let pairs = pairs(label);
            let count = |is: fn(&&(bool, bool)) -> bool| pairs.iter().filter(is).count();
            OfLabel {
                name: own.name.clone(),
                right: count(|(predicted, has)| *predicted && *has),
                predicted: count(|(predicted, _)| *predicted),
                examples: count(|(_, has)| *has),
            }
        };
        self.labels.iter().enumerate().map(of_label).collect()
    }

    /// The most probable label or all that are more probable than not, all probabilities, and the logits.
    fn answer(&self, _: &[String], _: &Example, logits: &[f32]) -> Option<Vec<(String, Value)>> {
        let names = || self.labels.iter().map(|label| label.name.clone());
        let (answer, probabilities) = match self.several {
            None => {
                let label = &self.labels[super::highest(logits)].name;
                (("label".to_owned(), json!(label)), softmax(logits))
            }
            Some(_) => {
                let own = names().zip(logits).filter(|(_, logit)| **logit > 0.0);
                let own: Vec<String> = own.map(|(name, _)| name).collect();
                let sigmoid = |logit: &f32| 1.0 / (1.0 + (-f64::from(*logit)).exp());
                let probabilities = logits.iter().map(sigmoid).collect();
                (("labels".to_owned(), json!(own)), probabilities)
            }
        };
        let probabilities: Map<String, Value> = names()
            .zip(probabilities)
            .map(|(name, probability)| (name, json!(probability)))
            .collect();
        Some(vec![
            answer,
            ("probabilities".to_owned(), Value::Object(probabilities)),
            ("logits".to_owned(), json!(logits)),
        ])
    }

    fn outputs_of_config(&self) -> Option<(Map<String, Value>, Vec<String>)> {
        let names = self.labels.iter().map(|label| label.name.clone());
        let kind = match self.several {
            None => "single_label_classification",
            Some(_) => "multi_label_classification",
        };
        let kind = ("problem_type".to_owned(), json!(kind));
        Some(([kind].into_iter().collect(), names.collect()))
    }
}

/// `label` of texts with several labels: a column with lists, or a column for each label.
fn label_columns(fields: &Fields) -> (String, Option<Vec<String>>) {
    let names = fields.names("label").unwrap_or_else(|| {
        fields.missing("label", "topics");
        Vec::new()
    });
    let names: Vec<String> = names.into_iter().map(|name| name.node).collect();
    let first = names.first().cloned().unwrap_or_default();
    let columns = (names.len() > 1).then_some(names);
    (first, columns)
}

/// The labels in a cell: a JSON list, or labels divided by commas.
fn listed(value: &str) -> Result<Vec<String>, Refusal> {
    let wrong = || {
        let help = "write a list such as `[\"sports\", \"news\"]`, or `sports, news`";
        ("the labels are not a list".to_owned(), help.to_owned())
    };
    if !value.trim_start().starts_with('[') {
        let labels = value.split(',').map(str::trim);
        return Ok(labels
            .filter(|label| !label.is_empty())
            .map(str::to_owned)
            .collect());
    }
    let Ok(Value::Array(items)) = serde_json::from_str(value) else {
        return Err(wrong());
    };
    let label = |item: &Value| match item {
        Value::String(label) => Ok(label.clone()),
        Value::Number(number) => Ok(number.to_string()),
        _ => Err(wrong()),
    };
    items.iter().map(label).collect()
}

/// Reads `weights = balanced`, or a block with the weight of each label.
fn weights(fields: &Fields, labels: &[Label], several: bool) -> Option<Weights> {
    let value = fields.value("weights")?;
    if several {
        refuse_with_several(fields, "weights", value.span);
        return None;
    }
    let wrong = || {
        let wanted = "`balanced`, or a block with a weight for each label";
        fields.wrong("weights", &value, wanted);
    };
    match &value.node {
        Written::Word(word) if word == "balanced" => Some(Weights::Balanced),
        Written::Block(block) => {
            let mut weights = vec![None; labels.len()];
            for setting in fields.nested("weights", value.span, block).all() {
                let place = labels
                    .iter()
                    .position(|label| label.name == setting.key.node);
                let number = match fields.scope.resolve(&setting.value).node {
                    Written::Number(number)
                        if (SMALLEST_WEIGHT..=LARGEST_WEIGHT).contains(&number) =>
                    {
                        number
                    }
                    _ => {
                        fields.wrong(
                            "weights",
                            &setting.value,
                            "a number from 0.000001 to 1,000,000",
                        );
                        return None;
                    }
                };
                match place {
                    Some(place) => weights[place] = Some(number as f32),
                    // Without labels, a problem was reported already.
                    None if labels.is_empty() => return None,
                    None => {
                        let names = labels.iter().map(|label| label.name.as_str());
                        let message = format!(
                            "`weights` names `{}`, which is not a label of the task",
                            setting.key.node
                        );
                        fields.report(
                            Problem::new("delta::plan::weights", message)
                                .at(setting.key.span, "here")
                                .help(format!("use the labels {}", quoted_list(names))),
                        );
                        return None;
                    }
                }
            }
            let all: Option<Vec<f32>> = weights.into_iter().collect();
            if all.is_none() {
                wrong();
            }
            all.map(Weights::Each)
        }
        _ => {
            wrong();
            None
        }
    }
}

/// Reads `smoothing`.
fn smoothing(fields: &Fields, several: bool) -> f32 {
    let smoothing = fields.number("smoothing", 0.0, 0.0..=0.999) as f32;
    if let (true, Some(value)) = (several, fields.raw("smoothing")) {
        refuse_with_several(fields, "smoothing", value.span);
        return 0.0;
    }
    smoothing
}

fn refuse_with_several(fields: &Fields, key: &str, span: crate::diagnostic::Span) {
    let message = format!("`{key}` is for tasks whose texts have one label each");
    fields.report(
        Problem::new("delta::plan::several", message)
            .at(span, "here")
            .help(format!("remove `{key}`, or `several = on`")),
    );
}
