//! What goes wrong in a script, as a problem with its place there.

use rhai::{Dynamic, EvalAltResult, Position};

use crate::diagnostic::{Problem, Problems, Span};

/// The result of a function that scripts call.
pub(super) type Outcome<T> = Result<T, Box<EvalAltResult>>;

/// A problem of ours on its way through rhai.
pub(super) fn thrown(problems: impl Into<Problems>) -> Box<EvalAltResult> {
    let problems: Problems = problems.into();
    EvalAltResult::ErrorRuntime(Dynamic::from(problems), Position::NONE).into()
}

/// The user's mistake in a call.
pub(super) fn mistake(message: impl Into<String>, help: &str) -> Box<EvalAltResult> {
    thrown(Problem::new("delta::script::call", message).help(help))
}

/// An error of rhai, or one of ours that came through it, with its place in the script.
pub(super) fn problems(name: &str, text: &str, error: &EvalAltResult) -> Problems {
    let span = span_of(text, place(error));
    let inner = innermost(error);
    let found = match inner {
        EvalAltResult::ErrorRuntime(value, _) => match value.clone().try_cast::<Problems>() {
            Some(problems) => in_script(&problems),
            None => vec![Problem::new("delta::script::thrown", value.to_string())
                .help("the script itself throws this")],
        },
        EvalAltResult::ErrorTooManyOperations(_) => {
            vec![Problem::new(
                "delta::script::endless",
                "the script takes too many operations",
            )
            .help("is there a loop without an end?")]
        }
        EvalAltResult::ErrorFunctionNotFound(call, _) => {
            vec![Problem::new(
                "delta::script::function",
                format!("there is no function `{call}`"),
            )
            .help("`docs/scripts.md` lists what there is, with its arguments")]
        }
        other => vec![Problem::new("delta::script::rhai", sentence(other))
            .help("see https://rhai.rs/book for the language, and `docs/scripts.md`")],
    };
    let located = found.into_iter().map(|problem| match span {
        Some(span) => problem.at(span, "here"),
        None => problem,
    });
    Problems {
        source: Some((name.to_owned(), text.to_owned())),
        problems: located.collect(),
    }
}

/// What is wrong, without the place that it is shown at.
fn sentence(error: &EvalAltResult) -> String {
    let mut error = error.to_string();
    if let Some(end) = error.rfind(" (line ") {
        error.truncate(end);
    }
    let error = error.trim_end_matches('.');
    let mut letters = error.chars();
    let first = letters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(letters).collect()
}

/// Problems of a pipeline, as problems of the script that runs it: their places become words.
fn in_script(problems: &Problems) -> Vec<Problem> {
    let Some((name, text)) = &problems.source else {
        return problems.problems.clone();
    };
    let moved = problems.problems.iter().map(|problem| {
        let mut problem = problem.clone();
        if let Some((span, _)) = problem.labels.first() {
            let line = text[..span.start.min(text.len())].lines().count().max(1);
            let code = &text[span.start.min(text.len())..span.end.min(text.len())];
            let code = code.lines().next().unwrap_or_default();
            problem.message = format!("`{name}`, line {line}, `{code}`: {}", problem.message);
        }
        problem.labels.clear();
        problem
    });
    moved.collect()
}

fn innermost(error: &EvalAltResult) -> &EvalAltResult {
    match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) => innermost(inner),
        EvalAltResult::ErrorInModule(_, inner, _) => innermost(inner),
        other => other,
    }
}

/// The innermost place that is known.
fn place(error: &EvalAltResult) -> Position {
    let inner = match error {
        EvalAltResult::ErrorInFunctionCall(_, _, inner, _) => place(inner),
        _ => Position::NONE,
    };
    if inner.is_none() {
        error.position()
    } else {
        inner
    }
}

/// From a place to the end of its line.
fn span_of(text: &str, place: Position) -> Option<Span> {
    let line = place.line()?;
    let start: usize = text
        .split_inclusive('\n')
        .take(line - 1)
        .map(str::len)
        .sum();
    let rest = text.get(start..)?.lines().next().unwrap_or_default();
    let skipped = place.position().unwrap_or(1).max(1) - 1;
    let column: usize = rest.chars().take(skipped).map(char::len_utf8).sum();
    let end = start + rest.trim_end().len();
    Some(Span {
        start: (start + column).min(end),
        end: end.max(start + column),
    })
}
