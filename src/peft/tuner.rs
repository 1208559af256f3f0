//! Methods at linear layers, LoRA aside, as PEFT stores them: one tensor after the other, by name.

use serde_json::{json, Map, Value};

use super::{module_name, Written, KEY_PREFIX};
use crate::backbone::Module;
use crate::delta::{Method, NewParameter};
use crate::engine::Backend;
use crate::graph::Graph;
use crate::plan::{Change, DeltaPlan, Plan};

/// What stands before the tensors that all sites share.
const SHARED_PREFIX: &str = "base_model.";

/// The key of a site's tensor.
pub(super) fn site_key(name: &str, suffix: &str) -> String {
    format!("{KEY_PREFIX}{name}.{suffix}")
}

/// The key of a tensor that sites share.
pub(super) fn shared_key(suffix: &str) -> String {
    format!("{SHARED_PREFIX}{suffix}")
}

/// The shape of a tensor in PEFT: (IA)³ has columns, or rows where it scales what a module reads.
pub(super) fn stored_shape(
    method: &Method,
    module: &Module,
    parameter: &NewParameter,
) -> Vec<usize> {
    match method {
        Method::Ia3(ia3) if ia3.scales_input(&module.path) => vec![1, parameter.count()],
        Method::Ia3(_) => vec![parameter.count(), 1],
        _ => parameter.shape.clone(),
    }
}

/// The tensors and settings of deltas of one method.
pub(super) fn write<D: Backend>(plan: &Plan, graph: &Graph<D>, deltas: &[&DeltaPlan]) -> Written {
    let prefix = plan.backbone.config.family().prefix;
    let mut written = Written::default();
    let mut on_input = Vec::new();
    for delta in deltas {
        let Change::Method { method, sites } = &delta.change else {
            continue;
        };
        let Some(form) = method.peft() else { continue };
        written.settings = settings(&form.settings);
        written
            .settings
            .insert("peft_type".into(), json!(form.kind));
        let suffix = |list: &[(&str, &'static str)], name: &str| {
            let found = list.iter().find(|(ours, _)| *ours == name);
            found.map(|(_, suffix)| *suffix)
        };
        let modules: Vec<&Module> = sites
            .iter()
            .filter_map(|s| graph.tree().module(s))
            .collect();
        for parameter in method.shared(&modules) {
            let values = graph.delta_tensor(&delta.name, "", parameter.name);
            if let (Some(values), Some(suffix)) = (values, suffix(form.shared, parameter.name)) {
                let tensor = (values, parameter.shape.clone());
                written.tensors.insert(shared_key(suffix), tensor);
            }
        }
        for module in modules {
            let name = module_name(&prefix, &module.checkpoint_name);
            if matches!(method, Method::Ia3(ia3) if ia3.scales_input(&module.path)) {
                on_input.push(name.clone());
            }
            for parameter in method.parameters(module) {
                let values = graph.delta_tensor(&delta.name, &module.path, parameter.name);
                let suffix = suffix(form.tensors, parameter.name);
                if let (Some(values), Some(suffix)) = (values, suffix) {
                    let shape = stored_shape(method, module, &parameter);
                    written
                        .tensors
                        .insert(site_key(&name, suffix), (values, shape));
                }
            }
            written.targets.insert(name);
        }
        if matches!(method, Method::Ia3(_)) {
            let modules = json!(on_input);
            written
                .settings
                .insert("feedforward_modules".into(), modules);
        }
    }
    written
}

fn settings(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
