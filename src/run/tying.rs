//! Whether a language model's head has a weight of its own: what the checkpoint's tensors say, and `config.json`
//! only where they leave it open, as transformers 5 decides it (`modeling_utils.py`, `tie_weights`).

use std::path::Path;

use crate::backbone::{head_parameters, Checkpoint, Config, Tree};
use crate::diagnostic::Problem;
use crate::plan::{Plan, TaskPlan};

/// Sets [`has_decoder`](crate::backbone::Config::has_decoder) by the backbone's checkpoint, where a task reads the
/// language model's head.
///
/// # Errors
/// `config.json` has them apart, and the checkpoint has one of them alone.
pub fn resolve_tying(plan: &mut Plan) -> Result<(), Problem> {
    let reads_it = plan.tasks.values().any(|task| task.uses_language_model());
    if !reads_it || plan.backbone.random {
        return Ok(());
    }
    // Weights that were not fetched yet say nothing: a run fetches them and plans again.
    let is_hub = plan.backbone.location.starts_with("hf:");
    if is_hub && Checkpoint::open_directory(&plan.backbone.directory).is_err() {
        return Ok(());
    }
    let span = plan.backbone.span;
    let (config, directory) = (&plan.backbone.config, &plan.backbone.directory);
    let found = has_decoder(config, directory).map_err(|problem| problem.or_at(span))?;
    plan.backbone.config.has_decoder = found;
    Ok(())
}

/// Whether every stage trains something: the head of a language model that is tied to the word embeddings has no
/// parameter of its own.
///
/// # Errors
/// A stage that trains nothing.
pub fn check_trained(plan: &Plan) -> Result<(), Problem> {
    let config = &plan.backbone.config;
    for stage in plan
        .stages
        .iter()
        .filter(|stage| stage.train_head && stage.train.is_empty())
    {
        let task = plan.tasks.get(&stage.task);
        let head = task
            .and_then(|task| Some((task, config.family().heads.of(task.uses_language_model())?)));
        let is_empty =
            |(task, head): (&TaskPlan, _)| head_parameters(config, head, task.outputs()).is_empty();
        if head.is_some_and(is_empty) {
            let message = format!(
                "stage `{}` trains nothing: the head's weight is the word embeddings', which are the backbone's",
                stage.name
            );
            let problem = Problem::new("delta::plan::nothing_trained", message);
            return Err(problem.at(stage.span, "in this stage").help(
                "write `unfreeze words = embeddings.word` and train `words`, or train a delta",
            ));
        }
    }
    Ok(())
}

/// Whether the checkpoint of a backbone has a decoder that is another than the word embedding.
///
/// # Errors
/// See [`resolve_tying`].
pub(super) fn has_decoder(config: &Config, directory: &Path) -> Result<bool, Problem> {
    let family = config.family();
    let step = family
        .heads
        .language_model()
        .and_then(|head| head.steps.last());
    let Some((table, untied)) = step.and_then(|s| s.weight.as_ref().zip(s.untied.as_ref())) else {
        return Ok(false);
    };
    let tree = Tree::new(config);
    let Some(table) = tree
        .module(table)
        .and_then(|module| module.parameters.first())
    else {
        return Ok(false);
    };
    let file = Checkpoint::open_directory(directory)?;
    let decoder = format!("{untied}.weight");
    // The decoder's own name is what the embedding is read from where there is nothing else.
    let embedding = file
        .find(table, &family.prefix)
        .filter(|name| *name != decoder);
    match (embedding, file.has(&decoder)) {
        (Some(embedding), true) => {
            Ok(!config.is_untied && file.read(&embedding)?.0 != file.read(&decoder)?.0)
        }
        (None, false) => Ok(false),
        (found, _) if config.is_untied => {
            let missing = match found {
                Some(_) => decoder,
                None => table.source.full_name(&family.prefix),
            };
            let message = format!(
                "by `config.json` the head is not tied to the word embedding, but the checkpoint has no `{missing}`"
            );
            Err(Problem::new("delta::weights::untied", message).help(
                "give a checkpoint that has it, or write `\"tie_word_embeddings\": true` into `config.json`",
            ))
        }
        _ => Ok(false),
    }
}
