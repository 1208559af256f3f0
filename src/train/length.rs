//! How many steps a stage has, and whether they suffice.

use crate::diagnostic::Problem;
use crate::plan::{Length, Plan, StagePlan, Warmup};
use crate::text::{counted, thousands};

/// The number of steps in an epoch of a stage, and in the whole stage.
pub fn steps(stage: &StagePlan, examples: usize) -> (usize, usize) {
    let per_step = stage.batch * stage.accumulate;
    let of_epoch = examples.div_ceil(per_step).max(1);
    let all = match stage.length {
        Length::Steps(steps) => steps,
        Length::Epochs(epochs) => ((epochs * of_epoch as f64).ceil() as usize).max(1),
    };
    (of_epoch, all)
}

/// Checks that every stage has as many steps as the deltas that it trains need. `examples` has the number of training
/// examples of each stage.
///
/// # Errors
/// A delta needs more steps than a stage has.
pub fn check_steps(plan: &Plan, examples: &[usize]) -> Result<(), Problem> {
    for (stage, examples) in plan.stages.iter().zip(examples) {
        let (_, steps) = steps(stage, *examples);
        for delta in plan.trained_on_host(stage) {
            let check = delta.on_host().map(|method| method.check_steps(steps));
            if let Some(Err(message)) = check {
                let problem = Problem::new("delta::train::steps", message);
                return Err(problem
                    .at(delta.span, "this delta")
                    .at(stage.span, "trained in this stage")
                    .help("lower these settings, or train for more steps"));
            }
        }
    }
    Ok(())
}

/// Warns of stages that end before their warm-up does: their rate never reaches `lr`.
pub fn warn_of_warmup(plan: &Plan, examples: &[usize]) -> Vec<Problem> {
    let warning =
        |(stage, examples): (&StagePlan, &usize)| {
            let (_, steps) = steps(stage, *examples);
            let warmup = match stage.schedule.warmup {
                Warmup::Steps(warmup) if warmup >= steps => warmup,
                _ => return None,
            };
            let message = format!(
                "stage `{}` has {}, but its warm-up takes {}: the rate never reaches `lr`",
                stage.name,
                counted(steps, "step"),
                thousands(warmup)
            );
            let problem =
                Problem::warning("delta::train::warmup", message).at(stage.span, "this stage");
            Some(problem.help(
                "write the warm-up as a share, such as `warmup = 6%`, or train for more steps",
            ))
        };
    plan.stages
        .iter()
        .zip(examples)
        .filter_map(warning)
        .collect()
}
