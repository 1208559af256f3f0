//! Decides whether a language model's head has a weight of its own, as transformers 5 does (`modeling_utils.py`,
//! `tie_weights`). The checkpoint's tensors decide, and `config.json` only if they leave it open.

use std::path::Path;

use crate::backbone::{Checkpoint, Config, Tree};
use crate::diagnostic::Problem;

/// Whether a checkpoint has a head weight other than the word embedding although `config.json` ties them. If
/// `config.json` does not tie them, this is false.
///
/// # Errors
/// `config.json` does not tie them, but the checkpoint has only one of them; or the checkpoint cannot be read.
pub fn has_head_weight(config: &Config, directory: &Path) -> Result<bool, Problem> {
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
    // Without an embedding, `find` falls back to the decoder's name, which does not count as an embedding here.
    let embedding = file
        .find(table, &family.base_model_prefix)
        .filter(|name| *name != decoder);
    match (embedding, file.has(&decoder)) {
        (Some(embedding), true) => {
            Ok(!config.is_untied && file.read(&embedding)?.0 != file.read(&decoder)?.0)
        }
        (None, false) => Ok(false),
        (found, _) if config.is_untied => {
            let missing = match found {
                Some(_) => decoder,
                None => table.source.full_name(&family.base_model_prefix),
            };
            let message = format!(
                "`config.json` does not tie the head to the word embeddings, but the checkpoint has no `{missing}`"
            );
            Err(Problem::new("delta::weights::untied", message).help(
                "use a checkpoint that has it, or write `\"tie_word_embeddings\": true` into `config.json`",
            ))
        }
        _ => Ok(false),
    }
}
