//! Turns a file's rows into examples of a task.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::packed::Packed;
use super::table::{at_line, at_row, no_examples, visit, Row, RowPlace, Wanted};
use super::tokens::TextEncoder;
use crate::diagnostic::Problem;
use crate::memory::with_kept;
use crate::plan::{Few, FilePlan, Part, TaskPlan};

use crate::task::{Example, Target};
use crate::text::counted;

/// The examples of a file, in its order.
#[derive(Clone, Debug, Default)]
pub struct Examples {
    packed: Packed,
}

/// Rows that are encoded together. A tokenizer needs many times the memory of a text while it reads it.
pub(super) const ROWS_AT_ONCE: usize = 1024;

/// Fewer rows are not worth a thread.
const ROWS_OF_A_THREAD: usize = 64;

/// Rows of a file as examples.
///
/// # Errors
/// The first mistake, and the index of its row.
pub(super) fn read_rows(
    rows: &[Row],
    file: &FilePlan,
    task: &TaskPlan,
    encoder: &TextEncoder,
) -> Result<Vec<Example>, (usize, Problem)> {
    let read = |(index, (place, row)): (usize, &Row)| {
        encode(encoder, task, row).map_err(|mut problem| {
            if is_of_every_row(&problem) {
                return (index, problem.or_at(task.span));
            }
            problem.message = at_row(problem.code, file, place, &problem.message).message;
            (index, problem.or_at(task.span))
        })
    };
    let threads = rayon::current_num_threads().min(rows.len() / ROWS_OF_A_THREAD);
    if threads < 2 {
        return rows.iter().enumerate().map(read).collect();
    }
    let size = rows.len().div_ceil(threads);
    let read = &read;
    let of_part = |(number, part): (usize, &[Row])| {
        let places = number * size..;
        with_kept(|| places.zip(part).map(read).collect::<Result<Vec<_>, _>>())
    };
    let parts: Vec<_> = rows.par_chunks(size).enumerate().map(of_part).collect();
    let mut all = Vec::with_capacity(rows.len());
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// Whether a problem is no row's fault: the others would say the same.
pub(super) fn is_of_every_row(problem: &Problem) -> bool {
    const CODES: [&str; 4] = [
        "delta::data::tokenizer",
        "delta::data::no_mask",
        "delta::data::special_token",
        "delta::data::no_chat_template",
    ];
    CODES.contains(&problem.code)
}

/// Checks that a file has the examples of each label that `few` takes, by the number of those that it has.
///
/// # Errors
/// The task has no labels, or a label has too few examples.
pub fn check_few(few: &Few, task: &TaskPlan, counts: &[usize]) -> Result<(), Problem> {
    let problem = |message: String| Problem::new("delta::data::few", message);
    if !task.kind.has_one_label() {
        let message = "`few` needs a `classify` task whose texts have one label each".to_owned();
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
    at_line("delta::data::nothing_to_predict", file, 0, message)
        .at(file.span, "this file")
        .help("give longer texts, or raise `max_length`")
}

/// The problem of a part that has none of a file's rows.
pub fn empty_part(rows: usize) -> Problem {
    let message = format!(
        "the split of {} leaves none for this set",
        counted(rows, "row")
    );
    Problem::new("delta::data::split", message)
        .help("take another share, or name a file of its own")
}

impl Examples {
    /// Reads and encodes a file.
    ///
    /// # Errors
    /// What [`FileRows::read`] reports, a missing column, a label that the task does not name, a
    /// target that is not a number, a text without tokens.
    pub fn read(file: &FilePlan, task: &TaskPlan, encoder: &TextEncoder) -> Result<Self, Problem> {
        let mut packed = Packed::default();
        let mut waiting: Vec<Row> = Vec::new();
        let mut wrong = None;
        let mut take = |waiting: &mut Vec<Row>| {
            let read = read_rows(waiting, file, task, encoder);
            waiting.clear();
            match read {
                Ok(examples) => examples.iter().for_each(|example| packed.push(example)),
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
            None if packed.len() == 0 => Err(no_examples(file)),
            None => Ok(Examples { packed }),
        }
    }

    /// The number of examples of each label, if each has one.
    pub fn label_counts(&self, task: &TaskPlan) -> Vec<usize> {
        let mut counts = vec![0; task.kind.labels().len()];
        for example in self.iter() {
            if let Target::Class(class) = example.target {
                counts[class] += 1;
            }
        }
        counts
    }

    /// The places of what a set takes of the examples of its whole file, in the order of the file.
    ///
    /// # Errors
    /// See [`check_few`] and [`empty_part`].
    pub fn places(&self, set: &FilePlan, task: &TaskPlan) -> Result<Vec<usize>, Problem> {
        let drawn = match (&set.few, &set.part) {
            (Some(few), _) => self.few(few, task),
            (None, Some(part)) => self.part(part),
            (None, None) => Ok((0..self.len()).collect()),
        };
        drawn.map_err(|problem| problem.or_at(set.span))
    }

    /// Shares the examples of a file out to the sets that take these places of it.
    pub fn share_out(self, sets: &[Vec<usize>]) -> Vec<Self> {
        // Most files are one set's, whole.
        if matches!(sets, [places] if places.len() == self.len()) {
            return vec![self];
        }
        let own = |places: &Vec<usize>| Examples {
            packed: self.packed.select(places),
        };
        sets.iter().map(own).collect()
    }

    /// The places of a few examples of each label.
    fn few(&self, few: &Few, task: &TaskPlan) -> Result<Vec<usize>, Problem> {
        let mut classes: Vec<Vec<usize>> = vec![Vec::new(); task.kind.labels().len()];
        for (place, example) in self.iter().enumerate() {
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
        Ok(chosen)
    }

    /// The places of a part of the examples: of each label alike where an example has one label.
    ///
    /// All examples are drawn into one order, in which each label's lie at equal distances from a random beginning. A part
    /// is a stretch of that order, so that parts have their exact sizes however rare labels are. The only example of a label
    /// lies in the middle, where a split leaves it to the training.
    fn part(&self, part: &Part) -> Result<Vec<usize>, Problem> {
        let mut groups: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
        for (place, example) in self.iter().enumerate() {
            let label = match example.target {
                Target::Class(class) => Some(class),
                _ => None,
            };
            groups.entry(label).or_default().push(place);
        }
        // The distance of an example from the beginning of the order, a number that decides between equals, and its place.
        let mut order: Vec<(f64, u32, usize)> = Vec::with_capacity(self.len());
        for (label, mut places) in groups {
            let mut random = ChaCha8Rng::seed_from_u64(part.seed);
            random.set_stream(label.map_or(0, |label| 1 + label as u64));
            places.shuffle(&mut random);
            let count = places.len() as f64;
            let begin = match places.len() {
                1 if !part.is_fold => 0.0,
                _ => random.random(),
            };
            let own = places.into_iter().enumerate();
            order.extend(own.map(|(number, place)| {
                let distance = (number as f64 + 0.5) / count + begin;
                (distance.fract(), random.random(), place)
            }));
        }
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2)));
        let own = part.of(order.len());
        let mut chosen: Vec<usize> = own.map(|at| order[at % order.len()].2).collect();
        if chosen.is_empty() {
            return Err(empty_part(self.len()));
        }
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// Encodes texts whose targets are unknown.
    ///
    /// # Errors
    /// The first text that cannot be encoded: its index, and the reason.
    pub fn of_texts(
        texts: &[Vec<String>],
        task: &TaskPlan,
        encoder: &TextEncoder,
    ) -> Result<Vec<Example>, (usize, Problem)> {
        let one = |(index, row): (usize, &Vec<String>)| {
            encode(encoder, task, row).map_err(|problem| (index, problem))
        };
        texts.iter().enumerate().map(one).collect()
    }

    /// The first example of a file.
    ///
    /// # Errors
    /// As for [`Examples::read`].
    pub fn first(
        file: &FilePlan,
        task: &TaskPlan,
        encoder: &TextEncoder,
    ) -> Result<Example, Problem> {
        let mut first = None;
        visit(file, &wanted(task), &mut |row| {
            first = Some(row);
            false
        })?;
        let row = first.unwrap_or_else(|| Err(no_examples(file)))?;
        let read = read_rows(&[row], file, task, encoder);
        let mut read = read.map_err(|(_, problem)| problem)?;
        Ok(read.remove(0))
    }

    /// Example number `place`.
    pub fn get(&self, place: usize) -> Example {
        self.packed.get(place)
    }

    /// The examples, one after the other.
    pub fn iter(&self) -> impl Iterator<Item = Example> + '_ {
        (0..self.len()).map(|place| self.get(place))
    }

    /// All examples, which take many times the memory at once.
    pub fn unpacked(&self) -> Vec<Example> {
        self.iter().collect()
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.packed.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The example of a row, after a check of its tokens.
fn encode(encoder: &TextEncoder, task: &TaskPlan, row: &[String]) -> Result<Example, Problem> {
    let example = task.kind.encode(row, encoder)?;
    let reads_tokens = task.kind.uses_language_model();
    encoder.check_padding(&example.text, reads_tokens)?;
    if !reads_tokens {
        encoder.check_end(&example.text)?;
    }
    if example.text.tokens.is_empty() {
        let message = "the tokenizer finds no tokens in the text";
        return Err(
            Problem::new("delta::data::no_tokens", message).help("remove the text, or fill it in")
        );
    }
    Ok(example)
}

/// The columns that a task reads: its texts, then its targets.
pub(super) fn wanted(task: &TaskPlan) -> Vec<Wanted<'_>> {
    let texts = task.kind.texts().iter().map(String::as_str);
    let names = texts.chain(task.kind.targets().iter().map(String::as_str));
    names.map(|name| Wanted::of(name, &task.kind)).collect()
}

/// Converts the values of a row's target.
pub(super) fn checked_target(
    values: &[String],
    place: &RowPlace,
    file: &FilePlan,
    task: &TaskPlan,
) -> Result<Target, Problem> {
    task.kind.target_of(values).map_err(|(message, help)| {
        at_row("delta::data::label", file, place, message)
            .at(task.span, "the task")
            .help(help)
    })
}
