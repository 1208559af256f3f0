//! The model that a stage compared its own with, for the evaluation of a finished run.

use crate::data::Examples;
use crate::diagnostic::Problem;
use crate::graph::Graph;
use crate::plan::{Plan, TaskPlan};
use crate::train;

/// Checks that a run's files can be evaluated when it is finished.
///
/// # Errors
/// The task compares with the model that a stage began with, and there is not just one stage.
fn check(plan: &Plan) -> Result<(), Problem> {
    match plan.stages.as_slice() {
        [_] => Ok(()),
        stages => {
            let message = "`dpo` compares with the model that the last stage began with, which only a run of one stage can make anew";
            let problem = Problem::new("delta::run::reference", message);
            let span = stages.last().map(|stage| stage.span);
            Err(problem.or_at(span.unwrap_or_default()).help(
                "remove `test` and read the evaluations on `dev`, or train the earlier stages in a run of their own",
            ))
        }
    }
}

/// Checks what a run evaluates when its stages are over.
///
/// # Errors
/// It has a test set or no stages, and see [`check`].
pub(super) fn check_final(plan: &Plan) -> Result<(), Problem> {
    let task = plan
        .final_task()
        .and_then(|(_, task)| task.kind.comparison());
    let has_test = plan.final_data().is_some_and(|data| data.test.is_some());
    let is_evaluated = has_test || plan.stages.is_empty();
    match task.is_some_and(|comparison| comparison.has_reference()) && is_evaluated {
        true => check(plan),
        false => Ok(()),
    }
}

/// The log-probabilities of both answers of pairs by the model as it stood when the only stage of a plan began; empty if
/// the task compares with no model.
///
/// # Errors
/// The plan has several stages: what the last one began with is not kept. The device fails.
pub fn reference(
    plan: &Plan,
    graph: &Graph,
    task: &TaskPlan,
    examples: &Examples,
) -> Result<Vec<[f32; 2]>, Problem> {
    let comparison = task.kind.comparison();
    if !comparison.is_some_and(|comparison| comparison.has_reference()) {
        return Ok(Vec::new());
    }
    check(plan)?;
    let mut begun = Graph::load(plan, graph.device().clone())?;
    begun.activate(plan, 0)?;
    train::reference(&begun, examples, comparison)
}
