//! The parts of the pipeline that a configuration becomes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::keys::Keys;

/// What stands where a configuration leaves something open.
pub(super) const OPEN: &str = "TODO";

/// A pipeline under way. All texts are in the language.
pub(super) struct Parts {
    folder: PathBuf,
    /// The model's name or place.
    pub(super) backbone: String,
    /// Settings of the backbone.
    pub(super) of_backbone: Vec<String>,
    /// The sets: `train = jsonl("...")`.
    pub(super) sets: Vec<String>,
    /// The task's kind and settings.
    pub(super) task: (&'static str, Vec<String>),
    /// The statement of the delta, after its name and `=`.
    pub(super) delta: Delta,
    /// Whether the stage trains the head.
    pub(super) has_head: bool,
    /// Settings of the stage.
    pub(super) stage: Vec<String>,
    /// The seed.
    pub(super) seed: Option<usize>,
    /// What a reader should know.
    pub(super) notes: Vec<String>,
}

/// A delta: its keyword, and its statement behind `NAME =` or `NAME`.
pub(super) struct Delta {
    pub(super) keyword: &'static str,
    pub(super) statement: String,
}

impl Parts {
    pub(super) fn new(folder: &Path) -> Self {
        Parts {
            folder: folder.to_owned(),
            backbone: OPEN.to_owned(),
            of_backbone: Vec::new(),
            sets: Vec::new(),
            task: ("instruct", Vec::new()),
            delta: Delta {
                keyword: "unfreeze",
                statement: "= **".to_owned(),
            },
            has_head: false,
            stage: Vec::new(),
            seed: None,
            notes: Vec::new(),
        }
    }

    /// The model: a directory that is there, or one of the hub.
    pub(super) fn set_backbone(&mut self, name: Option<String>) {
        let Some(name) = name else { return };
        let is_here = Path::new(&name).exists() || self.folder.join(&name).exists();
        let is_of_hub = name.split('/').count() == 2 && !name.starts_with(['.', '/', '~']);
        self.backbone = match is_here || !is_of_hub {
            true => name,
            false => format!("hf:{name}"),
        };
    }

    /// Adds `key = value` to the stage, if there is a value.
    pub(super) fn stage(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        self.stage
            .extend(value.map(|value| format!("{key} = {value}")));
    }

    /// Adds a set that a file, a folder or a data set of the hub holds.
    pub(super) fn set(&mut self, name: &str, path: &str, format: Option<&str>) {
        let ending = format.map_or_else(
            || {
                Path::new(path)
                    .extension()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned()
            },
            str::to_owned,
        );
        let reader = match ending.as_str() {
            "csv" | "tsv" | "parquet" | "json" => ending.as_str(),
            _ => "jsonl",
        };
        let is_file = Path::new(path).extension().is_some();
        let path = match is_file {
            true => path.to_owned(),
            false => {
                self.notes.push(format!("`{path}` is a data set of the hub, or of a list: name its file, as in parquet(\"hf:organisation/name/PATH\")"));
                OPEN.to_owned()
            }
        };
        self.sets
            .push(format!("{name} = {reader}({})", quoted(&path)));
    }

    /// LoRA or DoRA.
    pub(super) fn set_lora(&mut self, kind: &str, lora: &Lora, targets: &Targets) {
        let mut settings = vec![
            format!("rank = {}", lora.rank),
            format!("alpha = {}", lora.alpha),
        ];
        if lora.dropout > 0.0 {
            settings.push(format!("dropout = {}", lora.dropout));
        }
        if lora.is_rank_stabilized {
            settings.push("scaling = rank_stabilized".to_owned());
        }
        if lora.is_pissa {
            settings.push("init = pissa".to_owned());
        }
        let on = self.selector(targets);
        self.set_delta(
            "reparam",
            format!("= {kind} {{ {} }} on {on}", settings.join(", ")),
        );
    }

    pub(super) fn set_delta(&mut self, keyword: &'static str, statement: String) {
        self.delta = Delta { keyword, statement };
    }

    /// The selector of modules.
    pub(super) fn selector(&mut self, targets: &Targets) -> String {
        match targets {
            Targets::AllLinear => {
                self.notes
                    .push("a backbone without gates takes `**.{q,k,v,o,up,down}`".to_owned());
                "**.{q,k,v,o,gate,up,down}".to_owned()
            }
            Targets::Named(names) => {
                let quoted: Vec<String> = names.iter().map(|name| quoted(name)).collect();
                match quoted.as_slice() {
                    [one] => one.clone(),
                    _ => format!("{{{}}}", quoted.join(", ")),
                }
            }
        }
    }

