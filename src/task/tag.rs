//! A label for each word of a sentence: names, parts of speech.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::label::{label_of, labels_or_none, Label};
use super::metrics::accuracy;
use super::spans::{spans, Scheme};
use super::{
    column, highest, no_head, refused, Encoder, Example, Metric, OfLabel, Predictions, Refusal,
    Sentence, Subwords, Target, TaskKind,
};
use crate::backbone::family::HeadKind;
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `tag { tokens = tokens, tags = tags, labels = ["O", "B-person", "I-person"] }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tag {
    /// The column with the words of a sentence.
    pub tokens: Vec<String>,
    /// The column with their labels.
    pub tags: String,
    /// The labels, in the order of the logits.
    pub labels: Vec<Label>,
    /// How labels make spans.
    pub scheme: Scheme,
    /// Which tokens of a word have its label.
    #[serde(default, skip_serializing_if = "Subwords::is_first")]
    pub subwords: Subwords,
}

impl Tag {
    /// A task without a pipeline. The labels make spans if their names are those of spans.
    pub fn with_labels(tokens: Vec<String>, tags: String, labels: Vec<Label>) -> Self {
        let scheme = match check(&labels, Scheme::Bio) {
            Ok(()) => Scheme::Bio,
            Err(_) => Scheme::Plain,
        };
        Tag {
            tokens,
            tags,
            labels,
            scheme,
            subwords: Subwords::First,
        }
    }
}

impl TaskKind for Tag {
    const NAME: &'static str = "tag";
    const METRICS: &'static [Metric] = &[
        Metric::F1,
        Metric::Precision,
        Metric::Recall,
        Metric::Accuracy,
        Metric::Loss,
    ];

    fn read(fields: &Fields) -> Self {
        let schemes = [
            ("bio", Scheme::Bio),
            ("strict", Scheme::Strict),
            ("plain", Scheme::Plain),
        ];
        let scheme = fields.choice("scheme", &schemes).unwrap_or(Scheme::Bio);
        let all = [("first", Subwords::First), ("all", Subwords::All)];
        let subwords = fields.choice("subwords", &all).unwrap_or_default();
        let labels = labels_or_none(fields);
        if let (Err((message, help)), Some(value)) = (check(&labels, scheme), fields.raw("labels"))
        {
            let problem = Problem::new("delta::plan::labels", message);
            fields.report(problem.at(value.span, "in here").help(help));
        }
        Tag {
            tokens: vec![column(fields, "tokens", "tokens")],
            tags: column(fields, "tags", "tags"),
            labels,
            scheme,
            subwords,
        }
    }

    fn texts(&self) -> &[String] {
        &self.tokens
    }

    fn targets(&self) -> &[String] {
        std::slice::from_ref(&self.tags)
    }

    fn is_structured(&self, _: &str) -> bool {
        true
    }

    fn target_of(&self, values: &[String]) -> Result<Target, Refusal> {
        let tags = words(values.first().map_or("", String::as_str))?;
        let classes = tags.iter().map(|tag| label_of(&self.labels, tag));
        Ok(Target::Classes(classes.collect::<Result<_, _>>()?))
    }

    /// A word without tokens or beyond the longest sequence is not read.
    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let words = words(&row[0]).map_err(refused)?;
        let Sentence { text, cut } = encoder.words(&words, self.subwords)?;
        let target = match &row[1..] {
            [] => Target::None,
            tags => {
                let Target::Classes(classes) = self.target_of(tags).map_err(refused)? else {
                    return Err(Problem::internal("tags are classes"));
                };
                if classes.len() != words.len() {
                    let message = format!(
                        "the row has {} words and {} tags",
                        words.len(),
                        classes.len()
                    );
                    return Err(
                        Problem::new("delta::data::tags", message).help("give every word a tag")
                    );
                }
                let read = classes.into_iter().zip(&text.words);
                let firsts = read.filter_map(|(class, place)| Some((class, (*place)?)));
                Target::Classes(self.of_tokens(firsts, text.reads.len()))
            }
        };
        Ok(Example {
            decoder: Vec::new(),
            text,
            target,
            cut,
            others: Vec::new(),
        })
    }

    fn head(&self) -> HeadKind {
        HeadKind::Tag
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
        words(values.first().map_or("", String::as_str))
    }

    /// The label of words outside of spans is the first, as in most data sets.
    fn set_labels(&mut self, mut labels: Vec<Label>) -> Result<(), Refusal> {
        check(&labels, self.scheme)?;
        labels.sort_by_key(|label| label.name != "O");
        self.labels = labels;
        Ok(())
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        match config.family().heads.tag {
            Some(_) => Ok(()),
            None => Err(no_head(config, "token-classification")),
        }
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        let mut whole = OfLabel::default();
        for own in self.by_label(found) {
            whole.right += own.right;
            whole.predicted += own.predicted;
            whole.examples += own.examples;
        }
        vec![
            (Metric::F1, whole.f1()),
            (Metric::Precision, whole.precision()),
            (Metric::Recall, whole.recall()),
            (Metric::Accuracy, accuracy(&found.predicted, &found.classes)),
        ]
    }

    /// The types of spans, in the order of their names.
    fn by_label(&self, found: &Predictions) -> Vec<OfLabel> {
        let name = |class: &usize| self.labels[*class].name.as_str();
        let mut all: BTreeMap<&str, OfLabel> = BTreeMap::new();
        let mut start = 0;
        for count in &found.sequences {
            let range = start..start + count;
            start = range.end;
            let of = |classes: &[usize]| {
                let names: Vec<&str> = classes[range.clone()].iter().map(name).collect();
                spans(&names, self.scheme)
            };
            let (predicted, stated) = (of(&found.predicted), of(&found.classes));
            for span in &predicted {
                let own = all.entry(span.kind).or_default();
                own.predicted += 1;
                own.right += usize::from(stated.contains(span));
            }
            for span in &stated {
                all.entry(span.kind).or_default().examples += 1;
            }
        }
        let named = all.into_iter().map(|(kind, own)| OfLabel {
            name: kind.to_owned(),
            ..own
        });
        named.collect()
    }

    /// The tag of each word, null for one that was not read, and the spans: their first word, the word behind them, and
    /// their type. A word that was not read is in no span.
    fn answer(
        &self,
        _: &[String],
        example: &Example,
        logits: &[f32],
    ) -> Option<Vec<(String, Value)>> {
        let rows: Vec<&[f32]> = logits.chunks(self.labels.len()).collect();
        let tag = |place: &Option<usize>| {
            let row = rows.get((*place)?)?;
            Some(self.labels[highest(row)].name.as_str())
        };
        let tags: Vec<Option<&str>> = example.text.words.iter().map(tag).collect();
        let mut answer = vec![("tags".to_owned(), json!(tags))];
        if self.scheme != Scheme::Plain {
            let tags: Vec<&str> = tags.iter().map(|tag| tag.unwrap_or("O")).collect();
            let found = spans(&tags, self.scheme).into_iter().map(|span| {
                let (start, end) = (span.words.start, span.words.end);
                json!({"type": span.kind, "start": start, "end": end})
            });
            answer.push(("spans".to_owned(), found.collect()));
        }
        Some(answer)
    }

    fn outputs_of_config(&self) -> Option<(Map<String, Value>, Vec<String>)> {
        let names = self.labels.iter().map(|label| label.name.clone());
        Some((Map::new(), names.collect()))
    }
}

impl Tag {
    /// The classes of the tokens that are read, from those of words at their first tokens. A word's other tokens are inside
    /// the span that it begins, as in transformers' example for token classification.
    fn of_tokens(&self, firsts: impl Iterator<Item = (usize, usize)>, count: usize) -> Vec<usize> {
        let mut classes: Vec<usize> = Vec::with_capacity(count);
        for (class, place) in firsts {
            self.go_on(&mut classes, place);
            classes.push(class);
        }
        self.go_on(&mut classes, count);
        classes
    }

    /// Labels tokens up to `end` as the rest of the last word.
    fn go_on(&self, classes: &mut Vec<usize>, end: usize) {
        let Some(&first) = classes.last() else {
            return;
        };
        let inside = self.labels[first].name.strip_prefix("B-").and_then(|kind| {
            let inside = format!("I-{kind}");
            self.labels.iter().position(|label| label.name == inside)
        });
        classes.resize(end, inside.unwrap_or(first));
    }
}

/// Checks that labels are those of a scheme.
fn check(labels: &[Label], scheme: Scheme) -> Result<(), Refusal> {
    let is_known = |name: &str| {
        let mark = name.split_once('-').map(|(mark, _)| mark);
        name == "O" || matches!(mark, Some("B" | "I" | "E" | "S"))
    };
    let odd = labels.iter().find(|label| !is_known(&label.name));
    match odd.filter(|_| scheme != Scheme::Plain) {
        None => Ok(()),
        Some(odd) => Err((
            format!("the label `{}` is neither `O` nor one of a span", odd.name),
            "name labels `O`, `B-TYPE` and `I-TYPE` (or `E-` and `S-`), or write `scheme = plain`"
                .to_owned(),
        )),
    }
}

/// The words of a cell: a JSON list, or words divided by spaces.
fn words(text: &str) -> Result<Vec<String>, Refusal> {
    let wrong = |message: &str| {
        let help =
            "write a list such as `[\"Paris\", \"is\", \"old\"]`, or words divided by spaces";
        (message.to_owned(), help.to_owned())
    };
    let words: Vec<String> = match text.trim_start().starts_with('[') {
        false => text.split_whitespace().map(str::to_owned).collect(),
        true => {
            let Ok(Value::Array(items)) = serde_json::from_str(text) else {
                return Err(wrong("the words are not a JSON list"));
            };
            let word = |item: &Value| match item {
                Value::String(word) => Ok(word.clone()),
                Value::Number(number) => Ok(number.to_string()),
                _ => Err(wrong("a word is neither a text nor a number")),
            };
            items.iter().map(word).collect::<Result<_, _>>()?
        }
    };
    match words.is_empty() {
        true => Err(wrong("the list of words is empty")),
        false => Ok(words),
    }
}
