//! Turns the configuration of another tool into a pipeline: PEFT, Axolotl, LLaMA-Factory, MLX-LM.
//!
//! Each tool has a file that reads its keys into [`Parts`]. Keys that change nothing here, and keys that a file reads, are
//! accounted for; every other key becomes a comment of the pipeline.

mod axolotl;
mod keys;
mod llama_factory;
mod mlx;
mod parts;
mod peft;

use std::path::Path;

use keys::Keys;
use parts::{in_line, Parts};
use serde_json::{Map, Value};

use super::Draft;
use crate::diagnostic::Problem;
use crate::disk;

/// A tool: its name, whether a file is one of its own, how its keys are read, and those that change nothing here.
struct Tool {
    name: &'static str,
    owns: fn(&Map<String, Value>) -> bool,
    read: fn(&Keys, &mut Parts) -> Result<(), String>,
    /// Keys about speed, places and logs. A `*` at the end stands for any end.
    neutral: &'static [&'static str],
    /// Values, as JSON, with which a key changes nothing.
    neutral_values: &'static [(&'static str, &'static str)],
}

const TOOLS: [Tool; 4] = [
    Tool {
        name: "PEFT",
        owns: |keys| keys.contains_key("peft_type"),
        read: peft::read,
        neutral: peft::NEUTRAL,
        neutral_values: peft::NEUTRAL_VALUES,
    },
    Tool {
        name: "LLaMA-Factory",
        owns: |keys| keys.contains_key("model_name_or_path") && keys.contains_key("stage"),
        read: llama_factory::read,
        neutral: llama_factory::NEUTRAL,
        neutral_values: llama_factory::NEUTRAL_VALUES,
    },
    Tool {
        name: "Axolotl",
        owns: |keys| keys.contains_key("base_model"),
        read: axolotl::read,
        neutral: axolotl::NEUTRAL,
        neutral_values: axolotl::NEUTRAL_VALUES,
    },
    Tool {
        name: "MLX-LM",
        owns: |keys| {
            let own = ["lora_parameters", "fine_tune_type", "iters", "lora_layers"];
            own.iter().any(|key| keys.contains_key(*key))
        },
        read: mlx::read,
        neutral: mlx::NEUTRAL,
        neutral_values: mlx::NEUTRAL_VALUES,
    },
];

/// Reads a configuration, and writes the pipeline that does the same. `backbone` replaces the model that it names. The
/// paths in it are relative to this directory; they are whole if the pipeline `is_elsewhere`.
///
/// # Errors
/// The file cannot be read, is of no tool that is known, or wants a method that deltarun does not have.
pub fn import(file: &Path, backbone: Option<&str>, is_elsewhere: bool) -> Result<Draft, Problem> {
    let text = std::fs::read_to_string(file).map_err(|e| disk::failed("read", file, &e))?;
    let shown = file.display();
    let refused = |message: String, help: &str| {
        Problem::new("delta::init::import", format!("`{shown}`: {message}")).help(help)
    };
    let parsed: Result<Value, _> = serde_yaml::from_str(&text);
    let parsed = parsed.map_err(|e| {
        refused(
            format!("the file is neither YAML nor JSON: {e}"),
            "name a configuration file",
        )
    })?;
    let own = parsed.as_object();
    let Some(tool) = own.and_then(|keys| TOOLS.iter().find(|tool| (tool.owns)(keys))) else {
        return Err(refused(
            "the file is of no tool that deltarun knows".to_owned(),
            "name PEFT's `adapter_config.json`, or a configuration of Axolotl, LLaMA-Factory or MLX-LM",
        ));
    };
    let keys = Keys::new(&parsed);
    let folder = disk::parent(file);
    let mut parts = Parts::new(folder, is_elsewhere);
    (tool.read)(&keys, &mut parts)
        .map_err(|message| refused(message, "`deltarun methods` lists what deltarun has"))?;
    if let Some(backbone) = backbone {
        parts.backbone = parts.place(backbone);
    }
    let unread = keys.unread(tool.neutral, tool.neutral_values);
    let name = name(file, folder);
    let origin = format!("{} ({})", in_line(&shown.to_string()), tool.name);
    let text = parts.write(&name, &origin, &unread);
    let found = format!("{}: a configuration of {}", shown, tool.name);
    Draft::new(name, found, &text)
}

/// The pipeline's name: the file's, or its folder's if all files of a tool have one name.
fn name(file: &Path, folder: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let folder = folder.canonicalize().unwrap_or_default();
    let own = match stem.as_ref() {
        "adapter_config" | "config" => folder.file_name().unwrap_or_default().to_string_lossy(),
        _ => stem,
    };
    let plain = own.replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    match plain.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => plain,
        _ => format!("run_{plain}"),
    }
}
