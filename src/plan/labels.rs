//! Finds labels that a file leaves out.

use std::collections::BTreeMap;

use super::build::Builder;
use super::surroundings::Surroundings;
use super::{DataPlan, FilePlan, StagePlan, TaskPlan};
use crate::diagnostic::Problem;
use crate::task::sorted_labels;
use crate::text::{counted, thousands};

/// The most labels that are taken from a file.
const MOST_LABELS: usize = 1000;

impl Builder<'_> {
    /// Finds the labels of tasks that name none: in the training files of their stages, or without a stage in all files.
    pub(super) fn find_labels(
        &self,
        data: &BTreeMap<String, DataPlan>,
        stages: &[StagePlan],
        tasks: &mut BTreeMap<String, TaskPlan>,
        surroundings: &dyn Surroundings,
    ) {
        for (name, task) in tasks
            .iter_mut()
            .filter(|(_, task)| task.kind.lacks_labels())
        {
            let of_task = stages.iter().filter(|stage| stage.task == *name);
            let used = of_task.filter_map(|stage| data.get(&stage.data));
            let mut files: Vec<&FilePlan> = used.filter_map(|data| data.train.as_ref()).collect();
            if stages.is_empty() {
                let all = data.values();
                files = all
                    .flat_map(|data| [&data.train, &data.dev, &data.test])
                    .flatten()
                    .collect();
            }
            let report = |message: &str, help: &str| {
                let problem = Problem::new("delta::plan::labels", message);
                self.report(problem.at(task.span, "of this task").help(help));
            };
            let found = match surroundings.labels(task, &files) {
                Ok(Some(found)) => found,
                Ok(None) => {
                    let message =
                        "the labels are to be found in the training file, which is not read here";
                    report(message, "name them: `labels = [negative, positive]`");
                    continue;
                }
                Err(problem) => {
                    self.report(problem.or_at(task.span));
                    continue;
                }
            };
            let labels = sorted_labels(found);
            match labels.len() {
                0 | 1 => {
                    let message = format!(
                        "the label's column has {}, and a task needs two or more",
                        counted(labels.len(), "label")
                    );
                    report(&message, "use a file with rows of each label, or name the labels: `labels = [negative, positive]`");
                }
                2..=MOST_LABELS => {
                    task.has_found_labels = true;
                    if let Err((message, help)) = task.kind.set_labels(labels) {
                        report(&message, &help);
                    }
                }
                count => {
                    let message = format!(
                        "the label's column has {} different values",
                        thousands(count)
                    );
                    report(
                        &message,
                        "use `regress` if they are numbers, or name the labels: `labels = [...]`",
                    );
                }
            }
        }
    }
}
