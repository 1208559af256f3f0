//! The LoRAs and the head of a run, as PEFT would have saved them.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Map, Value};

use super::{module_name, KEY_PREFIX};
use crate::backbone::{Module, Site};
use crate::delta::Method;
use crate::diagnostic::Problem;
use crate::engine::Backend;
use crate::graph::{Graph, Tensors};
use crate::plan::{Change, Plan};

/// Why what a plan leaves has no form in PEFT, if it has none.
pub fn why_not(plan: &Plan) -> Option<String> {
    let active = plan.active(plan.stages.len());
    for delta in &active {
        match &delta.change {
            Change::Unfreeze { .. } => {
                return Some(format!(
                    "`{}` changes weights of the backbone itself",
                    delta.name
                ));
            }
            Change::Method { method, .. } if method.peft_tensors().is_empty() => {
                return Some(format!("PEFT has no `{}`", method.name()));
            }
            Change::Method { .. } => {}
        }
    }
    if active.is_empty() {
        return Some("only the head was trained".to_owned());
    }
    match plan.final_task() {
        Some((_, task)) if task.uses_language_model() => {
            Some("the head is a language model's".to_owned())
        }
        _ => None,
    }
}

/// A LoRA at one checkpoint module, as PEFT stores it.
struct Adapter {
    rank: usize,
    alpha: f32,
    /// `(rank, in)`
    a: Vec<f32>,
    /// `(out, rank)`
    b: Vec<f32>,
    input: usize,
    output: usize,
}

