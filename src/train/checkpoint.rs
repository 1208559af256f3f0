//! Checkpoints: everything that a run needs to resume with the same bits, in one file that is replaced as a whole.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::optimizer::Moments;
use super::{Evaluation, StageResult};
use crate::backbone::{write_tensors, Checkpoint};
use crate::diagnostic::Problem;
use crate::graph::{Tensors, Views};
use crate::text::hexadecimal;

/// How far a run has come. It has no random state, because every draw is a function of the seed and the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The stage that is under way.
    pub stage: usize,
    /// The number of its steps that are done.
    pub step: usize,
    /// The best evaluation so far, and its step.
    pub best: Option<(Evaluation, usize)>,
    /// The last evaluation.
    pub last: Option<Evaluation>,
    /// The number of evaluations since the best one.
    pub misses: usize,
    /// The results of the finished stages.
    pub results: Vec<StageResult>,
    /// The length of the log, in bytes.
    pub log_length: u64,
    /// Seconds spent in the stage so far.
    pub seconds: f64,
}

/// The state of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// How far it is.
    pub position: Position,
    /// All parameters of deltas and heads.
    pub values: Tensors,
    /// The optimizer's moments, by parameter key.
    pub moments: BTreeMap<String, Moments>,
    /// What deltas remember between steps.
    pub memory: BTreeMap<String, Vec<f32>>,
    /// The parameters that had the best metric.
    pub best: Tensors,
}

/// A [`State`] that borrows its parts from training, without a copy.
pub struct Snapshot<'a> {
    /// See [`State::position`].
    pub position: Position,
    /// See [`State::values`].
    pub values: Views<'a>,
    /// See [`State::moments`].
    pub moments: &'a BTreeMap<String, Moments>,
    /// See [`State::memory`].
    pub memory: &'a BTreeMap<String, Vec<f32>>,
    /// See [`State::best`].
    pub best: &'a Tensors,
}

const POSITION: &str = "position";

const DIGEST: &str = "sha256";

/// Writes a state to `path`, in place of the one that is there.
///
/// # Errors
/// The file cannot be written.
pub fn save(state: &Snapshot, path: &Path) -> Result<(), Problem> {
    let mut tensors: BTreeMap<String, (&[f32], Vec<usize>)> = BTreeMap::new();
    for (key, (values, shape)) in &state.values {
        tensors.insert(format!("value:{key}"), (values, shape.clone()));
    }
    for (key, (values, shape)) in state.best {
        tensors.insert(format!("best:{key}"), (values, shape.clone()));
    }
    let moments = state.moments.iter().flat_map(|(key, moments)| {
        [
            ("first", key, &moments.first),
            ("second", key, &moments.second),
        ]
    });
    let memory = state
        .memory
        .iter()
        .map(|(key, values)| ("memory", key, values));
    for (kind, key, values) in moments.chain(memory) {
        tensors.insert(format!("{kind}:{key}"), (values, vec![values.len()]));
    }
    let position = serde_json::to_string(&state.position).map_err(Problem::internal)?;
    let mut digest = Sha256::new();
    digest.update(&position);
    for (name, (values, _)) in &tensors {
        add_to(&mut digest, name, values);
    }
    let metadata = HashMap::from([
        (POSITION.to_owned(), position),
        (DIGEST.to_owned(), hexadecimal(&digest.finalize())),
    ]);
    write_tensors(path, &tensors, Some(metadata))
}

/// Adds a tensor to the digest of the content, which a checkpoint carries to detect damage.
fn add_to(digest: &mut Sha256, name: &str, values: &[f32]) {
    digest.update(name);
    digest.update(bytemuck::cast_slice(values));
}

/// Reads a state.
///
/// # Errors
/// The file is missing, truncated or corrupt.
pub fn load(path: &Path) -> Result<State, Problem> {
    let damaged = |reason: &dyn std::fmt::Display| {
        let message = format!("the checkpoint `{}` is damaged: {reason}", path.display());
        Problem::failure("delta::run::checkpoint", message)
            .help("restore a copy of it, or remove the unfinished run and start again")
    };
    let file = Checkpoint::open(&[path.to_path_buf()]).map_err(|e| damaged(&e.message))?;
    let text = file.metadata(POSITION).unwrap_or_default();
    let position = serde_json::from_str(&text).map_err(|e| damaged(&e))?;
    let mut state = State {
        position,
        ..State::default()
    };
    let mut digest = Sha256::new();
    digest.update(&text);
    for name in file.names() {
        let (values, shape) = file.read(name)?;
        add_to(&mut digest, name, &values);
        let Some((kind, key)) = name.split_once(':') else {
            return Err(damaged(&format!(
                "`{name}` does not belong to a training state"
            )));
        };
        let key = key.to_owned();
        match kind {
            "value" => drop(state.values.insert(key, (values, shape))),
            "best" => drop(state.best.insert(key, (values, shape))),
            "memory" => drop(state.memory.insert(key, values)),
            "first" => state.moments.entry(key).or_default().first = values,
            "second" => state.moments.entry(key).or_default().second = values,
            _ => {
                return Err(damaged(&format!(
                    "`{name}` does not belong to a training state"
                )))
            }
        }
    }
    match file.metadata(DIGEST) == Some(hexadecimal(&digest.finalize())) {
        true => Ok(state),
        false => Err(damaged(&"its digest does not match its content")),
    }
}
