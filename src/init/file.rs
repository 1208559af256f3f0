//! Recognizes the format of a data file, and the files beside it that belong to it.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::data::sample;
use crate::diagnostic::{Problem, Span};
use crate::plan::{FileFormat, FilePlan};

/// Rows that are looked at.
const ROWS: usize = 2000;

/// A data file, and what lies beside it.
pub(super) struct DataFile {
    /// How it is read: its first rows alone.
    pub plan: FilePlan,
    /// The reader's name in the language, and its settings after the path.
    pub reader: (&'static str, String),
    /// A file of the same directory whose name says that it is for evaluation during training.
    pub dev: Option<PathBuf>,
    /// One for evaluation at the end.
    pub test: Option<PathBuf>,
}

impl DataFile {
    /// Leaves out the files beside it that have other columns. Returns what is left out, in words.
    pub fn keep_like(&mut self, columns: &[String]) -> Vec<String> {
        let mut notes = Vec::new();
        for beside in [&mut self.dev, &mut self.test] {
            let Some(path) = beside.clone() else { continue };
            let plan = FilePlan {
                path: path.clone(),
                ..self.plan.clone()
            };
            let is_alike = sample(&plan).is_ok_and(|other| other.columns == columns);
            if !is_alike {
                notes.push(format!(
                    "`{}` has other columns, and is left out",
                    path.display()
                ));
                *beside = None;
            }
        }
        notes
    }
}

/// Finds out how a file is read.
///
/// # Errors
/// The file cannot be read, or its name does not say its format.
pub(super) fn recognize(path: &Path) -> Result<DataFile, Problem> {
    let start = beginning(path)?;
    let ending = ending(path);
    let (format, name) = match ending.as_str() {
        "tsv" if is_conll(&start) => (FileFormat::Conll, "conll"),
        "tsv" => (FileFormat::Tsv, "tsv"),
        "csv" => (FileFormat::Csv, "csv"),
        "jsonl" | "ndjson" => (FileFormat::Jsonl, "jsonl"),
        "json" if start.trim_start().starts_with('[') => (FileFormat::Json, "json"),
        "json" => (FileFormat::Jsonl, "jsonl"),
        "parquet" => (FileFormat::Parquet, "parquet"),
        "conll" => (FileFormat::Conll, "conll"),
        "txt" if is_conll(&start) => (FileFormat::Conll, "conll"),
        "txt" => (FileFormat::Text, "text"),
        _ => {
            let message = format!("the name of `{}` does not say its format", path.display());
            return Err(Problem::new("delta::init::format", message).help(
                "give it one of the endings `.tsv`, `.csv`, `.jsonl`, `.json`, `.parquet`, `.conll` and `.txt`",
            ));
        }
    };
    let mut plan = FilePlan::whole(format, path.to_owned(), Span::default());
    plan.most = Some(ROWS);
    let mut settings = String::new();
    if format == FileFormat::Csv {
        plan.separator = separator(&start);
        if let Some(symbol) = plan.separator {
            settings = format!(", separator = \"{symbol}\"");
        }
    }
    let stem = path.file_name().unwrap_or_default().to_string_lossy();
    let is_train = stem.to_lowercase().starts_with("train");
    let beside = |words: &[&str]| {
        let other = |word: &&str| path.with_file_name(format!("{word}.{}", all_endings(path)));
        let mut others = words.iter().filter(|_| is_train).map(other);
        others.find(|other| other.is_file())
    };
    Ok(DataFile {
        plan,
        reader: (name, settings),
        dev: beside(&["dev", "validation", "valid", "val", "eval"]),
        test: beside(&["test"]),
    })
}

/// The first bytes of a file as text, unpacked.
fn beginning(path: &Path) -> Result<String, Problem> {
    let wrong = |e: std::io::Error| {
        let message = format!("`{}` cannot be read: {e}", path.display());
        Problem::new("delta::init::file", message).help("check the path")
    };
    if path.is_dir() {
        let message = format!("`{}` is a directory", path.display());
        return Err(Problem::new("delta::init::file", message).help("name a file in it"));
    }
    let file = std::fs::File::open(path).map_err(wrong)?;
    let mut bytes = Vec::new();
    let is_packed = path.extension().is_some_and(|ending| ending == "gz");
    let reader: Box<dyn Read> = match is_packed {
        true => Box::new(flate2::read::MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    reader
        .take(1 << 16)
        .read_to_end(&mut bytes)
        .map_err(wrong)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

/// Everything after the first dot of a file's name.
fn all_endings(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('.')
        .map_or(String::new(), |(_, endings)| endings.to_owned())
}

/// The ending that says the format.
fn ending(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
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
