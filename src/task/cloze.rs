//! Cloze tasks: a template and label words, with which the language-model head predicts a label or a number.

use serde::{Deserialize, Serialize};

use super::template::{columns, Piece};
use super::{no_head, Label};
use crate::backbone::Config;
use crate::diagnostic::{Problem, Span};
use crate::settings::Fields;
use crate::syntax::ast::{Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// A text with a gap, and the words that fill it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cloze {
    /// The template, piece by piece; one piece is the mask.
    pub template: Vec<Piece>,
    /// The word of each label, in the order of the labels.
    pub words: Vec<String>,
    /// The tokens of each word; empty until planning looks them up in the tokenizer.
    pub tokens: Vec<Vec<usize>>,
    /// Whether a word may have several tokens. Its logit is then the mean of theirs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub takes_mean: bool,
    /// For a regression, the numbers that the first and the last word stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(f32, f32)>,
    /// The place of the words.
    pub span: Span,
}

impl Cloze {
    /// Checks that a backbone's language-model head can fill the gap.
    ///
    /// # Errors
    /// The family has no such head, or reads the template otherwise.
    pub(super) fn check(&self, config: &Config) -> Result<(), Problem> {
        let family = config.family();
        let (name, heads) = (&family.name, &family.heads);
        if heads.language_model().is_none() {
            return Err(no_head(config, "language-model"));
        }
        if heads.seq2seq.is_some() {
            return Err(no_head(config, "masked- or causal-language-model"));
        }
        if family.causal && self.template.last() != Some(&Piece::Mask) {
            let message = format!("the family {name} attends only to the tokens before the mask");
            return Err(Problem::new("delta::plan::template", message)
                .help("end the template with `{mask}`"));
        }
        let is_second = |piece: &Piece| matches!(piece, Piece::Segment(1));
        if config.types < 2 && self.template.iter().any(is_second) {
            let message = format!("this backbone of the family {name} has only one segment");
            return Err(Problem::new("delta::plan::template", message)
                .help("remove `{segment:1}` from the template"));
        }
        Ok(())
    }

    /// The columns that the template names, each once, in the order of the template.
    pub fn columns(&self) -> Vec<String> {
        columns(&self.template)
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
    let pieces = match Piece::parse(&template.node) {
        Ok(pieces) => pieces,
        Err((message, help)) => {
            let problem = Problem::new("delta::plan::template", message);
            fields.report(problem.at(template.span, "in this template").help(help));
            return None;
        }
    };
    let multi_token = [("refuse", false), ("mean", true)];
    Some(Cloze {
        template: pieces,
        words: label_words(fields, words, labels)?,
        tokens: Vec::new(),
        takes_mean: fields.choice("multi_token", &multi_token).unwrap_or(false),
        range: None,
        span: words.span,
    })
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
    // Without labels, a problem was reported already.
    for setting in block.all().iter().filter(|_| !labels.is_empty()) {
        if !known().any(|name| name == setting.key.node) {
            let message = format!(
                "`words` names `{}`, which is not a label of the task",
                setting.key.node
            );
            let problem = Problem::new("delta::plan::words", message).at(setting.key.span, "here");
            fields.report(match did_you_mean(&setting.key.node, known()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("use the labels {}", quoted_list(known()))),
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
