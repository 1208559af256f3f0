//! One of several answers to a prompt: the one that the model finds most likely. Multiple choice is scored so.

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::instruct::template;
use super::template::fill;
use super::{
    check_causal, column, highest, refused, softmax, Comparison, Encoder, Example, Marked, Metric,
    Piece, Predictions, Refusal, Target, TaskKind,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::syntax::ast::{Spanned, Value as Written};
use crate::text::{counted, quoted_list};

/// `choose { prompt = question, answers = [first, second], label = right }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choose {
    /// The columns of the prompt, and then those of the answers.
    pub columns: Vec<String>,
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// Whether one column has a list of answers; otherwise each answer has a column.
    pub has_lists: bool,
    /// The column that says which answer is right.
    pub label: String,
    /// What this column calls the answers, in their order; empty if it counts them from 0.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The prompt and the place of the answer.
    pub template: Vec<Piece>,
    /// Whether the tokens of an answer count by their mean, so that a long answer is not less likely.
    pub is_mean: bool,
}

/// The name of the answer in a template.
const ANSWER: &str = "answer";

impl TaskKind for Choose {
    const NAME: &'static str = "choose";
    const METRICS: &'static [Metric] = &[Metric::Accuracy, Metric::Loss];

    fn read(fields: &Fields) -> Self {
        let template = match template(fields, ANSWER) {
            Some(template) => template,
            None if fields.raw("template").is_some() => Vec::new(),
            None => usual_template(column(fields, "prompt", "question")),
        };
        let of_prompt = super::template::columns(&template);
        let mut columns: Vec<String> = of_prompt.into_iter().filter(|c| c != ANSWER).collect();
        let prompt = columns.len();
        let answers = fields.names("answers");
        if answers.as_ref().is_none_or(Vec::is_empty) {
            fields.missing("answers", "[first, second]");
        }
        let answers = answers.unwrap_or_default();
        let is_named = |answer: &&Spanned<String>| columns.contains(&answer.node);
        if let Some(answer) = answers.iter().find(is_named) {
            let message = format!("the template names `{}`, a column of answers", answer.node);
            fields.report(
                Problem::new("delta::plan::template", message)
                    .at(answer.span, "named here as well")
                    .help("write `{answer}`, which stands for each of the answers"),
            );
        }
        columns.extend(answers.into_iter().map(|name| name.node));
        let has_lists = columns.len() == prompt + 1;
        let labels = match fields.raw("labels") {
            Some(value) if matches!(value.node, Written::Block(_)) => {
                fields.wrong(
                    "labels",
                    value,
                    "a list with the name of each answer, such as `[A, B]`",
                );
                Vec::new()
            }
            _ => fields.names("labels").unwrap_or_default(),
        };
        let labels: Vec<String> = labels.into_iter().map(|name| name.node).collect();
        let count = columns.len() - prompt;
        if !has_lists && !labels.is_empty() && labels.len() != count {
            let message = format!("there are {count} answers and {} labels", labels.len());
            let span = fields.raw("labels").map(|value| value.span);
            fields.report(
                Problem::new("delta::plan::labels", message)
                    .at(span.unwrap_or_default(), "here")
                    .help("name each answer once, in the order of `answers`"),
            );
        }
        if let Some(twice) = twice(&labels) {
            let span = fields.raw("labels").map(|value| value.span);
            let message = format!("two answers are called `{twice}`");
            fields.report(
                Problem::new("delta::plan::labels", message)
                    .at(span.unwrap_or_default(), "here")
                    .help("give each answer a name of its own"),
            );
        }
        let lengths = [("sum", false), ("mean", true)];
        Choose {
            columns,
            prompt,
            has_lists,
            label: column(fields, "label", "right"),
            labels,
            template,
            is_mean: fields.choice("score", &lengths).unwrap_or(false),
        }
    }

    fn texts(&self) -> &[String] {
        &self.columns
    }

    fn targets(&self) -> &[String] {
        std::slice::from_ref(&self.label)
    }

