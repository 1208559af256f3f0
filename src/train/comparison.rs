//! What a model makes of several answers to a prompt.

use super::evaluate::batches;
use crate::data::{Example, Examples, Prediction};
use crate::diagnostic::Problem;
use crate::graph::{Graph, Targets};
use crate::task::{Comparison, Likelihoods};

/// The likelihoods of the answers of examples by a graph. `reference` has the log-probabilities of both answers by the
/// model that it is compared with, or nothing.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn likelihoods(
    graph: &Graph,
    examples: &[Example],
    comparison: Comparison,
    reference: &[[f32; 2]],
) -> Result<Vec<Likelihoods>, Problem> {
    let prediction = Prediction {
        reads_prompts: comparison.reads_prompts(),
        ..Prediction::default()
    };
    let batches = batches(graph, examples, prediction);
    let losses = graph.token_losses(&batches)?;
    let mut all = Vec::with_capacity(examples.len());
    for (batch, losses) in batches.iter().zip(losses) {
        let Targets::Answers(asked) = &batch.targets else {
            return Err(Problem::internal("a comparison without answers"));
        };
        let empty = |(count, right): (&usize, &usize)| Likelihoods {
            sums: vec![0.0; *count],
            tokens: vec![0; *count],
            right: *right,
            ..Likelihoods::default()
        };
        let prompts = asked.counts.iter().zip(&asked.right);
        let mut found: Vec<Likelihoods> = prompts.map(empty).collect();
        let mut whole = vec![0usize; found.len()];
        for (place, loss) in asked.places.iter().zip(losses) {
            let own = &mut found[place.prompt];
            if place.is_own {
                own.sums[place.answer] -= f64::from(loss);
                own.tokens[place.answer] += 1;
            }
            if place.answer == own.right {
                own.whole += f64::from(loss);
                whole[place.prompt] += 1;
            }
        }
        for (own, count) in found.iter_mut().zip(whole) {
            own.whole /= count.max(1) as f64;
        }
        all.append(&mut found);
    }
    for (own, reference) in all.iter_mut().zip(reference) {
        own.reference = reference.map(f64::from).to_vec();
    }
    Ok(all)
}

/// The log-probabilities of both answers of examples by a graph, if a comparison compares a model with it.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn reference(
    graph: &Graph,
    examples: &Examples,
    comparison: Option<Comparison>,
) -> Result<Vec<[f32; 2]>, Problem> {
    let Some(comparison) = comparison.filter(|comparison| comparison.has_reference()) else {
        return Ok(Vec::new());
    };
    let found = likelihoods(graph, &examples.unpacked(), comparison, &[])?;
    let of_pair = |own: &Likelihoods| [own.sums[0] as f32, own.sums[1] as f32];
    Ok(found.iter().map(of_pair).collect())
}
