//! Looks at a data file, and at the files beside it that belong to it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::{recognize, sample, Sample};
use crate::diagnostic::Problem;
use crate::plan::FilePlan;

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
    /// Leaves out the files beside it that have other columns, or none of the labels: a test set for a contest hides them.
    /// Returns what is left out, in words.
    pub fn keep_like(&mut self, own: &Sample, label: Option<&str>) -> Vec<String> {
        let labels = |sample: &Sample| -> Vec<Value> {
            let place = sample
                .columns
                .iter()
                .position(|name| Some(name.as_str()) == label);
            let values = sample
                .rows
                .iter()
                .filter_map(|row| place.map(|place| row[place].clone()));
            values.collect()
        };
        let known = labels(own);
        let mut notes = Vec::new();
        for beside in [&mut self.dev, &mut self.test] {
            let Some(path) = beside.clone() else { continue };
            let plan = FilePlan {
                path: path.clone(),
                ..self.plan.clone()
            };
            let other = sample(&plan).ok();
            let other = other.filter(|other| other.columns == own.columns);
            let reason = match other.map(|other| labels(&other)) {
                None => "has other columns",
                // Numbers of a regression need not occur in both.
                Some(found)
                    if label.is_some()
                        && found.iter().all(|one| found[0] == *one)
                        && !known.contains(&found[0]) =>
                {
                    "has no labels"
                }
                Some(_) => continue,
            };
            notes.push(format!("`{}` {reason}, and is left out", path.display()));
            *beside = None;
        }
        notes
    }
}

/// Finds out how a file is read, and what lies beside it.
///
/// # Errors
/// See [`recognize`].
pub(super) fn look_at(path: &Path) -> Result<DataFile, Problem> {
    let mut plan = recognize(path)?;
    plan.most = Some(ROWS);
    let mut settings = String::new();
    if let Some(symbol) = plan.separator {
        settings += &format!(", separator = \"{symbol}\"");
    }
    if let Some(encoding) = plan.encoding {
        settings += &format!(", encoding = \"{}\"", encoding.name());
    }
    let stem = path.file_name().unwrap_or_default().to_string_lossy();
    let is_train = stem.to_lowercase().starts_with("train");
    let beside = |words: &[&str]| {
        let other = |word: &&str| path.with_file_name(format!("{word}.{}", all_endings(path)));
        let mut others = words.iter().filter(|_| is_train).map(other);
        others.find(|other| other.is_file())
    };
    Ok(DataFile {
        reader: (plan.format.reader(), settings),
        plan,
        dev: beside(&["dev", "validation", "valid", "val", "eval"]),
        test: beside(&["test"]),
    })
}

/// Everything after the first dot of a file's name.
fn all_endings(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('.')
        .map_or(String::new(), |(_, endings)| endings.to_owned())
}
