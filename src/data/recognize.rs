//! Recognizes how a file is read, by its name and its beginning.

use std::path::Path;

use super::bytes::{beginning, is_utf8, Beginning};
use crate::diagnostic::{Problem, Span};
use crate::plan::{FileFormat, FilePlan, TextEncoding};

/// The code of a problem of a file whose name does not say its format.
pub const UNKNOWN_FORMAT: &str = "delta::data::format";

/// How a file of examples is read.
///
/// # Errors
/// The file cannot be read, or its name does not say its format.
pub fn recognize(path: &Path) -> Result<FilePlan, Problem> {
    recognize_packed(path).map(|(file, _)| file)
}

/// The same, and whether gzip or zstd packed the file.
///
/// # Errors
/// See [`recognize`].
pub fn recognize_packed(path: &Path) -> Result<(FilePlan, bool), Problem> {
    let Beginning {
        text: start,
        encoding,
        is_packed,
    } = beginning(path)?;
    let format = match ending(path).as_str() {
        "tsv" | "txt" if is_conll(&start) => FileFormat::Conll,
        "tsv" => FileFormat::Tsv,
        "csv" => FileFormat::Csv,
        "json" | "jsonl" if start.trim_start().starts_with('[') => FileFormat::Json,
        "jsonl" | "ndjson" => FileFormat::Jsonl,
        // Many files of this name have an object on each line.
        "json" => FileFormat::Jsonl,
        "parquet" => FileFormat::Parquet,
        "conll" | "bio" | "iob" => FileFormat::Conll,
        "txt" => FileFormat::Text,
        _ => {
            let message = format!("the name of `{}` does not say its format", path.display());
            return Err(Problem::new(UNKNOWN_FORMAT, message).help(
                "give it one of the endings `.tsv`, `.csv`, `.jsonl`, `.json`, `.parquet`, `.conll` and `.txt`",
            ));
        }
    };
    let mut plan = FilePlan::whole(format, path.to_owned(), Span::default());
    if format != FileFormat::Parquet {
        plan.encoding = encoding;
    }
    if format == FileFormat::Csv {
        plan.separator = separator(&start);
    }
    Ok((plan, is_packed))
}

/// A file, which its name and its beginning describe, read as the files of a set: with their columns, and in their encoding if
/// it is not UTF-8 itself.
///
/// # Errors
/// The file cannot be read.
pub fn read_like(file: FilePlan, like: &FilePlan) -> Result<FilePlan, Problem> {
    let encoding = match (file.encoding, like.encoding) {
        (Some(TextEncoding::Utf16), _) => file.encoding,
        (_, Some(encoding)) if !is_utf8(&file)? => Some(encoding),
        // A reader refuses what is not UTF-8 by its line.
        _ => None,
    };
    Ok(FilePlan {
        columns: like.columns.clone(),
        // Without a header, the first line shows less.
        separator: match like.columns {
            Some(_) => like.separator,
            None => file.separator,
        },
        encoding,
        ..file
    })
}

/// The ending that says the format.
fn ending(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let packed = [".gz", ".zst"]
        .into_iter()
        .find_map(|end| name.strip_suffix(end));
    let name = packed.unwrap_or(&name);
    name.rsplit_once('.')
        .map_or(String::new(), |(_, ending)| ending.to_owned())
}

/// Whether a text has a word and its tag on each line.
fn is_conll(start: &str) -> bool {
    let lines = start
        .lines()
        .filter(|line| !line.trim().is_empty())
        .take(50);
    let is_tag = |tag: &str| tag == "O" || tag.starts_with("B-") || tag.starts_with("I-");
    let mut count = 0;
    let are_tagged = lines.into_iter().all(|line| {
        count += 1;
        let cells: Vec<&str> = line.split_whitespace().collect();
        cells.len() > 1 && (is_tag(cells[cells.len() - 1]) || cells[0] == "-DOCSTART-")
    });
    are_tagged && count > 1
}

/// What separates the values of a CSV, if the header has no comma.
fn separator(start: &str) -> Option<char> {
    let header = start.lines().next().unwrap_or_default();
    if header.contains(',') {
        return None;
    }
    [';', '|', '\t']
        .into_iter()
        .find(|symbol| header.contains(*symbol))
}
