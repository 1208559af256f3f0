//! Warnings that are possible only once texts are tokens, or once a run is over.

use super::Summary;
use crate::data::Examples;
use crate::diagnostic::Problem;
use crate::plan::{Plan, TaskPlan};
use crate::text::thousands;

/// The share of cut texts from which on we warn.
const MOST_CUT: f64 = 0.5;

/// Warns if most training texts of a stage are cut.
pub(super) fn cut_texts(plan: &Plan, examples: &Examples) -> Option<Problem> {
    let longest = plan.backbone.max_length;
    // A text of exactly this length may be complete. Asking the tokenizer again would not be worth it.
    let cut = examples
        .all
        .iter()
        .filter(|e| e.text.tokens.len() >= longest)
        .count();
    if (cut as f64) < MOST_CUT * examples.len() as f64 || examples.is_empty() {
        return None;
    }
    let message = format!(
        "deltarun truncates {} of {} texts to {longest} tokens",
        thousands(cut),
        thousands(examples.len())
    );
    let problem = Problem::warning("delta::data::cut", message).at(plan.backbone.span, "");
    Some(problem.help("raise `max_length` if the backbone has more positions"))
}

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
