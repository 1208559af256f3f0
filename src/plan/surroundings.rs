//! The interface through which planning looks at a pipeline file's surroundings.

use std::path::{Path, PathBuf};

use super::{BackbonePlan, Cloze, DeltaPlan, FilePlan, Origin, TaskPlan};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::engine::Storage;

/// The surroundings of a pipeline file: its backbone, the backbone's tokenizer, and finished runs.
///
/// Only [`Surroundings::backbone`] is required. If the other methods keep their defaults, the plan can be checked and
/// shown, but it lacks tokens and hashes and cannot be run.
pub trait Surroundings {
    /// Finds the directory and the dimensions of a backbone by its name or path in the file.
    ///
    /// # Errors
    /// There is no such backbone, or its dimensions cannot be found.
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem>;

    /// How a backbone's weights are stored where the pipeline does not say it.
    ///
    /// # Errors
    /// The backbone cannot be read.
    fn storage(&self, _directory: &Path) -> Result<Storage, Problem> {
        Ok(Storage::F32)
    }

    /// All labels of a task in files, each as often as it stands there; `None` if these surroundings have no data.
    ///
    /// # Errors
    /// A file cannot be read, or lacks the column.
    fn labels(&self, _: &TaskPlan, _: &[&FilePlan]) -> Result<Option<Vec<String>>, Problem> {
        Ok(None)
    }

    /// The name of a pipeline that has no `pipeline` statement.
    fn name(&self) -> &str {
        "pipeline"
    }

    /// Whether the checkpoint has an untied weight for its language-model head although `config.json` ties the head;
    /// `None` if we cannot tell.
    ///
    /// # Errors
    /// The checkpoint lacks a weight that `config.json` promises.
    fn has_head_weight(&self, backbone: &BackbonePlan) -> Result<Option<bool>, Problem> {
        Ok(Some(backbone.config.has_head_weight))
    }

    /// The backbone's tokenizer; `None` if these surroundings have none.
    ///
    /// # Errors
    /// The tokenizer cannot be read.
    fn tokenizer(&self, _: &BackbonePlan) -> Result<Option<Box<dyn Words>>, Problem> {
        Ok(None)
    }

    /// The hash of the finished run's file from which a delta starts.
    ///
    /// # Errors
    /// The directory is no finished run, or the run has no such delta.
    fn origin(&self, _: &DeltaPlan, _: &Origin) -> Result<String, Problem> {
        Ok(String::new())
    }
}

impl<F: Fn(&str) -> Result<(PathBuf, Config), Problem>> Surroundings for F {
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem> {
        self(location)
    }
}

/// The part of a tokenizer that planning needs.
pub trait Words {
    /// The tokens of a label word.
    ///
    /// # Errors
    /// The word is not a single token, and the cloze does not average several.
    fn word(&self, word: &str, cloze: &Cloze) -> Result<Vec<usize>, Problem>;

    /// The tokens of a text in a delta's settings.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    fn tokens(&self, text: &str) -> Result<Vec<usize>, Problem>;

    /// The same as a text of its own, with what the tokenizer puts around it.
    ///
    /// # Errors
    /// The tokenizer refuses it.
    fn framed(&self, text: &str) -> Result<Vec<usize>, Problem>;
}
