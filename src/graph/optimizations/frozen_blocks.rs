//! The blocks below the lowest trained site give the same activations for an example in every epoch, if nothing in them
//! is random. `train/frozen.rs` computes these activations once and keeps them, and later passes start from them
//! (`Batch::cached`).

use crate::backbone::Config;
use crate::plan::{DeltaPlan, Length, Plan};

/// Checks that a pass over this backbone can start at a block instead of at the embeddings.
///
/// # Errors
/// The reason it cannot, as a phrase.
pub fn fits(config: &Config) -> Result<(), String> {
    match config.decoder_layers {
        None => Ok(()),
        Some(_) => Err("every decoder block reads the encoder's output".to_owned()),
    }
}

/// The lowest block whose output may differ between epochs of a stage. The activations below it can be cached.
///
/// # Errors
/// The reason nothing can be cached, as a phrase.
pub fn check(plan: &Plan, index: usize) -> Result<usize, String> {
    let stage = &plan.stages[index];
    let first = plan.first_trained_block(index);
    let config = &plan.backbone.config;
    let is_below = |site: &String| config.reader_of(site) < first;
    let draws = |delta: &&&DeltaPlan| delta.dropout() > 0.0 && delta.sites().iter().any(is_below);
    let active = plan.active(index);
    if first == 0 {
        Err(super::first_is_trained(plan))
    } else if let Err(reason) = fits(config) {
        Err(reason)
    } else if plan.tasks[&stage.task].kind.noise().is_some() {
        Err("every epoch draws new masks".to_owned())
    } else if config.dropout > 0.0
        || config.embedding_dropout() > 0.0
        || config.attention_dropout > 0.0
    {
        Err("`dropout = off` in `backbone` removes the dropout below what is trained".to_owned())
    } else if let Some(delta) = active.iter().find(draws) {
        Err(format!(
            "`{}` has dropout below the lowest trained site",
            delta.name
        ))
    } else if matches!(stage.length, Length::Epochs(epochs) if epochs <= 1.0) {
        Err("the stage has no second epoch".to_owned())
    } else {
        Ok(first)
    }
}

/// Whether all runs with this backbone compute the same activations below the lowest trained site of a stage.
/// They do if no delta acts there, the weights come from a checkpoint, and every task reads these activations alike.
pub fn are_shared(plan: &Plan, index: usize) -> bool {
    let first = plan.first_trained_block(index);
    let is_below = |path: &String| plan.backbone.config.reader_of(path) < first;
    let has_part = |delta: &&DeltaPlan| delta.places().iter().any(is_below);
    let task = &plan.tasks[&plan.stages[index].task];
    let is_read_alike =
        first < plan.backbone.config.block_count() || !task.kind.uses_language_model();
    let active = plan.active(index);
    !plan.backbone.random && is_read_alike && !active.iter().any(has_part)
}
