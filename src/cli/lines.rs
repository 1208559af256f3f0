//! JSON lines in, JSON lines out, each answered as it comes. Files of other formats are rows of objects as well.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::mpsc::{sync_channel, Receiver};

use serde_json::{json, Map, Value};

use super::arguments::LineOptions;
use super::table;
use crate::data::{objects, recognize, Wanted};
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, Pending};
use crate::plan::{FileFormat, FilePlan};

/// The key that an answer has of its line: the line's own, or its number.
pub(super) const ID: &str = "id";

/// A line of the input that is to be answered.
pub(super) struct Asked<Q> {
    /// Its number in the input.
    pub number: usize,
    /// What its answer carries.
    pub id: Value,
    /// The right answer, if the line has it.
    pub gold: Option<Value>,
    /// What it asks.
    pub question: Q,
}

impl<Q> Asked<Q> {
    /// The line of its answer.
    pub fn answered(&self, answer: impl IntoIterator<Item = (String, Value)>) -> Value {
        let id = (ID.to_owned(), self.id.clone());
        let gold = self.gold.clone().map(|gold| ("gold".to_owned(), gold));
        Value::Object(std::iter::once(id).chain(answer).chain(gold).collect())
    }
}

/// Answers the objects of JSON lines.
pub(super) trait Answers {
    /// What is read of an object.
    type Question;

    /// The most lines that are answered together: of those that wait while the last ones were.
    fn most(&self) -> usize;

    /// The object that a line is to have, for messages.
    fn example(&self) -> String;

    /// How a file is read that has no JSON lines.
    ///
    /// # Errors
    /// It cannot be.
    fn file(&self, path: &Path) -> Result<FilePlan, Problem>;

    /// The columns that may be read of such a file.
    fn wanted(&self) -> Vec<Wanted<'_>>;

    /// The right answer to an object, if it has one.
    fn gold(&self, _object: &Map<String, Value>) -> Option<Value> {
        None
    }

    /// Reads an object.
    ///
    /// # Errors
    /// A value is missing or of the wrong kind.
    fn read(&self, object: &Map<String, Value>) -> Result<Self::Question, (String, String)>;

    /// Writes the answers, in order.
    ///
    /// # Errors
    /// The first that cannot be given or written. Those before it are written.
    fn answer(&self, asked: &[Asked<Self::Question>], output: &mut dyn Write) -> Result<(), Stop>;
}

/// Why no more is written.
pub(super) enum Stop {
    /// Nobody reads any more.
    Gone,
    /// After so many of the lines that are answered together.
    Problem(usize, Problem),
}

/// The place of a problem in the input.
pub(super) fn at_line(number: usize, message: impl std::fmt::Display) -> Problem {
    Problem::new(
        "delta::cli::input",
        format!("input, line {number}: {message}"),
    )
}

/// What is wrong with writing the answer number `at`.
pub(super) fn stopped(at: usize, error: &std::io::Error) -> Stop {
    match error.kind() {
        ErrorKind::BrokenPipe => Stop::Gone,
        _ => Stop::Problem(at, disk::failed("written", Path::new("the output"), error)),
    }
}

/// What is written must not be what is read.
///
/// # Errors
/// Both are one file.
pub(super) fn check_apart(files: &LineOptions) -> Result<(), Problem> {
    let (Some(input), Some(output)) = (&files.input, &files.output) else {
        return Ok(());
    };
    let (input, found) = (input.canonicalize(), output.canonicalize());
    if matches!((&input, &found), (Ok(input), Ok(output)) if input == output) {
        let message = format!("`{}` is both the input and the output", output.display());
        return Err(Problem::new("delta::cli::same_file", message)
            .help("choose another file for the output"));
    }
    Ok(())
}

/// Answers every line of a file, or of standard input, in a file or on standard output.
///
/// # Errors
/// A line that cannot be answered, or that cannot be written. What came before it is kept.
pub(super) fn answer_file<A: Answers>(answers: &A, files: &LineOptions) -> Result<(), Problems> {
    let lines = match &files.input {
        Some(path) => lines_of(answers, path)?,
        None => read_lines(Box::new(std::io::stdin()), answers.most()),
    };
    match &files.output {
        Some(path) => {
            let separator = table::separator(path)?;
            let failed = |e: &std::io::Error| disk::failed("written", path, e);
            let mut file = BufWriter::new(Pending::new(path).map_err(|e| failed(&e))?);
            let answered = match separator {
                None => answer_all(answers, &lines, &mut file),
                Some(separator) => {
                    let mut rows = table::TableWriter::new(&mut file, separator);
                    answer_all(answers, &lines, &mut rows)
                }
            };
            // What came before a bad line is kept, as on standard output.
            let is_begun = !matches!(&answered, Err((0, _)));
            let file = file.into_inner().map_err(|e| failed(e.error()))?;
            if is_begun {
                file.complete().map_err(|e| failed(&e))?;
            }
            answered.map(drop).map_err(|(_, problem)| problem)?;
        }
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            let answered = answer_all(answers, &lines, &mut output);
            answered.map(drop).map_err(|(_, problem)| problem)?;
        }
    }
    Ok(())
}

