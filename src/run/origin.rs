//! Deltas whose initial parameters come from a finished run.

use super::manifest::backbone_files;
use super::{FinishedRun, Integrity, Manifest};
use crate::diagnostic::Problem;
use crate::graph::{Graph, Tensors};
use crate::plan::{DeltaPlan, Origin, Plan};
use crate::terminal::note;
use crate::text::{did_you_mean, list, quoted_list};

const DELTA: &str = "delta.safetensors";

/// The hash of a run's `delta.safetensors`, from which a delta of the same name takes its initial parameters.
///
/// # Errors
/// The directory is no finished run, or the run has no such delta, or a different one of that name.
pub(super) fn origin_hash(
    delta: &DeltaPlan,
    origin: &Origin,
    integrity: Integrity,
) -> Result<String, Problem> {
    let shown = origin.run.display();
    let wrong =
        |message: String| Problem::new("delta::run::origin", message).at(origin.span, "here");
    // An unfinished run also has a plan, so look for the results.
    if !(origin.run.join(DELTA).exists() && origin.run.join(Manifest::FILE).exists()) {
        let problem = wrong(format!("`{shown}` is not a finished run"));
        return Err(
            problem.help("name the directory of a finished run, which contains `plan.yaml`")
        );
    }
    let run = FinishedRun::open(&origin.run, integrity)?;
    let other = run.plan()?;
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
        let message = format!(
            "`{}` is declared differently in the run `{shown}`",
            delta.name
        );
        let problem = wrong(message).at(delta.span, "declared here");
        return Err(problem.help(format!(
            "declare it as `{}` does, with the same method, settings and modules",
            origin.run.join("pipeline.delta").display()
        )));
    }
    let hash = run.hash(DELTA);
    hash.map_err(|problem| problem.or_at(origin.span))
}

/// A delta for a backbone that changed since it was trained.
fn refuse_backbone(
    origin: &Origin,
    changed: &[String],
    integrity: Integrity,
) -> Result<(), Problem> {
    let (run, changed) = (origin.run.display(), list(changed));
    let message = format!("`{run}` was trained on another backbone: {changed} changed since");
    if integrity == Integrity::Unchecked {
        note(&message);
        return Ok(());
    }
    let help =
        "use the backbone of that run, remove `from`, or accept the change with `--allow-changed`";
    Err(Problem::new("delta::run::other_backbone", message)
        .at(origin.span, "here")
        .help(help))
}

/// Checks that the configuration and the tokenizer of a plan's backbone are those of the runs from which its deltas
/// start. [`load_origins`] checks the weights.
///
/// # Errors
/// One of them changed.
pub(super) fn check_origins(plan: &Plan, integrity: Integrity) -> Result<(), Problem> {
    for origin in plan.deltas.iter().filter_map(|delta| delta.origin.as_ref()) {
        let theirs = Manifest::read(&origin.run)?;
        // Version 0.1.0 recorded weights alone.
        if theirs.backbone_files.is_empty() {
            continue;
        }
        let now = Manifest {
            backbone_files: backbone_files(&plan.backbone)?,
            ..theirs.clone()
        };
        let changed = theirs.changed_input(&now);
        if !changed.is_empty() {
            refuse_backbone(origin, &changed, integrity)?;
        }
    }
    Ok(())
}

/// Gives deltas the parameters of the runs from which they start.
///
/// # Errors
/// A run was trained on another backbone than the one in `manifest`; a file cannot be read.
pub(super) fn load_origins(
    plan: &Plan,
    manifest: &Manifest,
    graph: &mut Graph,
    integrity: Integrity,
) -> Result<(), Problem> {
    for delta in &plan.deltas {
        let Some(origin) = &delta.origin else {
            continue;
        };
        let run = FinishedRun::open(&origin.run, integrity)?;
        let theirs = &run.manifest().backbone_hash;
        if theirs.is_empty() || *theirs != manifest.backbone_hash {
            refuse_backbone(origin, &["the backbone's weights".to_owned()], integrity)?;
        }
        let stored = run.tensors()?;
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
