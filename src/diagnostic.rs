//! What a user did wrong or what failed, and how it is shown. The kinds of mistakes are made
//! where they are found; they are rendered here.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// A range of bytes in the source of a `.delta` file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Span {
    /// The first byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// From the first byte of one to the last byte of the other.
    pub fn to(self, other: Span) -> Span {
        Span {
            start: self.start,
            end: other.end,
        }
    }
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Of the user's: exit code 2.
    Mistake,
    /// Of the run: exit code 1.
    Failure,
    /// Nothing stops for it.
    Warning,
}

/// One thing that is wrong: a stable code, one sentence, places, and a way out.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// `delta::stage::name`.
    pub code: &'static str,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// Places in the source; the first is the primary one.
    pub labels: Vec<(Span, String)>,
    /// What to write or do instead; begins with a verb or a question.
    pub help: Option<String>,
    /// How bad it is.
    pub severity: Severity,
}

impl Problem {
    /// A mistake of the user's.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        Problem {
            code,
            message: message.into(),
            labels: Vec::new(),
            help: None,
            severity: Severity::Mistake,
        }
    }

    /// A failure that is not the user's mistake.
    pub fn failure(code: &'static str, message: impl Into<String>) -> Self {
        Problem {
            severity: Severity::Failure,
            ..Problem::new(code, message)
        }
    }

    /// Something that the user should know of, and that stops nothing.
    pub fn warning(code: &'static str, message: impl Into<String>) -> Self {
        Problem {
            severity: Severity::Warning,
            ..Problem::new(code, message)
        }
    }

    /// A bug of ours.
    pub fn internal(message: impl fmt::Display) -> Self {
        Problem::failure("delta::internal", format!("internal error: {message}"))
            .help("report this bug of deltarun together with the file that caused it")
    }

    /// Adds a place.
    pub fn at(mut self, span: Span, label: impl Into<String>) -> Self {
        self.labels.push((span, label.into()));
        self
    }

    /// Adds a place, unless there is one already.
    pub fn or_at(self, span: Span) -> Self {
        if self.labels.is_empty() {
            self.at(span, "")
        } else {
            self
        }
    }

    /// Sets the way out.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// Everything that is wrong, with the text that the places are in.
#[derive(Clone, Debug, PartialEq)]
pub struct Problems {
    /// The name and the text of the `.delta` file, where there is one.
    pub source: Option<(String, String)>,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl Problems {
    /// Sorts problems by place and attaches the source.
    pub fn in_source(name: &str, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.labels.first().map(|(span, _)| *span));
        problems.dedup();
        Problems {
            source: Some((name.to_owned(), text.to_owned())),
            problems,
        }
    }

    /// 2 for the user's mistakes, 1 for failures.
    pub fn exit_code(&self) -> u8 {
        let is_failure = |problem: &Problem| problem.severity == Severity::Failure;
        if self.problems.iter().any(is_failure) {
            1
        } else {
            2
        }
    }

