//! Prompts and prefixes in PEFT's form: one matrix, without the encoder that computed it.

use std::path::Path;

use serde_json::{json, Map, Value};

use super::import::problem;
use super::reader::Reader;
use super::settings::SEQ_2_SEQ_LM;
use super::PeftDeltas;
use crate::backbone::family::Dimension;
use crate::backbone::Config;
use crate::delta::{Method, PeftConfig, Prefix, Prompt, PromptInit};
use crate::diagnostic::Problem;
use crate::graph::{device_problem, Graph};
use crate::plan::{DeltaPlan, Plan, SHORTEST};

/// The key of the one tensor.
pub(super) const KEY: &str = "prompt_embeddings";

/// Exports all prompts as one matrix, `(tokens, hidden)`.
pub(super) fn prompt(plan: &Plan, graph: &Graph) -> Result<PeftDeltas, Problem> {
    let prompt = graph.prompt().map_err(device_problem)?;
    let config = &plan.backbone.config;
    let shape = (config.heads, config.hidden);
    let settings = settings(plan, prompt.len() / config.hidden, shape, "PROMPT_TUNING");
    Ok(written(settings, prompt, config.hidden))
}

/// Exports all prefixes as one matrix, `(tokens, 2 · layers · width of the keys)`. Each row has the keys and the values
/// of every layer.
pub(super) fn prefix(plan: &Plan, graph: &Graph) -> Result<PeftDeltas, Problem> {
    let config = &plan.backbone.config;
    let sites = prefix_sites(config);
    let layers = sites
        .iter()
        .map(|site| graph.prefix(site))
        .collect::<Result<Vec<_>, _>>()
        .map_err(device_problem)?;
    let mut slots = vec![&layers[0]; layers.len()];
    for (number, layer) in layers.iter().enumerate() {
        slots[prefix_slot(config, number)] = layer;
    }
    let parts: Vec<&Vec<f32>> = slots.into_iter().flatten().collect();
    let width = config.size(Dimension::Keys, 0);
    let tokens = parts.first().map_or(0, |part| part.len() / width);
    let mut values = Vec::new();
    for token in 0..tokens {
        for part in &parts {
            values.extend_from_slice(&part[token * width..(token + 1) * width]);
        }
    }
    let shape = (config.key_value_heads(), width);
    let mut settings = settings(plan, tokens, shape, "PREFIX_TUNING");
    // If this is 1 for a model with a decoder, PEFT treats the cross-attentions as already filled.
    settings.insert(
        "num_transformer_submodules".into(),
        json!(config.stacks().len()),
    );
    settings.insert("prefix_projection".into(), json!(false));
    settings.insert("encoder_hidden_size".into(), json!(width));
    Ok(written(settings, values, parts.len() * width))
}

/// The attentions at which PEFT has prefixes: those of all blocks, or of the decoder's blocks if there is a decoder.
pub(super) fn prefix_sites(config: &Config) -> Vec<String> {
    let stacks = config.stacks();
    let blocks = stacks
        .last()
        .into_iter()
        .flat_map(|stack| stack.block_paths());
    blocks.map(|block| format!("{block}.attn")).collect()
}

/// The place in a row of the keys and values of site `number`, counted in pairs. For a decoder, PEFT repeats the row
/// and deals out two pairs to each block. The second pair is for cross-attention and is dropped
/// (`PeftModel.get_prompt`). So block `i` gets pair `2 i`, modulo the number of blocks.
fn prefix_slot(config: &Config, number: usize) -> usize {
    match config.decoder_layers {
        Some(layers) => 2 * number % layers,
        None => number,
    }
}

/// Whether PEFT has a separate prefix for each of these sites. A decoder with an even number of blocks has not.
pub(super) fn has_own_prefixes(config: &Config) -> bool {
    config.decoder_layers.is_none_or(|layers| layers % 2 == 1)
}

/// PEFT's names for prompts and prefixes.
pub(super) const KINDS: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"];

