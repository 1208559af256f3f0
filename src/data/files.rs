//! The files that a set of examples is read from.

use std::path::{Path, PathBuf};

use crate::diagnostic::Problem;
use crate::hub::in_hub;
use crate::plan::FilePlan;

/// The files of a set, in their order: those of a pattern by their names.
///
/// # Errors
/// A pattern matches nothing, or is none.
pub fn files_of(file: &FilePlan) -> Result<Vec<PathBuf>, Problem> {
    let mut all = Vec::new();
    for path in file.paths() {
        all.extend(matching(&path).map_err(|problem| problem.or_at(file.span))?);
    }
    Ok(all)
}

/// The files that a path means. A file whose own name has the signs of a pattern is that file.
fn matching(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    let text = path.to_string_lossy();
    let is_pattern = text.contains(['*', '?', '[']) && !path.exists();
    if !is_pattern {
        return Ok(vec![path.to_owned()]);
    }
    if in_hub(&text).is_some() {
        let message = format!("`{text}`: a path of the hub names one file");
        return Err(Problem::new("delta::data::hub", message)
            .help("name the files in a list: `parquet([\"hf:...\", \"hf:...\"])`"));
    }
    let found = glob::glob(&text).map_err(|e| {
        let message = format!("`{text}` is no pattern of paths: {e}");
        Problem::new("delta::data::missing_file", message)
            .help("`*` stands for any letters, `?` for one, `[ab]` for one of these")
    })?;
    let mut found: Vec<PathBuf> = found.filter_map(Result::ok).collect();
    found.retain(|path| path.is_file());
    found.sort();
    if found.is_empty() {
        let message = format!("no file matches `{text}`");
        return Err(Problem::new("delta::data::missing_file", message)
            .help("check the pattern; it is relative to the `.delta` file"));
    }
    Ok(found)
}
