//! Blocks below the lowest trained site run forward only. The engine records an operation only if one of its inputs is
//! traced (`Trace`), and below that site no tensor is.

use super::{blocks_below, Optimization};
use crate::plan::Plan;

pub(super) const OPTIMIZATION: Optimization = Optimization {
    name: "nothing recorded below the lowest trained site",
    check,
};

fn check(plan: &Plan, index: usize) -> Result<String, String> {
    match plan.first_trained_block(index) {
        0 => Err("something is trained in the first block or below it".to_owned()),
        first if first == plan.backbone.config.block_count() => {
            Ok("only the head is trained".to_owned())
        }
        first => Ok(format!("{} run forward only", blocks_below(plan, first))),
    }
}
