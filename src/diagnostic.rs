//! What a user did wrong or what failed, and how it is shown. The kinds of mistakes are made
//! where they are found; they are rendered here.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource};
use serde::{Deserialize, Serialize};

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
            .help("this is a bug of deltarun; please report it with the file that caused it")
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
        for problem in &self.problems {
            let source = self.source.as_ref();
            let shown = Shown {
                problem,
                source: source.map(|(name, text)| NamedSource::new(name, text.clone())),
            };
            if handler.render_report(&mut text, &shown).is_err() {
                text.push_str(&format!("{}\n", problem.message));
            }
        }
        text
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

/// A problem together with its source, as miette wants it.
#[derive(Debug)]
struct Shown<'a> {
    problem: &'a Problem,
    source: Option<NamedSource<String>>,
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
        let source = self.source.as_ref()?;
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
