//! Warnings that are possible only once a run is over.

use super::Summary;
use crate::diagnostic::Problem;
use crate::plan::{Plan, TaskPlan};

/// Warns if the last stage learned nothing: it predicts a single label, or is no better than the most frequent label.
pub(super) fn collapse(plan: &Plan, task: &TaskPlan, summary: &Summary) -> Option<Problem> {
    let last = summary.stages.last()?;
    let is_beaten = |majority: f64| summary.value().is_some_and(|value| value > majority);
    let message = if let Some(class) = last.dev.as_ref()?.collapsed_to {
        let label = &task.kind.labels().get(class)?.name;
        format!("the run predicts `{label}` for every text of the dev set: it learned nothing")
    } else if summary
        .majority
        .is_some_and(|majority| !is_beaten(majority))
    {
        let metric = task.metric.name();
        format!("the run's {metric} is no better than that of always predicting the most frequent label")
    } else {
        return None;
    };
    let span = plan.stages.last()?.span;
    let problem = Problem::warning("delta::train::collapse", message).at(span, "in this stage");
    Some(problem.help("try another `lr`, a `warmup`, or more steps"))
}
