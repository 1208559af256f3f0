//! Reading of TSV, CSV, JSON lines and plain text into columns of texts.

use std::path::Path;

use crate::diagnostic::Problem;
use crate::plan::{FileFormat, FilePlan};
use crate::text::{counted, did_you_mean, quoted_list};

/// A file's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<String>,
    /// Line number (from 1) and values of each row.
    pub rows: Vec<(usize, Vec<String>)>,
}

/// A problem in a line of a data file; line 0 is the file as a whole.
pub(super) fn at_line(
    code: &'static str,
    path: &Path,
    line: usize,
    message: impl std::fmt::Display,
) -> Problem {
    match line {
        0 => Problem::new(code, format!("`{}`: {message}", path.display())),
        _ => Problem::new(
            code,
            format!("`{}`, line {line}: {message}", path.display()),
        ),
    }
}

impl Table {
    /// Reads a file.
    ///
    /// # Errors
    /// No such file, bytes that are not UTF-8, a row with another number of columns, no rows.
    pub fn read(file: &FilePlan) -> Result<Self, Problem> {
        let text = read_text(file)?;
        let table = match file.format {
            FileFormat::Tsv => tsv(file, &text)?,
            FileFormat::Csv => csv(file, &text)?,
            FileFormat::Jsonl => jsonl(file, &text)?,
            FileFormat::Text => plain(&text),
        };
        if table.rows.is_empty() {
            return Err(
                at_line("delta::data::empty", &file.path, 0, "it has no examples")
                    .at(file.span, "this file")
                    .help("give a file with at least one row below its header"),
            );
        }
        Ok(table)
    }

    /// The number of a column.
    ///
    /// # Errors
    /// There is none of that name; the nearest is named.
    pub fn column(&self, name: &str, path: &Path) -> Result<usize, Problem> {
        self.columns
            .iter()
            .position(|column| column == name)
            .ok_or_else(|| {
                let names = || self.columns.iter().map(String::as_str);
                let problem = at_line(
                    "delta::data::column",
                    path,
                    1,
                    format!("there is no column `{name}`"),
                );
                match did_you_mean(name, names()) {
                    Some(near) => problem.help(format!(
                        "did you mean `{near}`? the columns are {}",
                        quoted_list(names())
                    )),
                    None => problem.help(format!("the columns are {}", quoted_list(names()))),
                }
            })
    }
}

fn no_examples(file: &FilePlan) -> Problem {
    at_line("delta::data::empty", &file.path, 0, "it has no examples")
        .at(file.span, "this file")
        .help("give a file with at least one row below its header")
}

/// The columns of a file, from its first line alone.
///
/// # Errors
/// No such file, or a first line that cannot be read.
pub fn read_columns(file: &FilePlan) -> Result<Vec<String>, Problem> {
    use std::io::BufRead;
    if let Some(columns) = &file.columns {
        return Ok(columns.clone());
    }
    let opened = std::fs::File::open(&file.path).map_err(|e| unreadable(file, &e))?;
    let mut line = Vec::new();
    std::io::BufReader::new(opened)
        .read_until(b'\n', &mut line)
        .map_err(|e| unreadable(file, &e))?;
    if line.is_empty() {
        return Err(no_examples(file));
    }
    let text = utf8(file, line)?;
    Ok(match file.format {
        FileFormat::Tsv => tsv(file, &text)?.columns,
        FileFormat::Csv => csv(file, &text)?.columns,
        FileFormat::Jsonl => jsonl(file, &text)?.columns,
        FileFormat::Text => vec!["text".to_owned()],
    })
}

fn unreadable(file: &FilePlan, error: &std::io::Error) -> Problem {
    let path = file.path.display();
    let message = match error.kind() {
        std::io::ErrorKind::NotFound => format!("there is no file `{path}`"),
        _ => format!("`{path}` cannot be read: {error}"),
    };
    Problem::new("delta::data::missing_file", message)
        .at(file.span, "named here")
        .help("check the path; it is relative to the directory of the `.delta` file")
}