/// Whether a configuration is of a prompt or a prefix.
pub(super) fn is_prompt(adapter: &PeftConfig) -> bool {
    let kind = adapter.get("peft_type").and_then(Value::as_str);
    kind.is_some_and(|kind| KINDS.contains(&kind))
}

/// Reads the delta and its tensors.
pub(super) fn read(
    directory: &Path,
    adapter: &PeftConfig,
    config: &Config,
    reader: &mut Reader,
) -> Result<Vec<DeltaPlan>, Problem> {
    let task = adapter.get("task_type").and_then(Value::as_str);
    if config.decoder_layers.is_some() && task != Some(SEQ_2_SEQ_LM) {
        let message = "PEFT does not support prompts or prefixes for an encoder-decoder classifier";
        return Err(
            problem(directory, message).help("use an adapter with `task_type` `SEQ_2_SEQ_LM`")
        );
    }
    let tokens = adapter.get("num_virtual_tokens").and_then(Value::as_u64);
    let tokens = tokens.unwrap_or(1) as usize;
    if tokens.saturating_add(SHORTEST) > config.limit() {
        let message = format!(
            "`num_virtual_tokens` is {tokens}, but the backbone has only {} positions",
            config.limit()
        );
        return Err(Problem::new("delta::peft::positions", message)
            .help("name the backbone that the adapter was trained on with `--backbone DIR`"));
    }
    let (method, sites) = match adapter.get("peft_type").and_then(Value::as_str) {
        Some("PREFIX_TUNING") => {
            let width = config.size(Dimension::Keys, 0);
            let sites = prefix_sites(config);
            let all = [tokens, 2 * sites.len() * width];
            let values = reader.take_values(KEY, &all)?;
            for (number, site) in sites.iter().enumerate() {
                for (part, name) in ["keys", "values"].into_iter().enumerate() {
                    let slot = 2 * prefix_slot(config, number) + part;
                    let rows = values.chunks_exact(all[1]);
                    let own = rows.flat_map(|row| &row[slot * width..(slot + 1) * width]);
                    let tensor = (own.copied().collect(), vec![tokens, width]);
                    let key = format!("prefix.{site}.{name}");
                    reader.tensors.insert(key, tensor);
                }
            }
            let hidden = None;
            (
                Method::from(Prefix {
                    tokens,
                    hidden,
                    init: None,
                }),
                sites,
            )
        }
        _ => {
            // For an encoder and a decoder, PEFT may store twice as many rows, but reads only the first half.
            let parts = adapter
                .get("num_transformer_submodules")
                .and_then(Value::as_u64);
            let stored = [tokens * parts.unwrap_or(1) as usize, config.hidden];
            let mut values = reader.take_values(KEY, &stored)?;
            values.truncate(tokens * config.hidden);
            let tensor = (values, vec![tokens, config.hidden]);
            reader
                .tensors
                .insert("prompt.embeddings.prompt".to_owned(), tensor);
            let init = PromptInit::Random;
            let method = Method::from(Prompt { tokens, init });
            (method, vec!["embeddings".to_owned()])
        }
    };
    Ok(vec![DeltaPlan::of_method(method.name(), method, sites)])
}

fn settings(
    plan: &Plan,
    tokens: usize,
    (heads, width): (usize, usize),
    kind: &str,
) -> Map<String, Value> {
    let settings = json!({
        "peft_type": kind,
        "num_virtual_tokens": tokens,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_attention_heads": heads,
        "num_layers": prefix_sites(&plan.backbone.config).len(),
    });
    settings.as_object().cloned().unwrap_or_default()
}

fn written(settings: Map<String, Value>, values: Vec<f32>, columns: usize) -> PeftDeltas {
    let shape = vec![values.len() / columns.max(1), columns];
    PeftDeltas {
        settings,
        tensors: [(KEY.to_owned(), (values, shape))].into(),
        ..PeftDeltas::default()
    }
}
