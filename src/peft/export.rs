//! Exports the deltas and the head of a run as PEFT would save them.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::json;

use super::form::{form, Form};
use super::low_rank::low_rank;
use super::settings;
use super::{module_name, norms, prompts, token_rows, tuner, PeftDeltas, KEY_PREFIX};
use crate::backbone::family::HeadKind;
use crate::backbone::write_tensors;
use crate::diagnostic::Problem;
use crate::disk;
use crate::graph::Graph;
use crate::plan::Plan;

/// Writes `adapter_config.json`, `adapter_model.safetensors` and a `README.md` into `directory`.
///
/// # Errors
/// PEFT has no form for the deltas; a file cannot be written.
pub fn export(plan: &Plan, graph: &Graph, directory: &Path) -> Result<(), Problem> {
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        disk::replace(&path, text.as_bytes()).map_err(|e| disk::failed("written", &path, &e))
    };
    let form = form(plan).map_err(Problem::internal)?;
    let is_prompt = matches!(form, Form::Prefix | Form::Prompt);
    let mut written = match form {
        Form::LowRank => {
            let mut written = low_rank(plan, graph);
            token_rows::write(plan, graph, &mut written);
            written
        }
        Form::Tuner(deltas) => tuner::write(plan, graph, &deltas),
        Form::Norms(paths) => norms::write(plan, graph, &paths),
        Form::Prefix => prompts::prefix(plan, graph)?,
        Form::Prompt => prompts::prompt(plan, graph)?,
    };
    let key_prefix = if is_prompt { PROMPT_PREFIX } else { KEY_PREFIX };
    let saved = write_head(plan, graph, key_prefix, &mut written);
    let task = plan.final_task();
    let entries = &mut written.settings;
    let task = match task.map(|(_, task)| task.kind.head()) {
        Some(HeadKind::LanguageModel) => settings::language_model_task(&plan.backbone.config),
        Some(HeadKind::Tag) => settings::TOKEN_CLS,
        Some(HeadKind::Classify) | None => "SEQ_CLS",
    };
    entries.insert("task_type".into(), json!(task));
    entries.insert("base_model_name_or_path".into(), base_name(plan).into());
    entries.insert("inference_mode".into(), json!(true));
    if !is_prompt {
        let targets = match written.targets.is_empty() {
            true => json!(token_rows::NO_TARGETS),
            // PEFT requires that the names in `feedforward_modules` occur here literally.
            false if entries.contains_key("feedforward_modules") => json!(written.targets),
            false => json!(targets(graph, plan, &written.targets)),
        };
        entries.insert("target_modules".into(), targets);
    }
    let saved = (!saved.is_empty()).then_some(saved);
    entries.insert("modules_to_save".into(), json!(saved));
    if matches!(entries["peft_type"].as_str(), Some("LORA" | "IA3" | "VERA")) {
        let is_transposed = graph.tree().parameters().any(|parameter| {
            let module = parameter.source.name.trim_end_matches(".weight");
            let name = module_name(plan.name_prefix(), module);
            parameter.source.transposed && written.targets.contains(&name)
        });
        entries.insert("fan_in_fan_out".into(), json!(is_transposed));
    }
    std::fs::create_dir_all(directory).map_err(|e| disk::failed("made", directory, &e))?;
    let text = serde_json::to_string_pretty(&entries).map_err(Problem::internal)?;
    write("adapter_config.json", &(text + "\n"))?;
    let path = directory.join("adapter_model.safetensors");
    write_tensors(&path, &written.tensors, None)?;
    write("README.md", &card(plan))
}

/// Adds the head to the tensors, unless it is the checkpoint's own. Returns its modules.
fn write_head(
    plan: &Plan,
    graph: &Graph,
    key_prefix: &str,
    written: &mut PeftDeltas,
) -> BTreeSet<String> {
    let mut saved = BTreeSet::new();
    let task = plan.final_task();
    let is_language_model = task.is_some_and(|(_, task)| task.kind.uses_language_model());
    // A language model's head is the checkpoint's own, unless a stage trained it.
    let is_trained = |name: &str| {
        let mut stages = plan.stages.iter();
        // A combined run has no stages, so we cannot tell whether its head was trained.
        plan.stages.is_empty() || stages.any(|stage| stage.train_head && stage.task == name)
    };
    let is_saved = task.is_some_and(|(name, _)| !is_language_model || is_trained(name));
    for (parameter, key) in graph.head_ids().into_iter().filter(|_| is_saved) {
        let name = parameter.source.full_name(plan.name_prefix());
        let values = graph.tensor(key.path()).unwrap_or_default();
        let tensor = (values, parameter.shape.clone());
        written
            .tensors
            .insert(format!("{key_prefix}{name}"), tensor);
        saved.extend(parameter.source.name.split('.').next().map(str::to_owned));
    }
    saved
}

/// The prefix of a head's names in an adapter of prompts or prefixes.
pub(super) const PROMPT_PREFIX: &str = "base_model.";

/// The backbone as PEFT finds it: its name on the hub, or its directory.
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

/// The value of `target_modules`: the last parts of the modules' names if they select exactly these modules,
/// else the full names. PEFT reads both. They are sorted, because PEFT's own order is that of a set.
fn targets(graph: &Graph, plan: &Plan, names: &BTreeSet<String>) -> Vec<String> {
    let prefix = plan.name_prefix();
    let ending = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let mut endings: Vec<String> = names.iter().map(|name| ending(name)).collect();
    endings.sort();
    endings.dedup();
    let said: BTreeSet<String> = graph
        .tree()
        .modules()
        .iter()
        .filter(|module| !module.checkpoint_name.is_empty())
        .map(|module| module_name(prefix, &module.checkpoint_name))
        .chain(
            graph
                .head_ids()
                .iter()
                .map(|(p, _)| p.source.name.trim_end_matches(".weight").to_owned()),
        )
        .filter(|name| endings.contains(&ending(name)))
        .collect();
    match said == *names {
        true => endings,
        false => names.iter().cloned().collect(),
    }
}

/// The model card of a run's adapter. It also tells what the adapter's settings cannot.
fn card(plan: &Plan) -> String {
    let prefix = plan
        .final_task()
        .map_or("", |(_, task)| task.kind.source_prefix());
    let prefixed = match prefix {
        "" => String::new(),
        prefix => format!("\nIt was trained on source texts that begin with `{prefix}`.\n"),
    };
    format!(
        "---\nbase_model: {}\nlibrary_name: peft\n---\n\n\
         # {}\n\nA delta trained by deltarun {}. Load it with \
         `PeftModel.from_pretrained(model, \".\")`.\n{prefixed}",
        base_name(plan),
        plan.name,
        env!("CARGO_PKG_VERSION"),
    )
}
