//! Everything that a run needs to go on to the same bits, in one file that is replaced as a whole.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::optimizer::Moments;
use super::{Evaluation, StageResult};
use crate::backbone::Checkpoint;
use crate::diagnostic::Problem;
use crate::graph::Tensors;
use crate::peft::write_tensors;

/// How far a run is. Nothing random is in it: whatever is drawn is a function of the seed and the
/// step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Position {
    /// The stage that is under way.
    pub stage: usize,
    /// Its steps that are done.
    pub step: usize,
    /// The best evaluation so far, and the step that had it.
    pub best: Option<(Evaluation, usize)>,
    /// The last evaluation.
    pub last: Option<Evaluation>,
    /// Evaluations since then.
    pub misses: usize,
    /// What finished stages came to.
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
    /// The optimizer's memory.
    pub moments: BTreeMap<String, Moments>,
    /// What deltas remember between steps.
    pub memory: BTreeMap<String, Vec<f32>>,
    /// The parameters that had the best metric.
    pub best: Tensors,
}

const POSITION: &str = "position";

/// Writes a state to a temporary name beside `path`, then renames it.
///
/// # Errors
/// The file cannot be written.
pub fn save(state: &State, path: &Path) -> Result<(), Problem> {
    let mut tensors = Tensors::new();
    let mut put = |kind: &str, key: &str, values: &[f32], shape: &[usize]| {
        tensors.insert(format!("{kind}:{key}"), (values.to_vec(), shape.to_vec()));
    };
    for (key, (values, shape)) in &state.values {
        put("value", key, values, shape);
    }
    for (key, (values, shape)) in &state.best {
        put("best", key, values, shape);
    }
    for (key, moments) in &state.moments {
        put("first", key, &moments.first, &[moments.first.len()]);
        put("second", key, &moments.second, &[moments.second.len()]);
    }
    for (key, values) in &state.memory {
        put("memory", key, values, &[values.len()]);
    }
    let position = serde_json::to_string(&state.position).map_err(Problem::internal)?;
    let metadata = HashMap::from([(POSITION.to_owned(), position)]);
    let temporary = path.with_extension("writing");
    write_tensors(&temporary, &tensors, Some(metadata))?;
    std::fs::rename(&temporary, path).map_err(|e| {
        Problem::failure(
            "delta::run::write",
            format!("`{}` cannot be written: {e}", path.display()),
        )
    })
}

/// Reads a state.
///
/// # Errors
/// The file is missing, truncated or corrupt.
pub fn load(path: &Path) -> Result<State, Problem> {
    let file = Checkpoint::open(&[path.to_path_buf()])?;
    let position = file.metadata(POSITION).unwrap_or_default();
    let position = serde_json::from_str(&position).map_err(|e| {
        Problem::failure(
            "delta::run::checkpoint",
            format!("`{}` cannot be read: {e}", path.display()),
        )
        .help("remove the unfinished run and start again")
    })?;
    let mut state = State {
        position,
        ..State::default()
    };
    for name in file.names() {
        let (values, shape) = file.read(name)?;
        let Some((kind, key)) = name.split_once(':') else {
            continue;
        };
        let key = key.to_owned();
        match kind {
            "value" => drop(state.values.insert(key, (values, shape))),
            "best" => drop(state.best.insert(key, (values, shape))),
            "memory" => drop(state.memory.insert(key, values)),
            "first" => state.moments.entry(key).or_default().first = values,
            "second" => state.moments.entry(key).or_default().second = values,
            _ => {}
        }
    }
    Ok(state)
}
