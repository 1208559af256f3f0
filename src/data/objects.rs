//! The rows of a file as JSON objects, for commands that answer them one by one.

use serde_json::{Map, Value};

use super::bytes::read_text;
use super::json_lines::list;
use super::sample::columns_of;
use super::table::{at_line, rows, Wanted};
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan};

/// The rows of a file, each with its line. Of a file without objects, a row has those of the wanted columns that the file has.
///
/// # Errors
/// The file cannot be read in its format, or has no rows.
pub fn objects(file: &FilePlan, wanted: &[Wanted]) -> Result<Vec<(usize, Value)>, Problem> {
    match file.format {
        FileFormat::Jsonl => {
            let text = read_text(file)?;
            let lines = (1..).zip(text.lines());
            let lines = lines.filter(|(_, line)| !line.trim().is_empty());
            let read = lines.map(|(number, line)| {
                let object = serde_json::from_str(line).map_err(|e| {
                    let message = format!("the line is not a JSON object: {e}");
                    at_line("delta::data::json", file, number, message)
                        .help("write each row as an object: `{\"text\": \"...\"}`")
                })?;
                Ok((number, object))
            });
            read.collect()
        }
        FileFormat::Json => Ok((1..).zip(list(file, &read_text(file)?)?).collect()),
        _ => {
            let known = columns_of(file)?;
            let own = wanted
                .iter()
                .filter(|own| known.iter().any(|name| name == own.name));
            let own: Vec<Wanted> = own.copied().collect();
            let object = |cells: Vec<String>| -> Map<String, Value> {
                let cells = own.iter().zip(cells);
                let named = cells.map(|(own, cell)| (own.name.to_owned(), value(own, cell)));
                named.collect()
            };
            let rows = rows(file, &own)?.into_iter();
            Ok(rows
                .map(|(place, cells)| (place.line, object(cells).into()))
                .collect())
        }
    }
}

/// The value of a cell: a text, or what its JSON says where the column has lists.
fn value(own: &Wanted, cell: String) -> Value {
    let is_json = own.is_structured && cell.trim_start().starts_with(['[', '{']);
    let parsed = is_json.then(|| serde_json::from_str(&cell).ok()).flatten();
    parsed.unwrap_or(Value::String(cell))
}
