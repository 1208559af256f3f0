//! PEFT's `adapter_config.json`: the method alone, as it says nothing of data and training.

use serde_json::Value;

use super::keys::Keys;
use super::parts::{Lora, Parts, Targets, OPEN};

pub(super) const NEUTRAL: &[&str] = &[
    "auto_mapping",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_weights",
    "megatron_*",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "save_projection",
    "projection_prng_key",
    "d_initial",
    "num_attention_heads",
    "num_layers",
    "token_dim",
    "num_transformer_submodules",
    "encoder_dropout",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "tokenizer_name_or_path",
    "prefix_projection",
    "feedforward_modules",
    "module_dropout",
    "rank_dropout",
    "use_effective_conv2d",
    "decompose_factor",
    "deltaT",
    "tinit",
    "tfinal",
    "init_r",
    "arrow_config",
    "alpha",
    "lora_alpha",
];

/// # Errors
/// The kind of adapter is one that deltarun does not train.
pub(super) fn read(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    parts.set_backbone(keys.text("base_model_name_or_path"));
    let targets = match keys.get("target_modules") {
        Some(Value::String(all)) if all == "all-linear" => Targets::AllLinear,
        Some(Value::String(pattern)) => {
            parts.notes.push(format!(
                "PEFT's pattern `{pattern}` is to be written as a selector"
            ));
            Targets::Named(vec![OPEN.to_owned()])
        }
        Some(_) => Targets::Named(keys.names("target_modules").unwrap_or_default()),
        None => usual_targets(keys, parts),
    };
    let kind = keys.text("peft_type").unwrap_or_default();
    let rank = keys.count("r").unwrap_or(8);
    let alpha = |usual: f64| {
        keys.number("alpha")
            .or(keys.number("lora_alpha"))
            .unwrap_or(usual)
    };
    match kind.as_str() {
        "LORA" => {
            let lora = Lora {
                rank,
                alpha: alpha(8.0),
                dropout: keys.number("lora_dropout").unwrap_or(0.0),
                is_rank_stabilized: keys.is_on("use_rslora"),
                is_pissa: keys
                    .text("init_lora_weights")
                    .is_some_and(|init| init.starts_with("pissa")),
            };
            let kind = if keys.is_on("use_dora") {
                "dora"
            } else {
                "lora"
            };
            parts.set_lora(kind, &lora, &targets);
        }
        "LOHA" | "LOKR" | "VERA" | "MISS" | "IA3" | "ADALORA" => {
            let settings = match kind.as_str() {
                "LOHA" | "LOKR" => format!("{{ rank = {rank}, alpha = {} }}", alpha(8.0)),
                "ADALORA" => {
                    let target = keys.count("target_r").unwrap_or(8);
                    format!("{{ target_rank = {target}, alpha = {} }}", alpha(8.0))
                }
                "IA3" => String::new(),
                _ => format!("{{ rank = {rank} }}"),
            };
            let on = parts.selector(&targets);
            parts.set_delta(
                "reparam",
                format!("= {} {settings} on {on}", kind.to_lowercase()),
            );
        }
        "PREFIX_TUNING" => {
            let tokens = keys.count("num_virtual_tokens").unwrap_or(20);
            parts.set_delta(
                "insert",
                format!("= prefix {{ tokens = {tokens} }} before **.attn"),
            );
        }
        "PROMPT_TUNING" | "P_TUNING" => {
            let tokens = keys.count("num_virtual_tokens").unwrap_or(20);
            let hidden = keys
                .count("encoder_hidden_size")
                .filter(|_| kind == "P_TUNING");
            let hidden = hidden.map_or(String::new(), |hidden| format!(", hidden = {hidden}"));
            let method = if kind == "P_TUNING" {
                "p_tuning"
            } else {
                "prompt"
            };
            parts.set_delta(
                "insert",
                format!("= {method} {{ tokens = {tokens}{hidden} }} before embeddings"),
            );
        }
        "TRAINABLE_TOKENS" => {
            let tokens = keys.get("token_indices").map(Value::to_string);
            let tokens = tokens.unwrap_or_else(|| "[]".to_owned());
            let statement =
                format!("= trainable_tokens {{ tokens = {tokens} }} on embeddings.word");
            parts.set_delta("reparam", statement);
        }
        other => return Err(format!("deltarun has no method for PEFT's `{other}`")),
    }
    task(keys, parts);
    parts.stage.extend(
        [
            "epochs = 3",
            "batch = 16",
            "optimizer = adamw { lr = 2e-4 }",
            "schedule = linear { warmup = 6% }",
        ]
        .map(str::to_owned),
    );
    parts
        .notes
        .push("the adapter says nothing of its training: the stage has usual settings".to_owned());
    Ok(())
}

fn task(keys: &Keys, parts: &mut Parts) {
    let settings = |all: &[&str]| all.iter().map(|setting| (*setting).to_owned()).collect();
    parts.task = match keys.text("task_type").as_deref() {
        Some("SEQ_CLS") => ("classify", settings(&["text = text", "label = label"])),
        Some("TOKEN_CLS") => ("tag", settings(&["tokens = tokens", "tags = tags"])),
        Some("SEQ_2_SEQ_LM") => ("seq2seq", settings(&["source = source", "target = target"])),
        _ => (
            "instruct",
            settings(&["prompt = prompt", "answer = answer"]),
        ),
    };
    parts.has_head = matches!(parts.task.0, "classify" | "tag");
    // The head of these tasks is trained with `head`.
    let of_head = ["classifier", "score", "pooler"];
    for name in keys.names("modules_to_save").unwrap_or_default() {
        if !(parts.has_head && of_head.contains(&name.as_str())) {
            parts.notes.push(format!(
                "PEFT also trains `{name}` whole: add `unfreeze` for it"
            ));
        }
    }
}

/// The modules that PEFT takes of a Llama if the configuration names none.
fn usual_targets(keys: &Keys, parts: &mut Parts) -> Targets {
    let names: &[&str] = match keys.text("peft_type").as_deref() {
        Some("IA3") => &["k_proj", "v_proj", "down_proj"],
        _ => &["q_proj", "v_proj"],
    };
    let shown = crate::text::quoted_list(names.iter().copied());
    let is_of_modules = keys.number("num_virtual_tokens").is_none();
    if is_of_modules && keys.get("token_indices").is_none() {
        parts.notes.push(format!("the adapter names no modules: PEFT takes {shown} of a Llama, and others of other families"));
    }
    Targets::Named(names.iter().map(|name| (*name).to_owned()).collect())
}
