//! MLX-LM's YAML (`mlx_lm.lora --config`; its `LORA.md`).

use std::path::Path;

use serde_json::Value;

use super::keys::Keys;
use super::parts::{Lora, Parts, Targets};

pub(super) const NEUTRAL: &[&str] = &[
    "adapter_path",
    "clear_cache_threshold",
    "config",
    "project_name",
    "report_to",
    "resume_adapter_file",
    "save_every",
    "steps_per_eval",
    "steps_per_report",
    "test",
    "test_batches",
    "train",
    "val_batches",
    "wandb",
];

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
    let kind = match keys.text("optimizer").as_deref() {
        Some("sgd") => "sgd",
        Some("adafactor") => "adafactor",
        _ => "adamw",
    };
    let rate = keys.number("learning_rate").unwrap_or(1e-5);
    parts
        .stage
        .push(format!("optimizer = {kind} {{ lr = {rate:e} }}"));
    let schedule = keys.get("lr_schedule");
    let shape = match schedule.and_then(|schedule| schedule["name"].as_str()) {
        Some("cosine_decay") => "cosine",
        Some("linear_schedule") => "linear",
        _ => "constant",
    };
    let warmup = schedule.and_then(|schedule| schedule["warmup"].as_u64());
    parts.stage.push(match warmup {
        Some(steps) if steps > 0 => format!("schedule = {shape} {{ warmup = {steps} }}"),
        _ => format!("schedule = {shape}"),
    });
    parts.stage("clip", Some("off"));
    if keys.is_on("grad_checkpoint") {
        parts.stage("recompute", Some("blocks"));
    }
    parts.seed = keys.count("seed");
    Ok(())
}

/// MLX-LM's `scale` is alpha / rank.
fn delta(keys: &Keys, parts: &mut Parts, kind: &str) {
    let none = Value::Null;
    let own = keys.get("lora_parameters").unwrap_or(&none);
    let rank = own["rank"].as_u64().unwrap_or(8) as usize;
    let lora = Lora {
        rank,
        alpha: own["scale"].as_f64().unwrap_or(20.0) * rank as f64,
        dropout: own["dropout"].as_f64().unwrap_or(0.0),
        is_rank_stabilized: false,
        is_pissa: false,
    };
    let names = own["keys"].as_array().map(|names| {
        let names = names.iter().filter_map(Value::as_str);
        names
            .map(|name| name.rsplit('.').next().unwrap_or(name).to_owned())
            .collect()
    });
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
    for (set, file) in [
        ("train", "train.jsonl"),
        ("dev", "valid.jsonl"),
        ("test", "test.jsonl"),
    ] {
        let path = format!("{}/{file}", folder.trim_end_matches('/'));
        if set == "train" || Path::new(&path).exists() {
            parts
                .sets
                .push(format!("{set} = jsonl({})", serde_json::json!(path)));
        }
    }
    let first = std::fs::read_to_string(format!("{folder}/train.jsonl")).unwrap_or_default();
    let first: Value = first
        .lines()
        .next()
        .and_then(|line| serde_json::from_str(line).ok())
        .unwrap_or_default();
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
