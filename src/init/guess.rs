//! Guesses what the columns of a file are for: by their names first, then by their values.

use std::collections::BTreeSet;

use serde_json::Value;

use super::choices::of_choices;
use super::column::Column;
use super::fit::check;
use crate::backbone::Config;
use crate::data::Sample;

/// What a file is for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum FileKind {
    /// Conversations in one column.
    Messages { messages: String },
    /// A prompt and its answer.
    Instruct { prompt: String, answer: String },
    /// The same for a tokenizer without a chat template.
    Plain { prompt: String, answer: String },
    /// An instruction, what it works on, and its answer.
    Alpaca {
        instruction: String,
        input: String,
        answer: String,
    },
    /// Questions on a text, with the answers in it, as SQuAD has them.
    Reading { context: String, question: String },
    /// A preferred and another answer.
    Prefer {
        prompt: Option<String>,
        chosen: String,
        rejected: String,
    },
    /// A label for each word.
    Tag {
        tokens: String,
        tags: String,
        /// Whether the labels are no spans.
        is_plain: bool,
    },
    /// One of several answers.
    Choose {
        /// What stands before the question, if it has a column.
        context: Option<String>,
        prompt: String,
        /// A column with a list of answers, or a column for each.
        answers: Vec<String>,
        label: String,
        /// The names of the answers; empty if the label counts them from 0, or their column names them.
        labels: Vec<String>,
    },
    /// A label, or several, for one text or two.
    Classify {
        text: Vec<String>,
        label: String,
        is_several: bool,
    },
    /// A number for one text or two.
    Regress { text: Vec<String>, label: String },
    /// A text from a text.
    Translate { source: String, target: String },
    /// Texts alone.
    Language { text: String },
}

impl FileKind {
    /// The columns whose texts the backbone reads or writes.
    pub(super) fn texts(&self) -> Vec<&str> {
        match self {
            FileKind::Messages { messages } => vec![messages],
            FileKind::Instruct { prompt, answer } | FileKind::Plain { prompt, answer } => {
                vec![prompt, answer]
            }
            FileKind::Alpaca {
                instruction,
                input,
                answer,
            } => vec![instruction, input, answer],
            FileKind::Reading { context, question } => vec![context, question, "answers"],
            FileKind::Prefer {
                prompt,
                chosen,
                rejected,
            } => {
                let prompt = prompt.as_deref().into_iter();
                prompt.chain([&chosen[..], &rejected[..]]).collect()
            }
            FileKind::Tag { tokens, .. } => vec![tokens],
            FileKind::Choose {
                context,
                prompt,
                answers,
                ..
            } => {
                let asked = context.iter().chain([prompt]).chain(answers);
                asked.map(String::as_str).collect()
            }
            FileKind::Classify { text, .. } | FileKind::Regress { text, .. } => {
                text.iter().map(String::as_str).collect()
            }
            FileKind::Translate { source, target } => vec![source, target],
            FileKind::Language { text } => vec![text],
        }
    }

    /// The column with the labels, if texts are not all there is.
    pub(super) fn label(&self) -> Option<&str> {
        match self {
            FileKind::Tag { tags: label, .. }
            | FileKind::Choose { label, .. }
            | FileKind::Classify { label, .. }
            | FileKind::Regress { label, .. } => Some(label),
            _ => None,
        }
    }

    /// The column with labels that a test set has as well. The numbers of a regression may be others.
    pub(super) fn class_label(&self) -> Option<&str> {
        let is_number = matches!(self, FileKind::Regress { .. });
        self.label().filter(|_| !is_number)
    }

    /// The same for a backbone whose tokenizer has no chat template.
    pub(super) fn without_chat_template(self) -> Result<Self, Refusal> {
        match self {
            FileKind::Instruct { prompt, answer } => Ok(FileKind::Plain { prompt, answer }),
            FileKind::Messages { .. } | FileKind::Prefer { .. } => Err((
                "its rows are conversations, and the backbone's tokenizer has no chat template".to_owned(),
                "name a model that was tuned for chat, such as `--backbone hf:HuggingFaceTB/SmolLM2-135M-Instruct`".to_owned(),
            )),
            other => Ok(other),
        }
    }
}

