//! A LoRA that PEFT saved becomes deltas and their tensors.

use std::collections::BTreeMap;
use std::path::Path;

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::Value;

use super::{module_name, KEY_PREFIX};
use crate::backbone::{head_parameters, Checkpoint, Config, Module, Parameter, Site, Tree};
use crate::delta::{Lora, Method};
use crate::diagnostic::{Problem, Span};
use crate::graph::Tensors;
use crate::plan::{Change, DeltaPlan};
use crate::text::quoted_list;

/// What an adapter's directory holds.
pub struct Imported {
    /// One delta for each rank and alpha that occurs.
    pub deltas: Vec<DeltaPlan>,
    /// Tensors by our keys; a head's begin with `task.`.
    pub tensors: Tensors,
    /// The head's number of outputs, where a head was saved.
    pub outputs: Option<usize>,
    /// What PEFT was given as the backbone.
    pub backbone: Option<String>,
}

/// The part of `adapter_config.json` that matters here.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: Option<usize>,
    lora_alpha: Option<f32>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    exclude_modules: Value,
    #[serde(default)]
    layers_to_transform: Value,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f32>,
    modules_to_save: Option<Vec<String>>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

fn problem(directory: &Path, message: impl std::fmt::Display) -> Problem {
    let place = directory.join("adapter_config.json");
    Problem::new(
        "delta::peft::config",
        format!("`{}`: {message}", place.display()),
    )
}

/// Reads an adapter's directory for a backbone of these dimensions.
///
/// # Errors
/// Not a LoRA, a setting that changes the formula and is not supported, or tensors that are
/// missing, extra or misshapen; each is named.
pub fn import(directory: &Path, config: &Config) -> Result<Imported, Problem> {
    let path = directory.join("adapter_config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        problem(directory, e).help("give a directory that PEFT's `save_pretrained` wrote")
    })?;
    let adapter: AdapterConfig = serde_json::from_str(&text)
        .map_err(|e| problem(directory, format!("it cannot be read: {e}")))?;
    check_supported(directory, &adapter)?;
    let file = Checkpoint::open(&[directory.join("adapter_model.safetensors")])?;
    let tree = Tree::new(config);
    let prefix = key_prefix(&file, &config.family().prefix);
    let sites = target_sites(directory, &adapter, &tree, &prefix)?;
    let mut reader = Reader {
        directory,
        file: &file,
        expected: Vec::new(),
        tensors: Tensors::new(),
    };

    let mut groups: Vec<(Lora, Vec<String>)> = Vec::new();
    for (module, name) in &sites {
        let lora = adapter.lora(name, directory)?;
        let group = match groups.iter().position(|(other, _)| *other == lora) {
            Some(group) => group,
            None => {
                groups.push((lora.clone(), Vec::new()));
                groups.len() - 1
            }
        };
        let delta = delta_name(group);
        for (ours, suffix) in [("A", "lora_A.weight"), ("B", "lora_B.weight")] {
            let shape = match ours {
                "A" => vec![lora.rank, module.input],
                _ => vec![module.output, lora.rank],
            };
            let stored = format!("{KEY_PREFIX}{name}.{suffix}");
            reader.take(&stored, format!("{delta}.{}.{ours}", module.path), &shape)?;
        }
        groups[group].1.push(module.path.clone());
    }
    let outputs = read_head(&adapter, config, &prefix, &mut reader)?;
    reader.check_extra()?;
    let tensors = reader.tensors;
    let delta = |(index, (lora, sites)): (usize, (Lora, Vec<String>))| DeltaPlan {
        name: delta_name(index),
        change: Change::Method {
            method: Method::Lora(lora),
            sites,
        },
        span: Span::default(),
    };
    Ok(Imported {
        deltas: groups.into_iter().enumerate().map(delta).collect(),
        tensors,
        outputs,
        backbone: adapter.base_model_name_or_path,
    })
}

fn delta_name(group: usize) -> String {
    match group {
        0 => "lora".to_owned(),
        more => format!("lora_{}", more + 1),
    }
}

