//! Measures the error from products in less than 32 bits.

use serde::{Deserialize, Serialize};

use crate::data::{Example, Examples};
use crate::diagnostic::Problem;
use crate::engine::{Device, Precision, Storage};
use crate::graph::Graph;
use crate::plan::Plan;
use crate::train::predict;

/// The difference between logits and those with products in f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PrecisionError {
    /// The number of compared examples.
    pub examples: usize,
    /// The largest absolute difference of a logit.
    pub largest: f32,
    /// The largest absolute value of a logit in f32.
    pub logit: f32,
}

/// Checks that the device supports the plan's precision.
///
/// # Errors
/// It does not.
pub(super) fn check_precision(plan: &Plan, device: &Device) -> Result<(), Problem> {
    if plan.backbone.storage != Storage::F32 && !device.decodes() {
        let message = "this device keeps weights in f32";
        return Err(Problem::new("delta::run::precision", message)
            .at(plan.backbone.span, "set here")
            .help(match plan.backbone.storage {
                Storage::File { .. } => "run on the CPU, or use the model's Hugging Face directory",
                _ => "remove `storage`, or run on the CPU",
            }));
    }
    if device.has(plan.backbone.precision) {
        return Ok(());
    }
    let message = "this device does not support bfloat16 matrix products";
    Err(Problem::new("delta::run::precision", message)
        .at(plan.backbone.span, "set here")
        .help("remove `precision = bf16`, which needs AVX512-BF16 on the CPU"))
}

/// The most examples that are compared.
const COMPARED: usize = 64;

/// Compares the graph's logits with those in f32. Gives `None` if the graph computes in f32 anyway, if its task is a
/// language model's, or if there are no examples.
pub(super) fn precision_error(
    plan: &Plan,
    graph: &mut Graph,
    examples: &Examples,
) -> Result<Option<PrecisionError>, Problem> {
    let is_language_model = graph.task().is_none_or(|task| task.kind.predicts_tokens());
    if plan.backbone.precision == Precision::F32 || examples.is_empty() || is_language_model {
        return Ok(None);
    }
    let examples: Vec<Example> = examples.iter().take(COMPARED).collect();
    let found = predict(graph, &examples)?;
    graph.set_precision(Precision::F32);
    let exact = predict(graph, &examples)?;
    graph.set_precision(plan.backbone.precision);
    let largest =
        |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |a: f32, b| a.max(b.abs()));
    let pairs = found.iter().flatten().zip(exact.iter().flatten());
    Ok(Some(PrecisionError {
        examples: examples.len(),
        largest: largest(&mut pairs.map(|(found, exact)| found - exact)),
        logit: largest(&mut exact.iter().flatten().copied()),
    }))
}
