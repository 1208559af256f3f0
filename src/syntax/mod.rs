//! Text to syntax tree, and back: the pest grammar, the tree with its places, the formatter.
//!
//! In: the text of a `.delta` file. Out: an [`ast::Pipeline`] or all that could not be read. It
//! knows nothing else of ours.

pub mod ast;
mod build;
mod format;
mod habits;
mod recover;

use pest::error::{ErrorVariant, InputLocation};
use pest::Parser;

use crate::diagnostic::{Problem, Span};
use ast::{Pipeline, Spanned, Value};
use grammar::{Grammar, Rule};
use habits::FORMS;
use recover::KEYWORDS;

pub use format::format;

/// What pest makes of the grammar.
#[allow(missing_docs)]
mod grammar {
    #[derive(pest_derive::Parser)]
    #[grammar = "../grammar/delta.pest"]
    pub struct Grammar;
}

/// How deep brackets may be nested. A real file needs four.
const DEEPEST: usize = 64;

/// Bytes that a `.delta` file may have. A real one has a few thousand.
const LARGEST: usize = 1 << 20;

/// Reads a `.delta` file.
///
/// # Errors
/// Every statement that does not fit the grammar, each with what to write instead.
pub fn parse(text: &str) -> Result<Pipeline, Vec<Problem>> {
    if text.len() > LARGEST {
        let size = crate::text::bytes(text.len());
        let message = format!("the file has {size}, but a pipeline may have at most 1 MB");
        let problem = Problem::new("delta::syntax::size", message);
        return Err(vec![problem.help("name a `.delta` file of at most 1 MB")]);
    }
    check_depth(text).map_err(|problem| vec![problem])?;
    match Grammar::parse(Rule::file, text) {
        Ok(mut pairs) => {
            build::pipeline(pairs.next().into_iter().flat_map(|file| file.into_inner()))
        }
        Err(_) => Err(recover::problems(text)),
    }
}

/// The texts in quotes of a file, those in comments left out.
pub fn quoted(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(place) = rest.find(['"', '#']) {
        let is_text = rest[place..].starts_with('"');
        let inner = &rest[place + 1..];
        let mut is_escaped = false;
        let end = inner.find(|symbol: char| {
            let ends = symbol == '\n' || (is_text && symbol == '"' && !is_escaped);
            is_escaped = symbol == '\\' && !is_escaped;
            ends
        });
        let end = end.unwrap_or(inner.len());
        if is_text {
            found.push(inner[..end].to_owned());
        }
        rest = inner.get(end + 1..).unwrap_or_default();
    }
    found
}

/// Reads one value, as in `--set name=value`.
///
/// # Errors
/// The text is not a value of the language.
pub fn parse_value(text: &str) -> Result<Spanned<Value>, Problem> {
    check_depth(text)?;
    let pairs = Grammar::parse(Rule::single, text).map_err(|error| explain(&error, text))?;
    let value = pairs
        .flatten()
        .find(|pair| !matches!(pair.as_rule(), Rule::single | Rule::EOI));
    match value {
        Some(pair) => build::value(pair),
        None => Err(Problem::new("delta::syntax::value", "a value is missing")),
    }
}

fn check_depth(text: &str) -> Result<(), Problem> {
    let mut depth = 0usize;
    for (start, symbol) in text.char_indices() {
        match symbol {
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            let span = Span {
                start,
                end: start + 1,
            };
            let message = format!("brackets are nested deeper than {DEEPEST} levels");
            return Err(Problem::new("delta::syntax::depth", message).at(span, "here"));
        }
    }
    Ok(())
}

/// The most expectations that a message names.
const MOST_EXPECTED: usize = 5;

