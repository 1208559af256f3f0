//! Checks a file's rows before anything runs. Reports mistakes line by line, and warns of what is odd.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::examples::{checked_target, is_of_every_row, read_rows, wanted, ROWS_AT_ONCE};
use super::files::files_of;
use super::table::{at_row, no_examples, visit, Row, RowPlace};
use super::tokens::TextEncoder;
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan, TaskPlan};
use crate::task::{Example, Target};
use crate::text::{counted, quoted_list};

/// The most mistakes that are collected for one file, and of those the most of one kind: a column of another form is wrong in
/// every row.
const MOST_MISTAKES: usize = 10;
const MOST_ALIKE: usize = 3;

/// The findings about a file's rows.
#[derive(Default)]
pub struct RowFindings {
    /// The number of rows that were checked.
    pub count: usize,
    /// Mistakes in the rows.
    pub problems: Vec<Problem>,
    /// Warnings about the rows.
    pub warnings: Vec<Problem>,
    /// A hash of the texts of each row.
    pub texts: HashSet<u64>,
    /// The number of rows of each label.
    pub labels: Vec<usize>,
    /// The number of rows that the file has.
    pub all: usize,
    mistakes: usize,
    /// Whether rows that could have mistakes were left out, because there are so many already.
    gave_up: bool,
    /// Rows without a mistake that were not encoded yet, and how many more may be.
    waiting: Vec<Row>,
    left_to_encode: usize,
    pub(super) tokens: Tokens,
    /// Whether all rows were checked.
    pub(super) is_whole: bool,
    /// The number of rows with an empty text, and the place of the first one. Then the same for texts in quotes.
    empty: (usize, Option<RowPlace>),
    quoted: (usize, Option<RowPlace>),
    /// The same for texts that seem to contain other rows.
    swallowed: (usize, Option<RowPlace>),
}

/// What the tokenizer makes of rows.
#[derive(Default)]
pub(super) struct Tokens {
    /// The number of tokens of each row that was encoded.
    pub(super) lengths: Vec<usize>,
    /// Tokens that stand for words which the vocabulary lacks.
    unknown: usize,
    /// Texts that begin with the token that the tokenizer itself puts before them.
    begun_twice: usize,
    /// Tokens to predict.
    predicted: usize,
    /// Texts whose end was cut off, and the most tokens that one lost.
    cut: (usize, usize),
    /// Texts that fill the longest sequence, and may be cut: a classifier's are not tokenized beyond it.
    full: usize,
    /// Texts with an answer that lacks the token which ends it.
    unended: usize,
}

/// How many rows of a file a check looks at.
#[derive(Clone, Copy)]
pub struct Extent {
    /// Rows at the file's beginning, and as many at its end.
    pub at_each_end: usize,
    /// Rows of these that are encoded at most.
    pub encoded: usize,
}

impl RowFindings {
    /// Checks rows of a file. Without an encoder, none is encoded.
    pub fn check(
        file: &FilePlan,
        task: &TaskPlan,
        extent: Extent,
        encoder: Option<&TextEncoder>,
    ) -> Self {
        let mut rows = RowFindings {
            labels: vec![0; task.kind.labels().len()],
            left_to_encode: encoder.map_or(0, |_| extent.encoded),
            ..RowFindings::default()
        };
        let most = extent.at_each_end;
        let mut last: VecDeque<Row> = VecDeque::new();
        let mut seen = 0usize;
        let visited = visit(file, &wanted(task), &mut |row| {
            seen += 1;
            match row {
                Err(problem) => rows.mistake(problem),
                Ok(row) if seen <= most => rows.row(row, file, task, encoder),
                Ok(row) => {
                    if last.len() == most {
                        last.pop_front();
                    }
                    last.push_back(row);
                }
            }
            true
        });
        for row in last {
            rows.row(row, file, task, encoder);
        }
        rows.encode(file, task, encoder);
        rows.all = seen;
        rows.is_whole = rows.count + rows.mistakes >= seen;
        rows.count_hidden(file);
        match visited {
            Err(problem) if problem.code == "delta::data::column" => {
                rows.problems
                    .push(problem.at(task.span, "the task names it"));
            }
            Err(problem) => rows.problems.push(problem.or_at(file.span)),
            Ok(()) if seen == 0 => {
                rows.problems.push(no_examples(file));
            }
            Ok(()) => {}
        }
        rows.summarize(file);
        rows.judge_tokens(file, encoder);
        rows
    }