/// What is wrong, and the way out.
pub(super) type Refusal = (String, String);

const PROMPTS: [&str; 8] = [
    "prompt",
    "question",
    "instruction",
    "query",
    "problem",
    "user",
    "human",
    "input",
];
const ANSWERS: [&str; 9] = [
    "answer",
    "response",
    "output",
    "completion",
    "solution",
    "assistant",
    "gpt",
    "reply",
    "target",
];
const LABELS: [&str; 15] = [
    "gold_label",
    "label",
    "labels",
    "class",
    "category",
    "sentiment",
    "intent",
    "target",
    "topic",
    "stars",
    "rating",
    "score",
    "emotion",
    "polarity",
    "gold",
];
const PAIRS: [(&str, &str); 12] = [
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "context"),
    ("query", "passage"),
    ("title", "body"),
    ("title", "text"),
    ("title", "description"),
    ("summary", "text"),
    ("subject", "body"),
];
const TRANSLATIONS: [(&str, &str); 6] = [
    ("source", "target"),
    ("en", "de"),
    ("en", "fr"),
    ("article", "summary"),
    ("document", "summary"),
    ("meaning_representation", "human_reference"),
];

/// Guesses what a file is for. The backbone decides between tasks that differ in it.
pub(super) fn guess(sample: &Sample, config: Option<&Config>) -> Result<FileKind, Refusal> {
    let values = |place: usize| {
        let cells = sample.rows.iter().map(move |row| &row[place]);
        let is_there = |cell: &&Value| !cell.is_null() && cell.as_str() != Some("");
        cells.filter(is_there).collect()
    };
    let names = sample.columns.iter().enumerate();
    let columns: Vec<Column> = names
        .map(|(place, name)| Column {
            name,
            values: values(place),
            rows: sample.rows.len(),
        })
        .collect();
    let is_example =
        |name: &&String| name.split_whitespace().count() > 4 || name.trim().parse::<f64>().is_ok();
    if let Some(name) = sample.columns.iter().find(is_example) {
        return Err((
            format!("its first line is no header: it has `{name}`"),
            "add a first line with names of the columns, such as `text` and `label`".to_owned(),
        ));
    }
    let is_verdict = |text: &str| matches!(text, "true" | "false" | "True" | "False" | "0" | "1");
    let verdict = named(&columns, &["label"]).filter(|label| label.texts().all(is_verdict));
    if verdict.is_some()
        && named(&columns, &["prompt"])
            .and(named(&columns, &["completion"]))
            .is_some()
    {
        return Err((
            "its rows are answers with a verdict each (KTO), which no task learns".to_owned(),
            "write rows with two answers to a prompt: `chosen` and `rejected`".to_owned(),
        ));
    }
    let guess = of_columns(&columns, config).ok_or_else(|| {
        let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
        let message = format!(
            "its columns {} fit no task",
            crate::text::quoted_list(names.iter().copied())
        );
        let help = "write the file by hand, as docs/language.md has it; or rename the columns, for example to `text` and `label`, `prompt` and `answer`, or `messages`";
        (message, help.to_owned())
    })?;
    check(&guess, config)?;
    Ok(guess)
}

fn of_columns(columns: &[Column], config: Option<&Config>) -> Option<FileKind> {
    let texts = texts(columns);
    let is_two_stacks = config.is_some_and(|config| config.decoder_layers.is_some());
    let of = |label| labelled(columns, &texts, label);
    of_answers(columns)
        .or_else(|| of_choices(columns))
        .or_else(|| of_reading(columns))
        .or_else(|| of_turns(columns))
        .or_else(|| of_lists(columns))
        .or_else(|| translation(columns))
        .or_else(|| of_prompts(columns, is_two_stacks))
        .or_else(|| named_label(columns).and_then(of))
        .or_else(|| of_several(columns, &texts))
        .or_else(|| only_label(columns).and_then(of))
        .or_else(|| of_texts(columns, &texts, is_two_stacks))
}

/// The first column with one of these names.
pub(super) fn named<'a, 'c>(columns: &'a [Column<'c>], names: &[&str]) -> Option<&'a Column<'c>> {
    columns.iter().find(|column| column.is_named(names))
}

