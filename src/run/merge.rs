//! Folds a run into its backbone, and writes a directory that transformers loads without PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{json, Value};

use super::{has_head_weight, Directory};
use crate::backbone::{
    exists, read_config, read_text, write_tensors, Checkpoint, Module, Parameter, Site,
};
use crate::delta::{transposed, Folded, Preposition};
use crate::diagnostic::Problem;
use crate::disk;
use crate::engine::{Layout, Storage};
use crate::graph::{device_problem, Batch, DecoderRows, Graph, Placed, Tensors};
use crate::plan::{BackbonePlan, Plan};

/// The files of the backbone's directory that a merged model keeps, in addition to its weights and configuration.
const KEPT: [&str; 11] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// Writes `config.json`, `model.safetensors` and the tokenizer into `out`. Before the directory gets this name, reads
/// it back and checks that it gives the logits of the run.
///
/// # Errors
/// A delta in place cannot be folded; `out` exists; a file cannot be written; the merged model gives other logits.
pub fn merge(plan: &Plan, graph: &Graph, out: &Path) -> Result<(), Problem> {
    Directory::check(out)
        .map_err(|problem| problem.help("name another directory, or remove this one"))?;
    let tensors = merged_tensors(plan, graph)?;
    let failed = |e: &std::io::Error| disk::failed("written", out, e);
    std::fs::create_dir_all(disk::parent(out)).map_err(|e| failed(&e))?;
    let mut place = tempfile::Builder::new();
    place.prefix(".merging-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        place.permissions(std::fs::Permissions::from_mode(0o777));
    }
    let place = place
        .tempdir_in(disk::parent(out))
        .map_err(|e| failed(&e))?;
    write_tensors(&place.path().join("model.safetensors"), &tensors, None)?;
    let config = serde_json::to_string_pretty(&merged_config(plan)?).map_err(Problem::internal)?;
    disk::replace(
        &place.path().join("config.json"),
        (config + "\n").as_bytes(),
    )
    .map_err(|e| failed(&e))?;
    for file in KEPT {
        let own = plan.backbone.tokenizer.iter();
        let folders = own.chain([&plan.backbone.directory]);
        let source = folders
            .map(|folder| folder.join(file))
            .find(|source| exists(source));
        let Some(source) = source else { continue };
        let copy = place.path().join(file);
        if source.exists() {
            std::fs::copy(source, copy).map_err(|e| failed(&e))?;
        } else {
            let text = read_text(&source).map_err(|e| failed(&e))?;
            std::fs::write(copy, text).map_err(|e| failed(&e))?;
        }
    }
    check_logits(plan, graph, place.path())?;
    std::fs::rename(place.path(), out).map_err(|e| failed(&e))?;
    // The directory was renamed, so there is nothing left to remove.
    let _ = place.keep();
    disk::sync_directory(disk::parent(out)).map_err(|e| failed(&e))
}

/// The largest difference of logits that we accept, relative to the largest logit. Folding rounds once more, so there
/// is some.
const MOST_DIFFERENCE: f32 = 1e-3;

/// Checks that the model in a directory gives the same logits as the run.
fn check_logits(plan: &Plan, graph: &Graph, merged: &Path) -> Result<(), Problem> {
    let Some((name, task)) = plan.final_task() else {
        return Ok(());
    };
    let mut config = read_config(merged)?;
    if task.kind.uses_language_model() {
        config.has_head_weight = has_head_weight(&config, merged)?;
    }
    let back = Plan {
        tasks: [(name.to_owned(), task.clone())].into(),
        deltas: Vec::new(),
        stages: Vec::new(),
        backbone: BackbonePlan {
            directory: merged.to_owned(),
            random: false,
            storage: Storage::F32,
            config,
            ..plan.backbone.clone()
        },
        ..plan.clone()
    };
    let mut read = Graph::load(&back, graph.device().clone())?;
    read.activate(&back, 0)?;
    let batch = probe(plan);
    let logits = |graph: &Graph| -> Result<Vec<f32>, Problem> {
        let logits = graph.inference().logits(&batch).map_err(device_problem)?;
        Ok(logits.read())
    };
    let (expected, found) = (logits(graph)?, logits(&read)?);
    let largest = expected
        .iter()
        .fold(1.0f32, |most, logit| most.max(logit.abs()));
    let is_near = |(a, b): (&f32, &f32)| (a - b).abs() <= MOST_DIFFERENCE * largest;
    match expected.len() == found.len() && expected.iter().zip(&found).all(is_near) {
        true => Ok(()),
        false => Err(Problem::failure(
            "delta::run::merged_differs",
            "the merged model computed other logits than the run and was discarded",
        )
        .help("keep the run as it is, and report this with its `pipeline.delta`")),
    }
}