    /// The mean number of tokens of the rows that were encoded.
    pub fn mean_length(&self) -> Option<usize> {
        let lengths = &self.tokens.lengths;
        (!lengths.is_empty()).then(|| lengths.iter().sum::<usize>().div_ceil(lengths.len()))
    }

    /// Encodes the rows that wait, and reports those that the task or the tokenizer refuses.
    fn encode(&mut self, file: &FilePlan, task: &TaskPlan, encoder: Option<&TextEncoder>) {
        let waiting = std::mem::take(&mut self.waiting);
        let Some(encoder) = encoder else { return };
        let mut rest = waiting.as_slice();
        while !rest.is_empty() {
            match read_rows(rest, file, task, encoder) {
                Ok(examples) => return self.count_tokens(&examples, task, encoder),
                // Each refused row costs another pass over those behind it.
                Err(_) if self.mistakes >= MOST_MISTAKES => {
                    self.gave_up = true;
                    self.left_to_encode = 0;
                    return;
                }
                Err((_, problem)) if is_of_every_row(&problem) => {
                    self.mistake(problem);
                    self.left_to_encode = 0;
                    return;
                }
                Err((index, problem)) => {
                    self.mistake(problem);
                    if let Ok(examples) = read_rows(&rest[..index], file, task, encoder) {
                        self.count_tokens(&examples, task, encoder);
                    }
                    rest = &rest[index + 1..];
                }
            }
        }
    }

    fn count_tokens(&mut self, examples: &[Example], task: &TaskPlan, encoder: &TextEncoder) {
        for example in examples {
            // Answers that are compared are sequences of their own.
            let sequences = example.sequences().map(|one| one.text.tokens.len());
            self.tokens.lengths.push(sequences.sum());
            self.tokens.unknown += encoder.unknown_tokens(&example.text);
            self.tokens.begun_twice += usize::from(encoder.begins_twice(&example.text));
            self.tokens.predicted += example.predicted();
            if example.cut > 0 {
                let (rows, most) = self.tokens.cut;
                self.tokens.cut = (rows + 1, most.max(example.cut));
                continue;
            }
            let is_full = example.text.tokens.len() >= encoder.max_length();
            self.tokens.full += usize::from(is_full);
            if let Some(end) = encoder.end_token() {
                let is_unended = task.kind.writes() && !example.ends_with(&[end]);
                self.tokens.unended += usize::from(is_unended);
            }
        }
    }

    /// Whether all rows were encoded, and no token of a language model is predicted.
    pub fn predict_nothing(&self, task: &TaskPlan) -> bool {
        let is_all = self.is_whole && self.tokens.lengths.len() == self.count && self.count > 0;
        is_all && self.tokens.predicted == 0 && task.kind.predicts_tokens()
    }

    fn judge_tokens(&mut self, file: &FilePlan, encoder: Option<&TextEncoder>) {
        /// The share of unknown tokens from which on a vocabulary does not fit a file.
        const MANY_UNKNOWN: f64 = 0.03;
        /// The share of texts that may be cut from which on they are worth a warning.
        const MANY_FULL: f64 = 0.1;
        let (rows, all) = (
            self.tokens.lengths.len(),
            self.tokens.lengths.iter().sum::<usize>(),
        );
        let Tokens {
            unknown,
            begun_twice,
            cut: (cut, most_cut),
            full,
            unended,
            ..
        } = self.tokens;
        let Some(encoder) = encoder.filter(|_| rows > 0) else {
            return;
        };
        let path = file.shown();
        let share = unknown as f64 / all.max(1) as f64;
        if share > MANY_UNKNOWN {
            let name = encoder.unknown_name().unwrap_or_default();
            let message = format!("{:.0} % of the tokens of {path} are `{name}`: the vocabulary of the backbone lacks these words", 100.0 * share);
            let problem = Problem::warning("delta::data::unknown_tokens", message);
            let help = "use a backbone that was pre-trained on texts of this language and spelling";
            self.warnings
                .push(problem.at(file.span, "this file").help(help));
        }
        if cut > 0 {
            let message = format!(
                "{cut} of {rows} texts of {path} are longer than `max_length`: their ends are left out, up to {}",
                counted(most_cut, "token")
            );
            let problem = Problem::warning("delta::data::cut", message);
            let help = "raise `max_length`, or shorten these rows";
            self.warnings
                .push(problem.at(file.span, "this file").help(help));
        }
        if full as f64 > MANY_FULL * rows as f64 {
            let message = format!(
                "{full} of {rows} texts of {path} fill `max_length` ({} tokens), and may have been truncated",
                encoder.max_length()
            );
            let problem = Problem::warning("delta::data::cut", message);
            let help = "raise `max_length`, if the ends of the texts matter";
            self.warnings
                .push(problem.at(file.span, "this file").help(help));
        }
        if unended > 0 {
            let end = encoder.end_token().map(|end| encoder.shown(end));
            let message = format!(
                "{unended} of {rows} texts of {path} have an answer without `{}`, which ends a text: the model does not learn to stop there",
                end.unwrap_or_default()
            );
            let problem = Problem::warning("delta::data::no_end", message);
            let help = "use a chat template that ends every answer with this token";
            self.warnings
                .push(problem.at(file.span, "this file").help(help));
        }
        if 2 * begun_twice > rows {
            let name = encoder.first_name().unwrap_or_default();
            let message = format!("most texts of {path} begin with `{name}`, which the tokenizer adds as well: the model reads it twice");
            let problem = Problem::warning("delta::data::begun_twice", message);
            let help = format!("remove `{name}` from the texts");
            self.warnings
                .push(problem.at(file.span, "this file").help(help));
        }
    }