/// Writes `adapter_config.json`, `adapter_model.safetensors` and a `README.md` into `directory`.
///
/// # Errors
/// A file cannot be written.
pub fn export<D: Backend>(plan: &Plan, graph: &Graph<D>, directory: &Path) -> Result<(), Problem> {
    let failed = |e: std::io::Error| {
        Problem::failure(
            "delta::run::write",
            format!("`{}` cannot be written: {e}", directory.display()),
        )
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    let adapters = adapters(plan, graph);
    let mut tensors = Tensors::new();
    for (name, adapter) in &adapters {
        let key = |suffix: &str| format!("{KEY_PREFIX}{name}.{suffix}.weight");
        tensors.insert(
            key("lora_A"),
            (adapter.a.clone(), vec![adapter.rank, adapter.input]),
        );
        tensors.insert(
            key("lora_B"),
            (adapter.b.clone(), vec![adapter.output, adapter.rank]),
        );
    }
    let prefix = plan.backbone.config.family().prefix;
    let mut saved: Vec<String> = Vec::new();
    for (parameter, key) in graph.head_keys() {
        let Some(values) = graph.tensor(&key) else {
            continue;
        };
        let stored = format!("{KEY_PREFIX}{}", parameter.source.full_name(&prefix));
        tensors.insert(stored, (values, parameter.shape.clone()));
        let module = parameter
            .source
            .name
            .split('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        if !saved.contains(&module) {
            saved.push(module);
        }
    }
    let config = config(plan, graph, &adapters, &saved);
    let text = serde_json::to_string_pretty(&config).map_err(Problem::internal)?;
    std::fs::write(directory.join("adapter_config.json"), text + "\n").map_err(failed)?;
    write_tensors(&directory.join("adapter_model.safetensors"), &tensors, None)?;
    std::fs::write(directory.join("README.md"), card(plan)).map_err(failed)
}

/// Writes tensors in the safetensors format, with text metadata.
///
/// # Errors
/// The file cannot be written.
pub fn write_tensors(
    path: &Path,
    tensors: &Tensors,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<(), Problem> {
    let bytes: Vec<(String, Vec<u8>, Vec<usize>)> = tensors
        .iter()
        .map(|(key, (values, shape))| {
            let bytes = values
                .iter()
                .flat_map(|value| value.to_le_bytes())
                .collect();
            (key.clone(), bytes, shape.clone())
        })
        .collect();
    let views = bytes
        .iter()
        .map(|(key, bytes, shape)| Ok((key, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(Problem::internal)?;
    let metadata = metadata.or_else(|| Some([("format".to_owned(), "pt".to_owned())].into()));
    safetensors::serialize_to_file(views, metadata, path).map_err(|e| {
        Problem::failure(
            "delta::run::write",
            format!("`{}` cannot be written: {e}", path.display()),
        )
    })
}

/// The LoRAs in place, by the name of the module that PEFT knows. Several at one module, or on
/// parts of a fused one, become one LoRA of their ranks' sum.
fn adapters<D: Backend>(plan: &Plan, graph: &Graph<D>) -> BTreeMap<String, Adapter> {
    let prefix = plan.backbone.config.family().prefix;
    let mut parts: BTreeMap<String, Vec<(Adapter, usize, usize)>> = BTreeMap::new();
    for delta in plan.active(plan.stages.len()) {
        let Change::Method {
            method: Method::Lora(lora),
            sites,
        } = &delta.change
        else {
            continue;
        };
        for module in sites.iter().filter_map(|site| graph.tree().module(site)) {
            let tensor = |name: &str| {
                graph
                    .tensor(&format!("{}.{}.{name}", delta.name, module.path))
                    .unwrap_or_default()
            };
            let adapter = Adapter {
                rank: lora.rank,
                alpha: lora.alpha,
                a: tensor("A"),
                b: tensor("B"),
                input: module.input,
                output: module.output,
            };
            let (first_row, rows) = place_in_checkpoint(module);
            let name = module_name(&prefix, &module.checkpoint_name);
            parts
                .entry(name)
                .or_default()
                .push((adapter, first_row, rows));
        }
    }
    parts
        .into_iter()
        .map(|(name, parts)| (name, join(parts)))
        .collect()
}

/// The first output row of a module within its checkpoint tensor, and that tensor's rows.
fn place_in_checkpoint(module: &Module) -> (usize, usize) {
    match module.parameters.first() {
        Some(parameter) if module.site == Site::Linear => {
            let source = &parameter.source;
            (source.part * module.output, source.parts * module.output)
        }
        _ => (0, module.output),
    }
}

/// Several LoRAs as one: A stacked, B side by side with the scalings folded in, so that
/// `alpha = rank`.
fn join(mut parts: Vec<(Adapter, usize, usize)>) -> Adapter {
    if parts.len() == 1 && parts[0].0.output == parts[0].2 {
        return parts.remove(0).0;
    }
    let rank: usize = parts.iter().map(|(adapter, ..)| adapter.rank).sum();
    let (input, output) = (parts[0].0.input, parts[0].2);
    let mut joined = Adapter {
        rank,
        alpha: rank as f32,
        a: Vec::new(),
        b: vec![0.0; output * rank],
        input,
        output,
    };
    let mut first_column = 0;
    for (adapter, first_row, _) in &parts {
        joined.a.extend_from_slice(&adapter.a);
        let scaling = adapter.alpha / adapter.rank as f32;
        for (row, values) in adapter.b.chunks_exact(adapter.rank).enumerate() {
            let start = (first_row + row) * rank + first_column;
            for (target, value) in joined.b[start..].iter_mut().zip(values) {
                *target = scaling * value;
            }
        }
        first_column += adapter.rank;
    }
    joined
}

fn config<D: Backend>(
    plan: &Plan,
    graph: &Graph<D>,
    adapters: &BTreeMap<String, Adapter>,
    saved: &[String],
) -> Value {
    let (rank, alpha) = most_common(adapters);
    let mut ranks = Map::new();
    let mut alphas = Map::new();
    for (name, adapter) in adapters {
        let pattern = fancy_regex::escape(name).into_owned();
        if adapter.rank != rank {
            ranks.insert(pattern.clone(), json!(adapter.rank));
        }
        if adapter.alpha != alpha {
            alphas.insert(pattern, json!(adapter.alpha));
        }
    }
    let transposed = |name: &String| {
        graph.tree().parameters().any(|p| {
            p.source.transposed && name.ends_with(p.source.name.trim_end_matches(".weight"))
        })
    };
    let dropout = plan
        .active(plan.stages.len())
        .iter()
        .find_map(|delta| match &delta.change {
            Change::Method {
                method: Method::Lora(lora),
                ..
            } => Some(lora.dropout),
            _ => None,
        });
    json!({
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": base_name(plan),
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout.unwrap_or(0.0),
        "bias": "none",
        "fan_in_fan_out": adapters.keys().any(transposed),
        "inference_mode": true,
        "init_lora_weights": true,
        "target_modules": targets(graph, plan, adapters),
        "modules_to_save": saved,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_dora": false,
        "use_rslora": false,
    })
}

/// What PEFT is told of the backbone: the hub's name, or the directory.
fn base_name(plan: &Plan) -> String {
    match plan.backbone.location.strip_prefix("hf:") {
        Some(name) => name.to_owned(),
        None => {
            let directory = &plan.backbone.directory;
            directory
                .canonicalize()
                .unwrap_or_else(|_| directory.clone())
                .display()
                .to_string()
        }
    }
}

fn most_common(adapters: &BTreeMap<String, Adapter>) -> (usize, f32) {
    let mut counts: Vec<((usize, f32), usize)> = Vec::new();
    for adapter in adapters.values() {
        let setting = (adapter.rank, adapter.alpha);
        match counts.iter_mut().find(|(other, _)| *other == setting) {
            Some((_, count)) => *count += 1,
            None => counts.push((setting, 1)),
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map_or((8, 16.0), |(setting, _)| setting)
}

/// The last parts of the modules' names where they say exactly the same, else the full names; PEFT
/// reads both. Sorted: PEFT's own order is that of a set.
fn targets<D: Backend>(
    graph: &Graph<D>,
    plan: &Plan,
    adapters: &BTreeMap<String, Adapter>,
) -> Vec<String> {
    let prefix = plan.backbone.config.family().prefix;
    let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut endings: Vec<String> = adapters.keys().map(|name| ending(name)).collect();
    endings.sort();
    endings.dedup();
    let said: std::collections::BTreeSet<String> = graph
        .tree()
        .modules()
        .iter()
        .filter(|module| !module.checkpoint_name.is_empty())
        .map(|module| module_name(&prefix, &module.checkpoint_name))
        .chain(
            graph
                .head_keys()
                .iter()
                .map(|(p, _)| p.source.name.trim_end_matches(".weight").to_owned()),
        )
        .filter(|name| endings.contains(&ending(name)))
        .collect();
    match said.iter().eq(adapters.keys()) {
        true => endings,
        false => adapters.keys().cloned().collect(),
    }
}

fn card(plan: &Plan) -> String {
    format!(
        "---\nbase_model: {}\nlibrary_name: peft\n---\n\n\
         # {}\n\nA LoRA trained by deltarun {}. Load it with \
         `PeftModel.from_pretrained(model, \".\")`.\n",
        base_name(plan),
        plan.name,
        env!("CARGO_PKG_VERSION"),
    )
}
