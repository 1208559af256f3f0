//! What goes wrong in a script, as a problem with its place there.

use rhai::{Dynamic, EvalAltResult, ParseErrorType, Position};

use crate::diagnostic::{Problem, Problems, Span};
use crate::text::did_you_mean;

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
                .help("look for the `throw` in the script")],
        },
        EvalAltResult::ErrorTooManyOperations(_) => {
            vec![Problem::new(
                "delta::script::endless",
                "the script exceeds the limit of operations",
            )
            .help("look for a loop that never ends")]
        }
        EvalAltResult::ErrorFunctionNotFound(call, _) => vec![no_function(call)],
        EvalAltResult::ErrorVariableNotFound(name, _) => {
            let message = format!("there is no variable `{name}`");
            let problem = Problem::new("delta::script::variable", message);
            vec![match did_you_mean(name, FUNCTIONS) {
                Some(near) => problem.help(format!("did you mean the function `{near}(...)`?")),
                None => problem.help(format!("declare it first: `let {name} = ...;`")),
            }]
        }
        EvalAltResult::ErrorPropertyNotFound(name, _) => {
            let message = format!("this map has no key `{name}`");
            vec![Problem::new("delta::script::property", message)
                .help("check the spelling, or test for the key with `\"name\" in map`")]
        }
        EvalAltResult::ErrorParsing(ParseErrorType::Reserved(word), _) if word == "with" => {
            let message = "rhai reserves the word `with`, which was a function of earlier versions";
            vec![Problem::new("delta::script::with", message).help("write `pipeline.set(#{ ... })`")]
        }
        EvalAltResult::ErrorDotExpr(text, _) => vec![no_property(text)],
        other => vec![
            Problem::new("delta::script::rhai", in_words(&sentence(other)))
                .help("see https://rhai.rs/book for the language and `docs/scripts.md` for deltarun's functions"),
        ],
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

/// The functions that scripts have of us.
const FUNCTIONS: [&str; 29] = [
    "add",
    "deviation",
    "evaluate",
    "fixed",
    "grid",
    "group",
    "heading",
    "mean",
    "median",
    "merge",
    "pad",
    "page",
    "params",
    "percent",
    "permutations",
    "pipeline",
    "plan",
    "plot",
    "print",
    "run",
    "run_all",
    "run_alone",
    "run_seeds",
    "save",
    "set",
    "subsets",
    "table",
    "text",
    "verbatim",
];

/// What can be asked of a run.
const PROPERTIES: [&str; 16] = [
    "curve",
    "directory",
    "losses",
    "majority",
    "less_is_better",
    "metric",
    "name",
    "params",
    "peak_memory",
    "seconds",
    "stages",
    "step_seconds",
    "steps",
    "test",
    "trained",
    "value",
];

/// A call of a function that there is not, or not with such arguments: `name (types)`, as rhai has it.
fn no_function(call: &str) -> Problem {
    let (name, arguments) = call.split_once(" (").unwrap_or((call, ")"));
    let arguments = in_words(arguments.trim_end_matches(')'));
    let problem = |message: String| Problem::new("delta::script::function", message);
    if FUNCTIONS.contains(&name) {
        let given = match arguments.is_empty() {
            true => "nothing".to_owned(),
            false => arguments,
        };
        return problem(format!("`{name}` does not take {given}"))
            .help("see `docs/scripts.md` for the functions and their arguments");
    }
    let problem = problem(format!("there is no function `{name}`"));
    match did_you_mean(name, FUNCTIONS) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help("see `docs/scripts.md` for the functions and their arguments"),
    }
}

/// A property that a value does not have: rhai says it in a sentence with quotes.
fn no_property(text: &str) -> Problem {
    let mut quoted = text.split('\'').skip(1).step_by(2);
    let (name, kind) = (
        quoted.next().unwrap_or_default(),
        quoted.next().unwrap_or_default(),
    );
    let kind = in_words(kind);
    let kind = if kind.is_empty() {
        "this value".to_owned()
    } else {
        kind
    };
    let problem = Problem::new("delta::script::property", format!("{kind} has no `{name}`"));
    match did_you_mean(name, PROPERTIES) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help("see `docs/scripts.md` for the properties of a run"),
    }
}

/// rhai's names of types as people call them.
fn in_words(text: &str) -> String {
    const WORDS: [(&str, &str); 12] = [
        ("&str | ImmutableString | String", "a string"),
        ("ImmutableString", "a string"),
        ("string", "a string"),
        ("i64", "a whole number"),
        ("f64", "a number"),
        ("bool", "a boolean"),
        ("array", "a list"),
        ("map", "a map"),
        ("Pipeline", "a pipeline"),
        ("Run", "a run"),
        ("Page", "a page"),
        ("()", "nothing"),
    ];
    let in_words = |part: &str| {
        let known = WORDS.iter().find(|(rust, _)| *rust == part);
        known.map_or(part, |(_, words)| *words).to_owned()
    };
    let text = text.replace("&mut ", "");
    let parts: Vec<String> = text.split(", ").map(in_words).collect();
    parts.join(", ")
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