    fn mistake(&mut self, problem: Problem) {
        self.mistakes += 1;
        let shown = self.problems.iter();
        let alike = shown.filter(|shown| shown.code == problem.code).count();
        if self.problems.len() < MOST_MISTAKES && alike < MOST_ALIKE {
            self.problems.push(problem);
        }
    }

    fn row(&mut self, row: Row, file: &FilePlan, task: &TaskPlan, encoder: Option<&TextEncoder>) {
        let mistakes = self.mistakes;
        self.look_at(&row, file, task);
        if self.left_to_encode > 0 && self.mistakes == mistakes {
            self.left_to_encode -= 1;
            self.waiting.push(row);
        }
        if self.waiting.len() == ROWS_AT_ONCE {
            self.encode(file, task, encoder);
        }
    }

    fn look_at(&mut self, (place, values): &Row, file: &FilePlan, task: &TaskPlan) {
        self.count += 1;
        let count = task.kind.texts().len();
        let texts = &values[..count];
        match checked_target(&values[count..], place, file, task) {
            Ok(Target::Class(class)) => self.labels[class] += 1,
            Ok(Target::Classes(classes)) => classes
                .into_iter()
                .for_each(|class| self.labels[class] += 1),
            Ok(Target::Set(set)) => {
                let own = self.labels.iter_mut().zip(set);
                own.for_each(|(count, has)| *count += usize::from(has));
            }
            Ok(_) => {}
            Err(problem) => self.mistake(problem),
        }
        let note = |(count, first): &mut (usize, Option<RowPlace>)| {
            *count += 1;
            first.get_or_insert_with(|| place.clone());
        };
        // The target of such a task is a text as well.
        let read = match task.kind.has_text_target() {
            true => values.as_slice(),
            false => texts,
        };
        let is_empty = |text: &String| text.trim().is_empty();
        let lacks_text = match task.kind.needs_all_texts() {
            true => texts.iter().any(is_empty),
            false => texts.iter().all(is_empty),
        };
        if lacks_text || read[count..].iter().any(is_empty) {
            note(&mut self.empty);
        }
        let is_quoted =
            |text: &String| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
        if file.format == FileFormat::Tsv && read.iter().any(is_quoted) {
            note(&mut self.quoted);
        }
        let is_row = |line: &str| {
            let label = line.rsplit(',').next().unwrap_or_default().trim();
            line.contains(',') && task.kind.labels().iter().any(|known| known.value == label)
        };
        if read.iter().any(|text| text.lines().skip(1).any(is_row)) {
            note(&mut self.swallowed);
        }
        let mut hasher = DefaultHasher::new();
        match texts.is_empty() {
            true => values.hash(&mut hasher),
            false => texts.hash(&mut hasher),
        }
        self.texts.insert(hasher.finish());
    }

    /// Says behind the last mistake that is shown how many are not.
    fn count_hidden(&mut self, file: &FilePlan) {
        let hidden = self.mistakes - self.problems.len();
        let rest = match (self.gave_up, hidden) {
            (true, _) => format!("the rest of {} was not checked", file.shown()),
            (false, 0) => return,
            (false, _) => format!(
                "{} of {} are refused",
                counted(hidden, "more row"),
                file.shown()
            ),
        };
        if let Some(help) = self.problems.last_mut().and_then(|last| last.help.as_mut()) {
            *help += &format!(" ({rest})");
        }
    }