fn read_text(file: &FilePlan) -> Result<String, Problem> {
    let bytes = std::fs::read(&file.path).map_err(|e| unreadable(file, &e))?;
    utf8(file, bytes)
}

fn utf8(file: &FilePlan, bytes: Vec<u8>) -> Result<String, Problem> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text
            .strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..valid]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            Err(at_line(
                "delta::data::not_utf8",
                &file.path,
                line,
                "the text is not UTF-8",
            )
            .at(file.span, "this file")
            .help("convert the file: `iconv -f latin1 -t utf-8 FILE`"))
        }
    }
}

/// Lines that are not blank, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
}

fn wrong_width(file: &FilePlan, line: usize, found: usize, expected: usize) -> Problem {
    let message = format!(
        "the row has {}, but the header has {expected}",
        counted(found, "column")
    );
    at_line("delta::data::width", &file.path, line, message)
        .at(file.span, "this file")
        .help("give every row a value for every column")
}

fn tsv(file: &FilePlan, text: &str) -> Result<Table, Problem> {
    let mut rows = lines(text).map(|(number, line)| {
        (
            number,
            line.split('\t').map(str::to_owned).collect::<Vec<_>>(),
        )
    });
    let columns = match &file.columns {
        Some(columns) => columns.clone(),
        None => rows.next().map(|(_, header)| header).unwrap_or_default(),
    };
    let rows: Vec<_> = rows.collect();
    match rows.iter().find(|(_, row)| row.len() != columns.len()) {
        Some((number, row)) => Err(wrong_width(file, *number, row.len(), columns.len())),
        None => Ok(Table { columns, rows }),
    }
}

fn csv(file: &FilePlan, text: &str) -> Result<Table, Problem> {
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .from_reader(text.as_bytes());
    let mut columns = file.columns.clone();
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| {
            let line = e.position().map_or(0, |place| place.line() as usize);
            at_line("delta::data::csv", &file.path, line, e)
                .help("put texts with commas or line breaks in quotes")
        })?;
        let line = record.position().map_or(0, |place| place.line() as usize);
        let row: Vec<String> = record.iter().map(str::to_owned).collect();
        match &columns {
            None => columns = Some(row),
            Some(columns) if columns.len() != row.len() => {
                return Err(wrong_width(file, line, row.len(), columns.len()));
            }
            Some(_) => rows.push((line, row)),
        }
    }
    Ok(Table {
        columns: columns.unwrap_or_default(),
        rows,
    })
}

fn jsonl(file: &FilePlan, text: &str) -> Result<Table, Problem> {
    let mut columns: Vec<String> = Vec::new();
    let mut rows = Vec::new();
    for (number, line) in lines(text) {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)
            .map_err(|e| {
                at_line(
                    "delta::data::json",
                    &file.path,
                    number,
                    format!("it is not a JSON object: {e}"),
                )
                .at(file.span, "this file")
                .help("write one object to a line: `{\"text\": \"...\", \"label\": \"...\"}`")
            })?;
        if rows.is_empty() {
            columns = object.keys().cloned().collect();
        }
        let mut row = Vec::with_capacity(columns.len());
        for column in &columns {
            row.push(match object.get(column) {
                Some(serde_json::Value::String(text)) => text.clone(),
                Some(value) if value.is_number() || value.is_boolean() => value.to_string(),
                _ => {
                    let message = format!("the object has no text or number `{column}`");
                    return Err(at_line("delta::data::json", &file.path, number, message)
                        .at(file.span, "this file")
                        .help("give every object the keys of the first one"));
                }
            });
        }
        rows.push((number, row));
    }
    Ok(Table { columns, rows })
}

fn plain(text: &str) -> Table {
    Table {
        columns: vec!["text".to_owned()],
        rows: lines(text)
            .map(|(number, line)| (number, vec![line.to_owned()]))
            .collect(),
    }
}
