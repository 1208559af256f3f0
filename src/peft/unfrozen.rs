//! Reads the weights of the backbone itself that an adapter replaces.

use serde_json::Value;

use super::import::WORD_TABLE;
use super::module_name;
use super::reader::Reader;
use crate::backbone::family::Head;
use crate::backbone::{Config, Tree};
use crate::delta::{transposed, PeftConfig};
use crate::diagnostic::Problem;
use crate::plan::DeltaPlan;

/// Whether `modules_to_save` names a module outside of the head, or one above it. PEFT copies a module with everything
/// below it. It compares the ends of names as plain text, not part by part.
pub(super) fn is_saved(name: &str, head: &Head, saved: &[String]) -> bool {
    let steps = head.steps.iter().filter(|step| step.kind.is_some());
    let of_head: Vec<&str> = steps.filter_map(|step| step.name.as_deref()).collect();
    let ends = name.match_indices('.').map(|(dot, _)| dot);
    let above: Vec<&str> = ends.chain([name.len()]).map(|end| &name[..end]).collect();
    saved.iter().any(|saved| {
        let is_of_head = of_head.iter().any(|head| head.contains(saved.as_str()));
        !is_of_head && above.iter().any(|above| above.ends_with(saved.as_str()))
    })
}

/// Reads the weights of the backbone itself that an adapter replaces: biases (`bias`), and modules in
/// `modules_to_save` that do not belong to the head.
pub(super) fn read(
    adapter: &PeftConfig,
    (head, saved): (&Head, &[String]),
    config: &Config,
    [key_prefix, prefix]: &[&str; 2],
    reader: &mut Reader,
) -> Result<Option<DeltaPlan>, Problem> {
    const NAME: &str = "unfrozen";
    let bias = adapter
        .get("bias")
        .and_then(Value::as_str)
        .unwrap_or("none");
    let tree = Tree::new(config);
    let mut parameters = Vec::new();
    // A part of fused weights.
    let mut fused: Vec<String> = Vec::new();
    for module in tree.modules() {
        let name = module_name(prefix, &module.checkpoint_name);
        let is_kept = is_saved(&name, head, saved);
        for parameter in &module.parameters {
            let plain = format!("{key_prefix}{}", parameter.source.full_name(prefix));
            let at_target = format!("{key_prefix}{name}.base_layer.{}", parameter.role.name());
            let is_bias = bias != "none" && parameter.is_bias();
            let is_table =
                parameter.path == format!("{WORD_TABLE}.weight") && config.decoder_layers.is_none();
            let stored = match (is_kept, is_bias) {
                (true, _) => plain,
                // PEFT saves the tables beside the adapter (`save_embedding_layers`), and puts them back.
                _ if is_table && reader.has(&at_target) => at_target,
                _ if is_table && reader.has(&plain) => plain,
                (_, true) if reader.has(&at_target) => at_target,
                (_, true) if bias == "all" && reader.has(&plain) => plain,
                _ => continue,
            };
            let part = parameter.source.part;
            if reader.is_taken(&stored) && !fused.contains(&stored) {
                continue;
            }
            // A part of a fused weight is some of its rows.
            let mut shape = parameter.shape.clone();
            shape[0] = parameter.source.outputs(shape[0]).outputs;
            if parameter.source.transposed {
                shape.reverse();
            }
            let mut values = reader.take_values(&stored, &shape)?;
            if parameter.source.transposed {
                values = transposed(&values, shape[1]);
            }
            if let Some(part) = part {
                let count = parameter.count();
                let start = part.first * (count / parameter.shape[0]);
                values = values[start..start + count].to_vec();
                fused.push(stored);
            }
            let key = format!("{NAME}.{}", parameter.path);
            reader
                .tensors
                .insert(key, (values, parameter.shape.clone()));
            parameters.push(parameter.path.clone());
        }
    }
    // With `bias = all`, PEFT writes further copies of the head's tensors, which we need not read.
    reader.pass_over(|name| bias == "all" && name.contains(".modules_to_save."));
    // Early versions also wrote the module that a trained one replaces.
    reader.pass_over(|name| name.contains(".original_module."));
    Ok((!parameters.is_empty()).then(|| DeltaPlan::unfreezing(NAME, parameters)))
}
