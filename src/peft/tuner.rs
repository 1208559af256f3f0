//! Exports methods at linear layers, other than LoRA, in PEFT's form: each tensor under its own name.

use std::collections::BTreeMap;

use serde_json::{json, Map, Value};

use super::{module_name, PeftDeltas, KEY_PREFIX};
use crate::backbone::Module;
use crate::delta::transposed;
use crate::graph::Graph;
use crate::plan::{DeltaPlan, Plan};

/// The prefix of tensors that all sites share.
const SHARED_PREFIX: &str = "base_model.";

/// The key of a site's tensor.
pub(super) fn site_key(name: &str, suffix: &str) -> String {
    format!("{KEY_PREFIX}{name}.{suffix}")
}

/// The key of a tensor that sites share.
pub(super) fn shared_key(suffix: &str) -> String {
    format!("{SHARED_PREFIX}{suffix}")
}

/// The tensors and settings of deltas of one method.
pub(super) fn write(plan: &Plan, graph: &Graph, deltas: &[&DeltaPlan]) -> PeftDeltas {
    let prefix = plan.name_prefix();
    let mut written = PeftDeltas::default();
    for delta in deltas {
        let Some(method) = delta.method() else {
            continue;
        };
        let Some(form) = method.peft() else { continue };
        written.settings = settings(&form.settings);
        written
            .settings
            .insert("peft_type".into(), json!(method.peft_kind()));
        let mut lists: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let modules: Vec<&Module> = delta
            .sites()
            .iter()
            .filter_map(|s| graph.tree().module(s))
            .collect();
        for parameter in method.shared(&modules) {
            let values = graph.delta_tensor(&delta.name, "", parameter.name);
            let mut shared = form.shared.iter();
            let suffix = shared.find(|(ours, _)| *ours == parameter.name);
            if let (Some(values), Some((_, suffix))) = (values, suffix) {
                let tensor = (values, parameter.shape.clone());
                written.tensors.insert(shared_key(suffix), tensor);
            }
        }
        for module in modules {
            let name = module_name(prefix, &module.checkpoint_name);
            if let Some((setting, is_in)) = method.peft_list(module) {
                let list = lists.entry(setting).or_default();
                list.extend(is_in.then(|| name.clone()));
            }
            for parameter in method.parameters(module) {
                let values = graph.delta_tensor(&delta.name, &module.path, parameter.name);
                let stored = method.peft_tensor(module, &parameter);
                if let (Some(values), Some(stored)) = (values, stored) {
                    let values = match stored.is_transposed {
                        true => transposed(&values, parameter.shape[1]),
                        false => values,
                    };
                    let key = site_key(&name, stored.suffix);
                    written.tensors.insert(key, (values, stored.shape));
                }
            }
            written.targets.insert(name);
        }
        for (setting, modules) in lists {
            written.settings.insert(setting.into(), json!(modules));
        }
    }
    written
}

fn settings(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
