//! Drafts a pipeline for a file of examples: finds its format, its columns, what they are for, and how long its texts are.
//!
//! In: a data file, and a backbone if there is one already. Out: the text of a `.delta` file that runs, whose comments say
//! what was assumed. It knows no plans of other files, and trains nothing.

mod choices;
mod column;
mod file;
mod fit;
mod guess;
mod import;
mod write;

pub use import::import;

use std::path::Path;

use crate::backbone::{locate_config, read_config};
use crate::data::{sample, TextEncoder};
use crate::diagnostic::Problem;

/// Tokens of a text that are counted.
const MOST_TOKENS: usize = 4096;

/// A drafted pipeline.
#[derive(Debug)]
pub struct Draft {
    /// Its name, from the file's.
    pub name: String,
    /// Its text.
    pub text: String,
    /// What was found in the file, in one sentence.
    pub found: String,
}

impl Draft {
    /// A draft of a text in any form.
    ///
    /// # Errors
    /// The text is no pipeline.
    fn new(name: String, found: String, text: &str) -> Result<Self, Problem> {
        let text = crate::syntax::format(text).map_err(|problems| {
            let reasons = problems.iter().map(|problem| problem.message.as_str());
            Problem::internal(format!(
                "the draft is no pipeline: {}",
                reasons.collect::<String>()
            ))
        })?;
        Ok(Draft { name, text, found })
    }
}

/// Drafts a pipeline for a file. The paths in it are relative to this directory; they are whole if the pipeline
/// `is_elsewhere`.
///
/// # Errors
/// The file cannot be read, no task fits its columns, or the backbone cannot do the task.
pub fn draft(data: &Path, backbone: Option<&str>, is_elsewhere: bool) -> Result<Draft, Problem> {
    let mut file = file::look_at(data)?;
    let sample = sample(&file.plan)?;
    let directory = match backbone {
        None => None,
        Some(name) => Some(locate_config(name, Path::new(""))?),
    };
    let config = match &directory {
        None => None,
        Some(directory) => Some(read_config(directory)?),
    };
    let refused = |(message, help): (String, String)| {
        let message = format!("`{}`: {message}", data.display());
        Problem::new("delta::init::task", message).help(help)
    };
    let mut guess = guess::guess(&sample, config.as_ref()).map_err(refused)?;
    // Of a model of the hub, only `config.json` is here.
    let encoder = match (&directory, &config) {
        (Some(directory), Some(config)) => TextEncoder::open(directory, MOST_TOKENS, config).ok(),
        _ => None,
    };
    if encoder.as_ref().is_some_and(|own| !own.has_chat_template()) {
        guess = guess.without_chat_template().map_err(refused)?;
    }
    let mut notes = file.notes();
    notes.extend(file.keep_like(&sample, guess.class_label()));
    write::write(
        &file,
        &sample,
        &guess,
        (backbone, config.as_ref(), encoder.as_ref()),
        is_elsewhere,
        &notes,
    )
}