fn check_supported(directory: &Path, adapter: &AdapterConfig) -> Result<(), Problem> {
    let kind = adapter.peft_type.as_deref().unwrap_or("nothing");
    if kind != "LORA" {
        return Err(problem(
            directory,
            format!("its `peft_type` is {kind}, and only LORA can be read"),
        )
        .help("save the adapter as a LoRA"));
    }
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text == "none",
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    };
    // Settings that change what the tensors mean.
    let changing = [
        "use_dora",
        "lora_bias",
        "bias",
        "layer_replication",
        "target_parameters",
        "trainable_token_indices",
        "use_qalora",
        "use_bdlora",
        "alora_invocation_tokens",
    ];
    for key in changing {
        if let Some(value) = adapter.others.get(key).filter(|value| !is_off(value)) {
            return Err(problem(
                directory,
                format!("`{key}` is {value}, which is not supported yet"),
            )
            .help("train the adapter without it"));
        }
    }
    let init = adapter.others.get("init_lora_weights");
    let plain = matches!(init, None | Some(Value::Null | Value::Bool(_)))
        || init == Some(&Value::from("gaussian"));
    if !plain {
        let message = format!(
            "`init_lora_weights` is {}: the backbone's own weights were changed",
            init.unwrap_or(&Value::Null)
        );
        return Err(problem(directory, message)
            .help("convert the adapter to a plain LoRA when it is saved"));
    }
    Ok(())
}

/// The family's prefix, where the adapter was made on a model with a head.
fn key_prefix(file: &Checkpoint, family: &str) -> String {
    let with = format!("{KEY_PREFIX}{family}");
    match file.names().iter().any(|name| name.starts_with(&with)) {
        true => family.to_owned(),
        false => String::new(),
    }
}

impl AdapterConfig {
    /// Rank and alpha of one module; `alpha` is rewritten where rsLoRA scales by `alpha / √rank`.
    fn lora(&self, name: &str, directory: &Path) -> Result<Lora, Problem> {
        let rank = pattern(&self.rank_pattern, name).or(self.r);
        let alpha = pattern(&self.alpha_pattern, name)
            .or(self.lora_alpha)
            .unwrap_or(8.0);
        let rank = rank.filter(|rank| *rank > 0).ok_or_else(|| {
            problem(directory, "it has no `r`")
                .help("give a directory that PEFT's `save_pretrained` wrote")
        })?;
        let alpha = match self.use_rslora {
            true => alpha * (rank as f32).sqrt(),
            false => alpha,
        };
        Ok(Lora {
            rank,
            alpha,
            dropout: 0.0,
        })
    }
}

/// The value of the first pattern that a module's name ends with, as PEFT looks it up.
fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, name: &str) -> Option<T> {
    patterns
        .iter()
        .find(|(pattern, _)| is_match(&format!(r"(.*\.)?({pattern})$"), name))
        .map(|(_, value)| *value)
}

fn is_match(pattern: &str, name: &str) -> bool {
    let anchored = Regex::new(&format!("^(?:{pattern})"));
    anchored.is_ok_and(|regex| regex.is_match(name).unwrap_or(false))
}

/// The modules that `target_modules` names, with their full names.
fn target_sites<'t>(
    directory: &Path,
    adapter: &AdapterConfig,
    tree: &'t Tree,
    prefix: &str,
) -> Result<Vec<(&'t Module, String)>, Problem> {
    if !adapter.layers_to_transform.is_null() {
        return Err(
            problem(directory, "`layers_to_transform` is not supported yet")
                .help("name the layers in `target_modules`"),
        );
    }
    let is_fused = |module: &Module| module.parameters.iter().any(|p| p.source.parts > 1);
    let sites: Vec<_> = tree
        .modules()
        .iter()
        .filter(|module| matches!(module.site, Site::Linear | Site::Fused) && !is_fused(module))
        .map(|module| (module, module_name(prefix, &module.checkpoint_name)))
        .filter(|(_, name)| names(&adapter.target_modules, name))
        .filter(|(_, name)| !names(&adapter.exclude_modules, name))
        .collect();
    if sites.is_empty() {
        let message = format!(
            "its `target_modules` {} match no module of the backbone",
            adapter.target_modules
        );
        return Err(
            problem(directory, message).help("give the backbone that the adapter was made for")
        );
    }
    Ok(sites)
}

