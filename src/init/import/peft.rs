//! PEFT's `adapter_config.json`: the method alone, as it says nothing of data and training.

use serde_json::Value;

use super::keys::Keys;
use super::parts::{quoted, Lora, Parts, Targets, OPEN};

pub(super) const NEUTRAL: &[&str] = &[
    "auto_mapping",
    "fan_in_fan_out",
    "inference_mode",
    "megatron_core",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "peft_type",
    "peft_version",
    "runtime_config",
    "save_projection",
    "token_dim",
    "tokenizer_name_or_path",
];

pub(super) const NEUTRAL_VALUES: &[(&str, &str)] = &[
    ("bias", "\"none\""),
    ("d_initial", "0.1"),
    ("decompose_factor", "-1"),
    ("deltaT", "1"),
    ("encoder_dropout", "0"),
    ("encoder_num_layers", "2"),
    ("encoder_reparameterization_type", "\"MLP\""),
    ("feedforward_modules", "[\"down_proj\"]"),
    ("init_lora_weights", "true"),
    ("init_weights", "true"),
    ("lora_dropout", "0"),
    ("miss_dropout", "0"),
    ("mini_r", "1"),
    ("module_dropout", "0"),
    ("projection_prng_key", "0"),
    ("prompt_tuning_init", "\"RANDOM\""),
    ("qalora_group_size", "16"),
    ("rank_dropout", "0"),
    ("revision", "\"main\""),
    ("target_modules", "[]"),
    ("tfinal", "0"),
    ("tinit", "0"),
    ("vera_dropout", "0"),
];

/// # Errors
/// The kind of adapter is one that deltarun does not train.
pub(super) fn read(keys: &Keys, parts: &mut Parts) -> Result<(), String> {
    parts.set_backbone(keys.text("base_model_name_or_path"));
    let targets = match keys.peek("target_modules") {
        Some(Value::String(all)) if keys.begins("target_modules", all) => {
            if all == "all-linear" {
                Targets::AllLinear
            } else {
                parts.notes.push(format!(
                    "PEFT's pattern {} is to be written as a selector",
                    quoted(all)
                ));
                Targets::Named(vec![OPEN.to_owned()])
            }
        }
        _ => keys
            .names("target_modules")
            .map_or_else(|| usual_targets(keys, parts), Targets::Named),
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
            // Other switches that are off say nothing.
            if keys
                .read("init_lora_weights", |value| (value == false).then_some(()))
                .is_some()
            {
                parts.notes.push("PEFT draws both matrices at random (`init_lora_weights` is false), and deltarun begins with no change".to_owned());
            }
            let lora = Lora {
                rank,
                alpha: alpha(8.0),
                dropout: keys.number("lora_dropout").unwrap_or(0.0),
                is_rank_stabilized: keys.is_on("use_rslora"),
                is_pissa: keys.begins("init_lora_weights", "pissa"),
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
                    let first = keys.count("init_r").unwrap_or(12);
                    let alpha = alpha(8.0);
                    format!("{{ rank = {first}, target_rank = {target}, alpha = {alpha} }}")
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
            let list = |value: &Value| value.is_array().then(|| value.to_string());
            let tokens = keys
                .read("token_indices", list)
                .ok_or("deltarun reads `token_indices` as a list of tokens of the input's table")?;
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
    if is_of_modules && keys.peek("token_indices").is_none() {
        parts.notes.push(format!("the adapter names no modules: PEFT takes {shown} of a Llama, and others of other families"));
    }
    Targets::Named(names.iter().map(|name| (*name).to_owned()).collect())
}
