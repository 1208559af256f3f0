//! What planning asks of what lies around a file.

use std::path::PathBuf;

use super::{BackbonePlan, Cloze, DeltaPlan, Origin};
use crate::backbone::Config;
use crate::diagnostic::Problem;

/// What lies around a file: its backbone, the backbone's tokenizer, finished runs. Whoever has only the dimensions of
/// a backbone is asked for nothing else; the plan then lacks what they do not have, and cannot be run.
pub trait Surroundings {
    /// The directory and the dimensions of a backbone, by what the file calls it.
    ///
    /// # Errors
    /// There is none, or it is not known.
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem>;

    /// What a pipeline without a name is called.
    fn name(&self) -> &str {
        "pipeline"
    }

    /// Whether the checkpoint has a language model's head of its own, whatever `config.json` says; nothing where that
    /// is not known.
    ///
    /// # Errors
    /// It has less than `config.json` says.
    fn has_head_weight(&self, backbone: &BackbonePlan) -> Result<Option<bool>, Problem> {
        Ok(Some(backbone.config.has_head_weight))
    }

    /// The backbone's tokenizer.
    ///
    /// # Errors
    /// It cannot be read.
    fn tokenizer(&self, _: &BackbonePlan) -> Result<Option<Box<dyn Words>>, Problem> {
        Ok(None)
    }

    /// The hash of what a finished run left of a delta, which begins from it.
    ///
    /// # Errors
    /// It is no finished run, or has no such delta.
    fn origin(&self, _: &DeltaPlan, _: &Origin) -> Result<String, Problem> {
        Ok(String::new())
    }
}

impl<F: Fn(&str) -> Result<(PathBuf, Config), Problem>> Surroundings for F {
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem> {
        self(location)
    }
}

/// What a tokenizer makes of words.
pub trait Words {
    /// The tokens of a label word.
    ///
    /// # Errors
    /// It is not one token, and the cloze takes no mean of several.
    fn word(&self, word: &str, cloze: &Cloze) -> Result<Vec<usize>, Problem>;

    /// The tokens of a text in a delta's settings.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    fn tokens(&self, text: &str) -> Result<Vec<usize>, Problem>;
}
