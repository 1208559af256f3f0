//! Axolotl's YAML (<https://docs.axolotl.ai>, its configuration reference).

use serde_json::Value;

use super::keys::Keys;
use super::parts::{column, optimizer, quoted, schedule, Lora, Parts, Targets};

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
    "eval_table_size",
    "evals_per_epoch",
    "eval_steps",
    "flash_attention",
    "fp16",
    "fsdp*",
    "gpu_memory_limit",
    "gradient_checkpointing_kwargs",
    "hub_model_id",
    "is_*",
    "logging_steps",
    "loss_watchdog_*",
    "model_type",
    "output_dir",
    "pad_to_sequence_len",
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
];

pub(super) const NEUTRAL_VALUES: &[(&str, &str)] = &[
    ("plugins", "[\"axolotl.integrations.liger.LigerPlugin\"]"),
    (
        "plugins",
        "[\"axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin\"]",
    ),
    ("datasets.0.split", "\"train\""),
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
    optimizer(keys, parts, ("optimizer", "weight_decay"), (2e-4, 0.0));
    schedule(keys, parts, "lr_scheduler", "cosine");
    parts.stage("clip", keys.number("max_grad_norm"));
    parts.stage("patience", keys.count("early_stopping_patience"));
    parts.stage("lora_plus", keys.number("loraplus_lr_ratio"));
    let recomputes = |value: &Value| (value == true || value.is_string()).then_some(());
    if keys.read("gradient_checkpointing", recomputes).is_some() {
        parts.stage("recompute", Some("blocks"));
    }
    if keys.is_on("sample_packing") {
        parts.notes.push("Axolotl packs rows into sequences of `sequence_len` tokens, so that its batch has more rows than this one's".to_owned());
    }
    parts.seed = keys.whole("seed");
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
        is_pissa: keys.begins("peft_init_lora_weights", "pissa"),
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
    parts.task = match keys.text("rl").as_deref() {
        Some(loss @ ("dpo" | "orpo" | "simpo")) => ("prefer", preference(keys, parts, loss)),
        Some(other) => {
            return Err(format!(
                "deltarun has no training of the kind `rl: {other}`"
            ))
        }
        None => rows(keys, parts),
    };
    if keys.is_on("train_on_inputs") {
        parts.notes.push(
            "the loss is on answers alone; Axolotl's `train_on_inputs` has it on prompts as well"
                .to_owned(),
        );
    }
    let path = keys.text("datasets.0.path");
    if let Some(path) = keys.text("datasets.0.data_files").or(path) {
        let format = keys.text("datasets.0.ds_type");
        parts.set("train", &path, format.as_deref());
    }
    if keys.peek("datasets.1").is_some() {
        parts.notes.push(
            "only the first of several data sets is here: a reader takes a list of files"
                .to_owned(),
        );
    }
    parts.hold_out("val_set_size", keys.number("val_set_size"));
    Ok(())
}

fn preference(keys: &Keys, parts: &mut Parts, loss: &str) -> Vec<String> {
    if let Some(kind) = keys.text("datasets.0.type") {
        parts.notes.push(format!(
            "the rows are of Axolotl's type `{kind}`: compare the columns with yours"
        ));
    }
    let columns = ["prompt = prompt", "chosen = chosen", "rejected = rejected"];
    let mut settings: Vec<String> = columns.map(str::to_owned).into();
    settings.push(format!("loss = {loss}"));
    let (beta, gamma) = match loss {
        "orpo" => (keys.number("orpo_alpha"), None),
        "simpo" => (keys.number("rl_beta"), keys.number("simpo_gamma")),
        _ => (keys.number("rl_beta"), None),
    };
    settings.extend(beta.map(|beta| format!("beta = {beta}")));
    settings.extend(gamma.map(|gamma| format!("gamma = {gamma}")));
    settings
}

/// The task that the rows of a type are for.
fn rows(keys: &Keys, parts: &mut Parts) -> (&'static str, Vec<String>) {
    let name = |key: &str, usual: &str| {
        let given = keys.text(&format!("datasets.0.{key}"));
        column(given.as_deref().unwrap_or(usual))
    };
    let kind = keys.text("datasets.0.type");
    match kind.as_deref() {
        Some("completion") => {
            let text = name("field", "text");
            ("causal_lm", vec![format!("text = {text}")])
        }
        Some("chat_template" | "sharegpt") => {
            let messages = name("field_messages", "messages");
            ("instruct", vec![format!("messages = {messages}")])
        }
        // A type of the configuration's own has its columns in a block.
        None if keys.peek("datasets.0.type").is_some() => {
            let prompt = name("type.field_instruction", "instruction");
            let answer = name("type.field_output", "output");
            parts
                .notes
                .push("compare the prompt with that of Axolotl's `format`".to_owned());
            answers(&prompt, &answer)
        }
        None => {
            let messages = name("field_messages", "messages");
            ("instruct", vec![format!("messages = {messages}")])
        }
        Some(kind) => {
            let what = match kind {
                "alpaca" => "a column `input`, which is not read, may stand with the instruction",
                _ => "compare the columns and the prompt with yours",
            };
            parts.notes.push(format!(
                "the rows are of Axolotl's type {}: {what}",
                quoted(kind)
            ));
            parts.notes.push(
                "the chat template of the backbone stands for Axolotl's text around a prompt"
                    .to_owned(),
            );
            answers("instruction", "output")
        }
    }
}

fn answers(prompt: &str, answer: &str) -> (&'static str, Vec<String>) {
    let settings = [format!("prompt = {prompt}"), format!("answer = {answer}")];
    ("instruct", settings.into())
}