/// Whether `target_modules` or `exclude_modules` names a module: a text is a regular expression for
/// the whole name, a list holds full names or their endings.
fn names(targets: &Value, name: &str) -> bool {
    match targets {
        Value::String(text) if text == "all-linear" => true,
        Value::String(text) => is_match(&format!("(?:{text})$"), name),
        Value::Array(items) => items.iter().filter_map(Value::as_str).any(|item| {
            name == item
                || name
                    .strip_suffix(item)
                    .is_some_and(|rest| rest.ends_with('.'))
        }),
        _ => false,
    }
}

/// The saved head: our parameters whose module is among `modules_to_save`.
fn read_head(
    adapter: &AdapterConfig,
    config: &Config,
    prefix: &str,
    reader: &mut Reader,
) -> Result<Option<usize>, Problem> {
    let saved = adapter.modules_to_save.clone().unwrap_or_default();
    let head = config.family().heads.classify;
    let is_saved = |parameter: &Parameter| {
        saved
            .iter()
            .any(|name| parameter.source.name.split('.').any(|part| part == name))
    };
    let tree = Tree::new(config);
    for parameter in tree.parameters().filter(|parameter| is_saved(parameter)) {
        let stored = format!("{KEY_PREFIX}{prefix}{}", parameter.source.name);
        reader.take(
            &stored,
            format!("task.{}", parameter.path),
            &parameter.shape,
        )?;
    }
    let parameters = head_parameters(config, &head, 1);
    let Some(last) = parameters
        .iter()
        .rfind(|p| is_saved(p) && p.path.ends_with("weight"))
    else {
        return Ok(None);
    };
    let stored = format!("{KEY_PREFIX}{}", last.source.name);
    let outputs = reader.file.shape(&stored).map_or(1, |shape| shape[0]);
    for parameter in head_parameters(config, &head, outputs)
        .iter()
        .filter(|p| is_saved(p))
    {
        let stored = format!("{KEY_PREFIX}{}", parameter.source.name);
        reader.take(
            &stored,
            format!("task.{}", parameter.path),
            &parameter.shape,
        )?;
    }
    Ok(Some(outputs))
}

/// Takes tensors out of an adapter's file and notes which were asked for.
struct Reader<'a> {
    directory: &'a Path,
    file: &'a Checkpoint,
    expected: Vec<String>,
    tensors: Tensors,
}

impl Reader<'_> {
    fn problem(&self, message: String) -> Problem {
        let place = self.directory.join("adapter_model.safetensors");
        Problem::new(
            "delta::peft::tensors",
            format!("`{}`: {message}", place.display()),
        )
        .help(
            "give an adapter whose configuration and tensors belong together, and its own backbone",
        )
    }

    fn take(&mut self, stored: &str, key: String, shape: &[usize]) -> Result<(), Problem> {
        self.expected.push(stored.to_owned());
        let Some(found) = self.file.shape(stored) else {
            return Err(self.problem(format!("the tensor `{stored}` is missing")));
        };
        if found != shape {
            return Err(self.problem(format!(
                "`{stored}` has the shape {found:?}, but {shape:?} is needed"
            )));
        }
        let (values, shape) = self.file.read(stored)?;
        self.tensors.insert(key, (values, shape));
        Ok(())
    }

    fn check_extra(&self) -> Result<(), Problem> {
        let names = self.file.names();
        let extra: Vec<&str> = names
            .into_iter()
            .filter(|name| !self.expected.iter().any(|known| known == name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let list = quoted_list(extra.iter().copied());
        Err(self.problem(format!("the configuration does not ask for {list}")))
    }
}
