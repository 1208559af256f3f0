//! The files that a set of examples is read from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

use crate::diagnostic::Problem;
use crate::hub::in_hub;
use crate::plan::FilePlan;

/// The signs of a pattern stand neither for what divides folders nor for the dot that begins a hidden file.
const SIGNS: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

/// The files of a set, in their order: those of a pattern by their names.
///
/// # Errors
/// A pattern matches nothing, or is none; a file is named twice.
pub fn files_of(file: &FilePlan) -> Result<Vec<PathBuf>, Problem> {
    let mut all = Vec::new();
    for path in file.paths() {
        all.extend(matching(&path).map_err(|problem| problem.or_at(file.span))?);
    }
    let mut seen = BTreeSet::new();
    match all.iter().find(|path| !seen.insert(*path)) {
        None => Ok(all),
        Some(twice) => {
            let message = format!("`{}` is named twice", twice.display());
            let problem = Problem::new("delta::data::twice", message).or_at(file.span);
            Err(problem.help("name each file once"))
        }
    }
}

/// Whether a path is one of a set's, or matches one of its patterns.
pub fn belongs(path: &Path, file: &FilePlan) -> bool {
    file.paths().iter().any(|own| match pattern_of(own) {
        Some(pattern) => {
            let pattern = Pattern::new(&pattern);
            pattern.is_ok_and(|pattern| pattern.matches_path_with(path, SIGNS))
        }
        None => own == path,
    })
}

/// The number of files that a path means.
pub fn count_of(path: &Path) -> usize {
    matching(path).map_or(0, |found| found.len())
}

/// The pattern that a path is; `None` if it is that of one file. A path that exists is no pattern, whatever signs its name has.
fn pattern_of(path: &Path) -> Option<String> {
    let known = path.ancestors().find(|folder| folder.exists());
    let known = known.unwrap_or(Path::new(""));
    let rest = path.strip_prefix(known).unwrap_or(path).to_string_lossy();
    let known = Pattern::escape(&known.to_string_lossy());
    let divides = if known.is_empty() || known.ends_with('/') {
        ""
    } else {
        "/"
    };
    rest.contains(['*', '?', '['])
        .then(|| format!("{known}{divides}{rest}"))
}

/// The files that a path means.
fn matching(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    let Some(pattern) = pattern_of(path) else {
        return Ok(vec![path.to_owned()]);
    };
    let shown = path.display();
    if in_hub(&path.to_string_lossy()).is_some() {
        let message = format!("`{shown}`: a path of the hub names one file");
        return Err(Problem::new("delta::data::hub", message)
            .help("name the files in a list: `parquet([\"hf:...\", \"hf:...\"])`"));
    }
    let wrong =
        |message: String, help: &str| Problem::new("delta::data::missing_file", message).help(help);
    let found = glob::glob_with(&pattern, SIGNS).map_err(|e| {
        wrong(
            format!("`{shown}` is no pattern of paths: {e}"),
            "`*` stands for any letters, `?` for one, `[ab]` for one of these",
        )
    })?;
    let mut files = Vec::new();
    for path in found {
        let path = path.map_err(|e| {
            wrong(
                format!(
                    "`{shown}`: `{}` cannot be read: {}",
                    e.path().display(),
                    e.error()
                ),
                "allow reading it: `chmod +rx FOLDER`",
            )
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    match files.is_empty() {
        true => Err(wrong(
            format!("no file matches `{shown}`"),
            "check the pattern; it is relative to the `.delta` file",
        )),
        false => Ok(files),
    }
}
