//! The files of examples that a plan reads, and what it takes of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::diagnostic::Span;
use crate::text::counted;

/// A data set of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataPlan {
    /// The file that stages train on.
    pub train: Option<FilePlan>,
    /// The file that stages are evaluated on.
    pub dev: Option<FilePlan>,
    /// The file that is evaluated only at the end of the run.
    pub test: Option<FilePlan>,
}

/// A file of examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilePlan {
    /// How it is read.
    pub format: FileFormat,
    /// Its path, or a pattern of paths such as `part-*.jsonl`.
    pub path: PathBuf,
    /// The paths of the files that are read after it, as one file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<PathBuf>,
    /// Names of the columns, if the file has no header.
    pub columns: Option<Vec<String>>,
    /// What separates the values of a CSV, if it is no comma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separator: Option<char>,
    /// The encoding, if it is not UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<TextEncoding>,
    /// Which examples are used; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few: Option<Few>,
    /// The part of the rows that is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Only this many rows are read, from the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most: Option<usize>,
    /// The place of the path.
    pub span: Span,
}

impl FilePlan {
    /// All rows of a file.
    pub fn whole(format: FileFormat, path: PathBuf, span: Span) -> Self {
        FilePlan {
            format,
            path,
            more: Vec::new(),
            columns: None,
            separator: None,
            encoding: None,
            few: None,
            part: None,
            most: None,
            span,
        }
    }

    /// Its path for messages.
    pub fn shown(&self) -> String {
        let first = self.path.display();
        format!("`{first}`{}", self.others())
    }

    /// Its path for reports.
    pub fn name(&self) -> String {
        format!("{}{}", self.path.display(), self.others())
    }

    fn others(&self) -> String {
        match self.more.len() {
            0 => String::new(),
            more => format!(" and {}", counted(more, "more file")),
        }
    }

    /// Its path and the others, as the pipeline has them.
    pub fn paths(&self) -> Vec<PathBuf> {
        std::iter::once(&self.path)
            .chain(&self.more)
            .cloned()
            .collect()
    }
}

/// How bytes are letters, in files that are not in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TextEncoding {
    /// A byte for each of the first 256 letters of Unicode (ISO 8859-1).
    #[serde(rename = "latin-1")]
    Latin1,
    /// The same, with letters such as `€` and `“` in place of 27 control characters: Windows' code page.
    #[serde(rename = "cp1252")]
    Windows1252,
    /// Two bytes or four for each letter, in the order that the file's first two bytes say.
    #[serde(rename = "utf-16")]
    Utf16,
}

impl TextEncoding {
    /// Its name in the language.
    pub fn name(self) -> &'static str {
        match self {
            TextEncoding::Latin1 => "latin-1",
            TextEncoding::Windows1252 => "cp1252",
            TextEncoding::Utf16 => "utf-16",
        }
    }

    /// The encoding that bytes seem to have, which are not UTF-8.
    pub fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => TextEncoding::Utf16,
            // It has all letters of ISO 8859-1.
            _ => TextEncoding::Windows1252,
        }
    }
}

/// A few examples of each label, drawn from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Few {
    /// Examples of each label.
    pub per_class: usize,
    /// Examples of each label that are skipped first, because another set uses them.
    pub skipped: usize,
    /// The seed of the order in which examples are taken.
    pub seed: u64,
}

/// A part of a file, drawn from a seed: of each label alike where a row has one label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// Where the part begins in the order of the draw, in millionths of the rows.
    pub from: u32,
    /// Where it ends; beyond [`Part::WHOLE`], it goes on at the beginning.
    pub to: u32,
    /// The seed of the order.
    pub seed: u64,
    /// Whether the parts of several runs take each row once, those of rare labels as well.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_fold: bool,
}

impl Part {
    /// All of a file, in millionths.
    pub const WHOLE: u32 = 1_000_000;

    /// The places that it has in the order of this many rows; those beyond the last are counted from the first again.
    pub fn of(&self, rows: usize) -> std::ops::Range<usize> {
        let place = |share: u32| {
            let (share, whole) = (share as usize, Part::WHOLE as usize);
            (rows * share + whole / 2) / whole
        };
        place(self.from)..place(self.to)
    }
}

/// How a file of examples is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileFormat {
    /// Tabs between columns, no quotes.
    Tsv,
    /// Commas between columns, quotes where needed.
    Csv,
    /// One JSON object per line.
    Jsonl,
    /// One text per line, in a single column `text`.
    Text,
    /// A word per line with its tags, and an empty line behind each sentence.
    Conll,
    /// A JSON list of objects.
    Json,
    /// Parquet, as the Hugging Face hub has data sets.
    Parquet,
}

impl FileFormat {
    /// All formats.
    pub const ALL: [FileFormat; 7] = [
        FileFormat::Tsv,
        FileFormat::Csv,
        FileFormat::Jsonl,
        FileFormat::Json,
        FileFormat::Parquet,
        FileFormat::Text,
        FileFormat::Conll,
    ];

    /// The name of its reader in the language.
    pub fn reader(self) -> &'static str {
        match self {
            FileFormat::Tsv => "tsv",
            FileFormat::Csv => "csv",
            FileFormat::Jsonl => "jsonl",
            FileFormat::Json => "json",
            FileFormat::Parquet => "parquet",
            FileFormat::Text => "text",
            FileFormat::Conll => "conll",
        }
    }
}