    /// The report as text, with colours or without.
    pub fn render(&self, colours: bool) -> String {
        let theme = if colours {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(100)
            .with_links(false);
        let mut text = String::new();
        // One copy for all of them: a miette source is handed out by reference.
        let source = self.source.as_ref();
        let source = source.map(|(name, text)| NamedSource::new(name, text.clone()));
        // Each problem prints its whole line: where one is longer than anybody writes, words say the place.
        let lines = self.source.iter().flat_map(|(_, text)| text.lines());
        let is_readable = lines.map(str::len).max().unwrap_or(0) <= LONGEST_LINE;
        for problem in self.problems.iter().take(MOST_SHOWN) {
            let shown = Shown {
                problem: &self.brief(problem, is_readable),
                source: source.as_ref().filter(|_| is_readable),
            };
            if handler.render_report(&mut text, &shown).is_err() {
                text.push_str(&format!("{}\n", problem.message));
            }
        }
        if self.problems.len() > MOST_SHOWN {
            let more = self.problems.len() - MOST_SHOWN;
            text.push_str(&format!("\nand {more} more: fix these first\n"));
        }
        text
    }

    /// The report for programs: a JSON object with a list `problems`, each with `code`, `severity`, `message`,
    /// `help`, and `labels` with their `start` and `end` in bytes and `line` and `column` from 1.
    pub fn to_json(&self) -> serde_json::Value {
        let problem = |problem: &Problem| {
            let label = |(span, text): &(Span, String)| {
                let [line, column] = self.position(span.start);
                let [end_line, end_column] = self.position(span.end);
                json!({
                    "message": text, "start": span.start, "end": span.end,
                    "line": line, "column": column, "end_line": end_line, "end_column": end_column,
                })
            };
            let severity = match problem.severity {
                Severity::Mistake => "mistake",
                Severity::Failure => "failure",
                Severity::Warning => "warning",
            };
            let labels = match &self.source {
                Some(_) => problem.labels.iter().map(label).collect(),
                None => Vec::new(),
            };
            json!({
                "code": problem.code, "severity": severity, "message": problem.message,
                "help": problem.help, "labels": labels,
            })
        };
        let file = self.source.as_ref().map(|(name, _)| name);
        let problems: Vec<_> = self
            .problems
            .iter()
            .take(MOST_REPORTED)
            .map(problem)
            .collect();
        let left_out = self.problems.len() - problems.len();
        json!({ "file": file, "problems": problems, "left_out": left_out })
    }

    /// The report as annotations of GitHub's workflows, a line each.
    pub fn to_github(&self) -> String {
        let escaped = |text: &str| {
            let text = text.replace('%', "%25").replace('\r', "%0D");
            text.replace('\n', "%0A")
        };
        let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
        let line = |problem: &Problem| {
            let kind = match problem.severity {
                Severity::Warning => "warning",
                Severity::Mistake | Severity::Failure => "error",
            };
            let place = match (&self.source, problem.labels.first()) {
                (Some((name, _)), Some((span, _))) => {
                    let [line, column] = self.position(span.start);
                    let [end_line, _] = self.position(span.end);
                    let name = property(name);
                    format!("file={name},line={line},endLine={end_line},col={column},")
                }
                _ => String::new(),
            };
            let help = problem.help.as_ref().map(|help| format!("\nhelp: {help}"));
            let text = escaped(&format!("{}{}", problem.message, help.unwrap_or_default()));
            format!("::{kind} {place}title={}::{text}\n", property(problem.code))
        };
        self.problems.iter().take(MOST_REPORTED).map(line).collect()
    }

    /// A problem whose words are not longer than anybody reads; with its place in words where it is not shown.
    fn brief(&self, problem: &Problem, is_shown: bool) -> Problem {
        let cut = |text: &str| match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_owned(),
        };
        let mut message = cut(&problem.message);
        if let (false, Some((span, _))) = (is_shown, problem.labels.first()) {
            let [line, column] = self.position(span.start);
            message.push_str(&format!(" (line {line}, column {column})"));
        }
        Problem {
            message,
            help: problem.help.as_deref().map(cut),
            ..problem.clone()
        }
    }

    /// Line and column of a byte, from 1; columns count characters.
    fn position(&self, byte: usize) -> [usize; 2] {
        let text = self.source.as_ref().map_or("", |(_, text)| text.as_str());
        let before = text.get(..byte.min(text.len())).unwrap_or_default();
        let line = before.rfind('\n').map_or(0, |end| end + 1);
        [
            1 + before.matches('\n').count(),
            1 + before[line..].chars().count(),
        ]
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Problems {
            source: None,
            problems: vec![problem],
        }
    }
}

/// Problems that are shown at once.
const MOST_SHOWN: usize = 40;

/// Problems that are reported to programs.
const MOST_REPORTED: usize = 200;

/// Bytes of a message or a help that are shown.
const LONGEST: usize = 2000;

/// Bytes of a line up to which the source is shown.
const LONGEST_LINE: usize = 1000;

/// A problem together with its source, as miette wants it.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    source: Option<&'a NamedSource<String>>,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl miette::Diagnostic for Shown<'_> {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        Some(Box::new(self.problem.code))
    }

    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.problem.severity {
            Severity::Warning => miette::Severity::Warning,
            Severity::Mistake | Severity::Failure => miette::Severity::Error,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let help = self.problem.help.as_ref()?;
        Some(Box::new(help))
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        let source = self.source?;
        (!self.problem.labels.is_empty()).then_some(source as &dyn miette::SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = &self.problem.labels;
        if labels.is_empty() || self.source.is_none() {
            return None;
        }
        Some(Box::new(labels.iter().map(|(span, label)| {
            let text = (!label.is_empty()).then(|| label.clone());
            LabeledSpan::new(text, span.start, span.end.saturating_sub(span.start))
        })))
    }
}
