//! PEFT's format on disk: `adapter_config.json` and `adapter_model.safetensors`, read and written.
//!
//! We read more strictly than PEFT, which only warns of missing tensors and silently drops extra ones.
//! Here a file must have exactly the tensors that its configuration asks for.

mod export;
mod form;
mod import;
mod layers;
mod low_rank;
mod norms;
mod prompts;
mod reader;
mod settings;
mod targets;
mod token_rows;
mod tuner;
mod unfrozen;

use std::collections::BTreeSet;

use crate::delta::PeftConfig;
use crate::graph::Tensors;

pub use export::export;
pub use form::why_not;
pub use import::{import, is_language_model, read_settings, Imported};
pub use low_rank::plain_loras;

/// The prefix of modules' names in an adapter's file.
const KEY_PREFIX: &str = "base_model.model.";

/// The name of a module as PEFT sees it, without PEFT's own prefix.
fn module_name(prefix: &str, checkpoint_name: &str) -> String {
    format!("{prefix}{checkpoint_name}")
}

/// Deltas as PEFT stores them.
#[derive(Default)]
struct PeftDeltas {
    settings: PeftConfig,
    tensors: Tensors,
    /// The names of the modules that have a delta.
    targets: BTreeSet<String>,
}
