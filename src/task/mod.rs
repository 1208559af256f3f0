//! Tasks, one file each: what a pipeline asks of a backbone.
//!
//! In: the settings of a `task` block, then the values of a row and the logits of a head. Out: the columns that are
//! read, the head that answers, targets, metrics and answers. A task knows no plans, files or graphs.
//!
//! **A new task** is a file beside `regress.rs` with a struct of its settings and [`TaskKind`], and a line in the list at
//! the end of this file.

mod causal_lm;
mod choose;
mod classify;
mod cloze;
mod comparison;
mod example;
mod instruct;
mod label;
mod list;
mod masked_lm;
mod metric;
mod metrics;
mod prefer;
mod regress;
mod score;
mod seq2seq;
mod span_lm;
mod spans;
mod tag;
mod target;
mod template;
mod texts;
mod wishes;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::backbone::family::HeadKind;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use list::tasks;

pub use causal_lm::CausalLm;
pub use choose::Choose;
pub use classify::{Classify, Several};
pub use cloze::Cloze;
pub use comparison::{Compared, Comparison, Likelihoods};
pub use example::{Conversation, Encoded, Encoder, Example, Marked, Sentence, Subwords};
pub use instruct::{is_learned, Instruct};
pub use label::{label_of, sorted_labels, Label};
pub use masked_lm::MaskedLm;
pub use metric::Metric;
pub use metrics::classification;
pub use prefer::Prefer;
pub use regress::Regress;
pub use score::{highest, softmax, Guess, OfLabel, Predictions};
pub use seq2seq::Seq2seq;
pub use span_lm::SpanLm;
pub use tag::Tag;
pub use target::{Noise, Shares, Target};
pub use template::{Edit, Piece};
pub use texts::{metrics_of_texts, Texts};
pub use wishes::{Wishes, MOST_TOKENS};

/// What is wrong in one sentence, and a way out.
pub type Refusal = (String, String);

/// A kind of task, with its settings.
pub trait TaskKind: Sized {
    /// Its name in the language.
    const NAME: &'static str;
    /// The metrics that it has. The first is the default.
    const METRICS: &'static [Metric];

    /// Reads its settings, and reports what is wrong with them.
    fn read(fields: &Fields) -> Self;

    /// The columns with the texts that the model reads.
    fn texts(&self) -> &[String];

    /// The columns with the target, if there are any.
    fn targets(&self) -> &[String] {
        &[]
    }

    /// Whether the target is a text that the tokenizer encodes.
    fn has_text_target(&self) -> bool {
        false
    }

    /// Whether the task answers with a text.
    fn writes(&self) -> bool {
        false
    }

    /// The settings of a generation that the pipeline states.
    fn wishes(&self) -> Wishes {
        Wishes::default()
    }

    /// Whether some tokens of a text are answers, and the others are only read.
    fn has_answers(&self) -> bool {
        false
    }

    /// Whether a column has lists or objects, whose values are their JSON.
    fn is_structured(&self, _column: &str) -> bool {
        false
    }

    /// Whether the lists of such a column are of messages alone.
    fn has_messages(&self, _column: &str) -> bool {
        false
    }

    /// Whether a row may lack a value of a column.
    fn may_be_null(&self, _column: &str) -> bool {
        false
    }

    /// Whether each of its texts must be there, and not only one of them.
    fn needs_all_texts(&self) -> bool {
        true
    }

    /// The system's message, before a conversation that has none.
    fn system(&self) -> Option<&str> {
        None
    }

    /// The target of a row from the values of its columns.
    ///
    /// # Errors
    /// The values are no target of this task.
    fn target_of(&self, values: &[String]) -> Result<Target, Refusal>;

    /// How much each class counts in the loss, by the number of training examples of each label, and the share of a
    /// label that is given to all; `None` if each counts the same and the label has all.
    fn shares(&self, _counts: &[usize]) -> Option<Shares> {
        None
    }

