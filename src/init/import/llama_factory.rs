//! LLaMA-Factory's YAML (<https://llamafactory.readthedocs.io>, its arguments).

use super::keys::Keys;
use super::parts::{optimizer, percent, schedule, Lora, Parts, Targets};

pub(super) const NEUTRAL: &[&str] = &[
    "bf16",
    "cache_dir",
    "dataset_dir",
    "ddp_timeout",
    "deepspeed",
    "do_*",
    "eval_steps",
    "eval_strategy",
    "flash_attn",
    "fp16",
    "gradient_checkpointing",
    "dataloader_*",
    "logging_steps",
    "output_dir",
    "overwrite_*",
    "per_device_eval_batch_size",
    "plot_loss",
    "preprocessing_num_workers",
    "quantization_method",
    "report_to",
    "resume_from_checkpoint",
    "save_*",
    "stage",
    "trust_remote_code",
    "upcast_layernorm",
    "use_unsloth",
    "double_quantization",
    "ray_*",
    "run_name",
];

/// # Errors
/// The stage or the kind of tuning is one that deltarun does not have.
pub(super) fn read(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    parts.set_backbone(keys.text("model_name_or_path"));
    let length = keys.count("cutoff_len").unwrap_or(2048);
    parts.of_backbone.push(format!("max_length = {length}"));
    match keys.count("quantization_bit") {
        Some(4) => parts.of_backbone.push("storage = nf4".to_owned()),
        Some(8) => parts.of_backbone.push("storage = int8".to_owned()),
        Some(bits) => return Err(format!("deltarun keeps no weights in {bits} bits")),
        None => {}
    }
    match keys.text("finetuning_type").as_deref() {
        None | Some("lora") => delta(keys, parts),
        Some("full") => {}
        Some(other) => return Err(format!("deltarun has no tuning of the type `{other}`")),
    }
    parts.task = match keys.text("stage").as_deref() {
        Some("sft") => ("instruct", vec!["messages = messages".to_owned()]),
        Some("pt") => ("causal_lm", vec!["text = text".to_owned()]),
        Some("dpo") => ("prefer", preference(keys)),
        other => {
            return Err(format!(
                "deltarun has no stage `{}`",
                other.unwrap_or_default()
            ))
        }
    };
    if let Some(template) = keys.text("template") {
        parts.notes.push(format!("LLaMA-Factory's template `{template}` is the chat template of the backbone's tokenizer here"));
    }
    for name in keys.names("dataset").unwrap_or_default().iter().take(1) {
        parts.set("train", name, Some("json"));
    }
    if let Some(share) = keys
        .number("val_size")
        .filter(|share| *share > 0.0 && *share < 1.0)
    {
        parts
            .sets
            .push(format!("dev = split(train, {}%)", percent(share)));
    }
    parts.stage("steps", keys.count("max_steps"));
    if !parts
        .stage
        .iter()
        .any(|setting| setting.starts_with("steps"))
    {
        parts.stage(
            "epochs",
            Some(keys.number("num_train_epochs").unwrap_or(3.0)),
        );
    }
    parts.stage(
        "batch",
        Some(keys.count("per_device_train_batch_size").unwrap_or(8)),
    );
    parts.stage("accumulate", keys.count("gradient_accumulation_steps"));
    optimizer(
        keys,
        parts,
        ("optim", "learning_rate", "weight_decay"),
        5e-5,
    );
    schedule(keys, parts, "lr_scheduler_type", "linear");
    parts.stage("clip", keys.number("max_grad_norm"));
    parts.stage("lora_plus", keys.number("loraplus_lr_ratio"));
    parts.seed = Some(keys.count("seed").unwrap_or(42));
    Ok(())
}

fn delta(keys: &Keys, parts: &mut Parts) {
    let rank = keys.count("lora_rank").unwrap_or(8);
    let lora = Lora {
        rank,
        alpha: keys.number("lora_alpha").unwrap_or(2.0 * rank as f64),
        dropout: keys.number("lora_dropout").unwrap_or(0.0),
        is_rank_stabilized: keys.is_on("use_rslora"),
        is_pissa: keys.is_on("pissa_init"),
    };
    let kind = if keys.is_on("use_dora") {
        "dora"
    } else {
        "lora"
    };
    let targets = match keys.names("lora_target") {
        Some(names) if names != ["all"] => Targets::Named(names),
        _ => Targets::AllLinear,
    };
    parts.set_lora(kind, &lora, &targets);
}

/// LLaMA-Factory's names of preference losses, and its default of β.
fn preference(keys: &Keys) -> Vec<String> {
    let loss = match keys.text("pref_loss").as_deref() {
        Some("orpo") => "orpo",
        Some("simpo") => "simpo",
        _ => "dpo",
    };
    let beta = keys.number("pref_beta").unwrap_or(0.1);
    ["prompt = prompt", "chosen = chosen", "rejected = rejected"]
        .into_iter()
        .map(str::to_owned)
        .chain([format!("loss = {loss}"), format!("beta = {beta}")])
        .collect()
}
