//! Reads `task` blocks.

use super::{Metric, Task, TaskPlan};
use crate::diagnostic::Problem;
use crate::settings::synonyms;
use crate::settings::Fields;
use crate::syntax::ast::Name;
use crate::text::{did_you_mean, quoted_list};

/// Reads a `task` block.
pub(super) fn task(kind: &Name, fields: &Fields) -> Option<TaskPlan> {
    let Some(task) = Task::read(&kind.node, fields) else {
        let known = || Task::NAMES.iter().copied();
        let problem = Problem::new(
            "delta::plan::unknown_task",
            format!("there is no task `{}`", kind.node),
        )
        .at(kind.span, "here");
        if let Some(help) = synonyms::for_word(&kind.node, known()) {
            fields.report(problem.help(help));
            return None;
        }
        fields.report(match did_you_mean(&kind.node, known()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("use one of {}", quoted_list(known()))),
        });
        return None;
    };
    let metrics = task.measures();
    let named: Vec<(&str, Metric)> = metrics
        .iter()
        .map(|metric| (metric.name(), *metric))
        .collect();
    let metric = fields.choice("metric", &named).unwrap_or(metrics[0]);
    fields.finish();
    Some(TaskPlan {
        has_found_labels: false,
        kind: task,
        metric,
        span: fields.span(),
    })
}