pub(super) fn own(column: &Column) -> String {
    column.name.to_owned()
}

/// Conversations, and words with tags.
fn of_lists(columns: &[Column]) -> Option<FileKind> {
    const TAGS: [&str; 4] = ["ner_tags", "tags", "labels", "pos_tags"];
    if let Some(messages) = columns.iter().find(|column| column.has_messages()) {
        return Some(FileKind::Messages {
            messages: own(messages),
        });
    }
    let lists: Vec<&Column> = columns.iter().filter(|c| c.has_words()).collect();
    let [tokens, second, ..] = lists.as_slice() else {
        return None;
    };
    let by_name = |name: &&str| lists.iter().find(|column| column.is_named(&[name]));
    let tags = TAGS.iter().find_map(by_name);
    let tags = tags.unwrap_or(second);
    Some(FileKind::Tag {
        tokens: own(tokens),
        tags: own(tags),
        is_plain: !tags.has_spans(),
    })
}

/// A text, a question on it, and the answers that are in it.
fn of_reading(columns: &[Column]) -> Option<FileKind> {
    let answers = named(columns, &["answers"])?;
    let has_one = |value: &&Value| value["text"][0].is_string();
    let fits = !answers.values.is_empty() && answers.values.iter().all(has_one);
    fits.then_some(())?;
    Some(FileKind::Reading {
        context: own(named(columns, &["context"])?),
        question: own(named(columns, &["question"])?),
    })
}

/// Lists of messages on both sides, as TRL has prompts and completions.
fn of_turns(columns: &[Column]) -> Option<FileKind> {
    let turns = |name: &str| named(columns, &[name]).filter(|column| column.has_messages());
    Some(FileKind::Instruct {
        prompt: own(turns("prompt")?),
        answer: own(turns("completion")?),
    })
}

/// A text with a list of labels.
fn of_several(columns: &[Column], texts: &[&Column]) -> Option<FileKind> {
    let is_text = |value: &Value| value.is_string();
    let has_texts = |column: &&Column| column.has_words() && column.items().all(is_text);
    let labels = columns.iter().find(has_texts)?;
    Some(FileKind::Classify {
        text: vec![own(texts.first()?)],
        label: own(labels),
        is_several: true,
    })
}

/// A preferred answer and another one.
fn of_answers(columns: &[Column]) -> Option<FileKind> {
    let chosen = named(columns, &["chosen"])?;
    let prompt = named(columns, &["prompt", "question", "instruction"]);
    // A whole conversation has the prompt in it.
    let asks = |message: &Value| message["role"] == "user";
    let prompt = prompt.filter(|_| !chosen.items().any(asks));
    Some(FileKind::Prefer {
        prompt: prompt.map(own),
        chosen: own(chosen),
        rejected: own(named(columns, &["rejected"])?),
    })
}

/// Two columns whose names say that one is written from the other.
fn translation(columns: &[Column]) -> Option<FileKind> {
    let one = |name: &str| named(columns, &[name]).filter(|column| column.is_text());
    let mut pairs = TRANSLATIONS.iter();
    let (source, target) = pairs.find_map(|(a, b)| Some((one(a)?, one(b)?)))?;
    (!target.can_be_label()).then(|| FileKind::Translate {
        source: own(source),
        target: own(target),
    })
}

/// Prompts and answers by their names.
fn of_prompts(columns: &[Column], is_two_stacks: bool) -> Option<FileKind> {
    let input = named(columns, &["input", "context"]);
    let input = input.filter(|column| !column.values.is_empty());
    let answer = named(columns, &["output", "response"]);
    if let (Some(instruction), Some(input), Some(answer)) =
        (named(columns, &["instruction"]), input, answer)
    {
        return Some(FileKind::Alpaca {
            instruction: own(instruction),
            input: own(input),
            answer: own(answer),
        });
    }
    let (prompt, answer) = (named(columns, &PROMPTS)?, named(columns, &ANSWERS)?);
    let is_written = answer.is_text() && !answer.can_be_label() && !answer.has_numbers();
    (is_written && prompt.is_text()).then(|| written(prompt, answer, is_two_stacks))
}

