//! Work that a graph skips, or does only once. Each optimization has its own file, which says when it applies, why it
//! may not, and what the graph does instead. `deltarun plan` shows this for every stage.

pub mod absorbed_keys;
mod bf16_products;
pub mod frozen_blocks;
mod frozen_weights;
mod int8_products;
mod packed_rows;
pub(super) mod read_rows;
mod untraced_blocks;

use crate::plan::{Change, DeltaPlan, Plan};

/// An optimization that may apply to a stage.
pub struct Optimization {
    /// Its name.
    pub name: &'static str,
    /// Whether it applies to a stage: what it saves there, or why it does not.
    pub check: fn(&Plan, usize) -> Result<String, String>,
}

/// Every optimization.
pub const ALL: [Optimization; 8] = [
    frozen_weights::OPTIMIZATION,
    untraced_blocks::OPTIMIZATION,
    frozen_blocks::OPTIMIZATION,
    read_rows::OPTIMIZATION,
    absorbed_keys::OPTIMIZATION,
    bf16_products::OPTIMIZATION,
    int8_products::OPTIMIZATION,
    packed_rows::OPTIMIZATION,
];

/// Names the blocks below block `first`, for messages.
fn blocks_below(plan: &Plan, first: usize) -> String {
    let paths = plan.backbone.config.block_paths();
    match plan.backbone.config.decoder_layers {
        None => format!("blocks 0 to {}", first - 1),
        Some(_) => format!("`{}` to `{}`", paths[0], paths[first - 1]),
    }
}

/// Whether a delta in the last block is gated.
pub(super) fn is_gated_at_the_top(plan: &Plan, stage: usize) -> bool {
    let last = plan.backbone.config.block_paths().pop().unwrap_or_default() + ".";
    let is_there = |delta: &&DeltaPlan| match &delta.change {
        Change::Method { sites, .. } => sites.iter().any(|site| site.starts_with(&last)),
        Change::Unfreeze { .. } => false,
    };
    let mut active = plan.active(stage).into_iter();
    active.any(|delta| delta.is_gated && is_there(&delta))
}
