//! Answers as rows of a CSV or TSV file.

use std::io::{Error, Result, Write};
use std::path::Path;

use serde_json::{Map, Value};

use crate::diagnostic::Problem;

/// What separates the values of a file, if its name says that it is a table.
///
/// # Errors
/// Its name says that it is something else.
pub(super) fn separator(path: &Path) -> std::result::Result<Option<u8>, Problem> {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    match ending.to_lowercase().as_str() {
        "csv" => Ok(Some(b',')),
        "tsv" => Ok(Some(b'\t')),
        "gz" | "zst" | "parquet" | "xlsx" => {
            let message = format!("answers are not written as `.{ending}`");
            Err(Problem::new("delta::cli::output_format", message)
                .help("name a file that ends in `.jsonl`, `.csv` or `.tsv`"))
        }
        _ => Ok(None),
    }
}

/// Writes JSON lines as rows. The keys of the first line are the header, and no other line may have more; an object has a
/// column for each of its keys.
pub(super) struct TableWriter<W: Write> {
    writer: csv::Writer<W>,
    /// Whether values with signs of the format are quoted.
    is_quoted: bool,
    header: Vec<String>,
    /// The beginning of a line.
    waiting: Vec<u8>,
}

impl<W: Write> TableWriter<W> {
    pub fn new(output: W, separator: u8) -> Self {
        TableWriter {
            writer: csv::WriterBuilder::new()
                .delimiter(separator)
                .quote_style(match separator {
                    b'\t' => csv::QuoteStyle::Never,
                    _ => csv::QuoteStyle::Necessary,
                })
                .from_writer(output),
            is_quoted: separator != b'\t',
            header: Vec::new(),
            waiting: Vec::new(),
        }
    }

    fn row(&mut self, line: &[u8]) -> Result<()> {
        let object: Map<String, Value> = serde_json::from_slice(line).map_err(Error::from)?;
        let mut cells = Vec::new();
        flatten("", &object, &mut cells);
        if self.header.is_empty() {
            self.header = cells.iter().map(|(name, _)| name.clone()).collect();
            self.writer.write_record(&self.header)?;
        }
        if let Some((name, _)) = cells.iter().find(|(name, _)| !self.header.contains(name)) {
            let message =
                format!("a line has `{name}`, which the first line lacks: write `.jsonl`");
            return Err(Error::other(message));
        }
        let breaks = |(_, value): &&(String, String)| value.contains(['\t', '\n', '\r']);
        if let Some((name, _)) = cells.iter().find(breaks).filter(|_| !self.is_quoted) {
            let message = format!(
                "`{name}` has a tab or a line break, which `.tsv` cannot hold: write `.csv`"
            );
            return Err(Error::other(message));
        }
        let cell = |name: &String| {
            let found = cells.iter().find(|(own, _)| own == name);
            found.map_or("", |(_, value)| value.as_str())
        };
        self.writer.write_record(self.header.iter().map(cell))?;
        Ok(())
    }
}

/// The cells of an object: `probabilities.negative` for a value in an object, and lists as their JSON.
fn flatten(prefix: &str, object: &Map<String, Value>, cells: &mut Vec<(String, String)>) {
    for (key, value) in object {
        let name = format!("{prefix}{key}");
        match value {
            Value::Object(inner) => flatten(&format!("{name}."), inner, cells),
            Value::String(text) => cells.push((name, text.clone())),
            Value::Null => cells.push((name, String::new())),
            other => cells.push((name, other.to_string())),
        }
    }
}

impl<W: Write> Write for TableWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        self.waiting.extend_from_slice(bytes);
        while let Some(end) = self.waiting.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.waiting.drain(..=end).collect();
            self.row(&line)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> Result<()> {
        self.writer.flush()
    }
}
