//! Checks a file's rows before anything runs. Reports mistakes line by line, and warns of what is odd.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashSet, VecDeque};
use std::hash::{Hash, Hasher};

use super::examples::{checked_target, wanted, Target};
use super::table::{at_line, no_examples, visit, Row};
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan, TaskKind, TaskPlan};
use crate::text::{counted, quoted_list};

/// The most mistakes that are collected for one file.
const MOST_MISTAKES: usize = 10;

/// The findings about a file's rows.
#[derive(Default)]
pub struct Rows {
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
    mistakes: usize,
    /// Whether all rows were checked.
    is_whole: bool,
    /// The number of rows with an empty text, and the line of the first one. Then the same for texts in quotes.
    empty: (usize, Option<usize>),
    quoted: (usize, Option<usize>),
    /// The same for texts that seem to contain other rows.
    swallowed: (usize, Option<usize>),
}

impl Rows {
    /// Checks the first and the last `most` rows of a file.
    pub fn check(file: &FilePlan, task: &TaskPlan, most: usize) -> Self {
        let mut rows = Rows {
            labels: vec![0; task.labels.len()],
            ..Rows::default()
        };
        let mut last: VecDeque<Row> = VecDeque::new();
        let mut seen = 0usize;
        let visited = visit(file, &wanted(task), &mut |row| {
            seen += 1;
            match row {
                Err(problem) => rows.mistake(problem),
                Ok(row) if seen <= most => rows.row(&row, file, task),
                Ok(row) => {
                    if last.len() == most {
                        last.pop_front();
                    }
                    last.push_back(row);
                }
            }
            true
        });
        last.iter().for_each(|row| rows.row(row, file, task));
        rows.is_whole = rows.count + rows.mistakes >= seen;
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
        rows
    }

    fn mistake(&mut self, problem: Problem) {
        self.mistakes += 1;
        if self.mistakes <= MOST_MISTAKES {
            self.problems.push(problem);
        }
    }

    fn row(&mut self, (line, values): &Row, file: &FilePlan, task: &TaskPlan) {
        self.count += 1;
        let texts = &values[..task.text.len()];
        if let Some(label) = values.get(task.text.len()) {
            match checked_target(label, *line, file, task) {
                Ok(Target::Class(class)) => self.labels[class] += 1,
                Ok(_) => {}
                Err(problem) => self.mistake(problem),
            }
        }
        let note = |(count, first): &mut (usize, Option<usize>)| {
            *count += 1;
            first.get_or_insert(*line);
        };
        // The target of such a task is a text as well.
        let read = match task.kind {
            TaskKind::Seq2seq => values.as_slice(),
            _ => texts,
        };
        if read.iter().any(|text| text.trim().is_empty()) {
            note(&mut self.empty);
        }
        let is_quoted =
            |text: &String| text.len() > 1 && text.starts_with('"') && text.ends_with('"');
        if file.format == FileFormat::Tsv && read.iter().any(is_quoted) {
            note(&mut self.quoted);
        }
        let is_row = |line: &str| {
            let label = line.rsplit(',').next().unwrap_or_default().trim();
            line.contains(',') && task.labels.iter().any(|known| known.value == label)
        };
        if read.iter().any(|text| text.lines().skip(1).any(is_row)) {
            note(&mut self.swallowed);
        }
        let mut hasher = DefaultHasher::new();
        texts.hash(&mut hasher);
        self.texts.insert(hasher.finish());
    }

    fn summarize(&mut self, file: &FilePlan) {
        if self.mistakes > MOST_MISTAKES {
            let more = counted(self.mistakes - MOST_MISTAKES, "more mistake");
            let message = format!("`{}` has {more}", file.path.display());
            self.problems.push(
                Problem::new("delta::data::more", message)
                    .at(file.span, "this file")
                    .help("mend the first ones and look again"),
            );
        }
        let seen = counted(self.count, "row");
        let seen = match self.is_whole {
            true => seen,
            false => format!("the {seen} that were looked at"),
        };
        let odd = [
            (
                self.empty,
                "delta::data::empty_text",
                "the text is empty",
                "remove rows without a text",
            ),
            (
                self.swallowed,
                "delta::data::swallowed",
                "the text in quotes has what looks like other rows in it",
                "look for a quote that is missing at the end of the text",
            ),
            (
                self.quoted,
                "delta::data::quotes",
                "the text is in quotes, which belong to it as `tsv` has none",
                "write the file without quotes, or as `csv` with commas",
            ),
        ];
        for ((count, first), code, what, help) in odd {
            let Some(line) = first else { continue };
            let message = format!("{what}, as it is in {} of {seen}", counted(count, "row"));
            let said = at_line(code, &file.path, line, message);
            let problem = Problem::warning(code, said.message).at(file.span, "this file");
            self.warnings.push(problem.help(help));
        }
    }

    /// Warns of labels that never occur in a training file.
    pub fn warn_of_training(&mut self, file: &FilePlan, task: &TaskPlan) {
        // Rows that were not checked may have the other labels.
        if task.kind != TaskKind::Classify || file.few.is_some() || !self.is_whole {
            return;
        }
        let absent: Vec<&str> = task
            .labels
            .iter()
            .zip(&self.labels)
            .filter(|(_, count)| **count == 0)
            .map(|(label, _)| label.value.as_str())
            .collect();
        let path = file.path.display();
        let message = match absent.len() {
            0 => return,
            left if left + 1 == task.labels.len() => {
                format!(
                    "`{path}` has one class alone: {} never occur",
                    quoted_list(absent)
                )
            }
            _ => format!("`{path}` has no row of {}", quoted_list(absent)),
        };
        self.warnings.push(
            Problem::warning("delta::data::absent_label", message)
                .at(file.span, "this file")
                .help("give rows of every label, or leave labels out that never occur"),
        );
    }
}

/// Warns of texts that occur both in an evaluation file and in a training file.
pub fn warn_of_overlap(
    dev: &FilePlan,
    of_dev: &Rows,
    train: &FilePlan,
    of_train: &Rows,
) -> Option<Problem> {
    if dev.path == train.path {
        // `few` draws different examples of one file for each. Using the whole file for both is intended.
        return None;
    }
    let shared = of_dev.texts.intersection(&of_train.texts).count();
    if shared == 0 {
        return None;
    }
    let message = format!(
        "{} of `{}` {} in `{}`, too",
        counted(shared, "text"),
        dev.path.display(),
        if shared == 1 { "stands" } else { "stand" },
        train.path.display()
    );
    let problem = Problem::warning("delta::data::overlap", message).at(dev.span, "this file");
    Some(problem.help("take them out of one of the files: what was learned by heart is no measure"))
}