/// A batch of four texts, with tokens from the whole vocabulary.
fn probe(plan: &Plan) -> Batch {
    let config = &plan.backbone.config;
    let lengths = [1, 5, 9, 16].map(|length: usize| length.min(plan.backbone.max_length));
    let rows = lengths.iter().sum();
    let padding = config.pad_token.map(|token| token as usize);
    let token = |row: usize| match (7 + 7919 * row) % config.vocabulary {
        token if Some(token) == padding => (token + 1) % config.vocabulary,
        token => token,
    };
    let layout = Layout::new(lengths, (0..4).collect());
    let decoder = config.start_token.map(|start| DecoderRows {
        tokens: (0..rows).map(|row| token(row + start as usize)).collect(),
        layout: layout.clone(),
    });
    Batch::of_tokens((0..rows).map(token).collect(), layout, decoder)
}

/// Every weight of the model under its checkpoint name, with deltas folded in. Other tensors of the checkpoint are
/// copied unchanged.
pub(super) fn merged_tensors(plan: &Plan, graph: &Graph) -> Result<Tensors, Problem> {
    let prefix = plan.name_prefix();
    // By name and first output, so that a module which both the backbone and the head list occurs only once.
    let mut parts: BTreeMap<String, BTreeMap<usize, (Parameter, Vec<f32>)>> = BTreeMap::new();
    let mut add = |parameter: &Parameter, values| {
        let name = parameter.source.full_name(prefix);
        let parts = parts.entry(name).or_default();
        let first = parameter.source.part.map_or(0, |part| part.first);
        parts.insert(first, (parameter.clone(), values));
    };
    for module in graph.tree().modules() {
        let layer = folded(graph, module)?;
        for parameter in &module.parameters {
            let values = match &layer {
                Some(layer) if parameter.is_bias() => layer.bias.clone(),
                Some(layer) => Some(layer.weight.clone()),
                None => graph.effective(&parameter.path),
            };
            if let Some(values) = values {
                add(parameter, values);
            }
        }
    }
    for (parameter, key) in graph.head_ids() {
        if let Some(values) = graph.tensor(key.path()) {
            add(&parameter, values);
        }
    }
    let read: Vec<Parameter> = parts
        .values()
        .flat_map(|parts| parts.values().map(|(parameter, _)| parameter.clone()))
        .collect();
    let mut tensors: Tensors = parts
        .into_iter()
        .map(|(name, parts)| (name, stored(parts)))
        .collect();
    if !plan.backbone.random {
        let file = Checkpoint::open_directory(&plan.backbone.directory)?;
        let mut known: BTreeSet<String> =
            read.iter().filter_map(|p| file.find(p, prefix)).collect();
        known.extend(tied_copies(plan));
        for name in file
            .names()
            .into_iter()
            .filter(|name| !known.contains(*name))
        {
            // Skip tensors of other types, such as tables of positions, because transformers makes them itself.
            if let (false, Ok(tensor)) = (tensors.contains_key(name), file.read(name)) {
                tensors.insert(name.to_owned(), tensor);
            }
        }
    }
    Ok(tensors)
}

/// Names under which a checkpoint may have copies of a tied head's weights. Unchanged copies next to changed weights
/// would untie the head, so we leave them out.
fn tied_copies(plan: &Plan) -> Vec<String> {
    let config = &plan.backbone.config;
    let is_read = plan
        .final_task()
        .is_some_and(|(_, task)| task.kind.uses_language_model());
    let head = config.family().heads.language_model();
    let untied = head.and_then(|head| head.steps.last()?.untied.as_ref());
    match untied {
        Some(name) if is_read && !config.is_head_own() => ["weight", "bias"]
            .map(|leaf| format!("{name}.{leaf}"))
            .into(),
        _ => Vec::new(),
    }
}

