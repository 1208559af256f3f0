//! How a data file that the command line names is read.

use std::path::Path;

use crate::data::recognize;
use crate::diagnostic::Problem;
use crate::plan::{FilePlan, Plan};
use crate::terminal::note;

/// How a file is read: as its name and its beginning say, and otherwise as the run read its own files of that format.
pub(super) fn read_like(plan: &Plan, path: &Path) -> Result<FilePlan, Problem> {
    let file = recognize(path)?;
    let data = plan.final_data();
    let mut own = data
        .iter()
        .flat_map(|data| [&data.train, &data.dev, &data.test])
        .flatten();
    let Some(like) = own.find(|own| own.format == file.format) else {
        if let Some(encoding) = file.encoding {
            let (path, name) = (path.display(), encoding.name());
            note(&format!("`{path}` is not UTF-8, and is read as {name}"));
        }
        return Ok(file);
    };
    // The letters of the run's own files are those of this one, unless it is UTF-8.
    let is_utf8 = || std::fs::read(path).is_ok_and(|bytes| std::str::from_utf8(&bytes).is_ok());
    let encoding = like.encoding.filter(|_| !is_utf8());
    Ok(FilePlan {
        columns: like.columns.clone(),
        // Without a header, the first line shows less.
        separator: match like.columns {
            Some(_) => like.separator,
            None => file.separator,
        },
        encoding,
        ..file
    })
}
