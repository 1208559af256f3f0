//! Runs a finished run again from its record, and reports which figures or files differ.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde_json::Value;

use super::finished::refuse_change;
use super::{run, FinishedRun, Integrity, Manifest, RunEnd, Shared};
use crate::diagnostic::Problem;
use crate::disk;
use crate::engine::Device;
use crate::report::Progress;

/// One figure or file that was compared.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayedFigure {
    /// Its name: `stages.0.dev.metrics.accuracy`, or a file's.
    pub name: String,
    /// The value that the run recorded.
    pub then: String,
    /// The value of the replay.
    pub now: String,
}

impl ReplayedFigure {
    /// Whether nothing changed.
    pub fn is_same(&self) -> bool {
        self.then == self.now
    }
}

/// How a replay ended.
pub enum Replayed {
    /// It is complete. These are all comparisons.
    Complete(Vec<ReplayedFigure>),
    /// It was interrupted and can continue.
    Interrupted,
}

/// Measurements that differ from run to run and do not concern the result.
const MEASURED: [&str; 2] = ["seconds", "peak_memory"];

/// Runs a finished run again, into `out`, and compares the results of both.
///
/// # Errors
/// A file of the run, its backbone or its data has changed; what [`run`] reports.
pub fn replay(
    directory: &Path,
    out: &Path,
    integrity: Integrity,
    device: Device,
    interrupted: &AtomicBool,
    progress: Progress,
) -> Result<Replayed, Problem> {
    let then = FinishedRun::open(directory, integrity)?;
    let plan = then.plan()?;
    if plan.stages.is_empty() {
        let message = format!(
            "`{}` was combined from other runs and has no training to repeat",
            directory.display()
        );
        return Err(Problem::new("delta::run::no_training", message)
            .help("replay the runs that it was combined from, and combine them again"));
    }
    let source = then.text("pipeline.delta")?;
    let now = Manifest::new(&plan, &source)?;
    let changed = then.manifest().changed_input(&now);
    if !changed.is_empty() {
        let message = format!(
            "the inputs of `{}` are no longer those that it recorded: {} changed",
            directory.display(),
            crate::text::list(&changed)
        );
        refuse_change(integrity, message, "restore the recorded inputs")?;
    }
    let figures = |run: &FinishedRun| -> Result<Value, Problem> {
        serde_json::from_str(&run.text("metrics.json")?).map_err(Problem::internal)
    };
    let recorded = figures(&then)?;
    let delta = then.path("delta.safetensors")?;
    let shared = Shared {
        integrity,
        ..Shared::default()
    };
    let ended = run(&plan, &source, device, &shared, out, interrupted, progress)?;
    if let RunEnd::Interrupted(_) = ended {
        return Ok(Replayed::Interrupted);
    }
    let again = FinishedRun::open(out, integrity)?;
    let mut compared = Vec::new();
    compare("", &recorded, &figures(&again)?, &mut compared);
    let hash = |path: &Path| disk::hash(path).map_err(|e| disk::failed("read", path, &e));
    compared.push(ReplayedFigure {
        name: "delta.safetensors".to_owned(),
        then: hash(&delta)?,
        now: hash(&again.path("delta.safetensors")?)?,
    });
    Ok(Replayed::Complete(compared))
}

fn compare(name: &str, then: &Value, now: &Value, all: &mut Vec<ReplayedFigure>) {
    let within = |key: &str| match name {
        "" => key.to_owned(),
        _ => format!("{name}.{key}"),
    };
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let only_now = now.keys().filter(|key| !then.contains_key(*key));
            for key in then
                .keys()
                .chain(only_now)
                .filter(|key| !MEASURED.contains(&key.as_str()))
            {
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or_default()
                };
                compare(&within(key), &of(then), &of(now), all);
            }
        }
        (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
            for (index, (then, now)) in then.iter().zip(now).enumerate() {
                compare(&within(&index.to_string()), then, now, all);
            }
        }
        (Value::Null, Value::Null) => {}
        _ => all.push(ReplayedFigure {
            name: name.to_owned(),
            then: then.to_string(),
            now: now.to_string(),
        }),
    }
}
