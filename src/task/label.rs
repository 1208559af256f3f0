//! Labels, and how a file lists them.

use serde::{Deserialize, Serialize};

use super::Refusal;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::syntax::ast::{Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// A label: its value in the data and its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Its value in the label column.
    pub value: String,
    /// Its name in results.
    pub name: String,
}

/// The index of the label that a value of the data stands for: its value in the data, or its name as in our answers.
///
/// # Errors
/// The value is empty, or no label.
pub fn label_of(labels: &[Label], value: &str) -> Result<usize, Refusal> {
    let value = value.trim();
    let place = |of: fn(&Label) -> &String| labels.iter().position(|label| of(label) == value);
    if let Some(number) = place(|label| &label.value).or_else(|| place(|label| &label.name)) {
        return Ok(number);
    }
    let known = || labels.iter().map(|label| label.value.as_str());
    if value.is_empty() {
        let help = format!(
            "give the row a label; the task names {}",
            quoted_list(known())
        );
        return Err(("the label is empty".to_owned(), help));
    }
    let help = match did_you_mean(value, known()) {
        Some(near) => format!(
            "did you mean `{near}`? the task names {}",
            quoted_list(known())
        ),
        None if value.parse::<f64>().is_ok() => format!(
            "say what it stands for: `labels = {{ \"{value}\" = NAME, ... }}`; the task names {}",
            quoted_list(known())
        ),
        None => format!(
            "add it to `labels`; the task names {}",
            quoted_list(known())
        ),
    };
    Err((format!("the task does not name the label `{value}`"), help))
}

/// The labels of values that were found, without repeats: numbers by size, texts by their order in Unicode.
pub fn sorted_labels(mut values: Vec<String>) -> Vec<Label> {
    let number = |value: &String| {
        value
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite())
    };
    match values.iter().all(|value| number(value).is_some()) {
        true => values.sort_by(|a, b| {
            let (first, second) = (number(a).unwrap_or(0.0), number(b).unwrap_or(0.0));
            first.total_cmp(&second).then_with(|| a.cmp(b))
        }),
        false => values.sort(),
    }
    values.dedup();
    let label = |value: String| Label {
        name: value.clone(),
        value,
    };
    values.into_iter().map(label).collect()
}

/// Reads `labels`; none if the setting is left out, and they are to be found in the training file.
pub(super) fn labels_or_none(fields: &Fields) -> Vec<Label> {
    match fields.raw("labels") {
        Some(_) => labels(fields),
        None => Vec::new(),
    }
}

/// Reads `labels`.
pub(super) fn labels(fields: &Fields) -> Vec<Label> {
    let Some(value) = fields.raw("labels") else {
        fields.missing("labels", "{ \"0\" = negative, \"1\" = positive }");
        return Vec::new();
    };
    let mut labels: Vec<Label> = Vec::new();
    let mut is_whole = true;
    match &value.node {
        Value::Block(block) => {
            let block = fields.nested("labels", value.span, block);
            for setting in block.all() {
                if let Value::Word(name) | Value::Text(name) = &setting.value.node {
                    labels.push(Label {
                        value: setting.key.node.clone(),
                        name: name.clone(),
                    });
                } else if let Value::Number(number) = &setting.value.node {
                    let help = format!(
                        "write `\"{number}\" = {}`: the value in the data, then its name",
                        setting.key.node
                    );
                    let message = "a label is named by a word, not by a number";
                    fields.report(
                        Problem::new("delta::plan::labels", message)
                            .at(setting.value.span, "here")
                            .help(help),
                    );
                    is_whole = false;
                } else {
                    fields.wrong("labels", &setting.value, "a name");
                    is_whole = false;
                }
            }
        }
        Value::List(values) => {
            for value in values {
                match &value.node {
                    Value::Word(name) | Value::Text(name) => {
                        labels.push(Label {
                            value: name.clone(),
                            name: name.clone(),
                        });
                    }
                    Value::Number(number) => labels.push(Label {
                        value: number.to_string(),
                        name: number.to_string(),
                    }),
                    _ => {
                        fields.wrong("labels", value, "a name");
                        is_whole = false;
                    }
                }
            }
        }
        _ => fields.wrong(
            "labels",
            value,
            "a block such as `{ \"0\" = negative, \"1\" = positive }`",
        ),
    }
    if is_whole {
        check_labels(fields, value, &labels);
    }
    labels
}

fn check_labels(fields: &Fields, value: &Spanned<Value>, labels: &[Label]) {
    let twice = labels.iter().enumerate().find(|(i, label)| {
        labels[..*i]
            .iter()
            .any(|other| other.name == label.name || other.value == label.value)
    });
    if let Some((_, label)) = twice {
        fields.report(
            Problem::new(
                "delta::plan::labels",
                format!("the label `{}` appears twice", label.name),
            )
            .at(value.span, "in here")
            .help("give every label its own value and its own name"),
        );
    } else if labels.len() < 2 {
        fields.report(
            Problem::new("delta::plan::labels", "a task needs at least two labels")
                .at(value.span, "here")
                .help("list every label of the data"),
        );
    }
}
