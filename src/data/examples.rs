//! Turns a file's rows into examples of a task.

use rand::seq::SliceRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::table::{at_line, no_examples, visit, Row};
use super::tokens::{Encoded, TextEncoder};
use crate::diagnostic::Problem;
use crate::plan::{Few, FilePlan, TaskPlan};
use crate::task::Target;

/// One example.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Its tokens.
    pub text: Encoded,
    /// The decoder's start token and the tokens after it. A sequence-to-sequence task predicts each of them from
    /// those before it. Empty if the backbone has no decoder.
    pub decoder: Vec<u32>,
    /// The target to predict.
    pub target: Target,
}

impl Example {
    /// The rows that it takes in a batch, including the decoder's.
    pub fn rows(&self) -> usize {
        self.text.tokens.len() + self.decoder.len().saturating_sub(1)
    }

    /// The number of tokens that a language model is to predict; 1 for any other target.
    pub fn predicted(&self) -> usize {
        match (self.target, self.decoder.is_empty()) {
            (Target::NextTokens, true) => self.text.tokens.len().saturating_sub(1),
            (Target::NextTokens, false) => self.decoder.len() - 1,
            (Target::MaskedTokens, _) => self.text.special.iter().filter(|own| !**own).count(),
            _ => 1,
        }
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    /// In the order of the file.
    pub all: Vec<Example>,
}

/// Rows that are encoded together. A tokenizer needs many times the memory of a text while it reads it.
pub(super) const ROWS_AT_ONCE: usize = 1024;

/// Rows of a file as examples.
///
/// # Errors
/// The first mistake, and the index of its row if a single row is to blame.
pub(super) fn read_rows(
    rows: &[Row],
    file: &FilePlan,
    task: &TaskPlan,
    encoder: &TextEncoder,
) -> Result<Vec<Example>, (Option<usize>, Problem)> {
    let at_row = |(index, mut problem): (Option<usize>, Problem)| {
        if let Some((line, _)) = index.and_then(|index: usize| rows.get(index)) {
            problem.message = format!(
                "`{}`, line {line}: {}",
                file.path.display(),
                problem.message
            );
        }
        (index, problem.or_at(task.span))
    };
    let read = task.kind.texts().len();
    let target = |(index, (line, row)): (usize, &Row)| {
        let value = row.get(read).map(String::as_str);
        checked_target(value, *line, file, task).map_err(|problem| (Some(index), problem))
    };
    let targets = rows.iter().enumerate().map(target);
    let targets: Vec<Target> = targets.collect::<Result<_, _>>()?;
    let columns = |range: std::ops::Range<usize>| -> Vec<Vec<String>> {
        rows.iter()
            .map(|(_, row)| row[range.clone()].to_vec())
            .collect()
    };
    let encoded = encode(encoder, task, &columns(0..read)).map_err(at_row)?;
    let answers = match task.kind.has_text_target() {
        true => columns(read..read + 1),
        false => Vec::new(),
    };
    let answers = encode_answers(encoder, &answers).map_err(at_row)?;
    let mut answers = answers.into_iter();
    let example = |(text, target): (Encoded, Target)| Example {
        decoder: encoder.decoded(answers.next().as_ref().unwrap_or(&text)),
        text,
        target,
    };
    Ok(encoded.into_iter().zip(targets).map(example).collect())
}

/// Checks that a file has the examples of each label that `few` takes, by the number of those that it has.
///
/// # Errors
/// The task has no labels, or a label has too few examples.
pub fn check_few(few: &Few, task: &TaskPlan, counts: &[usize]) -> Result<(), Problem> {
    let problem = |message: String| Problem::new("delta::data::few", message);
    if task.kind.labels().is_empty() {
        let message = "`few` needs a `classify` task, which has labels".to_owned();
        return Err(problem(message).help("use the whole file without `few`"));
    }
    let end = few.skipped + few.per_class;
    let lacking = task
        .kind
        .labels()
        .iter()
        .zip(counts)
        .find(|(_, count)| **count < end);
    match lacking {
        None => Ok(()),
        Some((label, count)) => {
            let message = format!(
                "the label `{}` has only {count} of the {end} examples that `few` takes",
                label.name
            );
            Err(problem(message).help("lower the number of examples in `few`"))
        }
    }
}

/// A language model has nothing to learn from texts of one token each.
pub fn nothing_to_predict(file: &FilePlan) -> Problem {
    let message = "no text has a token to predict";
    at_line("delta::data::nothing_to_predict", &file.path, 0, message)
        .at(file.span, "this file")
        .help("give longer texts, or raise `max_length`")
}

impl Examples {
    /// Reads and encodes a file.
    ///
    /// # Errors
    /// What [`Table::read`] reports, a missing column, a label that the task does not name, a
    /// target that is not a number, a text without tokens.
    pub fn read(file: &FilePlan, task: &TaskPlan, encoder: &TextEncoder) -> Result<Self, Problem> {
        let mut all = Vec::new();
        let mut waiting: Vec<Row> = Vec::new();
        let mut wrong = None;
        let mut take = |waiting: &mut Vec<Row>| {
            let read = read_rows(waiting, file, task, encoder);
            waiting.clear();
            match read {
                Ok(examples) => all.extend(examples),
                Err((_, problem)) => wrong = Some(problem),
            }
            wrong.is_none()
        };
        let mut refused = None;
        visit(file, &wanted(task), &mut |row| match row {
            Ok(row) => {
                waiting.push(row);
                waiting.len() < ROWS_AT_ONCE || take(&mut waiting)
            }
            Err(problem) => {
                refused = Some(problem);
                false
            }
        })
        .map_err(|problem| problem.or_at(task.span))?;
        if refused.is_none() {
            take(&mut waiting);
        }
        match wrong.or(refused) {
            Some(problem) => Err(problem.or_at(task.span)),
            None if all.is_empty() => Err(no_examples(file)),
            None => Ok(Examples { all }),
        }
    }

