//! Exports LoRAs in PEFT's form. Several at one module, or on parts of a fused one, are joined into one
//! LoRA, whose rank is the sum of theirs.

use std::collections::BTreeMap;

use serde_json::{json, Map, Value};

use super::form::{form, Form};
use super::{module_name, PeftDeltas, KEY_PREFIX};
use crate::backbone::{LowRank, Module, Site};
use crate::delta::{transposed, Lora, LoraInit, Method, PeftAdapter, Scaling, INITIAL};
use crate::graph::Graph;
use crate::plan::{DeltaPlan, Plan};

/// The tensors and settings of all LoRAs in place.
pub(super) fn low_rank(plan: &Plan, graph: &Graph) -> PeftDeltas {
    let adapters = adapters(plan, graph);
    let mut written = PeftDeltas {
        targets: adapters.keys().cloned().collect(),
        settings: settings(plan, &adapters),
        ..PeftDeltas::default()
    };
    for (name, adapter) in adapters {
        let key = |matrix: &str| match adapter.is_embedding {
            true => format!("{KEY_PREFIX}{name}.lora_embedding_{matrix}"),
            false => format!("{KEY_PREFIX}{name}.lora_{matrix}.weight"),
        };
        let (a_key, b_key) = (key("A"), key("B"));
        let (a, b) = (
            [adapter.rank, adapter.input],
            [adapter.output, adapter.rank],
        );
        let tensors = &mut written.tensors;
        tensors.insert(a_key, (adapter.a, a.to_vec()));
        tensors.insert(b_key, (adapter.b, b.to_vec()));
    }
    written
}

/// The LoRAs of a run at linear layers, by the names of their modules in the checkpoint.
///
/// # Errors
/// The reason why the run's deltas are none, in a few words.
pub fn plain_loras(plan: &Plan, graph: &Graph) -> Result<BTreeMap<String, LowRank>, String> {
    match form(plan)? {
        Form::LowRank => {}
        _ => return Err("its deltas are no LoRA".to_owned()),
    }
    let adapters = adapters(plan, graph);
    let is_table = |(_, adapter): &(&String, &Adapter)| adapter.is_embedding;
    if let Some((name, _)) = adapters.iter().find(is_table) {
        return Err(format!("llama.cpp has no LoRA at the table `{name}`"));
    }
    let trains_rows = |delta: &&DeltaPlan| {
        let adapter = delta.method().map(Method::peft_adapter);
        matches!(adapter, Some(PeftAdapter::Rows(_)))
    };
    let active = plan.active(plan.stages.len());
    if let Some(rows) = active.into_iter().find(trains_rows) {
        return Err(format!("`{}` trains rows of a table", rows.name));
    }
    let plain = adapters.into_iter().map(|(name, adapter)| {
        let scale = adapter.scale();
        let lora = LowRank {
            a: adapter.a,
            b: adapter.b,
            rank: adapter.rank,
            scale,
        };
        (name, lora)
    });
    Ok(plain.collect())
}

/// A LoRA at one checkpoint module, as PEFT stores it.
struct Adapter {
    rank: usize,
    alpha: f32,
    scaling: Scaling,
    /// `(rank, in)`
    a: Vec<f32>,
    /// `(out, rank)`
    b: Vec<f32>,
    /// Width of the module's input; for an embedding table, the number of entries.
    input: usize,
    output: usize,
    is_embedding: bool,
}

/// The LoRAs in place, by PEFT's name of their module. Several at one module, or on parts of a fused one,
/// are joined.
fn adapters(plan: &Plan, graph: &Graph) -> BTreeMap<String, Adapter> {
    let prefix = plan.name_prefix();
    let mut parts: BTreeMap<String, Vec<(Adapter, usize, usize)>> = BTreeMap::new();
    for delta in plan.active(plan.stages.len()) {
        let Some(PeftAdapter::LowRank(lora)) = delta.method().map(Method::peft_adapter) else {
            continue;
        };
        for module in delta
            .sites()
            .iter()
            .filter_map(|site| graph.tree().module(site))
        {
            let tensor = |name: &str| {
                let values = graph.delta_tensor(&delta.name, &module.path, name);
                values.unwrap_or_default()
            };
            let adapter = Adapter::new(lora, module, &tensor);
            let (first_row, rows) = place_in_checkpoint(module);
            let name = module_name(prefix, &module.checkpoint_name);
            parts
                .entry(name)
                .or_default()
                .push((adapter, first_row, rows));
        }
    }
    let joined = parts.into_iter().map(|(name, parts)| (name, join(parts)));
    let joined: BTreeMap<String, Adapter> = joined.collect();
    match joined
        .values()
        .all(|adapter| adapter.scaling == Scaling::RankStabilized)
    {
        true => joined,
        false => joined
            .into_iter()
            .map(|(name, adapter)| (name, adapter.standard()))
            .collect(),
    }
}

