//! Deltas that begin as those of a finished run.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::directory::{read_manifest, Manifest};
use crate::backbone::Checkpoint;
use crate::diagnostic::Problem;
use crate::engine::Backend;
use crate::graph::{Graph, Tensors};
use crate::plan::{DeltaPlan, Plan};
use crate::text::{did_you_mean, hexadecimal, quoted_list};

const DELTA: &str = "delta.safetensors";

/// Looks at the runs from which deltas of a plan begin: each must have the same delta. The plan then
/// has the hash of what they left.
///
/// # Errors
/// A directory that is no finished run, or one without that delta or with another of that name.
pub fn resolve_origins(plan: &mut Plan) -> Result<(), Vec<Problem>> {
    let mut problems = Vec::new();
    for delta in &mut plan.deltas {
        match hash(delta) {
            Ok(hash) => {
                if let (Some(origin), Some(hash)) = (&mut delta.origin, hash) {
                    origin.hash = hash;
                }
            }
            Err(problem) => problems.push(problem),
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(problems),
    }
}

fn hash(delta: &DeltaPlan) -> Result<Option<String>, Problem> {
    let Some(origin) = &delta.origin else {
        return Ok(None);
    };
    let shown = origin.run.display();
    let wrong =
        |message: String| Problem::new("delta::run::origin", message).at(origin.span, "here");
    let Some(other) = read_plan(&origin.run) else {
        let problem = wrong(format!("`{shown}` is not a finished run"));
        return Err(problem.help("give a directory that a run left, with `plan.yaml` in it"));
    };
    let same_name = other.deltas.iter().find(|other| other.name == delta.name);
    let Some(found) = same_name else {
        let known = || other.deltas.iter().map(|delta| delta.name.as_str());
        let problem = wrong(format!("the run `{shown}` has no delta `{}`", delta.name));
        return Err(match did_you_mean(&delta.name, known()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("it has {}", quoted_list(known()))),
        });
    };
    if (&found.change, found.is_gated) != (&delta.change, delta.is_gated) {
        let message = format!("`{}` is another delta in the run `{shown}`", delta.name);
        let problem = wrong(message).at(delta.span, "declared here");
        return Err(problem.help(format!(
            "declare it as `{}` does: its method, its settings and its places",
            origin.run.join("pipeline.delta").display()
        )));
    }
    let bytes = std::fs::read(origin.run.join(DELTA))
        .map_err(|e| wrong(format!("`{shown}` cannot be read: {e}")))?;
    Ok(Some(hexadecimal(&Sha256::digest(bytes))))
}

fn read_plan(run: &Path) -> Option<Plan> {
    let text = std::fs::read_to_string(run.join("plan.yaml")).ok()?;
    // A run that is under way has a plan, too.
    run.join(DELTA)
        .exists()
        .then(|| Plan::from_yaml(&text).ok())?
}

/// Gives deltas the parameters that their runs left.
///
/// # Errors
/// A run was trained on another backbone than `manifest` has; a file that cannot be read.
pub(super) fn load_origins<D: Backend>(
    plan: &Plan,
    manifest: &Manifest,
    graph: &mut Graph<D>,
) -> Result<(), Problem> {
    for delta in &plan.deltas {
        let Some(origin) = &delta.origin else {
            continue;
        };
        let theirs = read_manifest(&origin.run)?.backbone_hash;
        if theirs.is_empty() || theirs != manifest.backbone_hash {
            let message = format!(
                "`{}` was trained on another backbone: its weights differ",
                origin.run.display()
            );
            return Err(Problem::new("delta::run::other_backbone", message)
                .at(origin.span, "here")
                .help("use the backbone of that run, or remove `from`"));
        }
        let stored = Checkpoint::open(&[origin.run.join(DELTA)])?;
        let prefix = format!("{}.", delta.name);
        let mut tensors = Tensors::new();
        for name in stored
            .names()
            .into_iter()
            .filter(|name| name.starts_with(&prefix))
        {
            tensors.insert(name.to_owned(), stored.read(name)?);
        }
        graph.set(tensors)?;
    }
    Ok(())
}
