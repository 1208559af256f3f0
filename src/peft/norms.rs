//! Fully trained layer norms in the form of PEFT's `LN_TUNING`: a copy of each norm.

use serde_json::json;

use super::reader::Reader;
use super::tuner::site_key;
use super::{module_name, PeftDeltas};
use crate::backbone::Module;
use crate::diagnostic::Problem;
use crate::graph::Graph;
use crate::plan::{DeltaPlan, Plan};

/// `peft_type`
pub(super) const KIND: &str = "LN_TUNING";

/// The name of the delta that `read` gives.
const DELTA: &str = "norms";

fn suffix(path: &str) -> String {
    let leaf = path.rsplit('.').next().unwrap_or_default();
    format!("ln_tuning_layers.{leaf}")
}

/// Exports the norms at these paths.
pub(super) fn write(plan: &Plan, graph: &Graph, paths: &[String]) -> PeftDeltas {
    let prefix = plan.name_prefix();
    let mut written = PeftDeltas::default();
    written.settings.insert("peft_type".into(), json!(KIND));
    for module in paths.iter().filter_map(|path| graph.tree().module(path)) {
        let name = module_name(prefix, &module.checkpoint_name);
        for parameter in &module.parameters {
            let key = site_key(&name, &suffix(&parameter.path));
            let values = graph.effective(&parameter.path).unwrap_or_default();
            written
                .tensors
                .insert(key, (values, parameter.shape.clone()));
        }
        written.targets.insert(name);
    }
    written
}

/// Reads the delta and its tensors.
pub(super) fn read(
    norms: &[(&Module, String)],
    reader: &mut Reader,
) -> Result<Vec<DeltaPlan>, Problem> {
    let mut parameters = Vec::new();
    for (module, name) in norms {
        for parameter in &module.parameters {
            let stored = site_key(name, &suffix(&parameter.path));
            let key = format!("{DELTA}.{}", parameter.path);
            reader.take(&stored, &parameter.shape, key, &parameter.shape)?;
            parameters.push(parameter.path.clone());
        }
    }
    Ok(vec![DeltaPlan::unfreezing(DELTA, parameters)])
}
