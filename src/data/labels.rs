//! The labels that files have.

use std::collections::BTreeSet;

use super::table::{at_line, visit, Wanted};
use crate::diagnostic::Problem;
use crate::plan::{FilePlan, TaskPlan};

/// All labels of a task in files, each once. Rows that cannot be read are left to the check of the data.
///
/// # Errors
/// A file cannot be read, or lacks the column; a row has no labels.
pub fn labels_in(task: &TaskPlan, files: &[&FilePlan]) -> Result<Vec<String>, Problem> {
    let kind = &task.kind;
    let columns = kind.targets().iter();
    let wanted: Vec<Wanted> = columns
        .map(|name| Wanted {
            name,
            is_structured: kind.is_structured(name),
            may_be_null: kind.may_be_null(name),
        })
        .collect();
    let mut found = BTreeSet::new();
    for file in files {
        let mut wrong = None;
        visit(file, &wanted, &mut |row| {
            let Ok((line, values)) = row else { return true };
            match kind.labels_in(&values) {
                Ok(labels) => found.extend(labels.into_iter().filter(|label| !label.is_empty())),
                Err((message, help)) => {
                    let problem = at_line("delta::data::label", file, line, message);
                    wrong = Some(problem.at(file.span, "this file").help(help));
                }
            }
            wrong.is_none()
        })?;
        if let Some(problem) = wrong {
            return Err(problem);
        }
    }
    Ok(found.into_iter().collect())
}
