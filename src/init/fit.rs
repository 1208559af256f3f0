//! Whether a backbone can do a task.

use super::guess::{FileKind, Refusal};
use crate::backbone::Config;

/// Checks that a backbone can do the task.
pub(super) fn check(guess: &FileKind, config: Option<&Config>) -> Result<(), Refusal> {
    let Some(config) = config else { return Ok(()) };
    let family = &config.family().name;
    let (what, fits, example) = match guess {
        FileKind::Messages { .. }
        | FileKind::Instruct { .. }
        | FileKind::Plain { .. }
        | FileKind::Choose { .. }
        | FileKind::Alpaca { .. }
        | FileKind::Reading { .. }
        | FileKind::Prefer { .. } => (
            "prompts and answers",
            config.is_decoder(),
            "hf:HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        FileKind::Translate { .. } => (
            "texts and their targets",
            config.is_decoder() || config.decoder_layers.is_some(),
            "hf:google/flan-t5-small",
        ),
        FileKind::Tag { .. } => (
            "words and their tags",
            config.family().heads.tag.is_some(),
            "hf:distilbert/distilbert-base-cased",
        ),
        _ => return Ok(()),
    };
    match fits {
        true => Ok(()),
        false => Err((
            format!("its rows are {what}, which a backbone of the family {family} does not learn"),
            format!("name another backbone, such as `--backbone {example}`"),
        )),
    }
}