/// Texts without names that say what they are for: of two, the second is written from the first.
fn of_texts(columns: &[Column], texts: &[&Column], is_two_stacks: bool) -> Option<FileKind> {
    let is_text = |column: &&Column| texts.iter().any(|text| text.name == column.name);
    let in_order: Vec<&Column> = columns.iter().filter(is_text).collect();
    // We could only guess the purpose of another column.
    let others = columns.iter().filter(|column| !column.is_of_the_row());
    match (in_order.as_slice(), others.count()) {
        ([source, target], 2) => Some(written(source, target, is_two_stacks)),
        ([text], 1) => Some(FileKind::Language { text: own(text) }),
        _ => None,
    }
}

/// A text that is written from another one.
fn written(source: &Column, target: &Column, is_two_stacks: bool) -> FileKind {
    match is_two_stacks {
        true => FileKind::Translate {
            source: own(source),
            target: own(target),
        },
        false => FileKind::Instruct {
            prompt: own(source),
            answer: own(target),
        },
    }
}

/// The columns with whole texts, the longest first.
fn texts<'a, 'c>(columns: &'a [Column<'c>]) -> Vec<&'a Column<'c>> {
    let is_other = |column: &Column| column.is_of_the_row() || column.has_numbers();
    let mut texts: Vec<&Column> = columns
        .iter()
        .filter(|column| column.is_text() && !is_other(column))
        .collect();
    texts.retain(|column| column.words() >= 1.5 || column.is_named(&["text", "sentence", "word"]));
    texts.sort_by(|a, b| b.words().total_cmp(&a.words()));
    texts
}

/// The task of a text, or two, and a label or a number.
fn labelled(columns: &[Column], texts: &[&Column], label: &Column) -> Option<FileKind> {
    let text = pair(columns).or_else(|| {
        let text = texts.iter().find(|column| column.name != label.name)?;
        Some(vec![text.name.to_owned()])
    })?;
    let label_name = label.name.to_owned();
    /// So many different whole numbers are amounts, not names.
    const AMOUNTS: usize = 20;
    let numbers: BTreeSet<i64> = label
        .texts()
        .filter_map(|text| text.trim().parse().ok())
        .collect();
    // Labels are numbered without gaps.
    let are_numbered = matches!(numbers.first(), Some(0 | 1))
        && numbers
            .last()
            .zip(numbers.first())
            .is_some_and(|(last, first)| (last - first + 1) as usize == numbers.len());
    let are_amounts = label.has_numbers() && label.distinct() > AMOUNTS && !are_numbered;
    Some(match label.has_fractions() || are_amounts {
        true => FileKind::Regress {
            text,
            label: label_name,
        },
        false => FileKind::Classify {
            text,
            label: label_name,
            is_several: false,
        },
    })
}

/// The column whose name says that it has labels or numbers to predict.
fn named_label<'a, 'c>(columns: &'a [Column<'c>]) -> Option<&'a Column<'c>> {
    // The name says it, so that the first rows may have one label alone.
    let fits = |column: &&Column| {
        let is_repeated = column.rows < 20 || 2 * column.distinct() <= column.rows;
        let can_be = column.words() <= 4.0 && column.distinct() <= 200 && is_repeated;
        column.has_fractions() || column.is_text() && (can_be || column.has_numbers())
    };
    LABELS.iter().find_map(|name| {
        let mut named = columns.iter().filter(|column| column.is_named(&[name]));
        named.find(fits)
    })
}

/// The only column with few, short and repeated values.
fn only_label<'a, 'c>(columns: &'a [Column<'c>]) -> Option<&'a Column<'c>> {
    let mut all = columns.iter().filter(|column| column.can_be_label());
    match (all.next(), all.next()) {
        (Some(only), None) => Some(only),
        _ => None,
    }
}

/// Two columns whose texts belong together.
fn pair(columns: &[Column]) -> Option<Vec<String>> {
    let one = |name: &str| {
        columns
            .iter()
            .find(|column| column.is_named(&[name]) && column.is_text())
    };
    let found = PAIRS.iter().find_map(|(a, b)| Some((one(a)?, one(b)?)));
    found.map(|(a, b)| vec![a.name.to_owned(), b.name.to_owned()])
}
