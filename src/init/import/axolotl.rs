//! Axolotl's YAML (<https://docs.axolotl.ai>, its configuration reference).

use serde_json::Value;

use super::keys::Keys;
use super::parts::{column, optimizer, percent, schedule, Lora, Parts, Targets};

pub(super) const NEUTRAL: &[&str] = &[
    "attn_implementation",
    "bf16",
    "dataloader_*",
    "dataset_prepared_path",
    "ddp*",
    "debug",
    "deepspeed",
    "eval_batch_size",
    "eval_sample_packing",
    "evals_per_epoch",
    "eval_steps",
    "flash_attention",
    "fp16",
    "fsdp*",
    "gpu_memory_limit",
    "group_by_length",
    "gradient_checkpointing_kwargs",
    "hub_model_id",
    "is_*",
    "logging_steps",
    "loss_watchdog_*",
    "model_type",
    "output_dir",
    "pad_to_sequence_len",
    "plugins",
    "sample_packing",
    "save_*",
    "saves_per_epoch",
    "strict",
    "tf32",
    "tokenizer_type",
    "trust_remote_code",
    "wandb_*",
    "xformers_attention",
    "mlflow_*",
    "comet_*",
    "sdp_attention",
    "liger_*",
    "tokenizer_config",
    "lora_model_dir",
];

/// # Errors
/// The adapter is of a kind that deltarun does not have.
pub(super) fn read(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    parts.set_backbone(keys.text("base_model"));
    let length = keys.count("sequence_len");
    parts
        .of_backbone
        .extend(length.map(|length| format!("max_length = {length}")));
    let adapter = keys.text("adapter");
    if keys.is_on("load_in_4bit") || adapter.as_deref() == Some("qlora") {
        parts.of_backbone.push("storage = nf4".to_owned());
    } else if keys.is_on("load_in_8bit") {
        parts.of_backbone.push("storage = int8".to_owned());
    }
    delta(keys, parts, adapter.as_deref())?;
    task(keys, parts)?;
    parts.stage("steps", keys.count("max_steps"));
    if !parts
        .stage
        .iter()
        .any(|setting| setting.starts_with("steps"))
    {
        parts.stage("epochs", Some(keys.number("num_epochs").unwrap_or(1.0)));
    }
    parts.stage("batch", Some(keys.count("micro_batch_size").unwrap_or(1)));
    parts.stage("accumulate", keys.count("gradient_accumulation_steps"));
    optimizer(
        keys,
        parts,
        ("optimizer", "learning_rate", "weight_decay"),
        2e-4,
    );
    schedule(keys, parts, "lr_scheduler", "cosine");
    parts.stage("clip", keys.number("max_grad_norm"));
    parts.stage("patience", keys.count("early_stopping_patience"));
    parts.stage("lora_plus", keys.number("loraplus_lr_ratio"));
    if matches!(
        keys.get("gradient_checkpointing"),
        Some(Value::Bool(true) | Value::String(_))
    ) {
        parts.stage("recompute", Some("blocks"));
    }
    parts.seed = keys.count("seed");
    Ok(())
}

fn delta(keys: &Keys, parts: &mut Parts, adapter: Option<&str>) -> Result<(), String> {
    match adapter {
        None => return Ok(()),
        Some("lora" | "qlora") => {}
        Some(other) => return Err(format!("deltarun has no adapter `{other}`")),
    }
    let lora = Lora {
        rank: keys.count("lora_r").unwrap_or(8),
        alpha: keys.number("lora_alpha").unwrap_or(16.0),
        dropout: keys.number("lora_dropout").unwrap_or(0.0),
        is_rank_stabilized: keys.is_on("peft_use_rslora"),
        is_pissa: keys
            .text("peft_init_lora_weights")
            .is_some_and(|init| init.starts_with("pissa")),
    };
    let kind = if keys.is_on("peft_use_dora") {
        "dora"
    } else {
        "lora"
    };
    let named = keys.names("lora_target_modules");
    let targets = match named {
        _ if keys.is_on("lora_target_linear") => Targets::AllLinear,
        Some(names) => Targets::Named(names),
        None => Targets::AllLinear,
    };
    parts.set_lora(kind, &lora, &targets);
    Ok(())
}

/// The task and the sets: Axolotl says with each data set what its rows are.
fn task(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    let sets = keys.get("datasets").and_then(Value::as_array);
    let text = |set: &Value, key: &str| set[key].as_str().map(str::to_owned);
    let first = sets.and_then(|sets| sets.first());
    let kind = first
        .and_then(|set| text(set, "type"))
        .unwrap_or_else(|| "chat_template".to_owned());
    let preference = keys.text("rl");
    parts.task = match (preference.as_deref(), kind.as_str()) {
        (Some(loss @ ("dpo" | "orpo" | "simpo")), _) => {
            let mut settings = vec!["prompt = prompt", "chosen = chosen", "rejected = rejected"];
            let loss = format!("loss = {loss}");
            settings.push(&loss);
            ("prefer", settings.into_iter().map(str::to_owned).collect())
        }
        (Some(other), _) => {
            return Err(format!(
                "deltarun has no training of the kind `rl: {other}`"
            ))
        }
        (_, "completion") => {
            let field = first
                .and_then(|set| text(set, "field"))
                .unwrap_or_else(|| "text".to_owned());
            ("causal_lm", vec![format!("text = {}", column(&field))])
        }
        (_, "chat_template" | "sharegpt") => {
            let field = first
                .and_then(|set| text(set, "field_messages"))
                .unwrap_or_else(|| "messages".to_owned());
            ("instruct", vec![format!("messages = {}", column(&field))])
        }
        (_, other) => {
            if other != "alpaca" {
                parts.notes.push(format!("the rows are of Axolotl's type `{other}`: compare the columns and the prompt with yours"));
            }
            parts.notes.push(
                "the chat template of the backbone stands for Axolotl's text around a prompt"
                    .to_owned(),
            );
            (
                "instruct",
                vec![
                    "prompt = instruction".to_owned(),
                    "answer = output".to_owned(),
                ],
            )
        }
    };
    if keys.is_on("train_on_inputs") {
        parts.notes.push(
            "the loss is on answers alone; Axolotl's `train_on_inputs` has it on prompts as well"
                .to_owned(),
        );
    }
    if let Some(set) = first {
        let path = text(set, "data_files")
            .or_else(|| text(set, "path"))
            .unwrap_or_default();
        parts.set("train", &path, text(set, "ds_type").as_deref());
    }
    if sets.is_some_and(|sets| sets.len() > 1) {
        parts.notes.push(
            "only the first of several data sets is here: a reader takes a list of files"
                .to_owned(),
        );
    }
    if let Some(share) = keys.number("val_set_size").filter(|share| *share > 0.0) {
        parts.sets.push(match share < 1.0 {
            true => format!("dev = split(train, {}%)", percent(share)),
            false => "dev = split(train, 5%)".to_owned(),
        });
    }
    Ok(())
}