    fn is_structured(&self, column: &str) -> bool {
        self.has_lists && self.columns.last().is_some_and(|last| last == column)
    }

    fn has_answers(&self) -> bool {
        true
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        let answer = Vec::new();
        Ok(Target::OneOf {
            answer,
            right: None,
        })
    }

    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let (texts, label) = row.split_at(self.columns.len());
        let (prompt, cells) = texts.split_at(self.prompt);
        let answers = self.answers(cells).map_err(refused)?;
        let right = label.first().map(|label| answers.right(label)).transpose();
        let right = right.map_err(refused)?;
        let encoded = answers.texts.iter();
        let encoded = encoded.map(|answer| self.answer_to(prompt, answer, encoder));
        let mut encoded = encoded.collect::<Result<Vec<_>, _>>()?.into_iter();
        let Some(first) = encoded.next() else {
            return Err(Problem::internal("a choice among no answers"));
        };
        Ok(first.among(encoded.collect(), right))
    }

    fn comparison(&self) -> Option<Comparison> {
        Some(Comparison::Choice {
            is_mean: self.is_mean,
        })
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        match config.family().heads.seq2seq {
            Some(_) => Ok(()),
            None => check_causal(config),
        }
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        vec![(Metric::Accuracy, found.right_answers())]
    }

    /// The label of the most likely answer, and the probability and the score of each.
    fn answer(&self, row: &[String], _: &Example, scores: &[f32]) -> Option<Vec<(String, Value)>> {
        let answers = self.answers(&row[self.prompt..]).ok()?;
        let name = |number: usize| match answers.labels.get(number) {
            Some(label) => label.clone(),
            None => number.to_string(),
        };
        let probabilities = softmax(scores).into_iter().enumerate();
        let probabilities: Map<String, Value> = probabilities
            .map(|(number, probability)| (name(number), json!(probability)))
            .collect();
        Some(vec![
            ("label".to_owned(), json!(name(highest(scores)))),
            ("probabilities".to_owned(), Value::Object(probabilities)),
            ("scores".to_owned(), json!(scores)),
        ])
    }
}

/// The answers of a row, and what its label calls them.
struct Listed {
    texts: Vec<String>,
    /// Empty if the label counts the answers from 0.
    labels: Vec<String>,
}

impl Listed {
    /// The answers of a cell: a JSON list, or an object with the lists `text` and `label`, as the data sets ARC and
    /// CommonsenseQA have it.
    fn read(cell: &str, labels: &[String]) -> Result<Self, Refusal> {
        let wrong = |message: &str| {
            let help = "write a list such as `[\"red\", \"blue\"]`, or `{\"text\": [\"red\", \"blue\"], \"label\": [\"A\", \"B\"]}`";
            (message.to_owned(), help.to_owned())
        };
        let texts = |value: &Value| {
            let text = |item: &Value| match item {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            value
                .as_array()?
                .iter()
                .map(text)
                .collect::<Option<Vec<_>>>()
        };
        let json: Value = serde_json::from_str(cell).unwrap_or_default();
        let (found, own) = match &json {
            Value::Object(parts) => (texts(&json["text"]), parts.get("label").map(texts)),
            list => (texts(list), None),
        };
        let found = found.ok_or_else(|| wrong("the answers are no list of texts"))?;
        if own.is_some() && !labels.is_empty() {
            let message = "the row's answers have names of their own, and the task's `labels` names them as well";
            return Err((
                message.to_owned(),
                "remove `labels` from the task".to_owned(),
            ));
        }
        let labels = match own {
            Some(own) => own.ok_or_else(|| wrong("the labels of the answers are no list"))?,
            None => labels.iter().take(found.len()).cloned().collect(),
        };
        if found.len() < 2 {
            return Err(wrong(&format!(
                "the row has {} to choose from",
                counted(found.len(), "answer")
            )));
        }
        if !labels.is_empty() && labels.len() != found.len() {
            let (answers, labels) = (counted(found.len(), "answer"), labels.len());
            return Err(wrong(&format!(
                "the row has {answers} and names for {labels}"
            )));
        }
        if let Some(twice) = twice(&labels) {
            return Err(wrong(&format!(
                "two of the row's answers are called `{twice}`"
            )));
        }
        Ok(Listed {
            texts: found,
            labels,
        })
    }

    /// The number of the right answer.
    fn right(&self, label: &str) -> Result<usize, Refusal> {
        let label = label.trim();
        let found = match self.labels.is_empty() {
            true => label
                .parse()
                .ok()
                .filter(|number| *number < self.texts.len()),
            false => self.labels.iter().position(|own| own == label),
        };
        found.ok_or_else(|| {
            let message = format!("the label `{label}` is none of the row's answers");
            let help = match self.labels.is_empty() {
                true => format!(
                    "write a number from 0 to {}, or say what labels call the answers: `labels = [A, B]`",
                    self.texts.len() - 1
                ),
                false => format!(
                    "the answers are called {}",
                    quoted_list(self.labels.iter().map(String::as_str))
                ),
            };
            (message, help)
        })
    }
}

impl Choose {
    /// The answers in the cells of their columns.
    fn answers(&self, cells: &[String]) -> Result<Listed, Refusal> {
        match self.has_lists {
            true => Listed::read(&cells[0], &self.labels),
            false => Ok(Listed {
                texts: cells.to_vec(),
                labels: self.labels.clone(),
            }),
        }
    }

