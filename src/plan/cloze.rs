//! Templates and label words: a classification read off the language-model head.

use serde::{Deserialize, Serialize};

use super::fields::Fields;
use super::Label;
use crate::diagnostic::{Problem, Span};
use crate::syntax::ast::{Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// A text with a gap, and the words that fill it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cloze {
    /// The template, piece by piece; one piece is the mask.
    pub template: Vec<Piece>,
    /// The word of each label, in the order of the labels.
    pub words: Vec<String>,
    /// Their tokens; empty until the tokenizer was asked.
    pub tokens: Vec<usize>,
    /// The place of the words.
    pub span: Span,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Piece {
    /// Text as it is.
    Text(String),
    /// The text of a column.
    Field(String),
    /// The mask.
    Mask,
}

impl Cloze {
    /// The columns that the template names, each once, in its order.
    pub fn columns(&self) -> Vec<String> {
        let mut columns: Vec<String> = Vec::new();
        for piece in &self.template {
            if let Piece::Field(name) = piece {
                if !columns.contains(name) {
                    columns.push(name.clone());
                }
            }
        }
        columns
    }
}

/// Reads `template` and `words`, if the task has them.
pub(super) fn cloze(fields: &Fields, labels: &[Label]) -> Option<Cloze> {
    let template = fields.text("template");
    let words = fields.raw("words");
    let (template, words) = match (template, words) {
        (None, None) => return None,
        (None, Some(_)) => {
            fields.missing("template", "\"{sentence} It was {mask}.\"");
            return None;
        }
        (Some(_), None) => {
            fields.missing("words", "{ negative = \"terrible\", positive = \"great\" }");
            return None;
        }
        (Some(template), Some(words)) => (template, words),
    };
    if let Some(text) = fields.raw("text") {
        fields.report(
            Problem::new(
                "delta::plan::template",
                "the task has both `text` and `template`",
            )
            .at(text.span, "either this")
            .at(template.span, "or this")
            .help("remove `text`: the template names the columns"),
        );
    }
    let pieces = match pieces(&template.node) {
        Ok(pieces) => pieces,
        Err(message) => {
            fields.report(
                Problem::new("delta::plan::template", message)
                    .at(template.span, "in this template")
                    .help("write columns and one mask in braces: \"{sentence} It was {mask}.\""),
            );
            return None;
        }
    };
    Some(Cloze {
        template: pieces,
        words: label_words(fields, words, labels)?,
        tokens: Vec::new(),
        span: words.span,
    })
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['{', '}']) {
        let Some(end) = rest[start..]
            .find('}')
            .map(|end| start + end)
            .filter(|_| rest[start..].starts_with('{'))
        else {
            return Err("the template has a brace without its partner".to_owned());
        };
        if start > 0 {
            pieces.push(Piece::Text(rest[..start].to_owned()));
        }
        pieces.push(match rest[start + 1..end].trim() {
            "mask" => Piece::Mask,
            "" => return Err("the template has empty braces".to_owned()),
            name => Piece::Field(name.to_owned()),
        });
        rest = &rest[end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    match pieces.iter().filter(|piece| **piece == Piece::Mask).count() {
        1 => Ok(pieces),
        0 => Err("the template has no `{mask}`".to_owned()),
        _ => Err("the template has more than one `{mask}`".to_owned()),
    }
}

/// The word of every label.
fn label_words(fields: &Fields, value: &Spanned<Value>, labels: &[Label]) -> Option<Vec<String>> {
    let Value::Block(block) = &value.node else {
        fields.wrong(
            "words",
            value,
            "a block such as `{ negative = \"terrible\", positive = \"great\" }`",
        );
        return None;
    };
    let block = fields.nested("words", value.span, block);
    let known = || labels.iter().map(|label| label.name.as_str());
    for setting in block.all() {
        if !known().any(|name| name == setting.key.node) {
            let message = format!(
                "`words` names `{}`, which is no label of the task",
                setting.key.node
            );
            let problem = Problem::new("delta::plan::words", message).at(setting.key.span, "here");
            fields.report(match did_you_mean(&setting.key.node, known()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("the labels are {}", quoted_list(known()))),
            });
        }
    }
    let mut words = Vec::new();
    for label in labels {
        let setting = block
            .all()
            .iter()
            .find(|setting| setting.key.node == label.name);
        match setting.map(|setting| fields.scope.resolve(&setting.value)) {
            Some(Spanned {
                node: Value::Text(word),
                ..
            }) => words.push(word),
            Some(other) => fields.wrong(&label.name, &other, "a word in quotes"),
            None => fields.report(
                Problem::new(
                    "delta::plan::words",
                    format!("the label `{}` has no word", label.name),
                )
                .at(value.span, "here")
                .help(format!("add `{} = \"...\"`", label.name)),
            ),
        }
    }
    (words.len() == labels.len()).then_some(words)
}