/// A line of the input.
struct Line {
    number: usize,
    text: Result<String, Problem>,
}

/// The lines of a file: JSON lines as they are, and an object for each row of another format.
fn lines_of<A: Answers>(answers: &A, path: &Path) -> Result<Receiver<Line>, Problem> {
    let is_lines = |file: &FilePlan| match file.format {
        FileFormat::Jsonl | FileFormat::Text => file.encoding.is_none() && !is_packed(path),
        _ => false,
    };
    let other = recognize(path).is_ok().then(|| answers.file(path));
    let Some(file) = other.transpose()?.filter(|file| !is_lines(file)) else {
        let input = std::fs::File::open(path).map_err(|e| {
            let message = format!("`{}` cannot be read: {e}", path.display());
            Problem::new("delta::cli::unreadable", message).help("check the path")
        })?;
        return Ok(read_lines(Box::new(input), answers.most()));
    };
    let lines = objects(&file, &answers.wanted())?;
    let (sender, receiver) = sync_channel(answers.most());
    std::thread::spawn(move || {
        for (number, text) in lines {
            let line = Line {
                number,
                text: Ok(text),
            };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// Whether a name says that gzip or zstd packed the file.
fn is_packed(path: &Path) -> bool {
    let ending = path.extension();
    ending.is_some_and(|ending| ending == "gz" || ending == "zst")
}

/// Reads lines on a thread of its own, so that those that have come wait together.
fn read_lines(input: Box<dyn Read + Send>, most: usize) -> Receiver<Line> {
    let (sender, receiver) = sync_channel(most);
    std::thread::spawn(move || {
        for (index, text) in BufReader::new(input).lines().enumerate() {
            let number = index + 1;
            let text = text.map_err(|e| at_line(number, e).help("convert the input to UTF-8"));
            let is_last = text.is_err();
            // Nobody waits any more once an answer could not be written.
            if sender.send(Line { number, text }).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// Answers every line; gives how many were, with what is wrong with the next one.
fn answer_all<A: Answers>(
    answers: &A,
    lines: &Receiver<Line>,
    output: &mut dyn Write,
) -> Result<usize, (usize, Problem)> {
    let mut answered = 0;
    while let Ok(first) = lines.recv() {
        let mut asked = Vec::new();
        let mut bad = None;
        for line in std::iter::once(first).chain(lines.try_iter().take(answers.most() - 1)) {
            match read_line(answers, line) {
                Ok(line) => asked.extend(line),
                Err(problem) => {
                    bad = Some(problem);
                    break;
                }
            }
        }
        match answers.answer(&asked, output) {
            Ok(()) => answered += asked.len(),
            // A reader that has gone away wants no more.
            Err(Stop::Gone) => return Ok(answered),
            Err(Stop::Problem(at, problem)) => return Err((answered + at, problem)),
        }
        if let Some(problem) = bad {
            return Err((answered, problem));
        }
    }
    Ok(answered)
}

/// Reads a line; nothing of an empty one.
fn read_line<A: Answers>(answers: &A, line: Line) -> Result<Option<Asked<A::Question>>, Problem> {
    let Line { number, text } = line;
    let text = text?;
    let text = match number {
        1 => text.trim_start_matches('\u{feff}'),
        _ => text.as_str(),
    };
    if text.trim().is_empty() {
        return Ok(None);
    }
    let object: Map<String, Value> = serde_json::from_str(text).map_err(|e| {
        at_line(number, format!("the line is not a JSON object: {e}"))
            .help(format!("write `{}`", answers.example()))
    })?;
    let question = answers
        .read(&object)
        .map_err(|(message, help)| at_line(number, message).help(help))?;
    Ok(Some(Asked {
        number,
        id: object.get(ID).cloned().unwrap_or(json!(number)),
        gold: answers.gold(&object),
        question,
    }))
}
