//! Looks at a data file, and at the files beside it that belong to it.

use std::path::{Path, PathBuf};

use crate::data::{recognize, sample};
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

/// Finds out how a file is read, and what lies beside it.
///
/// # Errors
/// See [`recognize`].
pub(super) fn look_at(path: &Path) -> Result<DataFile, Problem> {
    let mut plan = recognize(path)?;
    plan.most = Some(ROWS);
    let settings = match plan.separator {
        Some(symbol) => format!(", separator = \"{symbol}\""),
        None => String::new(),
    };
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
