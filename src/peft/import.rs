//! Imports an adapter that PEFT saved as deltas and their tensors.

use std::path::Path;

use serde_json::Value;

use super::export::PROMPT_PREFIX;
use super::reader::Reader;
use super::settings::{self, MERGE_IN_PYTHON};
use super::targets::{is_whole, saved_modules, target_sites};
use super::tuner::{shared_key, site_key};
use super::{module_name, norms, prompts, token_rows, unfrozen, KEY_PREFIX};
use crate::backbone::family::{Family, Head, HeadKind, HeadStep};
use crate::backbone::{head_parameters, Checkpoint, Config, Module, Parameter, Site, Tree};
use crate::delta::{transposed, Method, PeftAdapter, PeftConfig, PeftModule};
use crate::diagnostic::Problem;
use crate::graph::Tensors;
use crate::plan::DeltaPlan;
use crate::terminal::note;

/// The contents of an adapter's directory.
pub struct Imported {
    /// One delta for each different choice of settings.
    pub deltas: Vec<DeltaPlan>,
    /// Tensors by our keys; a head's begin with `task.`.
    pub tensors: Tensors,
    /// The head of its model.
    pub head: HeadKind,
    /// Whether the language model's head has a weight of its own.
    pub has_head_weight: bool,
    /// The number of labels of the head, if the head was saved.
    pub outputs: Option<usize>,
    /// The backbone's name or path, as PEFT was given it.
    pub backbone: Option<String>,
}

pub(super) fn problem(directory: &Path, message: impl std::fmt::Display) -> Problem {
    let place = directory.join("adapter_config.json");
    let message = format!("`{}`: {message}", place.display());
    Problem::new("delta::peft::config", message)
}

/// Reads an adapter's directory for a backbone of these dimensions.
///
/// # Errors
/// The kind of adapter or a setting is not supported, or tensors are missing, extra or misshapen. The problem
/// names them.
pub fn import(directory: &Path, config: &Config) -> Result<Imported, Problem> {
    let adapter = read_settings(directory)?;
    settings::check(directory, &adapter, config)?;
    let file = open_tensors(directory)?;
    let mut reader = Reader::new(directory, &file);
    let is_prompt = prompts::is_prompt(&adapter);
    let prefix = key_prefix(&file, &config.family().base_model_prefix);
    let kind = head_kind(&adapter, config);
    let heads = &config.family().heads;
    let own_head = heads.of(kind);
    if prefix.is_empty() && !is_prompt {
        note_without_prefix(config, own_head);
    }
    let mut deltas = match is_prompt {
        true => prompts::read(directory, &adapter, config, &mut reader)?,
        false => {
            let of_head = (config, own_head);
            read_tuner(directory, &adapter, of_head, &prefix, &mut reader)?
        }
    };
    let key_prefix = if is_prompt { PROMPT_PREFIX } else { KEY_PREFIX };
    let saved = saved_modules(&adapter);
    let prefixes = [key_prefix, &prefix];
    let writes = kind == HeadKind::LanguageModel;
    // A head that is trained whole beside tied embeddings is a weight of its own in PEFT.
    let head_weight = format!("{key_prefix}{HEAD_WEIGHT}");
    let head_module = HEAD_WEIGHT.trim_end_matches(".weight");
    let has_own_copy = writes
        && saved.iter().any(|saved| head_module.ends_with(saved))
        && reader.has(&head_weight);
    let config = &Config {
        has_head_weight: config.has_head_weight || (has_own_copy && !config.is_head_own()),
        ..config.clone()
    };
    let head = own_head.unwrap_or(&heads.classify);
    let outputs = read_head(head, &saved, config, &prefixes, &mut reader)?;
    let of_head = (head, saved.as_slice());
    deltas.extend(unfrozen::read(
        &adapter,
        of_head,
        config,
        &prefixes,
        &mut reader,
    )?);
    reader.pass_over_equal(&head_weight, &format!("unfrozen.{WORD_TABLE}.weight"));
    let steps = heads.classify.steps.iter().chain(&head.steps);
    let of_heads: Vec<&str> = steps.filter_map(|step| step.name.as_deref()).collect();
    reader.check_extra(&of_heads)?;
    check_two_tables(directory, config, &deltas)?;
    if writes && !config.is_head_own() {
        let table = Tree::new(config).module(WORD_TABLE).map(|table| {
            let name = module_name(&prefix, &table.checkpoint_name);
            unfrozen::is_saved(&name, head, &saved)
        });
        check_tied(directory, head, &deltas, table.unwrap_or(false))?;
    }
    let backbone = adapter.get("base_model_name_or_path");
    Ok(Imported {
        has_head_weight: config.has_head_weight,
        deltas,
        tensors: reader.tensors,
        head: kind,
        outputs: outputs.filter(|_| !writes),
        backbone: backbone.and_then(Value::as_str).map(str::to_owned),
    })
}

