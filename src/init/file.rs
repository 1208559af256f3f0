//! Looks at a data file, and at the files beside it that belong to it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::{count_of, recognize, sample, Sample};
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
    /// What was assumed of the files, in words.
    pub fn notes(&self) -> Vec<String> {
        let count = count_of(&self.plan.path);
        let shards = (count > 1).then(|| format!("These are {count} files"));
        let encoding = self.plan.encoding.map(|encoding| {
            format!(
                "The file is not UTF-8, and is read as {}: look at its letters",
                encoding.name()
            )
        });
        shards.into_iter().chain(encoding).collect()
    }

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
    let path = &training_file(path);
    let mut plan = recognize(path)?;
    plan.most = Some(ROWS);
    if let Some(pattern) = pattern_of_shards(path) {
        plan.path = pattern;
    }
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
        let endings = all_endings(path);
        let other = |word: &&str| path.with_file_name(format!("{word}.{endings}"));
        let shards = |word: &&str| path.with_file_name(format!("{word}-*.{endings}"));
        let words = || words.iter().filter(|_| is_train);
        let mut whole = words().map(other).filter(|other| other.is_file());
        let mut parted = words().map(shards).filter(|pattern| count_of(pattern) > 0);
        whole.next().or_else(|| parted.next())
    };
    Ok(DataFile {
        reader: (plan.format.reader(), settings),
        plan,
        dev: beside(&["dev", "validation", "valid", "val", "eval"]),
        test: beside(&["test"]),
    })
}

/// The training file of a directory, if there is one by its name; any other path is its own.
fn training_file(path: &Path) -> PathBuf {
    let names = path.read_dir().into_iter().flatten().flatten();
    let mut training: Vec<PathBuf> = names
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.to_lowercase().starts_with("train")
        })
        .filter(|path| path.is_file() && recognize(path).is_ok())
        .collect();
    training.sort();
    training.into_iter().next().unwrap_or(path.to_owned())
}

/// The pattern of a file and its neighbours, if its name numbers it as one of several: `part-00000.jsonl`,
/// `train-00000-of-00003.parquet`. Numbers that do not begin with 0 or 1, or have gaps, may be years.
fn pattern_of_shards(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let number = regex::Regex::new(r"[-_.]\d{4,}").ok()?.find(name)?;
    let (start, end) = (number.start() + 1, number.end());
    let (first, last) = (&name[..start], &name[end..]);
    let beside = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let entries = beside.unwrap_or(Path::new(".")).read_dir().ok()?.flatten();
    let mut numbers: Vec<usize> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            name.strip_prefix(first)?.strip_suffix(last)?.parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    let begin = numbers.first().copied().filter(|begin| *begin < 2)?;
    let are_whole = numbers
        .iter()
        .enumerate()
        .all(|(place, number)| *number == begin + place);
    (are_whole && numbers.len() > 1).then(|| path.with_file_name(format!("{first}*{last}")))
}

/// Everything after the first dot of a file's name.
fn all_endings(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split_once('.')
        .map_or(String::new(), |(_, endings)| endings.to_owned())
}
