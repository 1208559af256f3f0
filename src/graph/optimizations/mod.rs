//! Work that a graph skips, or does only once: a table of what a stage saves, and why it does not. `deltarun plan` shows
//! it for every stage. What the graph itself has to do for a saving is in a file of its own.

pub mod absorbed_keys;
pub mod frozen_blocks;
pub(super) mod read_rows;

use crate::backbone::family::HeadKind;
use crate::backbone::{language_model_parameters, Tree};
use crate::engine::{uses_amx, Precision, Storage};
use crate::plan::{DeltaPlan, Plan};

/// Why products with weights in codes are in f32.
const DECODED: &str = "products decode the frozen weights, which are kept in codes, to f32";

/// An optimization that may apply to a stage.
pub struct Optimization {
    /// Its name.
    pub name: &'static str,
    /// Whether it applies to a stage: what it saves there, or why it does not.
    pub check: fn(&Plan, usize) -> Result<String, String>,
}

/// Every optimization.
pub const ALL: [Optimization; 9] = [
    // The CPU packs sequences row after row (`Layout`).
    Optimization {
        name: "padding",
        check: |_, _| Ok("sequences lie one after the other".to_owned()),
    },
    // The engine's `linear` skips the gradient of a weight that is not traced.
    Optimization {
        name: "gradients of frozen weights",
        check: |plan, index| {
            Ok(match unfreezes_weights(plan, index) {
                true => "of those that the stage does not train".to_owned(),
                false => "of the whole backbone".to_owned(),
            })
        },
    },
    // The engine records an operation only if one of its inputs is traced (`Trace`): below the lowest trained site, none
    // is.
    Optimization {
        name: "the backward pass below what is trained",
        check: |plan, index| match plan.first_trained_block(index) {
            0 => Err(first_is_trained(plan)),
            first if first == plan.backbone.config.block_count() => Ok("in all blocks".to_owned()),
            first => Ok(format!("in {}", blocks_below(plan, first))),
        },
    },
    Optimization {
        name: "frozen blocks after the first epoch",
        check: |plan, index| {
            let first = frozen_blocks::check(plan, index)?;
            Ok(match first == plan.backbone.config.block_count() {
                true => "all blocks".to_owned(),
                false => blocks_below(plan, first),
            })
        },
    },
    Optimization {
        name: "activations of blocks",
        check: |plan, index| {
            match plan.stages[index].recompute {
            true => Ok("the backward pass computes them again from the input of each block".to_owned()),
            false => Err("`recompute = blocks` in the stage keeps only the input of each block, for about a third \
                          more time".to_owned()),
        }
        },
    },
    Optimization {
        name: "rows of the last block",
        check: |plan, index| {
            if is_gated_at_the_top(plan, index) {
                return Err("a gate in it reads all rows of a sequence".to_owned());
            }
            let task = plan.tasks.get(&plan.stages[index].task);
            let which = match task.map(|task| task.kind.head()) {
                Some(HeadKind::LanguageModel) => "only those that predict a token go on",
                Some(HeadKind::Tag) => "only those of words that are read go on",
                Some(HeadKind::Classify) | None => "one per sequence goes on",
            };
            Ok(format!("after its attention, {which}"))
        },
    },
    Optimization {
        name: "keys and values of the last block",
        check: |plan, index| {
            absorbed_keys::check(plan, index, true)?;
            Ok("the one row that is read attends to the block's inputs".to_owned())
        },
    },
    Optimization {
        name: "half of each product's bytes",
        check: |plan, _| match plan.backbone.precision {
            _ if plan.backbone.storage != Storage::F32 => Err(DECODED.to_owned()),
            Precision::Bf16 => Ok("frozen weights and their inputs are in bfloat16".to_owned()),
            Precision::F32 => Err(
                "`precision = bf16` in `backbone` rounds frozen weights and their inputs"
                    .to_owned(),
            ),
        },
    },
    // f32 products composed of int8 products, on processors that multiply bytes in tiles.
    Optimization {
        name: "time of f32 products, by AMX",
        check: |plan, _| {
            let hidden = plan.backbone.config.hidden;
            match plan.backbone.precision {
                _ if plan.backbone.storage != Storage::F32 => Err(DECODED.to_owned()),
                Precision::Bf16 => Err("the products are in bfloat16".to_owned()),
                _ if uses_amx(hidden, hidden) => Ok("elements are 24-bit integers".to_owned()),
                _ => Err("the processor has no AMX, or the backbone is too narrow".to_owned()),
            }
        },
    },
];

/// Whether a stage trains a weight of the backbone itself.
fn unfreezes_weights(plan: &Plan, index: usize) -> bool {
    let stage = &plan.stages[index];
    let config = &plan.backbone.config;
    let (tree, head) = (Tree::new(config), language_model_parameters(config));
    let biases: Vec<&String> = tree
        .parameters()
        .chain(&head)
        .filter(|parameter| parameter.is_bias())
        .map(|parameter| &parameter.path)
        .collect();
    let deltas = plan.deltas.iter();
    let trained = deltas.filter(|delta| stage.train.contains(&delta.name));
    let mut unfrozen = trained.flat_map(DeltaPlan::unfrozen);
    unfrozen.any(|path| !biases.contains(&path))
}

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
    let is_there = |delta: &DeltaPlan| delta.sites().iter().any(|site| site.starts_with(&last));
    let mut active = plan.active(stage).into_iter();
    active.any(|delta| delta.is_gated && is_there(delta))
}

/// Why nothing below is saved, and what to change.
fn first_is_trained(plan: &Plan) -> String {
    let half = plan.backbone.config.layers.div_ceil(2);
    format!("the first block is trained: try `block[last {half}]`")
}
