//! The columns of a file and its first rows, for who does not know yet what the file has.

use serde_json::Value;

use super::bytes::read_text;
use super::files::files_of;
use super::parquet::parquet_columns;
use super::table::{no_examples, rows, Wanted};
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan};

/// The first rows of a file.
#[derive(Debug)]
pub struct Sample {
    /// The names of its columns.
    pub columns: Vec<String>,
    /// A value for each column: texts, numbers, lists, or null.
    pub rows: Vec<Vec<Value>>,
}

/// Reads the columns of a file, and as many of its rows as the plan says.
///
/// # Errors
/// The file cannot be read in its format, or has no rows.
pub fn sample(file: &FilePlan) -> Result<Sample, Problem> {
    let columns = columns_of(file)?;
    let wanted: Vec<Wanted> = columns
        .iter()
        .map(|name| Wanted {
            name,
            is_structured: true,
            has_messages: false,
            may_be_null: true,
        })
        .collect();
    let is_json = !matches!(
        file.format,
        FileFormat::Csv | FileFormat::Tsv | FileFormat::Text
    );
    let values = |cells: Vec<String>| {
        let values = cells.into_iter().map(|cell| value(cell, is_json));
        values.collect()
    };
    let rows = rows(file, &wanted)?.into_iter();
    let rows = rows.map(|(_, cells)| values(cells)).collect();
    Ok(Sample { columns, rows })
}

/// The names of a file's columns. Of several files, those of the first.
///
/// # Errors
/// The file cannot be read, or has no rows.
pub(super) fn columns_of(file: &FilePlan) -> Result<Vec<String>, Problem> {
    let mut files = files_of(file)?.into_iter();
    columns(&FilePlan {
        path: files.next().unwrap_or_default(),
        more: Vec::new(),
        ..file.clone()
    })
}

/// A cell. In JSON and Parquet, lists, objects and null come as their JSON.
fn value(cell: String, is_json: bool) -> Value {
    // A cell of a table may hold a list of messages.
    let is_structured =
        is_json && (cell == "null" || cell.starts_with(['[', '{'])) || cell.starts_with("[{");
    let parsed = match is_structured {
        true => serde_json::from_str(&cell).ok(),
        false => None,
    };
    parsed.unwrap_or(Value::String(cell))
}

fn columns(file: &FilePlan) -> Result<Vec<String>, Problem> {
    if let Some(columns) = &file.columns {
        return Ok(columns.clone());
    }
    if file.format == FileFormat::Parquet {
        return parquet_columns(file);
    }
    let text = read_text(file)?;
    let first = text.lines().find(|line| !line.trim().is_empty());
    let first = first.ok_or_else(|| no_examples(file))?;
    let keys = |object: Option<&Value>| -> Vec<String> {
        let object = object.and_then(Value::as_object);
        object.map_or(Vec::new(), |object| object.keys().cloned().collect())
    };
    Ok(match file.format {
        FileFormat::Tsv => first.trim_end().split('\t').map(str::to_owned).collect(),
        FileFormat::Csv => {
            let separator = file.separator.unwrap_or(',');
            let mut reader = super::table::csv_reader(&text, separator);
            let record = reader.records().next().and_then(Result::ok);
            record.map_or(Vec::new(), |record| {
                record.iter().map(str::to_owned).collect()
            })
        }
        FileFormat::Jsonl => keys(serde_json::from_str(first).ok().as_ref()),
        FileFormat::Json => {
            let list: Option<Vec<Value>> = serde_json::from_str(&text).ok();
            keys(list.as_ref().and_then(|list| list.first()))
        }
        FileFormat::Conll => vec!["tokens".to_owned(), "tags".to_owned()],
        FileFormat::Text | FileFormat::Parquet => vec!["text".to_owned()],
    })
}