    /// A few examples of each label, in the order of the file.
    ///
    /// # Errors
    /// The task has no labels, or a label has too few examples.
    pub fn few(&self, few: &Few, task: &TaskPlan) -> Result<Self, Problem> {
        let mut classes: Vec<Vec<usize>> = vec![Vec::new(); task.kind.labels().len()];
        for (place, example) in self.all.iter().enumerate() {
            if let Target::Class(class) = example.target {
                classes[class].push(place);
            }
        }
        let counts: Vec<usize> = classes.iter().map(Vec::len).collect();
        check_few(few, task, &counts)?;
        let mut chosen = Vec::new();
        for (class, mut places) in classes.into_iter().enumerate() {
            let mut random = ChaCha8Rng::seed_from_u64(few.seed);
            random.set_stream(class as u64);
            places.shuffle(&mut random);
            chosen.extend(places.into_iter().skip(few.skipped).take(few.per_class));
        }
        chosen.sort_unstable();
        let all = chosen.into_iter().map(|place| self.all[place].clone());
        Ok(Examples { all: all.collect() })
    }

    /// Encodes texts whose targets are unknown.
    ///
    /// # Errors
    /// What the tokenizer reports, with the index of the text if a single text is to blame.
    pub fn of_texts(
        texts: &[Vec<String>],
        task: &TaskPlan,
        encoder: &TextEncoder,
    ) -> Result<Self, (Option<usize>, Problem)> {
        let encoded = encode(encoder, task, texts)?;
        let all = encoded
            .into_iter()
            .map(|text| Example {
                decoder: encoder.decoded(&text),
                text,
                target: Target::None,
            })
            .collect();
        Ok(Examples { all })
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The tokens of all texts together.
    pub fn tokens(&self) -> usize {
        self.all
            .iter()
            .map(|example| example.text.tokens.len())
            .sum()
    }
}

/// Encodes texts in the task's template, or as they are if there is none. A problem comes with the index of its
/// text, if a single text is to blame.
fn encode(
    encoder: &TextEncoder,
    task: &TaskPlan,
    texts: &[Vec<String>],
) -> Result<Vec<Encoded>, (Option<usize>, Problem)> {
    let prefixed = |text: &String| format!("{}{text}", task.kind.source_prefix());
    let encoded = match task.kind.cloze() {
        Some(cloze) => encoder.encode_cloze(cloze, texts)?,
        None if !task.kind.source_prefix().is_empty() => {
            let texts = texts
                .iter()
                .map(|texts| texts.iter().map(prefixed).collect());
            let texts: Vec<Vec<String>> = texts.collect();
            encoder.encode(&texts).map_err(|problem| (None, problem))?
        }
        None => encoder.encode(texts).map_err(|problem| (None, problem))?,
    };
    if let Some((index, problem)) = encoder.padded(&encoded, task.kind.uses_language_model()) {
        return Err((Some(index), problem));
    }
    if !task.kind.uses_language_model() {
        if let Some((index, problem)) = encoder.unended(&encoded) {
            return Err((Some(index), problem));
        }
    }
    match encoded.iter().position(|text| text.tokens.is_empty()) {
        Some(empty) => {
            let problem = Problem::new(
                "delta::data::no_tokens",
                "the tokenizer finds no tokens in the text",
            );
            Err((Some(empty), problem.help("remove the text, or fill it in")))
        }
        None => Ok(encoded),
    }
}

/// Encodes the target texts of a decoder.
fn encode_answers(
    encoder: &TextEncoder,
    texts: &[Vec<String>],
) -> Result<Vec<Encoded>, (Option<usize>, Problem)> {
    let encoded = encoder.encode(texts).map_err(|problem| (None, problem))?;
    match encoded.iter().position(|text| text.tokens.is_empty()) {
        Some(empty) => {
            let problem = Problem::new(
                "delta::data::no_tokens",
                "the tokenizer finds no tokens in the target",
            );
            Err((
                Some(empty),
                problem.help("remove the row, or fill in its target"),
            ))
        }
        None => Ok(encoded),
    }
}

/// The columns that a task reads: its texts, then its target if it has one.
pub(super) fn wanted(task: &TaskPlan) -> Vec<&str> {
    let texts = task.kind.texts().iter().map(String::as_str);
    texts.chain(task.kind.target()).collect()
}

/// Converts the value of a row's target, if the task has a column for it.
pub(super) fn checked_target(
    value: Option<&str>,
    line: usize,
    file: &FilePlan,
    task: &TaskPlan,
) -> Result<Target, Problem> {
    task.kind.target_of(value).map_err(|(message, help)| {
        at_line("delta::data::label", &file.path, line, message)
            .at(task.span, "the task")
            .help(help)
    })
}