/// Reads `adapter_config.json`.
pub fn read_settings(directory: &Path) -> Result<PeftConfig, Problem> {
    let path = directory.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        problem(directory, e).help("name a directory that PEFT's `save_pretrained` wrote")
    })?;
    let adapter: PeftConfig = serde_json::from_str(&text).map_err(|e| {
        problem(directory, format!("the file cannot be read: {e}"))
            .help("name a directory that PEFT's `save_pretrained` wrote")
    })?;
    if adapter.contains_key("fine_tune_type") || directory.join("adapters.safetensors").exists() {
        let message = "the adapter is MLX-LM's, which names and transposes its tensors in another way than PEFT";
        return Err(problem(directory, message).help(
            "fuse it with `mlx_lm.fuse --model MODEL --adapter-path DIR --save-path OUT`, and use OUT as the backbone",
        ));
    }
    Ok(adapter)
}

/// Says that an adapter was saved from a model without a head.
fn note_without_prefix(config: &Config, head: Option<&Head>) {
    let own = head.and_then(|head| head.base_model_prefix.as_ref());
    let expected = own.unwrap_or(&config.family().base_model_prefix);
    if !expected.is_empty() {
        note(&format!(
            "the adapter was saved from `AutoModel`: its tensors have no `{expected}` in their names, and PEFT would \
             apply none of them to a model with a head; deltarun applies them"
        ));
    }
}

/// The head of the model that an adapter was saved from.
fn head_kind(adapter: &PeftConfig, config: &Config) -> HeadKind {
    let is_language_model = match adapter.get("task_type").and_then(Value::as_str) {
        Some(settings::TOKEN_CLS) => return HeadKind::Tag,
        Some(task) => task == settings::language_model_task(config),
        None => match stated_head(adapter) {
            Some(HeadKind::LanguageModel) => config.family().heads.language_model().is_some(),
            Some(other) => return other,
            None => false,
        },
    };
    match is_language_model {
        true => HeadKind::LanguageModel,
        false => HeadKind::Classify,
    }
}

/// The head of the class that PEFT recorded where it was told no task.
fn stated_head(adapter: &PeftConfig) -> Option<HeadKind> {
    const WRITERS: [&str; 3] = ["ForCausalLM", "LMHeadModel", "ForConditionalGeneration"];
    let class = adapter.get("auto_mapping")?["base_model_class"].as_str()?;
    if class.ends_with("ForTokenClassification") {
        return Some(HeadKind::Tag);
    }
    let writes = WRITERS.iter().any(|end| class.ends_with(end));
    writes.then_some(HeadKind::LanguageModel)
}

/// Whether an adapter is a language model's. An adapter that cannot be read is not.
pub fn is_language_model(directory: &Path) -> bool {
    let text = std::fs::read_to_string(directory.join("adapter_config.json")).unwrap_or_default();
    let adapter: PeftConfig = serde_json::from_str(&text).unwrap_or_default();
    match adapter.get("task_type").and_then(Value::as_str) {
        Some(task) => matches!(task, settings::CAUSAL_LM | settings::SEQ_2_SEQ_LM),
        None => stated_head(&adapter) == Some(HeadKind::LanguageModel),
    }
}

