//! Trained rows of the word embeddings. In PEFT they are a setting of a LoRA adapter, which may have no other module.

use std::path::Path;

use serde_json::{json, Value};

use super::import::{problem, WORD_TABLE};
use super::reader::Reader;
use super::settings::MERGE_IN_PYTHON;
use super::targets::names;
use super::tuner::site_key;
use super::{module_name, PeftDeltas};
use crate::backbone::{Module, Tree};
use crate::delta::{Method, PeftAdapter, PeftConfig, TrainableTokens};
use crate::diagnostic::Problem;
use crate::graph::Graph;
use crate::plan::{DeltaPlan, Plan};

/// The setting that lists the rows.
pub(super) const SETTING: &str = "trainable_token_indices";

/// PEFT's value of `target_modules` that matches nothing.
pub(super) const NO_TARGETS: &str = "dummy-target-modules";

const SUFFIX: &str = "token_adapter.trainable_tokens_delta";
/// `peft_type` of an adapter that only trains rows.
pub(super) const KIND: &str = "TRAINABLE_TOKENS";

/// The suffix of the table's name in such an adapter.
const SUFFIX_ALONE: &str = "trainable_tokens_delta";

const DELTA: &str = "trainable_tokens";

/// Adds the rows that a plan trains to the export of its LoRAs.
pub(super) fn write(plan: &Plan, graph: &Graph, written: &mut PeftDeltas) {
    let Some(table) = graph.tree().module(WORD_TABLE) else {
        return;
    };
    let prefix = plan.name_prefix();
    for delta in plan.active(plan.stages.len()) {
        let Some(PeftAdapter::Rows(method)) = delta.method().map(Method::peft_adapter) else {
            continue;
        };
        let rows = graph.delta_tensor(&delta.name, WORD_TABLE, "rows");
        let name = module_name(prefix, &table.checkpoint_name);
        let shape = vec![method.tokens.len(), table.input];
        let tensor = (rows.unwrap_or_default(), shape);
        written.tensors.insert(site_key(&name, SUFFIX), tensor);
        let (_, leaf) = name.rsplit_once('.').unwrap_or(("", &name));
        let indices = json!({ leaf: method.tokens });
        written.settings.insert(SETTING.into(), indices);
    }
}

/// Reads the delta that the setting describes, if the setting is present.
pub(super) fn read(
    directory: &Path,
    setting: Option<&Value>,
    tree: &Tree,
    prefix: &str,
    reader: &mut Reader,
) -> Result<Option<DeltaPlan>, Problem> {
    let (Some(setting), Some(table)) = (setting, tree.module(WORD_TABLE)) else {
        return Ok(None);
    };
    let wrong = || {
        problem(
            directory,
            format!("`{SETTING}` is {setting}, not a list of token ids"),
        )
        .help("write the token ids of the word embeddings as a list of whole numbers")
    };
    let name = module_name(prefix, &table.checkpoint_name);
    let tokens = match setting {
        Value::Null => return Ok(None),
        Value::Object(modules) => match modules.iter().next() {
            None => return Ok(None),
            Some((module, tokens)) if modules.len() == 1 && name.ends_with(module) => tokens,
            _ => return Err(wrong()),
        },
        tokens => tokens,
    };
    let number = |token: &Value| token.as_u64().map(|token| token as usize);
    let tokens = tokens.as_array().ok_or_else(wrong)?.iter().map(number);
    let tokens: Vec<usize> = tokens.collect::<Option<_>>().ok_or_else(wrong)?;
    read_rows(tokens, table, &site_key(&name, SUFFIX), reader).map(Some)
}

/// Reads the delta of an adapter that only trains rows.
pub(super) fn read_alone(
    directory: &Path,
    adapter: &PeftConfig,
    tree: &Tree,
    prefix: &str,
    reader: &mut Reader,
) -> Result<Vec<DeltaPlan>, Problem> {
    let Some(table) = tree.module(WORD_TABLE) else {
        return Ok(Vec::new());
    };
    let name = module_name(prefix, &table.checkpoint_name);
    let targets = adapter.get("target_modules").unwrap_or(&Value::Null);
    if !targets.is_null() && !names(targets, &name) {
        let message = format!("the `target_modules` {targets} do not match the word embeddings");
        return Err(problem(directory, message).help(MERGE_IN_PYTHON));
    }
    let indices = adapter.get("token_indices").and_then(Value::as_array);
    let number = |token: &Value| token.as_u64().map(|token| token as usize);
    let tokens = indices.into_iter().flatten().filter_map(number).collect();
    let key = site_key(&name, SUFFIX_ALONE);
    Ok(vec![read_rows(tokens, table, &key, reader)?])
}

fn read_rows(
    tokens: Vec<usize>,
    table: &Module,
    stored: &str,
    reader: &mut Reader,
) -> Result<DeltaPlan, Problem> {
    let shape = [tokens.len(), table.input];
    let key = format!("{DELTA}.{WORD_TABLE}.rows");
    reader.take(stored, &shape, key, &shape)?;
    let method = Method::from(TrainableTokens {
        words: Vec::new(),
        tokens,
    });
    method.check(table).map_err(|message| {
        reader.problem(format!("the token ids do not fit the backbone: {message}"))
    })?;
    Ok(DeltaPlan::of_method(
        DELTA,
        method,
        vec![WORD_TABLE.to_owned()],
    ))
}
