//! What a model makes of pairs of answers.

use super::evaluate::batches;
use crate::data::{Example, Prediction};
use crate::diagnostic::Problem;
use crate::graph::{Graph, Targets};
use crate::task::{Pair, Preference};

/// The pairs of examples by a graph. `reference` has the log-probabilities of both answers by the model that it is
/// compared with, or nothing.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn pairs(
    graph: &Graph,
    examples: &[Example],
    preference: Preference,
    reference: &[[f32; 2]],
) -> Result<Vec<Pair>, Problem> {
    let prediction = Prediction {
        reads_prompts: preference.reads_prompts(),
        ..Prediction::default()
    };
    let batches = batches(graph, examples, prediction);
    let losses = graph.token_losses(&batches)?;
    let mut all = Vec::with_capacity(examples.len());
    for (batch, losses) in batches.iter().zip(losses) {
        let Targets::Pairs(asked) = &batch.targets else {
            return Err(Problem::internal("preferences without pairs"));
        };
        let mut found = vec![Pair::default(); batch.layout.sequences() / 2];
        let mut whole = vec![0usize; found.len()];
        for ((sequence, is_answer), loss) in asked.places.iter().zip(losses) {
            let (pair, side) = (&mut found[sequence / 2], sequence % 2);
            if *is_answer {
                pair.log_probs[side] -= f64::from(loss);
                pair.tokens[side] += 1;
            }
            if side == 0 {
                pair.whole += f64::from(loss);
                whole[sequence / 2] += 1;
            }
        }
        for (pair, count) in found.iter_mut().zip(whole) {
            pair.whole /= count.max(1) as f64;
        }
        all.append(&mut found);
    }
    for (pair, reference) in all.iter_mut().zip(reference) {
        pair.reference = reference.map(f64::from);
    }
    Ok(all)
}

/// The log-probabilities of both answers of examples by a graph, if a preference compares a model with it.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn reference(
    graph: &Graph,
    examples: &[Example],
    preference: Option<Preference>,
) -> Result<Vec<[f32; 2]>, Problem> {
    let Some(preference) = preference.filter(|preference| preference.has_reference()) else {
        return Ok(Vec::new());
    };
    let pairs = pairs(graph, examples, preference, &[])?;
    let log_probs = pairs
        .iter()
        .map(|pair| pair.log_probs.map(|sum| sum as f32));
    Ok(log_probs.collect())
}
