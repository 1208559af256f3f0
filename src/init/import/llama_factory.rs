//! LLaMA-Factory's YAML (<https://llamafactory.readthedocs.io>, its arguments).

use super::keys::Keys;
use super::parts::{optimizer, schedule, Lora, Parts, Targets};

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
    "report_to",
    "save_*",
    "stage",
    "trust_remote_code",
    "upcast_layernorm",
    "use_unsloth",
    "double_quantization",
    "ray_*",
    "run_name",
];

pub(super) const NEUTRAL_VALUES: &[(&str, &str)] = &[
    ("quantization_method", "\"bitsandbytes\""),
    ("quantization_method", "\"bnb\""),
    ("simpo_gamma", "0.5"),
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
        Some("dpo") => ("prefer", preference(keys)?),
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
    let sets = keys.names("dataset").unwrap_or_default();
    if let Some(first) = sets.first() {
        parts.set("train", first, None);
        parts.notes.push(
            "LLaMA-Factory's `dataset_info.json` has the file of a data set and its columns"
                .to_owned(),
        );
    }
    if sets.len() > 1 {
        let others = crate::text::quoted_list(sets[1..].iter().map(String::as_str));
        parts.notes.push(format!(
            "the data sets {others} are not here: a reader takes a list of files"
        ));
    }
    parts.hold_out("val_size", keys.number("val_size"));
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
    optimizer(keys, parts, ("optim", "weight_decay"), (5e-5, 0.0));
    schedule(keys, parts, "lr_scheduler_type", "linear");
    parts.stage("clip", keys.number("max_grad_norm"));
    parts.stage("lora_plus", keys.number("loraplus_lr_ratio"));
    parts.seed = Some(keys.whole("seed").unwrap_or(42));
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
fn preference(keys: &Keys) -> Result<Vec<String>, String> {
    let stated = keys.text("pref_loss");
    let loss = match stated.as_deref() {
        None | Some("sigmoid") => "dpo",
        Some(loss @ ("orpo" | "simpo")) => loss,
        Some(other) => return Err(format!("deltarun has no preference loss `{other}`")),
    };
    let beta = keys.number("pref_beta").unwrap_or(0.1);
    let columns = ["prompt = prompt", "chosen = chosen", "rejected = rejected"];
    let mut settings: Vec<String> = columns.map(str::to_owned).into();
    settings.extend([format!("loss = {loss}"), format!("beta = {beta}")]);
    if loss == "simpo" {
        let gamma = keys.number("simpo_gamma").unwrap_or(0.5);
        settings.push(format!("gamma = {gamma}"));
    }
    Ok(settings)
}
