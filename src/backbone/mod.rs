//! Pre-trained backbones: families described as data, the module tree, the loading of weights.
//!
//! In: a Hugging Face directory. Out: a [`Config`] and a [`Tree`] for the plan, tensors for the
//! graph. This module knows nothing of deltas or training.

mod architecture;
mod blocks;
mod checks;
mod config;
mod config_keys;
mod derived;
pub mod family;
mod gguf;
mod keys;
mod mapped;
mod rotary;
mod source;
mod tree;
mod weights;
mod written;

pub use architecture::{
    Architecture, Distances, FeedForwardKind, NormKind, NormPlace, Positions, Stack,
};
pub use blocks::{BlockKind, Rotation};
pub use config::{Config, LARGEST};
pub use gguf::{
    architecture_of_family, exists, is_gguf, own_storage, read_text, text_in_gguf, write_adapter,
    write_model, LowRank, MatrixType,
};
pub use rotary::{RopeScaling, Rotary};
pub use source::{fetch_weights, locate, locate_config, locate_saved, read_config, saved_head};
pub use tree::{
    head_parameters, language_model_parameters, CheckpointTensor, Module, Parameter, Part, Role,
    Site, Tree,
};
pub use weights::Checkpoint;
pub use written::write_tensors;

/// The files of a backbone that we read in addition to its weights.
pub const FILES_BESIDE_WEIGHTS: [&str; 5] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
];