    /// The text of the pipeline. `unread` has the keys that have no meaning here, with their values.
    pub(super) fn write(mut self, name: &str, origin: &str, unread: &[(String, String)]) -> String {
        let mut text = format!("# Imported by `deltarun import` from {origin}; read it once.\n");
        // A comment ends with its line, whatever a configuration has in it.
        let in_line = |text: &str| text.replace(char::is_control, " ");
        for note in &self.notes {
            let _ = writeln!(text, "# {}.", in_line(note));
        }
        for (key, value) in unread {
            let value: String = value.chars().take(80).collect();
            let key = in_line(key);
            let _ = writeln!(text, "# Without a meaning here: {key} = {value}");
        }
        let _ = writeln!(text, "pipeline {name}\n");
        if let Some(seed) = self.seed {
            let _ = writeln!(text, "param seed = {seed}\n");
        }
        let _ = write!(text, "backbone {}", quoted(&self.backbone));
        if !self.of_backbone.is_empty() {
            let _ = write!(text, " {{ {} }}", self.of_backbone.join(", "));
        }
        if self.sets.is_empty() {
            self.sets.push(format!("train = jsonl(\"{OPEN}\")"));
        }
        let _ = write!(text, "\n\ndata {{\n{}\n}}\n\n", self.sets.join("\n"));
        let (kind, settings) = &self.task;
        let _ = write!(text, "task {kind} {{\n{}\n}}\n\n", settings.join("\n"));
        let Delta { keyword, statement } = &self.delta;
        let _ = write!(text, "{keyword} low {statement}\n\n");
        let head = if self.has_head { ", head" } else { "" };
        let settings = self.stage.join("\n");
        let _ = writeln!(text, "stage tune {{\ntrain = [low{head}]\n{settings}\n}}");
        text
    }
}

/// A text in quotes, in one line.
fn quoted(text: &str) -> String {
    json!(text.replace(char::is_control, " ")).to_string()
}

/// A column's name as the language has it.
pub(super) fn column(name: &str) -> String {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let begins = name.starts_with(|letter: char| letter.is_ascii_alphabetic());
    match begins && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => quoted(name),
    }
}

/// Settings of a LoRA.
pub(super) struct Lora {
    pub(super) rank: usize,
    pub(super) alpha: f64,
    pub(super) dropout: f64,
    pub(super) is_rank_stabilized: bool,
    pub(super) is_pissa: bool,
}

/// The modules that a delta changes.
pub(super) enum Targets {
    /// All linear layers of the blocks.
    AllLinear,
    /// Those whose names end like this.
    Named(Vec<String>),
}

/// The optimizer of a name that other tools have for it, with a rate and weight decay.
pub(super) fn optimizer(
    keys: &Keys,
    parts: &mut Parts,
    (name, rate, decay): (&str, &str, &str),
    default_rate: f64,
) {
    let stated = keys.text(name).unwrap_or_else(|| "adamw".to_owned());
    let kind = match stated.to_lowercase() {
        other if other.contains("lion") => "lion",
        other if other.contains("adafactor") => "adafactor",
        other if other.starts_with("sgd") => "sgd",
        other => {
            if !other.contains("adam") {
                parts
                    .notes
                    .push(format!("the optimizer `{stated}` became AdamW"));
            }
            "adamw"
        }
    };
    let rate = keys.number(rate).unwrap_or(default_rate);
    let mut settings = vec![format!("lr = {rate:e}")];
    if let Some(decay) = keys.number(decay).filter(|decay| *decay > 0.0) {
        settings.push(format!("weight_decay = {decay}"));
    }
    let adam = [
        ("adam_beta1", "beta1"),
        ("adam_beta2", "beta2"),
        ("adam_epsilon", "epsilon"),
    ];
    for (theirs, own) in adam.iter().filter(|_| kind == "adamw") {
        let value = keys.number(theirs);
        settings.extend(value.map(|value| format!("{own} = {value}")));
    }
    parts
        .stage
        .push(format!("optimizer = {kind} {{ {} }}", settings.join(", ")));
}

/// The schedule of a name of transformers', with its warm-up in steps or as a share.
pub(super) fn schedule(keys: &Keys, parts: &mut Parts, name: &str, default: &str) {
    let stated = keys.text(name).unwrap_or_else(|| default.to_owned());
    let shape = match stated.as_str() {
        "cosine" => "cosine",
        "linear" => "linear",
        "constant" | "constant_with_warmup" => "constant",
        "inverse_sqrt" => "inverse_sqrt",
        other => {
            parts
                .notes
                .push(format!("the schedule `{other}` became `linear`"));
            "linear"
        }
    };
    let steps = keys.count("warmup_steps").map(|steps| steps.to_string());
    let ratio = keys.number("warmup_ratio").filter(|ratio| *ratio > 0.0);
    let warmup = steps.or(ratio.map(|ratio| format!("{}%", percent(ratio))));
    parts.stage.push(match warmup {
        Some(warmup) => format!("schedule = {shape} {{ warmup = {warmup} }}"),
        None => format!("schedule = {shape}"),
    });
}

/// A share in percent, without the digits that a product of floats adds.
pub(super) fn percent(share: f64) -> f64 {
    (share * 1e6).round() / 1e4
}