/// A module's weight and bias with its deltas folded in, and its part of the deltas at the fused weight that it belongs to;
/// `None` if there are none.
fn folded(graph: &Graph, module: &Module) -> Result<Option<Folded>, Problem> {
    let mut modules = graph.tree().modules().iter();
    let is_whole = |other: &&Module| {
        other.site == Site::Fused && other.checkpoint_name == module.checkpoint_name
    };
    let whole = modules.find(is_whole).filter(|_| module.is_part());
    let own = graph
        .deltas_at(&module.path)
        .iter()
        .map(|own| (own, module));
    let fused = whole.map(|whole| {
        graph
            .deltas_at(&whole.path)
            .iter()
            .map(move |own| (own, whole))
    });
    let deltas: Vec<(&Placed, &Module)> = own.chain(fused.into_iter().flatten()).collect();
    // Its parts take what is at a fused weight.
    if deltas.is_empty() || module.site == Site::Fused {
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
    for (placed, at) in deltas {
        let Placed {
            delta,
            method,
            is_gated,
        } = placed;
        let tensor = |name: &str| {
            let all = graph.delta_tensor(delta, &at.path, name);
            let all = all.unwrap_or_default();
            match at.site == Site::Fused && method.second_factor() == Some(name) {
                true => rows_of_part(module, at, &all),
                false => all,
            }
        };
        let reason = match module.site {
            _ if *is_gated => Some("its gate depends on the text"),
            Site::Embedding if graph.tied_table() == Some(&module.path) => {
                Some("the tied language-model head reads the same table without the delta")
            }
            Site::Linear | Site::Embedding => {
                let is_done = method.fold(module, &mut layer, &tensor);
                (!is_done).then_some("its effect is not a change of a weight")
            }
            Site::Attention | Site::CrossAttention | Site::FeedForward
                if method.preposition() != Preposition::Before =>
            {
                Some("it is a separate network beside the weights")
            }
            Site::Attention | Site::CrossAttention | Site::Embeddings => {
                Some("it adds virtual tokens, which no weight can represent")
            }
            _ => Some("nothing is there to fold it into"),
        };
        if let Some(reason) = reason {
            let message = format!(
                "`{delta}` ({}) at `{}` cannot be folded into the backbone's weights: {reason}",
                method.name(),
                module.path
            );
            return Err(Problem::new("delta::run::cannot_merge", message)
                .help("keep the run as it is: `deltarun eval`, `predict` and `generate` read it"));
        }
    }
    Ok(Some(layer))
}

/// The rows of a LoRA's B at a fused weight that belong to a part of it.
fn rows_of_part(part: &Module, whole: &Module, b: &[f32]) -> Vec<f32> {
    let rank = b.len() / whole.output.max(1);
    let first = part.parameters.iter().find_map(|own| own.source.part);
    let first = first.map_or(0, |part| part.first) * rank;
    b[first..first + part.output * rank].to_vec()
}

/// A tensor as the checkpoint stores it: with the parts of a fused weight joined, and transposed if necessary.
fn stored(parts: BTreeMap<usize, (Parameter, Vec<f32>)>) -> (Vec<f32>, Vec<usize>) {
    let mut parts = parts.into_values();
    let Some((parameter, mut values)) = parts.next() else {
        return Default::default();
    };
    let mut shape = parameter.shape.clone();
    shape[0] = parameter.source.outputs(shape[0]).outputs;
    parts.for_each(|(_, more)| values.extend(more));
    if !parameter.source.transposed {
        return (values, shape);
    }
    (transposed(&values, shape[1]), vec![shape[1], shape[0]])
}

/// The backbone's `config.json`, with the labels and the architecture of the merged model.
fn merged_config(plan: &Plan) -> Result<Value, Problem> {
    let path = plan.backbone.directory.join("config.json");
    let text = read_text(&path).map_err(|e| disk::failed("read", &path, &e))?;
    let mut config: Value = crate::text::json(&text).map_err(Problem::internal)?;
    // We write weights in f32. transformers would round them to the type named here.
    for key in ["dtype", "torch_dtype"] {
        if config.get(key).is_some_and(|value| !value.is_null()) {
            config[key] = json!("float32");
        }
    }
    let family = &plan.backbone.config.family().architecture;
    if let Some((_, task)) = plan.final_task() {
        let heads = &plan.backbone.config.family().heads;
        let head = heads.of(task.kind.head());
        let class = head.map_or("Model", |head| head.class.as_str());
        config["architectures"] = json!([format!("{family}{class}")]);
        let outputs = task
            .kind
            .outputs_of_config()
            .filter(|_| !task.kind.uses_language_model());
        if let Some((settings, names)) = outputs {
            if config.get("num_labels").is_some() {
                config["num_labels"] = json!(names.len());
            }
            for (key, value) in settings {
                config[key] = value;
            }
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
