//! Writes a finished run as llama.cpp reads it: its LoRA beside a model, or the model with the LoRA in it.

use std::path::Path;

use super::merge::merged_tensors;
use crate::backbone::{architecture_of_family, is_gguf, write_adapter, write_model, MatrixType};
use crate::diagnostic::Problem;
use crate::disk;
use crate::graph::Graph;
use crate::peft::plain_loras;
use crate::plan::Plan;

/// Writes the LoRA of a run as a GGUF adapter.
///
/// # Errors
/// The run's deltas are no LoRA, or llama.cpp has no such model; the file is there or cannot be written.
pub fn export_gguf(plan: &Plan, graph: &Graph, out: &Path) -> Result<(), Problem> {
    check(out)?;
    if plan.backbone.random {
        let message = "the run's backbone was drawn at random, so llama.cpp has no file of it";
        return Err(Problem::new("delta::run::gguf", message)
            .help("merge the run into a directory instead"));
    }
    let config = &plan.backbone.config;
    let family = config.family().name.as_str();
    let refused = |reason: &str| {
        let message = format!("the run cannot be a GGUF adapter: {reason}");
        Problem::new("delta::run::gguf", message)
    };
    let Some(architecture) = architecture_of_family(family) else {
        let reason = format!("deltarun writes no GGUF files for the family {family}");
        return Err(refused(&reason).help("use the adapter in `peft`"));
    };
    let task = plan.final_task();
    let writes = task.is_some_and(|(_, task)| task.kind.predicts_tokens());
    let trains_head = plan.stages.iter().any(|stage| stage.train_head);
    if !writes || trains_head {
        let reason = "it has a head of its own, which such an adapter does not hold";
        return Err(
            refused(reason).help("train the LoRA without `head`, for a task that predicts tokens")
        );
    }
    let loras = plain_loras(plan, graph).map_err(|reason| {
        refused(&reason)
            .help("merge the run instead: `deltarun merge RUN model.gguf`, or into a directory")
    })?;
    let heads = (config.heads, config.key_value_heads());
    write_adapter(out, architecture, heads, &plan.name, loras)
}

/// Writes a run's merged model with the metadata of its GGUF backbone.
///
/// # Errors
/// The backbone is no GGUF file; a delta cannot be folded; the file is there or cannot be written.
pub fn merge_gguf(plan: &Plan, graph: &Graph, out: &Path, kind: MatrixType) -> Result<(), Problem> {
    check(out)?;
    let source = &plan.backbone.directory;
    if !is_gguf(source) {
        let message = "the run's backbone is no GGUF file, whose tokenizer and settings the merged file would have";
        return Err(Problem::new("delta::run::gguf", message).help(
            "merge into a directory, and convert that with llama.cpp's `convert_hf_to_gguf.py`",
        ));
    }
    write_model(out, source, merged_tensors(plan, graph)?, kind)
}

fn check(out: &Path) -> Result<(), Problem> {
    if out
        .extension()
        .is_none_or(|ending| !ending.eq_ignore_ascii_case("gguf"))
    {
        let message = format!("`{}` does not end in `.gguf`", out.display());
        return Err(
            Problem::new("delta::run::gguf", message).help("name a file such as `lora.gguf`")
        );
    }
    if out.exists() {
        let message = format!("`{}` is there already", out.display());
        return Err(Problem::new("delta::run::exists", message)
            .help("name another file, or remove this one"));
    }
    let parent = disk::parent(out);
    std::fs::create_dir_all(parent).map_err(|e| disk::failed("made", parent, &e))
}