/// Refuses an adapter that changes the word table of a backbone with an encoder and a decoder. In PEFT each of them has
/// a copy of the table, but here they share one.
fn check_two_tables(
    directory: &Path,
    config: &Config,
    deltas: &[DeltaPlan],
) -> Result<(), Problem> {
    let is_table = |path: &String| path.starts_with(WORD_TABLE);
    let changes = |delta: &DeltaPlan| delta.places().iter().any(is_table);
    if config.decoder_layers.is_none() || !deltas.iter().any(changes) {
        return Ok(());
    }
    let message = "the adapter changes the module `shared`, which PEFT copies for the encoder and the decoder";
    Err(problem(directory, message).help(ON_OTHER_MODULES))
}

/// A suggestion for adapters that change a table which other modules also read. PEFT cannot merge these faithfully.
const ON_OTHER_MODULES: &str = "train the adapter again on other modules";

/// The path of the word table in the module tree.
pub(super) const WORD_TABLE: &str = "embeddings.word";

/// A language model's output weight, in a checkpoint.
const HEAD_WEIGHT: &str = "lm_head.weight";

/// Refuses an adapter that trains a table to which the head is tied. PEFT trains a copy of the table for the embeddings
/// only, or the same rows of both. Here both share one weight, and trained rows apply to the embeddings only.
fn check_tied(
    directory: &Path,
    head: &Head,
    deltas: &[DeltaPlan],
    trains_table: bool,
) -> Result<(), Problem> {
    let table = head.steps.last().and_then(|step| step.weight.as_ref());
    let Some(table) = table else { return Ok(()) };
    let changes = |delta: &DeltaPlan| match delta.method().map(Method::peft_adapter) {
        // A table that is only stored beside the adapter replaces that of the head as well, as PEFT does it.
        None => trains_table && delta.unfrozen().contains(&format!("{table}.weight")),
        Some(PeftAdapter::Rows(_)) => delta.sites().contains(table),
        Some(_) => false,
    };
    match deltas.iter().any(changes) {
        true => {
            let message = format!("the adapter trains `{table}`, which is tied to the head");
            Err(problem(directory, message).help(ON_OTHER_MODULES))
        }
        false => Ok(()),
    }
}

/// Reads the deltas of an adapter at modules of the backbone.
fn read_tuner(
    directory: &Path,
    adapter: &PeftConfig,
    (config, head): (&Config, Option<&Head>),
    prefix: &str,
    reader: &mut Reader,
) -> Result<Vec<DeltaPlan>, Problem> {
    let tree = Tree::new(config);
    if adapter.get("peft_type").and_then(Value::as_str) == Some(norms::KIND) {
        let norms = target_sites(directory, adapter, &tree, prefix, |module| {
            module.site == Site::Norm
        })?;
        return norms::read(&norms, reader);
    }
    let classify = &config.family().heads.classify;
    let is_read = |steps: &[HeadStep], module: &Module| {
        let mut steps = steps.iter();
        steps.any(|step| step.kind.is_none() && step.module == module.path)
    };
    // transformers builds a pooler only for the classifier that reads it.
    let is_absent = |module: &Module| {
        is_read(&classify.steps, module) && head.is_some_and(|head| !is_read(&head.steps, module))
    };
    let is_layer = |module: &Module| {
        matches!(module.site, Site::Linear | Site::Fused | Site::Embedding) && !is_absent(module)
    };
    if adapter.get("peft_type").and_then(Value::as_str) == Some(token_rows::KIND) {
        return token_rows::read_alone(directory, adapter, &tree, prefix, reader);
    }
    let has_targets = adapter.get("target_modules") != Some(&token_rows::NO_TARGETS.into());
    let sites = match has_targets {
        true => target_sites(directory, adapter, &tree, prefix, is_layer)?,
        false => Vec::new(),
    };
    let mut groups: Vec<(Method, Vec<(&Module, String)>)> = Vec::new();
    for (module, name) in sites {
        let settings = settings_of(adapter, module, &name, config.family());
        if settings.rank == 0 {
            // AdaLoRA removed all ranks of this module, so its tensors are empty.
            for (suffix, shape) in [
                ("lora_A", [0, module.input]),
                ("lora_B", [module.output, 0]),
                ("lora_E", [0, 1]),
            ] {
                reader.take_values(&site_key(&name, suffix), &shape)?;
            }
            continue;
        }
        let method = Method::from_peft(adapter, &settings).ok_or_else(|| {
            problem(directory, "deltarun cannot read this kind of adapter").help(MERGE_IN_PYTHON)
        })?;
        let accepted = match method.accepts(module.site) {
            true => method.check(module),
            false => Err(format!("`{name}` is {}", module.site.describe())),
        };
        accepted.map_err(|message| problem(directory, message).help(MERGE_IN_PYTHON))?;
        match groups.iter_mut().find(|(other, _)| *other == method) {
            Some((_, sites)) => sites.push((module, name)),
            None => groups.push((method, vec![(module, name)])),
        }
    }
    let mut deltas = Vec::new();
    for (index, (method, sites)) in groups.into_iter().enumerate() {
        let name = match index {
            0 => method.name().to_owned(),
            more => format!("{}_{}", method.name(), more + 1),
        };
        read_tensors(&name, &method, &sites, reader)?;
        let sites = sites
            .iter()
            .map(|(module, _)| module.path.clone())
            .collect();
        deltas.push(DeltaPlan::of_method(&name, method, sites));
    }
    let setting = adapter.get(token_rows::SETTING);
    deltas.extend(token_rows::read(directory, setting, &tree, prefix, reader)?);
    Ok(deltas)
}

