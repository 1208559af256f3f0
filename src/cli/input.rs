//! How a data file that the command line names is read.

use crate::data::read_like;
use crate::diagnostic::Problem;
use crate::plan::{FilePlan, Plan};
use crate::terminal::note;

/// How a file is read, which its name and its beginning describe: as the run read its own files of that format.
pub(super) fn read_as_run(plan: &Plan, file: FilePlan) -> Result<FilePlan, Problem> {
    let data = plan.final_data();
    let sets = data
        .iter()
        .flat_map(|data| [&data.train, &data.dev, &data.test]);
    match sets.flatten().find(|own| own.format == file.format) {
        Some(like) => read_like(file, like),
        None => {
            if let Some(encoding) = file.encoding {
                let (path, name) = (file.shown(), encoding.name());
                note(&format!("{path} is not UTF-8, and is read as {name}"));
            }
            Ok(file)
        }
    }
}