    fn summarize(&mut self, file: &FilePlan) {
        let seen = counted(self.count, "row");
        let seen = match self.is_whole {
            true => seen,
            false => format!("the {seen} that were checked"),
        };
        let odd = [
            (
                &self.empty,
                "delta::data::empty_text",
                "the text is empty",
                "remove the rows without a text",
            ),
            (
                &self.swallowed,
                "delta::data::swallowed",
                "the quoted text seems to contain other rows",
                "look for a missing closing quote",
            ),
            (
                &self.quoted,
                "delta::data::quotes",
                "the text is in quotes, which `tsv` reads as part of the text",
                "remove the quotes, or write the file as `csv` with commas",
            ),
        ];
        for ((count, first), code, what, help) in odd {
            let Some(place) = first else { continue };
            let message = format!("{what} (in {} of {seen})", counted(*count, "row"));
            let said = at_row(code, file, place, message);
            let problem = Problem::warning(code, said.message).at(file.span, "this file");
            self.warnings.push(problem.help(help));
        }
    }

    /// Warns of labels that never occur in a training file.
    pub fn warn_of_training(&mut self, file: &FilePlan, task: &TaskPlan) {
        // Rows that were not checked may have the other labels.
        if task.kind.labels().is_empty() || file.few.is_some() || !self.is_whole {
            return;
        }
        let absent: Vec<&str> = task
            .kind
            .labels()
            .iter()
            .zip(&self.labels)
            .filter(|(_, count)| **count == 0)
            .map(|(label, _)| label.value.as_str())
            .collect();
        let path = file.shown();
        let message = match absent.len() {
            0 => return,
            left if left + 1 == task.kind.labels().len() => {
                format!(
                    "{path} has rows of only one label, and none of {}",
                    quoted_list(absent)
                )
            }
            _ => format!("{path} has no rows of {}", quoted_list(absent)),
        };
        self.warnings.push(
            Problem::warning("delta::data::absent_label", message)
                .at(file.span, "this file")
                .help("add rows of every label, or remove the labels that never occur"),
        );
    }
}

/// Warns of an evaluation on rows of the training file that are trained on, and of repeated texts, which a split puts on both
/// sides. `few` draws different examples for each.
fn warn_of_same_file(dev: &FilePlan, of_dev: &RowFindings, train: &FilePlan) -> Option<Problem> {
    let path = dev.shown();
    let problem =
        |message| Problem::warning("delta::data::overlap", message).at(dev.span, "this file");
    if dev.part.is_some() {
        let repeated = of_dev.count - of_dev.texts.len();
        let message = format!(
            "{repeated} of {} of {path} repeat a text: a split puts some of them on both sides",
            counted(of_dev.count, "row")
        );
        return (repeated > 0).then(|| {
            problem(message).help("remove the repeated rows, or name a file of its own: a dev score on training texts measures memorization")
        });
    }
    if dev.few.is_some() && train.few.is_some() {
        return None;
    }
    let message = format!("{path} is read for training and for evaluation");
    Some(problem(message).help("write `split(train, 10%)`, or name a file of its own: a dev score on training texts measures memorization"))
}

/// Warns of texts that occur both in an evaluation file and in a training file.
pub fn warn_of_overlap(
    dev: &FilePlan,
    of_dev: &RowFindings,
    train: &FilePlan,
    of_train: &RowFindings,
) -> Option<Problem> {
    let of_train_files = files_of(train).unwrap_or_default();
    let dev_files = files_of(dev).unwrap_or_default();
    if dev_files.iter().any(|file| of_train_files.contains(file)) {
        return warn_of_same_file(dev, of_dev, train);
    }
    let shared = of_dev.texts.intersection(&of_train.texts).count();
    if shared == 0 {
        return None;
    }
    let message = format!(
        "{} of {} also {} in {}",
        counted(shared, "text"),
        dev.shown(),
        if shared == 1 { "appears" } else { "appear" },
        train.shown()
    );
    let problem = Problem::warning("delta::data::overlap", message).at(dev.span, "this file");
    Some(problem.help(
        "remove them from one of the files: a dev score on training texts measures memorization",
    ))
}
