//! JSON lines: an object on each line.

use super::table::{at_line, lines, places, Numbered, Wanted};
use crate::diagnostic::Problem;
use crate::plan::FilePlan;
use crate::text::did_you_mean;

/// Parses a line as a JSON object.
fn object(
    file: &FilePlan,
    number: usize,
    line: &str,
) -> Result<serde_json::Map<String, serde_json::Value>, Problem> {
    serde_json::from_str(line).map_err(|e| {
        let message = format!("the line is not a JSON object: {e}");
        let problem =
            at_line("delta::data::json", file, number, message).at(file.span, "this file");
        let other = match (number, line.trim_start().starts_with('{')) {
            (1, false) if line.contains('\t') => {
                Some("read it with `tsv(...)`: its first line has tabs")
            }
            (1, false) if line.contains(',') => {
                Some("read it with `csv(...)`: its first line has commas")
            }
            _ => None,
        };
        problem.help(
            other.unwrap_or("write one object per line: `{\"text\": \"...\", \"label\": \"...\"}`"),
        )
    })
}

/// Calls `each` with the wanted values of each line.
///
/// # Errors
/// The file is a list, or its first object lacks a wanted value.
pub(super) fn jsonl(
    file: &FilePlan,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    let mut lines = lines(file)?.peekable();
    let first = match lines.peek() {
        Some(Ok((_, line))) => line.trim(),
        _ => "",
    };
    if first.starts_with('[') {
        let message = "the file is a JSON list, not an object per line";
        return Err(at_line("delta::data::json", file, 0, message)
            .at(file.span, "this file")
            .help("read it with `json(...)`"));
    }
    if first == "{" {
        let message = "an object is spread over several lines";
        return Err(at_line("delta::data::json", file, 1, message)
            .at(file.span, "this file")
            .help("write each object on a line of its own: `jq -c . FILE > NEW`"));
    }
    let mut is_first = true;
    for line in lines {
        let read = |(number, line): (usize, String)| {
            object(file, number, &line).map(|object| (number, object))
        };
        let object = line.and_then(read);
        if let (Ok((_, object)), true) = (&object, is_first) {
            places(file, &columns(object, wanted), wanted)?;
            is_first = false;
        }
        let row = object.and_then(|(number, object)| values(file, number, &object, wanted));
        if !each(row) {
            break;
        }
    }
    Ok(())
}

/// Calls `each` with the wanted values of each object of a JSON list.
///
/// # Errors
/// The file is no list of objects, or its first object lacks a wanted value.
pub(super) fn json(
    file: &FilePlan,
    text: &str,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    for (number, value) in (1..).zip(list(file, text)?) {
        let object = match value {
            serde_json::Value::Object(object) => Ok(object),
            _ => Err(
                at_line("delta::data::json", file, number, "it is not an object")
                    .at(file.span, "this file")
                    .help("write each row as an object: `{\"text\": \"...\"}`"),
            ),
        };
        if let (Ok(object), 1) = (&object, number) {
            places(file, &columns(object, wanted), wanted)?;
        }
        if !each(object.and_then(|object| values(file, number, &object, wanted))) {
            break;
        }
    }
    Ok(())
}

/// The items of a JSON list.
///
/// # Errors
/// The text is none.
pub(super) fn list(file: &FilePlan, text: &str) -> Result<Vec<serde_json::Value>, Problem> {
    serde_json::from_str(text).map_err(|e| {
        let problem = at_line("delta::data::json", file, 0, format!("the file is not a JSON list: {e}"));
        let problem = problem.at(file.span, "this file");
        problem.help("write `[{\"text\": \"...\"}, ...]`; a file with an object on each line is read with `jsonl(...)`")
    })
}

/// The wanted values of an object, which is a row of a file.
pub(super) fn values(
    file: &FilePlan,
    number: usize,
    object: &serde_json::Map<String, serde_json::Value>,
    wanted: &[Wanted],
) -> Result<Numbered, Problem> {
    let value = |wanted: &Wanted| {
        json_value(object, wanted).map_err(|(message, help)| {
            at_line("delta::data::json", file, number, message)
                .at(file.span, "this file")
                .help(help)
        })
    };
    let row = wanted.iter().map(value).collect::<Result<_, _>>()?;
    Ok((number, row))
}

/// A value of an object, by its key or by a path such as `answer.text` or `answers.0.text` into objects and lists.
fn value_at<'o>(
    object: &'o serde_json::Map<String, serde_json::Value>,
    name: &str,
) -> Option<&'o serde_json::Value> {
    if let Some(value) = object.get(name) {
        return Some(value);
    }
    let mut parts = name.split('.');
    let first = object.get(parts.next()?)?;
    parts.try_fold(first, |value, part| match value {
        serde_json::Value::Object(object) => object.get(part),
        serde_json::Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// The columns of an object: its keys, and the paths into it that are wanted.
fn columns(object: &serde_json::Map<String, serde_json::Value>, wanted: &[Wanted]) -> Vec<String> {
    let is_path = |name: &&str| !object.contains_key(*name) && value_at(object, name).is_some();
    let paths = wanted.iter().map(|wanted| wanted.name).filter(is_path);
    let keys = object.keys().cloned();
    keys.chain(paths.map(str::to_owned)).collect()
}

/// A value of an object: its JSON if the column is structured, else [`json_text`].
///
/// # Errors
/// As [`json_text`].
pub fn json_value(
    object: &serde_json::Map<String, serde_json::Value>,
    wanted: &Wanted,
) -> Result<String, (String, String)> {
    match value_at(object, wanted.name) {
        Some(value)
            if wanted.is_structured
                && !value.is_string()
                && !value.is_null()
                && (!wanted.has_messages || has_messages(value)) =>
        {
            Ok(value.to_string())
        }
        None | Some(serde_json::Value::Null) if wanted.may_be_null => Ok("null".to_owned()),
        _ => json_text(object, wanted.name),
    }
}

/// Whether a value is a list of messages.
fn has_messages(value: &serde_json::Value) -> bool {
    let items = value.as_array().filter(|items| !items.is_empty());
    items.is_some_and(|items| items.iter().all(serde_json::Value::is_object))
}

/// A value of an object as a text. A number or a boolean is given as it is written.
///
/// # Errors
/// A message and a suggestion: the value is missing, null, a list or an object.
pub fn json_text(
    object: &serde_json::Map<String, serde_json::Value>,
    name: &str,
) -> Result<String, (String, String)> {
    let known = || object.keys().map(String::as_str);
    match value_at(object, name) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(value) if value.is_number() || value.is_boolean() => Ok(value.to_string()),
        Some(serde_json::Value::Null) => Err((
            format!("`{name}` is null"),
            "give it a string, or remove the line".to_owned(),
        )),
        Some(value) => {
            let kind = if value.is_array() {
                "a list"
            } else {
                "an object"
            };
            let help = format!("write a string or a number as `{name}`");
            Err((format!("`{name}` is {kind}"), help))
        }
        None => Err((
            format!("the object has no `{name}`"),
            match did_you_mean(name, known()) {
                Some(near) => format!("rename `{near}` to `{name}`"),
                None => format!("give every object a `{name}`"),
            },
        )),
    }
}
