//! The parts of the pipeline that a configuration becomes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::keys::Keys;
use crate::data::recognize;
use crate::hub::of_other_tools;
use crate::text::percent;

/// What stands where a configuration leaves something open.
pub(super) const OPEN: &str = "TODO";

/// A pipeline under way. All texts are in the language.
pub(super) struct Parts {
    folder: PathBuf,
    is_elsewhere: bool,
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
    /// The parts of a configuration in `folder`, for a pipeline in this directory or elsewhere.
    pub(super) fn new(folder: &Path, is_elsewhere: bool) -> Self {
        Parts {
            folder: folder.to_owned(),
            is_elsewhere,
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
        self.backbone = match of_other_tools(&name) {
            Some(in_hub) if self.find(&name).is_none() => in_hub,
            _ => self.place(&name),
        };
    }

    /// What is at a path: seen from this directory, where the tools are started, or from the configuration's.
    pub(super) fn find(&self, path: &str) -> Option<PathBuf> {
        let places = [Path::new(path).to_owned(), self.folder.join(path)];
        places.into_iter().find(|place| place.exists())
    }

    /// A path as the pipeline has it.
    pub(super) fn place(&self, path: &str) -> String {
        let found = self.find(path);
        let is_seen = !self.is_elsewhere && found.as_deref() == Some(Path::new(path));
        let found = found
            .filter(|_| !is_seen)
            .and_then(|found| found.canonicalize().ok());
        found.map_or(path.to_owned(), |found| found.display().to_string())
    }

    /// Adds `key = value` to the stage, if there is a value.
    pub(super) fn stage(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        self.stage
            .extend(value.map(|value| format!("{key} = {value}")));
    }

    /// Adds a set that a file, a folder or a data set of the hub holds.
    pub(super) fn set(&mut self, name: &str, path: &str, format: Option<&str>) {
        let ending = Path::new(path).extension().unwrap_or_default();
        let ending = ending.to_string_lossy().into_owned();
        let found = self.find(path).filter(|found| found.is_file());
        let seen = found.as_deref().and_then(|file| recognize(file).ok());
        let reader = match (&seen, ending.as_str(), format) {
            (Some(file), ..) => file.format.reader(),
            (None, ending @ ("csv" | "tsv" | "parquet" | "json"), _) => ending,
            (None, "", Some(format @ ("csv" | "parquet"))) => format,
            _ => "jsonl",
        };
        let path = match found.is_some() || !ending.is_empty() {
            true => self.place(path),
            false => {
                self.notes.push(format!("`{path}` is a data set of the hub, or of a list: name its file, as in parquet(\"hf:organisation/name/PATH\")"));
                OPEN.to_owned()
            }
        };
        self.sets
            .push(format!("{name} = {reader}({})", quoted(&path)));
    }

    /// Holds out a part of the training rows: a share, or a number of them, as other tools name it in `key`.
    pub(super) fn hold_out(&mut self, key: &str, part: Option<f64>) {
        match part {
            Some(share) if share > 0.0 && share < 1.0 => {
                let share = percent(share);
                self.sets.push(format!("dev = split(train, {share})"));
            }
            Some(rows) if rows >= 1.0 => {
                self.sets.push("dev = split(train, 5%)".to_owned());
                self.notes.push(format!(
                    "`{key}` holds out {rows} rows, and `split` takes a share: write yours"
                ));
            }
            _ => {}
        }
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
        for note in &self.notes {
            let _ = writeln!(text, "# {}.", in_line(note));
        }
        for (key, value) in unread {
            let value: String = in_line(value).chars().take(80).collect();
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

/// A text in one line, as a comment has to be.
pub(super) fn in_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// A text in quotes, in one line.
pub(super) fn quoted(text: &str) -> String {
    json!(in_line(text)).to_string()
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
    (name, decay): (&str, &str),
    (usual_rate, usual_decay): (f64, f64),
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
    let rate = keys.number("learning_rate").unwrap_or(usual_rate);
    let mut settings = vec![format!("lr = {rate:e}")];
    let decay = keys.number(decay).unwrap_or(usual_decay);
    if decay > 0.0 {
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
    let warmup = steps.or(ratio.map(percent));
    parts.stage.push(match warmup {
        Some(warmup) => format!("schedule = {shape} {{ warmup = {warmup} }}"),
        None => format!("schedule = {shape}"),
    });
}
