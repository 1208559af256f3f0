//! A run folded into its backbone: a directory that transformers loads without PEFT.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{json, Value};

use super::Directory;
use crate::backbone::{Module, Parameter, Site};
use crate::delta::{transposed, Folded, Preposition};
use crate::diagnostic::Problem;
use crate::engine::Backend;
use crate::graph::{Graph, Placed, Tensors};
use crate::peft::write_tensors;
use crate::plan::{Plan, TaskKind, TaskPlan};

/// Writes `config.json`, `model.safetensors` and the tokenizer into `out`.
///
/// # Errors
/// A delta in place cannot be folded; `out` exists; a file cannot be written.
pub fn merge<D: Backend>(plan: &Plan, graph: &Graph<D>, out: &Path) -> Result<(), Problem> {
    Directory::check(out)?;
    let tensors = merged_tensors(plan, graph)?;
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    let partial = out.with_file_name(name);
    let failed = |e: std::io::Error| {
        Problem::failure(
            "delta::run::io",
            format!("`{}` could not be written: {e}", partial.display()),
        )
    };
    std::fs::create_dir_all(&partial).map_err(failed)?;
    write_tensors(&partial.join("model.safetensors"), &tensors, None)?;
    let config = merged_config(plan)?;
    let text = serde_json::to_string_pretty(&config).map_err(Problem::internal)?;
    std::fs::write(partial.join("config.json"), text + "\n").map_err(failed)?;
    for file in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
    ] {
        let source = plan.backbone.directory.join(file);
        if source.exists() {
            std::fs::copy(source, partial.join(file)).map_err(failed)?;
        }
    }
    std::fs::rename(&partial, out).map_err(failed)
}

/// Every weight of the model under its checkpoint name, deltas folded in.
fn merged_tensors<D: Backend>(plan: &Plan, graph: &Graph<D>) -> Result<Tensors, Problem> {
    let prefix = &plan.backbone.config.family().prefix;
    let mut parts: BTreeMap<String, Vec<(Parameter, Vec<f32>)>> = BTreeMap::new();
    for module in graph.tree().modules() {
        let layer = folded(graph, module)?;
        for parameter in &module.parameters {
            let values = match &layer {
                Some(layer) if parameter.path.ends_with(".weight") => Some(layer.weight.clone()),
                Some(layer) => layer.bias.clone(),
                None => graph.effective(&parameter.path),
            };
            let Some(values) = values else { continue };
            let name = parameter.source.full_name(&prefix);
            parts
                .entry(name)
                .or_default()
                .push((parameter.clone(), values));
        }
    }
    for (parameter, key) in graph.head_keys() {
        let Some(values) = graph.tensor(&key) else {
            continue;
        };
        let name = parameter.source.full_name(&prefix);
        parts.entry(name).or_default().push((parameter, values));
    }
    Ok(parts
        .into_iter()
        .map(|(name, parts)| (name, stored(parts)))
        .collect())
}

/// A module's weight and bias with the deltas at it; nothing where there are none.
fn folded<D: Backend>(graph: &Graph<D>, module: &Module) -> Result<Option<Folded>, Problem> {
    let deltas = graph.deltas_at(&module.path);
    if deltas.is_empty() {
        return Ok(None);
    }
    let base = graph.effective(&format!("{}.weight", module.path));
    let base = base.unwrap_or_default();
    let bias = graph.effective(&format!("{}.bias", module.path));
    let mut layer = Folded {
        weight: base.clone(),
        bias: bias.clone(),
        base,
        base_bias: bias,
    };
    for Placed {
        delta,
        method,
        is_gated,
    } in deltas
    {
        let tensor = |name: &str| {
            graph
                .delta_tensor(delta, &module.path, name)
                .unwrap_or_default()
        };
        let reason = match module.site {
            _ if *is_gated => Some("its gate opens differently for every text"),
            Site::Embedding if graph.task().is_some_and(TaskPlan::uses_language_model) => {
                Some("the language model's head reads the same table without it")
            }
            Site::Linear | Site::Embedding => {
                let is_done = method.fold(module, &mut layer, &tensor);
                (!is_done).then_some("what it does is no change of a weight")
            }
            Site::Attention | Site::FeedForward if method.preposition() != Preposition::Before => {
                Some("it is a network of its own beside the weights")
            }
            Site::Attention | Site::Embeddings => Some("it adds rows, which no weight can do"),
            _ => Some("it spans several weights"),
        };
        if let Some(reason) = reason {
            let message = format!(
                "`{delta}` ({}) at `{}` cannot be folded into the backbone's weights: {reason}",
                method.name(),
                module.path
            );
            return Err(Problem::new("delta::run::cannot_merge", message)
                .help("keep the run as it is: `deltarun predict` reads it"));
        }
    }
    Ok(Some(layer))
}

/// A tensor as the checkpoint stores it: parts of a fused weight side by side, transposed again.
fn stored(mut parts: Vec<(Parameter, Vec<f32>)>) -> (Vec<f32>, Vec<usize>) {
    parts.sort_by_key(|(parameter, _)| parameter.source.part);
    let parameter = parts[0].0.clone();
    let mut shape = parameter.shape.clone();
    shape[0] *= parts.len();
    let values: Vec<f32> = parts.into_iter().flat_map(|(_, values)| values).collect();
    if !parameter.source.transposed {
        return (values, shape);
    }
    (transposed(&values, shape[1]), vec![shape[1], shape[0]])
}

/// The backbone's `config.json`, with the labels and the architecture of the merged model.
fn merged_config(plan: &Plan) -> Result<Value, Problem> {
    let path = plan.backbone.directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        Problem::failure(
            "delta::run::io",
            format!("`{}` could not be read: {e}", path.display()),
        )
    })?;
    let mut config: Value = serde_json::from_str(&text).map_err(Problem::internal)?;
    let family = &plan.backbone.config.family().architecture;
    if let Some((_, task)) = plan.final_task() {
        let heads = &plan.backbone.config.family().heads;
        let suffix = match (task.uses_language_model(), &heads.masked_lm) {
            (true, Some(_)) => "ForMaskedLM",
            (true, None) => "LMHeadModel",
            (false, _) => "ForSequenceClassification",
        };
        config["architectures"] = json!([format!("{family}{suffix}")]);
        if !task.uses_language_model() {
            let names: Vec<String> = match task.kind {
                TaskKind::Regress => vec![task.label.clone()],
                _ => task.labels.iter().map(|label| label.name.clone()).collect(),
            };
            let numbered = || names.iter().enumerate();
            config["id2label"] = numbered()
                .map(|(i, name)| (i.to_string(), json!(name)))
                .collect();
            config["label2id"] = numbered()
                .map(|(i, name)| (name.clone(), json!(i)))
                .collect();
        }
    }
    Ok(config)
}
