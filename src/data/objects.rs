//! The rows of a file as JSON objects, for commands that answer them one by one.

use serde_json::{Map, Value};

use super::bytes::read_text;
use super::sample::columns_of;
use super::table::{at_line, rows, Wanted};
use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan};

/// The rows of a file, each with its line and as the text of an object. Of a file without objects, an object has those of the
/// wanted columns that the file has.
///
/// # Errors
/// The file cannot be read in its format, or has no rows.
pub fn objects(file: &FilePlan, wanted: &[Wanted]) -> Result<Vec<(usize, String)>, Problem> {
    let numbered = |texts: Vec<String>| texts.into_iter().enumerate();
    let texts = match file.format {
        FileFormat::Jsonl => read_text(file)?.lines().map(str::to_owned).collect(),
        FileFormat::Json => {
            let list: Vec<Value> = serde_json::from_str(&read_text(file)?).map_err(|e| {
                let message = format!("the file is no JSON list: {e}");
                at_line("delta::data::json", file, 0, message).help("write a list of objects")
            })?;
            list.iter().map(Value::to_string).collect()
        }
        _ => {
            let known = columns_of(file)?;
            let own = wanted
                .iter()
                .filter(|own| known.iter().any(|name| name == own.name));
            let own: Vec<Wanted> = own.copied().collect();
            let object = |cells: Vec<String>| -> Map<String, Value> {
                let cells = own.iter().zip(cells);
                cells
                    .map(|(own, cell)| (own.name.to_owned(), value(own, cell)))
                    .collect()
            };
            let rows = rows(file, &own)?.into_iter();
            return Ok(rows
                .map(|(place, cells)| (place.line, Value::Object(object(cells)).to_string()))
                .collect());
        }
    };
    Ok(numbered(texts)
        .map(|(index, text)| (index + 1, text))
        .collect())
}

/// The value of a cell: a text, or what its JSON says where the column has lists.
fn value(own: &Wanted, cell: String) -> Value {
    let is_json = own.is_structured && cell.trim_start().starts_with(['[', '{']);
    let parsed = is_json.then(|| serde_json::from_str(&cell).ok()).flatten();
    parsed.unwrap_or(Value::String(cell))
}