fn read_tensors(
    delta: &str,
    method: &Method,
    sites: &[(&Module, String)],
    reader: &mut Reader,
) -> Result<(), Problem> {
    let form = method
        .peft()
        .ok_or_else(|| Problem::internal("a method without a form"))?;
    let modules: Vec<&Module> = sites.iter().map(|(module, _)| *module).collect();
    for parameter in method.shared(&modules) {
        let mut shared = form.shared.iter();
        let Some((_, suffix)) = shared.find(|(ours, _)| *ours == parameter.name) else {
            continue;
        };
        let key = format!("{delta}.{}", parameter.name);
        reader.take(&shared_key(suffix), &parameter.shape, key, &parameter.shape)?;
    }
    for (module, name) in sites {
        for parameter in method.parameters(module) {
            let Some(stored) = method.peft_tensor(module, &parameter) else {
                continue;
            };
            let mut values = reader.take_values(&site_key(name, stored.suffix), &stored.shape)?;
            if stored.is_transposed {
                values = transposed(&values, stored.shape[1]);
            }
            let key = format!("{delta}.{}.{}", module.path, parameter.name);
            reader.tensors.insert(key, (values, parameter.shape));
        }
    }
    Ok(())
}

/// The family's prefix if the adapter was made for a model with a head, else empty.
fn key_prefix(file: &Checkpoint, family: &str) -> String {
    let with = format!("{KEY_PREFIX}{family}");
    match file.names().iter().any(|name| name.starts_with(&with)) {
        true => family.to_owned(),
        false => String::new(),
    }
}

/// The settings of one module, with PEFT's defaults for absent keys.
fn settings_of(adapter: &PeftConfig, module: &Module, name: &str, family: &Family) -> PeftModule {
    let number = |key: &str| adapter.get(key).and_then(Value::as_f64);
    let kind = adapter.get("peft_type").and_then(Value::as_str);
    // The other kinds have no patterns, or ignore them.
    let has_patterns = matches!(kind, Some("LORA" | "LOHA" | "LOKR"));
    let by_pattern = |key: &str| pattern(adapter.get(key).filter(|_| has_patterns), name);
    let (initial, default) = match kind {
        Some("ADALORA") => (number("init_r"), 12.0),
        Some("VERA") => (number("r"), 256.0),
        Some("MISS") => (number("r"), 64.0),
        _ => (number("r"), 8.0),
    };
    let kept = kept_ranks(adapter.get("rank_pattern"), name);
    let rank = kept.or(by_pattern("rank_pattern")).or(initial);
    let alpha = by_pattern("alpha_pattern")
        .or(number("lora_alpha"))
        .or(number("alpha"));
    PeftModule {
        rank: rank.unwrap_or(default) as usize,
        alpha: alpha.unwrap_or(8.0) as f32,
        is_embedding: module.site == Site::Embedding,
        is_feedforward: is_feedforward(adapter.get("feedforward_modules"), name, family),
    }
}

