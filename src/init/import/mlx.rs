//! MLX-LM's YAML (`mlx_lm.lora --config`; its `LORA.md`).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::Value;

use super::keys::Keys;
use super::parts::{optimizer, quoted, Lora, Parts, Targets};

pub(super) const NEUTRAL: &[&str] = &[
    "adapter_path",
    "clear_cache_threshold",
    "config",
    "project_name",
    "report_to",
    "save_every",
    "steps_per_eval",
    "steps_per_report",
    "test",
    "test_batches",
    "train",
    "val_batches",
    "wandb",
];

pub(super) const NEUTRAL_VALUES: &[(&str, &str)] = &[("lr_schedule.warmup_init", "0")];

/// # Errors
/// The kind of tuning is one that deltarun does not have.
pub(super) fn read(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    parts.set_backbone(keys.text("model"));
    let length = keys.count("max_seq_length").unwrap_or(2048);
    parts.of_backbone.push(format!("max_length = {length}"));
    match keys.text("fine_tune_type").as_deref() {
        None | Some("lora") => delta(keys, parts, "lora"),
        Some("dora") => delta(keys, parts, "dora"),
        Some("full") => {}
        Some(other) => return Err(format!("deltarun has no tuning of the type `{other}`")),
    }
    data(keys, parts);
    parts.stage("steps", Some(keys.count("iters").unwrap_or(1000)));
    parts.stage("batch", Some(keys.count("batch_size").unwrap_or(4)));
    parts.stage("accumulate", keys.count("grad_accumulation_steps"));
    let of_adamw = "optimizer_config.adamw.weight_decay";
    // MLX's AdamW decays if nothing is said, and its Adam does not.
    let is_adamw = keys.begins("optimizer", "adamw");
    let decay = if is_adamw { 0.01 } else { 0.0 };
    optimizer(keys, parts, ("optimizer", of_adamw), (1e-5, decay));
    schedule(keys, parts);
    parts.stage("clip", Some("off"));
    if keys.is_on("grad_checkpoint") {
        parts.stage("recompute", Some("blocks"));
    }
    parts.seed = keys.whole("seed");
    Ok(())
}

/// MLX's schedule, with its warm-up in steps.
fn schedule(keys: &Keys, parts: &mut Parts) {
    let stated = keys.text("lr_schedule.name");
    let shape = match stated.as_deref() {
        Some("cosine_decay") => "cosine",
        Some("linear_schedule") => "linear",
        None => "constant",
        Some(other) => {
            parts
                .notes
                .push(format!("the schedule {} became `constant`", quoted(other)));
            "constant"
        }
    };
    parts.stage.push(match keys.count("lr_schedule.warmup") {
        Some(steps) => format!("schedule = {shape} {{ warmup = {steps} }}"),
        None => format!("schedule = {shape}"),
    });
}

/// MLX-LM's `scale` is alpha / rank.
fn delta(keys: &Keys, parts: &mut Parts, kind: &str) {
    let of_lora = |key: &str| format!("lora_parameters.{key}");
    let rank = keys.count(&of_lora("rank")).unwrap_or(8);
    let lora = Lora {
        rank,
        alpha: keys.number(&of_lora("scale")).unwrap_or(20.0) * rank as f64,
        dropout: keys.number(&of_lora("dropout")).unwrap_or(0.0),
        is_rank_stabilized: false,
        is_pissa: false,
    };
    let last = |name: String| name.rsplit('.').next().map_or(String::new(), str::to_owned);
    let names = keys.names(&of_lora("keys"));
    let names = names.map(|names| names.into_iter().map(last).collect());
    let targets = names.map_or(Targets::AllLinear, Targets::Named);
    parts.set_lora(kind, &lora, &targets);
    let layers = keys
        .number("num_layers")
        .or_else(|| keys.number("lora_layers"))
        .unwrap_or(16.0);
    if layers > 0.0 {
        parts.notes.push(format!("MLX-LM changes the last {layers} blocks alone, and this pipeline all: `block[last {layers}].attn.q` selects so"));
    }
}

/// A folder with `train.jsonl`, `valid.jsonl` and `test.jsonl`, whose first row says what they are.
fn data(keys: &Keys, parts: &mut Parts) {
    let folder = keys.text("data").unwrap_or_else(|| "data".to_owned());
    let found = parts.find(&folder);
    for (set, file) in [
        ("train", "train.jsonl"),
        ("dev", "valid.jsonl"),
        ("test", "test.jsonl"),
    ] {
        let path = format!("{}/{file}", folder.trim_end_matches('/'));
        if set == "train"
            || found
                .as_ref()
                .is_some_and(|found| found.join(file).exists())
        {
            let path = quoted(&parts.place(&path));
            parts.sets.push(format!("{set} = jsonl({path})"));
        }
    }
    let first = found.and_then(|found| first_row(&found.join("train.jsonl")));
    let first = first.unwrap_or_default();
    let is_masked = keys.is_on("mask_prompt");
    let task = match (first.get("text").is_some(), first.get("prompt").is_some()) {
        (true, _) => ("causal_lm", vec!["text = text".to_owned()]),
        (_, true) => (
            "instruct",
            vec![
                "prompt = prompt".to_owned(),
                "answer = completion".to_owned(),
            ],
        ),
        _ => ("instruct", vec!["messages = messages".to_owned()]),
    };
    if task.0 == "instruct" && !is_masked {
        parts.notes.push("the loss is on answers alone; MLX-LM has it on prompts as well unless `mask_prompt` is on".to_owned());
    }
    parts.task = task;
}

fn first_row(file: &Path) -> Option<Value> {
    let mut lines = BufReader::new(File::open(file).ok()?).lines();
    serde_json::from_str(&lines.next()?.ok()?).ok()
}