fn explain(error: &pest::error::Error<Rule>, text: &str) -> Problem {
    let start = match error.location {
        InputLocation::Pos(start) | InputLocation::Span((start, _)) => start,
    };
    let end = text[start..]
        .char_indices()
        .nth(1)
        .map_or(text.len(), |(next, _)| start + next);
    let found = match text[start..].chars().next() {
        None => "the end of the file".to_owned(),
        Some('\n') => "the end of the line".to_owned(),
        Some(_) => format!(
            "`{}`",
            text[start..]
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .chars()
                .take(20)
                .collect::<String>()
        ),
    };
    let mut expected: Vec<&str> = match &error.variant {
        ErrorVariant::ParsingError { positives, .. } => positives.iter().map(describe).collect(),
        ErrorVariant::CustomError { .. } => Vec::new(),
    };
    let mut seen = std::collections::HashSet::new();
    expected.retain(|words| !words.is_empty() && seen.insert(*words));
    if expected.contains(&"a statement") {
        expected.retain(|words| *words != "a setting");
    }
    expected.truncate(MOST_EXPECTED);
    let wanted = match expected.split_last() {
        None => "nothing more".to_owned(),
        Some((one, [])) => (*one).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
    };
    let problem = Problem::new(
        "delta::syntax::unexpected",
        format!("expected {wanted}, found {found}"),
    )
    .at(Span { start, end }, "here");
    let word: String = text[start..]
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect();
    let keywords = KEYWORDS;
    // The statement begins with the last line before that begins with a keyword.
    let form = text[..start].lines().rev().find_map(|line| {
        let first = line.split_whitespace().next();
        FORMS.iter().find(|(keyword, _)| Some(*keyword) == first)
    });
    match crate::text::did_you_mean(&word, keywords) {
        Some(keyword) if expected.contains(&"a statement") && !word.is_empty() => {
            problem.help(format!("did you mean `{keyword}`?"))
        }
        _ if expected.contains(&"a statement") => problem.help(format!(
            "begin a statement with one of {}",
            crate::text::quoted_list(keywords)
        )),
        _ => match form {
            Some((_, form)) => problem.help(format!("write `{form}`")),
            None => problem.help("see `docs/language.md` for how to write a value"),
        },
    }
}

/// A rule in words that a newcomer knows.
fn describe(rule: &Rule) -> &'static str {
    match rule {
        Rule::kw_pipeline
        | Rule::kw_param
        | Rule::kw_backbone
        | Rule::kw_data
        | Rule::kw_task
        | Rule::kw_freeze
        | Rule::kw_unfreeze
        | Rule::kw_insert
        | Rule::kw_reparam
        | Rule::kw_stage
        | Rule::pipeline
        | Rule::param
        | Rule::backbone
        | Rule::data
        | Rule::task
        | Rule::freeze
        | Rule::unfreeze
        | Rule::insert
        | Rule::reparam
        | Rule::stage
        | Rule::file
        | Rule::statement => "a statement",
        Rule::value
        | Rule::every
        | Rule::percent
        | Rule::number
        | Rule::list
        | Rule::call
        | Rule::record
        | Rule::word
        | Rule::kw_every
        | Rule::single => "a value",
        Rule::string => "a string in quotes",
        Rule::block => "a block in braces",
        Rule::setting => "a setting (`key = value`)",
        Rule::argument => "an argument",
        Rule::name => "a name",
        Rule::unit => "`steps` or `epochs`",
        Rule::after => "`after`",
        Rule::beside => "`beside`",
        Rule::before => "`before`",
        Rule::on => "`on`",
        Rule::kw_of => "`of`",
        Rule::kw_except | Rule::exception => "`except`",
        Rule::kw_expect | Rule::expectation => "`expect`",
        Rule::kw_from | Rule::origin => "`from`",
        Rule::selection
        | Rule::selector
        | Rule::path
        | Rule::segment
        | Rule::plain
        | Rule::any_name
        | Rule::any_depth
        | Rule::choice
        | Rule::names
        | Rule::indexed
        | Rule::kw_random
        | Rule::random => "a selector of modules",
        Rule::amount | Rule::range | Rule::last => "a whole number",
        Rule::EOI => "the end of the file",
        Rule::WHITESPACE | Rule::COMMENT | Rule::blank | Rule::name_char | Rule::word_not_unit => {
            ""
        }
    }
}