/// Whether (IA)³ scales a module's input. PEFT compares the ends of names as plain text, not part by part.
fn is_feedforward(modules: Option<&Value>, name: &str, family: &Family) -> bool {
    match modules {
        None | Some(Value::Null) => name.ends_with(&family.peft_feedforward),
        Some(Value::String(pattern)) => is_whole(pattern, name),
        Some(modules) => {
            let mut ends = modules.as_array().into_iter().flatten();
            ends.any(|end| end.as_str().is_some_and(|end| name.ends_with(end)))
        }
    }
}

/// The value of the first pattern that matches the end of a module's name, as in PEFT.
fn pattern(patterns: Option<&Value>, name: &str) -> Option<f64> {
    patterns?
        .as_object()?
        .iter()
        .find(|(pattern, _)| is_whole(&format!(r"(.*\.)?({pattern})"), name))
        .and_then(|(_, value)| value.as_f64())
}

/// The number of ranks that AdaLoRA kept of a module.
fn kept_ranks(patterns: Option<&Value>, name: &str) -> Option<f64> {
    let kept = patterns?.get(format!("{name}.lora_E"))?.as_array()?;
    Some(kept.iter().filter(|kept| **kept == true).count() as f64)
}

/// The tensors of an adapter's directory.
fn open_tensors(directory: &Path) -> Result<Checkpoint, Problem> {
    let path = directory.join("adapter_model.safetensors");
    if !path.exists() && directory.join("adapter_model.bin").exists() {
        let message = format!(
            "`{}` stores its tensors in `adapter_model.bin`, a pickle that can run arbitrary code when loaded",
            directory.display()
        );
        let help = format!(
            "convert it if you trust it: `cd {} && python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('adapter_model.bin', map_location='cpu', weights_only=True), 'adapter_model.safetensors')\"`",
            directory.display()
        );
        return Err(Problem::new("delta::peft::pickle", message).help(help));
    }
    Checkpoint::open(&[path])
}

/// Reads those parameters of the head whose module was saved. Returns the number of outputs of the head, if its weight
/// was saved.
fn read_head(
    head: &Head,
    saved: &[String],
    config: &Config,
    [key_prefix, prefix]: &[&str; 2],
    reader: &mut Reader,
) -> Result<Option<usize>, Problem> {
    let stored = |p: &Parameter| format!("{key_prefix}{}", p.source.full_name(prefix));
    let unsized_head = head_parameters(config, head, 1);
    // PEFT stores an output weight beside the adapter as well (`save_embedding_layers`).
    let beside: Vec<String> = unsized_head
        .iter()
        .map(stored)
        .filter(|name| reader.has(name))
        .collect();
    let is_saved = |parameter: &&Parameter| {
        let name = &parameter.source.name;
        let mut saved = saved.iter();
        saved.any(|saved| name.split('.').any(|part| part == saved))
            || beside.contains(&stored(parameter))
    };
    let mut weights = unsized_head.iter().filter(is_saved);
    let last = weights.rfind(|parameter| !parameter.is_bias());
    let shape = last.and_then(|last| reader.shape(&stored(last)));
    let outputs = match shape {
        Some([0, ..] | []) => {
            return Err(reader.problem("the head has no outputs"));
        }
        Some([outputs, ..]) => Some(*outputs),
        None => None,
    };
    let head = head_parameters(config, head, outputs.unwrap_or(1));
    for parameter in head.iter().filter(is_saved) {
        let key = format!("task.{}", parameter.path);
        let shape = &parameter.shape;
        reader.take(&stored(parameter), shape, key, shape)?;
    }
    Ok(outputs)
}