    /// The example of one answer. A decoder beside an encoder writes the answer and its end.
    fn answer_to(
        &self,
        prompt: &[String],
        answer: &str,
        encoder: &dyn Encoder,
    ) -> Result<Example, Problem> {
        let (before, place) = self
            .template
            .split_at(self.template.len().saturating_sub(1));
        let mut text = fill(before, |column| {
            let mut columns = self.columns[..self.prompt].iter().zip(prompt);
            let own = columns.find(|(name, _)| *name == column);
            own.map_or("", |(_, text)| text)
        });
        let answer = fill(place, |_| answer);
        // The answer's first token includes the space before it.
        let start = text.trim_end_matches(' ').len();
        let alone = encoder.texts(std::slice::from_ref(&answer))?;
        if alone.tokens.iter().zip(&alone.special).all(|(_, own)| *own) {
            let message = "the tokenizer finds no tokens in an answer";
            return Err(Problem::new("delta::data::no_answer", message)
                .help("fill it in, or remove the row"));
        }
        let decoder = encoder.decoded(&alone);
        if !decoder.is_empty() {
            text.truncate(start);
            let example = Example {
                cut: encoder.cut_of(&answer, &alone)?,
                text: encoder.texts(std::slice::from_ref(&text))?,
                decoder,
                target: Target::None,
                others: Vec::new(),
            };
            let cut = encoder.cut_of(&text, &example.text)?;
            return match example.cut {
                0 => Ok(Example { cut, ..example }),
                _ => Err(example.cut_before("the end of an answer")),
            };
        }
        text.push_str(&answer);
        let example = encoder.marked(&Marked {
            answers: std::iter::once(start..text.len()).collect(),
            text,
            is_whole: false,
        })?;
        let is_first = example.answers().first().is_some_and(|own| own.start == 0);
        match example.cut {
            0 if is_first => {
                let message = "nothing stands before an answer, so no token predicts its first one";
                Err(Problem::new("delta::data::no_answer", message)
                    .help("give the row a prompt, or a text before `{answer}` in the template"))
            }
            0 => Ok(example),
            _ => Err(example.cut_before("the end of an answer")),
        }
    }
}

/// A name that stands twice.
fn twice(names: &[String]) -> Option<&String> {
    let mut all = names.iter().enumerate();
    let twice = all.find(|(place, name)| names[..*place].contains(name));
    twice.map(|(_, name)| name)
}

/// The prompt, a space and the answer.
fn usual_template(prompt: String) -> Vec<Piece> {
    let field = |column: String| Piece::Field {
        column,
        edits: Vec::new(),
    };
    vec![
        field(prompt),
        Piece::Text(" ".to_owned()),
        field(ANSWER.to_owned()),
    ]
}
