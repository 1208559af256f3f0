//! Prompts and prefixes as PEFT stores them: one matrix, the encoder that made it left out.

use serde_json::{json, Map, Value};

use super::reader::Reader;
use super::Written;
use crate::backbone::family::Dimension;
use crate::backbone::Config;
use crate::delta::{Method, PeftConfig, Prefix, Prompt, PromptInit};
use crate::diagnostic::{Problem, Span};
use crate::engine::Backend;
use crate::graph::{device_problem, Graph};
use crate::plan::{Change, DeltaPlan, Plan, SHORTEST};

/// The key of the one tensor.
pub(super) const KEY: &str = "prompt_embeddings";

/// Prompts: `(tokens, hidden)`.
pub(super) fn prompt<D: Backend>(plan: &Plan, graph: &Graph<D>) -> Result<Written, Problem> {
    let prompt = graph.prompt().map_err(device_problem)?;
    let config = &plan.backbone.config;
    let shape = (config.heads, config.hidden);
    let settings = settings(plan, prompt.len() / config.hidden, shape, "PROMPT_TUNING");
    Ok(written(settings, prompt, config.hidden))
}

/// Prefixes: `(tokens, 2 · layers · width of the keys)`, in a row the keys and the values of each layer.
pub(super) fn prefix<D: Backend>(plan: &Plan, graph: &Graph<D>) -> Result<Written, Problem> {
    let config = &plan.backbone.config;
    let layers = (0..config.layers)
        .map(|layer| graph.prefix(&format!("block.{layer}.attn")))
        .collect::<Result<Vec<_>, _>>()
        .map_err(device_problem)?;
    let parts: Vec<&Vec<f32>> = layers.iter().flatten().collect();
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
    settings.insert("prefix_projection".into(), json!(false));
    settings.insert("encoder_hidden_size".into(), json!(width));
    Ok(written(settings, values, parts.len() * width))
}

/// What PEFT calls prompts and prefixes.
pub(super) const KINDS: [&str; 3] = ["PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"];

/// Whether a configuration is of a prompt or a prefix.
pub(super) fn is_prompt(adapter: &PeftConfig) -> bool {
    let kind = adapter.get("peft_type").and_then(Value::as_str);
    kind.is_some_and(|kind| KINDS.contains(&kind))
}

/// The delta and its tensors.
pub(super) fn read(
    adapter: &PeftConfig,
    config: &Config,
    reader: &mut Reader,
) -> Result<Vec<DeltaPlan>, Problem> {
    let tokens = adapter.get("num_virtual_tokens").and_then(Value::as_u64);
    let tokens = tokens.unwrap_or(1) as usize;
    if tokens + SHORTEST > config.longest() {
        let message = format!(
            "`num_virtual_tokens` is {tokens}, and the backbone has {} positions",
            config.longest()
        );
        return Err(Problem::new("delta::peft::positions", message)
            .help("give the backbone that the adapter was made for"));
    }
    let (method, sites) = match adapter.get("peft_type").and_then(Value::as_str) {
        Some("PREFIX_TUNING") => {
            let width = config.size(Dimension::Keys, 0);
            let all = [tokens, 2 * config.layers * width];
            let values = reader.take_values(KEY, &all)?;
            let sites: Vec<String> = (0..config.layers)
                .map(|n| format!("block.{n}.attn"))
                .collect();
            let names = sites
                .iter()
                .flat_map(|site| ["keys", "values"].map(|name| (site, name)));
            for (slot, (site, name)) in names.enumerate() {
                let rows = values.chunks_exact(all[1]);
                let part = rows.flat_map(|row| &row[slot * width..(slot + 1) * width]);
                let tensor = (part.copied().collect(), vec![tokens, width]);
                reader
                    .tensors
                    .insert(format!("prefix.{site}.{name}"), tensor);
            }
            let hidden = None;
            (Method::Prefix(Prefix { tokens, hidden }), sites)
        }
        _ => {
            let shape = [tokens, config.hidden];
            reader.take(KEY, &shape, "prompt.embeddings.prompt".to_owned(), &shape)?;
            let init = PromptInit::Random;
            let method = Method::Prompt(Prompt { tokens, init });
            (method, vec!["embeddings".to_owned()])
        }
    };
    Ok(vec![DeltaPlan {
        name: method.name().to_owned(),
        change: Change::Method { method, sites },
        is_gated: false,
        origin: None,
        span: Span::default(),
    }])
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
        "num_layers": plan.backbone.config.layers,
    });
    settings.as_object().cloned().unwrap_or_default()
}

fn written(settings: Map<String, Value>, values: Vec<f32>, columns: usize) -> Written {
    let shape = vec![values.len() / columns.max(1), columns];
    Written {
        settings,
        tensors: [(KEY.to_owned(), (values, shape))].into(),
        ..Written::default()
    }
}
