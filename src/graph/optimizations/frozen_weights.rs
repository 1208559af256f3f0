//! The backward pass of a layer with a frozen weight takes one matrix product instead of two. The engine's `linear`
//! skips the gradient of a weight that is not traced.

use super::Optimization;
use crate::plan::{Change, Plan};

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "no gradient for frozen weights",
    check,
};

fn check(plan: &Plan, index: usize) -> Result<String, String> {
    let stage = &plan.stages[index];
    let mut trained = plan
        .deltas
        .iter()
        .filter(|delta| stage.train.contains(&delta.name));
    let unfreezes = trained.any(|delta| match &delta.change {
        Change::Unfreeze { parameters } => parameters.iter().any(|path| path.ends_with(".weight")),
        Change::Method { .. } => false,
    });
    Ok(match unfreezes {
        true => "one product instead of two wherever a weight is frozen".to_owned(),
        false => "every backward product of the backbone is one instead of two".to_owned(),
    })
}
