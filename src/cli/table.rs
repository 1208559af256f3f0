//! Answers as rows of a CSV or TSV file.

use std::io::{Error, Result, Write};
use std::path::Path;

use serde_json::{Map, Value};

/// What separates the values of a file, if its name says that it is a table.
pub(super) fn separator(path: &Path) -> Option<u8> {
    match path.extension()?.to_str()? {
        "csv" => Some(b','),
        "tsv" => Some(b'\t'),
        _ => None,
    }
}

/// Writes JSON lines as rows. The keys of the first line are the header; an object has a column for each of its keys.
pub(super) struct Rows<W: Write> {
    writer: csv::Writer<W>,
    header: Vec<String>,
    /// The beginning of a line.
    waiting: Vec<u8>,
}

impl<W: Write> Rows<W> {
    pub fn new(output: W, separator: u8) -> Self {
        Rows {
            writer: csv::WriterBuilder::new()
                .delimiter(separator)
                .from_writer(output),
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

impl<W: Write> Write for Rows<W> {
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