impl Adapter {
    /// Converts a LoRA to PEFT's form. For PiSSA, further ranks subtract `B₀ A₀`. PEFT converts PiSSA in the
    /// same way to a plain LoRA of the unchanged backbone.
    fn new(lora: &Lora, module: &Module, tensor: &dyn Fn(&str) -> Vec<f32>) -> Self {
        let is_embedding = module.site == Site::Embedding;
        let (input, output) = match is_embedding {
            true => (module.output, module.input),
            false => (module.input, module.output),
        };
        let a = match is_embedding {
            true => transposed(&tensor("A"), lora.rank),
            false => tensor("A"),
        };
        let mut adapter = Adapter {
            rank: lora.rank,
            alpha: lora.alpha,
            scaling: lora.scaling,
            a,
            b: tensor("B"),
            input,
            output,
            is_embedding,
        };
        if lora.init == LoraInit::Pissa {
            let [a, b] = INITIAL.map(tensor);
            adapter.a.extend(a);
            let rows = adapter.b.chunks_exact(lora.rank);
            let pairs = rows.zip(b.chunks_exact(lora.rank));
            let joined = pairs.flat_map(|(b, initial)| {
                let initial = initial.iter().map(|value| -value);
                b.iter().copied().chain(initial)
            });
            adapter.b = joined.collect();
            adapter.rank *= 2;
            // The rank has doubled, so change alpha to keep the scaling.
            adapter.alpha = match lora.scaling {
                Scaling::Standard => 2.0 * lora.alpha,
                Scaling::RankStabilized => 2.0f32.sqrt() * lora.alpha,
            };
        }
        adapter
    }

    fn scale(&self) -> f32 {
        self.scaling.of(self.alpha, self.rank)
    }

    /// The same LoRA, with `alpha / rank` as its scaling.
    fn standard(mut self) -> Self {
        if self.scaling != Scaling::Standard {
            self.alpha = self.scale() * self.rank as f32;
            self.scaling = Scaling::Standard;
        }
        self
    }
}

/// The first output row of a module within its checkpoint tensor, and that tensor's rows.
fn place_in_checkpoint(module: &Module) -> (usize, usize) {
    match module.parameters.first() {
        Some(parameter) if module.site == Site::Linear => {
            let source = &parameter.source;
            let part = source.outputs(module.output);
            (part.first, part.outputs)
        }
        _ if module.site == Site::Embedding => (0, module.input),
        _ => (0, module.output),
    }
}

/// Joins several LoRAs into one. Stacks the A, puts the B side by side, and folds the scalings into B, so that
/// `alpha = rank`.
fn join(mut parts: Vec<(Adapter, usize, usize)>) -> Adapter {
    if parts.len() == 1 && parts[0].0.output == parts[0].2 {
        return parts.remove(0).0;
    }
    let rank: usize = parts.iter().map(|(adapter, ..)| adapter.rank).sum();
    let (input, output) = (parts[0].0.input, parts[0].2);
    let mut joined = Adapter {
        rank,
        alpha: rank as f32,
        scaling: Scaling::Standard,
        a: Vec::new(),
        b: vec![0.0; output * rank],
        input,
        output,
        is_embedding: parts[0].0.is_embedding,
    };
    let mut first_column = 0;
    for (adapter, first_row, _) in &parts {
        joined.a.extend_from_slice(&adapter.a);
        let scaling = adapter.scale();
        for (row, values) in adapter.b.chunks_exact(adapter.rank).enumerate() {
            let start = (first_row + row) * rank + first_column;
            for (target, value) in joined.b[start..].iter_mut().zip(values) {
                *target = scaling * value;
            }
        }
        first_column += adapter.rank;
    }
    joined
}

/// `adapter_config.json` of LoRAs: the most common rank and alpha, and patterns for modules with others.
fn settings(plan: &Plan, adapters: &BTreeMap<String, Adapter>) -> Map<String, Value> {
    let (rank, alpha) = most_common(adapters);
    let mut ranks = Map::new();
    let mut alphas = Map::new();
    for (name, adapter) in adapters {
        let pattern = regex::escape(name);
        if adapter.rank != rank {
            ranks.insert(pattern.clone(), json!(adapter.rank));
        }
        if adapter.alpha != alpha {
            alphas.insert(pattern, json!(adapter.alpha));
        }
    }
    let dropout = plan.active(plan.stages.len()).iter().find_map(|delta| {
        match delta.method()?.peft_adapter() {
            PeftAdapter::LowRank(lora) => Some(lora.dropout),
            _ => None,
        }
    });
    let settings = json!({
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout.unwrap_or(0.0),
        "bias": "none",
        "init_lora_weights": true,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_dora": false,
        "use_rslora": adapters.values().all(|a| a.scaling == Scaling::RankStabilized),
    });
    settings.as_object().cloned().unwrap_or_default()
}

fn most_common(adapters: &BTreeMap<String, Adapter>) -> (usize, f32) {
    let mut counts: Vec<((usize, f32), usize)> = Vec::new();
    for adapter in adapters.values() {
        let setting = (adapter.rank, adapter.alpha);
        match counts.iter_mut().find(|(other, _)| *other == setting) {
            Some((_, count)) => *count += 1,
            None => counts.push((setting, 1)),
        }
    }
    counts
        .into_iter()
        .max_by_key(|(_, count)| *count)
        .map_or((8, 16.0), |(setting, _)| setting)
}
