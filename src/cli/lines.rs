//! Rows in, answers out, each as it comes: JSON lines, or the rows of files of other formats.

use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, RecvTimeoutError};
use std::time::Duration;

use serde_json::{json, Map, Value};

use super::arguments::LineOptions;
use super::commands::interruption;
use super::{table, Ended};
use crate::data::{objects, recognize_packed, Wanted, UNKNOWN_FORMAT};
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, failed, Growing};
use crate::plan::{FileFormat, FilePlan};
use crate::terminal::say;
use crate::text::counted;

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
pub(super) trait Answering {
    /// What is read of an object.
    type Question;

    /// The most lines that are answered together: of those that wait while the last ones were.
    fn most(&self) -> usize;

    /// The object that a line is to have, for messages.
    fn example(&self) -> String;

    /// How to read a file of another format, which its name and its beginning describe.
    ///
    /// # Errors
    /// It cannot be read.
    fn file(&self, file: FilePlan) -> Result<FilePlan, Problem>;

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

/// Checks that the output is a file, and another one than the input.
///
/// # Errors
/// It is a directory, it is the input, or an earlier command left answers in it.
pub(super) fn check_output(files: &LineOptions) -> Result<(), Problem> {
    let Some(output) = &files.output else {
        return Ok(());
    };
    let shown = output.display();
    if output.is_dir() {
        return Err(Problem::new(
            "delta::cli::output",
            format!("the output `{shown}` is a directory"),
        )
        .help("name a file for the output"));
    }
    let partial = Growing::partial(output);
    if let Some(input) = files
        .input
        .as_ref()
        .and_then(|path| path.canonicalize().ok())
    {
        let is_input = |path: &Path| path.canonicalize().is_ok_and(|path| path == input);
        if is_input(output) || is_input(&partial) {
            let message = match is_input(output) {
                true => format!("`{shown}` is both the input and the output"),
                false => format!(
                    "the input `{}` has the name that the output has until it is complete",
                    input.display()
                ),
            };
            return Err(Problem::new("delta::cli::same_file", message)
                .help("choose another file for the output"));
        }
    }
    if partial.metadata().is_ok_and(|found| found.len() > 0) {
        let partial = partial.display();
        let message = format!("`{partial}` has the answers of a command that was stopped");
        return Err(Problem::new("delta::cli::output", message).help(format!(
            "move or delete `{partial}`, or choose another file for the output"
        )));
    }
    Ok(())
}

/// Answers every line of a file, or of standard input, in a file or on standard output. A file is `PATH.partial` until all
/// lines are answered; if the command is stopped before, the answers so far stay in it.
///
/// # Errors
/// A line that cannot be answered, or that cannot be written. What came before it is kept.
pub(super) fn answer_file<A: Answering>(
    answers: &A,
    files: &LineOptions,
) -> Result<Ended, Problems> {
    let lines = match &files.input {
        Some(path) => lines_of(answers, path)?,
        None => read_lines(Box::new(std::io::stdin()), answers.most()),
    };
    match &files.output {
        Some(path) => {
            let separator = table::separator(path)?;
            let failed = |e: &std::io::Error| disk::failed("written", path, e);
            let mut file = BufWriter::new(Growing::new(path).map_err(|e| failed(&e))?);
            let stop = interruption();
            let answered = match separator {
                None => answer_all(answers, &lines, &mut file, stop),
                Some(separator) => {
                    let mut rows = table::TableWriter::new(&mut file, separator);
                    answer_all(answers, &lines, &mut rows, stop)
                }
            };
            let file = file.into_inner().map_err(|e| failed(e.error()))?;
            match answered {
                Ok(0) if stop.load(Ordering::Relaxed) => {
                    file.discard();
                    say("interrupted before the first answer");
                    return Ok(Ended::Interrupted);
                }
                Ok(count) if stop.load(Ordering::Relaxed) => {
                    let count = counted(count, "answer");
                    say(&format!(
                        "interrupted; {count} in `{}`",
                        file.place().display()
                    ));
                    return Ok(Ended::Interrupted);
                }
                Err((0, problem)) => {
                    file.discard();
                    return Err(problem.into());
                }
                // What came before a bad line is kept, as on standard output.
                answered => {
                    file.complete().map_err(|e| failed(&e))?;
                    answered.map_err(|(_, problem)| problem)?;
                }
            }
        }
        None => {
            let mut output = BufWriter::new(std::io::stdout().lock());
            // A signal ends the command at once: what was answered has been written.
            let answered = answer_all(answers, &lines, &mut output, &AtomicBool::new(false));
            answered.map_err(|(_, problem)| problem)?;
        }
    }
    Ok(Ended::Done)
}

/// The answers to rows with these line numbers.
///
/// # Errors
/// A row that cannot be answered.
pub(super) fn answers_to<A: Answering>(
    answers: &A,
    rows: Vec<(usize, Value)>,
) -> Result<Vec<Value>, Problem> {
    let lines = sent(answers.most(), move || {
        rows.into_iter().map(|(number, row)| Line {
            number,
            content: Content::Row(row),
        })
    });
    let mut output = Vec::new();
    answer_all(answers, &lines, &mut output, &AtomicBool::new(false))
        .map_err(|(_, problem)| problem)?;
    let answers = serde_json::Deserializer::from_slice(&output).into_iter();
    answers.collect::<Result<_, _>>().map_err(Problem::internal)
}

/// A line of the input.
struct Line {
    number: usize,
    content: Content,
}

/// What a line has.
enum Content {
    /// A text that is to be an object.
    Text(String),
    /// A row of a file of another format.
    Row(Value),
    /// It cannot be read.
    Wrong(Problem),
}

/// The lines of a file: JSON lines as they are, and an object for each row of another format.
fn lines_of<A: Answering>(answers: &A, path: &Path) -> Result<Receiver<Line>, Problem> {
    let is_lines = |file: &FilePlan| match file.format {
        FileFormat::Jsonl | FileFormat::Text => file.encoding.is_none(),
        _ => false,
    };
    let file = match recognize_packed(path) {
        Ok((file, is_packed)) => Some(file).filter(|file| is_packed || !is_lines(file)),
        // Whatever its name is, it may have JSON lines.
        Err(problem) if problem.code == UNKNOWN_FORMAT => None,
        Err(problem) => return Err(problem),
    };
    let Some(file) = file else {
        let input = std::fs::File::open(path).map_err(|e| failed("read", path, &e))?;
        return Ok(read_lines(Box::new(input), answers.most()));
    };
    let rows = objects(&answers.file(file)?, &answers.wanted())?.into_iter();
    Ok(sent(answers.most(), move || {
        rows.map(|(number, row)| Line {
            number,
            content: Content::Row(row),
        })
    }))
}

/// Reads lines on a thread of its own, so that those that have come wait together.
fn read_lines(input: Box<dyn Read + Send>, most: usize) -> Receiver<Line> {
    sent(most, move || {
        let mut is_over = false;
        let lines = BufReader::new(input).lines().enumerate();
        let lines =
            lines.take_while(move |(_, line)| !std::mem::replace(&mut is_over, line.is_err()));
        lines.map(|(index, text)| {
            let number = index + 1;
            let wrong = |e| at_line(number, e).help("convert the input to UTF-8");
            let content = text.map_or_else(|e| Content::Wrong(wrong(e)), Content::Text);
            Line { number, content }
        })
    })
}

/// Sends lines from a thread of its own.
fn sent<L: Iterator<Item = Line>>(
    most: usize,
    lines: impl FnOnce() -> L + Send + 'static,
) -> Receiver<Line> {
    let (sender, receiver) = sync_channel(most);
    std::thread::spawn(move || {
        for line in lines() {
            // Nobody waits any more once an answer could not be written.
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The next line, unless there is none or `stop` was set while it was waited for.
fn next_line(lines: &Receiver<Line>, stop: &AtomicBool) -> Option<Line> {
    while !stop.load(Ordering::Relaxed) {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => return Some(line),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

/// Answers every line until `stop` is set; gives how many were, with what is wrong with the next one.
fn answer_all<A: Answering>(
    answers: &A,
    lines: &Receiver<Line>,
    output: &mut dyn Write,
    stop: &AtomicBool,
) -> Result<usize, (usize, Problem)> {
    let mut answered = 0;
    while let Some(first) = next_line(lines, stop) {
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
fn read_line<A: Answering>(answers: &A, line: Line) -> Result<Option<Asked<A::Question>>, Problem> {
    let Line { number, content } = line;
    let parsed = match content {
        Content::Wrong(problem) => return Err(problem),
        Content::Row(row) => serde_json::from_value(row),
        Content::Text(text) => {
            let text = match number {
                1 => text.trim_start_matches('\u{feff}'),
                _ => text.as_str(),
            };
            if text.trim().is_empty() {
                return Ok(None);
            }
            serde_json::from_str(text)
        }
    };
    let object: Map<String, Value> = parsed.map_err(|e| {
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
