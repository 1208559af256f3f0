//! The labels that files have.

use std::collections::BTreeSet;

use super::table::{at_row, visit, Wanted};
use crate::diagnostic::Problem;
use crate::plan::{FilePlan, TaskPlan};
use crate::text::{counted, thousands};

/// In so many rows, most labels occur more than once.
const MANY: usize = 200;

/// All labels of a task in files, each once. Rows that cannot be read are left to the check of the data, unless those that
/// can have fewer than two labels.
///
/// # Errors
/// A file cannot be read, or lacks the column; a row has no labels; the first row that cannot be read.
pub fn labels_in(task: &TaskPlan, files: &[&FilePlan]) -> Result<Vec<String>, Problem> {
    let kind = &task.kind;
    let columns = kind.targets().iter();
    let wanted: Vec<Wanted> = columns.map(|name| Wanted::of(name, kind)).collect();
    let mut found = BTreeSet::new();
    let mut rows = 0usize;
    let mut unread = None;
    for file in files {
        let mut wrong = None;
        visit(file, &wanted, &mut |row| {
            let (place, values) = match row {
                Ok(row) => row,
                Err(problem) => {
                    unread.get_or_insert(problem.or_at(file.span));
                    return true;
                }
            };
            rows += 1;
            match kind.labels_in(&values) {
                Ok(labels) => found.extend(labels.into_iter().filter(|label| !label.is_empty())),
                Err((message, help)) => {
                    let problem = at_row("delta::data::label", file, &place, message);
                    wrong = Some(problem.at(file.span, "this file").help(help));
                }
            }
            wrong.is_none()
        })?;
        if let Some(problem) = wrong {
            return Err(problem);
        }
    }
    if kind.has_one_label() && rows >= MANY && 2 * found.len() > rows {
        let message = format!(
            "the label's column has {} different values in {}: these are no labels",
            thousands(found.len()),
            counted(rows, "row")
        );
        return Err(Problem::new("delta::plan::labels", message)
            .help("name the column with the labels, use `regress` if these are numbers, or write them all: `labels = [...]`"));
    }
    match unread {
        Some(problem) if found.len() < 2 => Err(problem),
        _ => Ok(found.into_iter().collect()),
    }
}