    /// The example of a row: of its texts, and of the value of its target if that is known.
    ///
    /// # Errors
    /// The value is no target of this task, or a text cannot be encoded.
    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let (texts, target) = row.split_at(self.texts().len());
        let text = match self.cloze() {
            Some(cloze) => encoder.cloze(cloze, texts)?,
            None => encoder.texts(texts)?,
        };
        let target = match target.len() < self.targets().len() {
            true => Target::None,
            false => self.target_of(target).map_err(refused)?,
        };
        Ok(Example {
            decoder: encoder.decoded(&text),
            text,
            target,
            cut: 0,
            others: Vec::new(),
        })
    }

    /// The text with which the generation of an answer begins.
    ///
    /// # Errors
    /// The row cannot become a text.
    fn open(&self, row: &[String], _encoder: &dyn Encoder) -> Result<Marked, Problem> {
        Ok(Marked {
            text: row.concat(),
            ..Marked::default()
        })
    }

    /// The loss that compares several answers to each prompt, for a task with such answers.
    fn comparison(&self) -> Option<Comparison> {
        None
    }

    /// The head that answers.
    fn head(&self) -> HeadKind {
        HeadKind::LanguageModel
    }

    /// The number of logits of a classification head.
    fn outputs(&self) -> usize {
        0
    }

    /// The labels, in the order of the logits.
    fn labels(&self) -> &[Label] {
        &[]
    }

    /// Whether its labels are to be found in the training file.
    fn lacks_labels(&self) -> bool {
        false
    }

    /// The labels in the values of a row's targets.
    ///
    /// # Errors
    /// The values are no labels.
    fn labels_in(&self, values: &[String]) -> Result<Vec<String>, Refusal> {
        Ok(values.iter().map(|value| value.trim().to_owned()).collect())
    }

    /// Sets the labels that were found.
    ///
    /// # Errors
    /// They cannot be this task's.
    fn set_labels(&mut self, _labels: Vec<Label>) -> Result<(), Refusal> {
        Ok(())
    }

    /// Whether every text has one of the labels.
    fn has_one_label(&self) -> bool {
        false
    }

    /// The metrics that it has with these settings. The first is the default.
    fn measures(&self) -> &'static [Metric] {
        Self::METRICS
    }

    /// The template and the words with which a language model's head answers.
    fn cloze(&self) -> Option<&Cloze> {
        None
    }

    /// The same, for the tokens of its words.
    fn cloze_mut(&mut self) -> Option<&mut Cloze> {
        None
    }

    /// A text before every source.
    fn source_prefix(&self) -> &str {
        ""
    }

    /// Sets it. False: the task has no source.
    fn set_source_prefix(&mut self, _prefix: &str) -> bool {
        false
    }

    /// What is hidden from the model anew in every step, for it to find.
    fn noise(&self) -> Option<Noise> {
        None
    }

    /// Checks that a backbone can do the task.
    ///
    /// # Errors
    /// Its family has no such head, or its text is read otherwise.
    fn check(&self, config: &Config) -> Result<(), Problem>;

    /// The values of its metrics but the loss.
    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)>;

    /// How well each label, or each type of spans, is predicted; nothing for a task without labels.
    fn by_label(&self, _found: &Predictions) -> Vec<OfLabel> {
        Vec::new()
    }

    /// The answer to a row's texts from the logits of its example; `None` for a task whose answers are not logits of one row.
    fn answer(
        &self,
        _row: &[String],
        _example: &Example,
        _logits: &[f32],
    ) -> Option<Vec<(String, Value)>> {
        None
    }

    /// Settings of a merged model's `config.json`, and the names of its outputs.
    fn outputs_of_config(&self) -> Option<(Map<String, Value>, Vec<String>)> {
        None
    }
}

/// A refused value of a row as a problem.
pub fn refused((message, help): Refusal) -> Problem {
    Problem::new("delta::data::label", message).help(help)
}

/// The refusal of a backbone without a kind of head.
fn no_head(config: &Config, head: &str) -> Problem {
    let message = format!("the family {} has no {head} head", config.family().name);
    Problem::new("delta::plan::no_head", message)
        .help("use another task, or a backbone of another family")
}

/// Checks that a backbone predicts the token after each token.
fn check_causal(config: &Config) -> Result<(), Problem> {
    match config.family().heads.causal_lm {
        Some(_) => Ok(()),
        None => Err(no_head(config, "causal-language-model")),
    }
}

/// The metrics of predicted tokens, and of written texts where there are any, except the loss.
fn metrics_of_tokens(found: &Predictions) -> Vec<(Metric, f64)> {
    let of_tokens = [
        (Metric::Perplexity, found.perplexity()),
        (
            Metric::Accuracy,
            metrics::accuracy(&found.predicted, &found.classes),
        ),
    ];
    let of_texts = metrics_of_texts(&found.texts);
    of_tokens.into_iter().chain(of_texts).collect()
}

/// The metrics of a task whose answers are texts. The first is the default.
const METRICS_OF_TEXTS: &[Metric] = &[
    Metric::Loss,
    Metric::Perplexity,
    Metric::Accuracy,
    Metric::ExactMatch,
    Metric::F1OfWords,
    Metric::Bleu,
    Metric::Chrf,
    Metric::RougeL,
];

/// The columns of `text`: one, or up to `most`.
fn text_columns(fields: &Fields, most: usize) -> Vec<String> {
    let Some(names) = fields.names("text") else {
        fields.missing("text", "sentence");
        return Vec::new();
    };
    if names.is_empty() || names.len() > most {
        let span = fields.raw("text").map(|value| value.span);
        let message = format!("`text` names {} columns", names.len());
        let help = match most {
            1 => "name one column",
            _ => "name one column, or two for a pair",
        };
        fields.report(
            Problem::new("delta::plan::text", message)
                .at(span.unwrap_or_default(), "here")
                .help(help),
        );
    }
    names.into_iter().map(|name| name.node).collect()
}

/// The column that a setting names; it must be there.
fn column(fields: &Fields, key: &'static str, example: &str) -> String {
    match fields.name(key) {
        Some(name) => name.node,
        None => {
            fields.missing(key, example);
            String::new()
        }
    }
}

tasks! {
    classify::Classify,
    regress::Regress,
    masked_lm::MaskedLm,
    causal_lm::CausalLm,
    seq2seq::Seq2seq,
    span_lm::SpanLm,
    instruct::Instruct,
    tag::Tag,
    prefer::Prefer,
    choose::Choose,
}
