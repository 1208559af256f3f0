//! Beam search, as transformers 5 has it (`_beam_search`, `early_stopping = false`).

use super::sample::{forbid, penalize};
use super::{check_finite, room, Decoding, Ending, Extended, Written};
use crate::diagnostic::Problem;
use crate::graph::Graph;
use crate::task::Example;

/// A text that is being written, or is finished, with the sum of its tokens' log-probabilities.
#[derive(Clone)]
struct Beam {
    tokens: Vec<u32>,
    score: f64,
}

/// The best answer to a prompt.
pub(super) fn search(
    graph: &Graph,
    prompt: &Example,
    decoding: &Decoding,
    ending: &Ending,
) -> Result<Written, Problem> {
    let count = decoding.beams;
    let kept = (1 + decoding.ends.len()).max(2) * count;
    let (mut extended, mut logits) = Extended::begin(graph, &[prompt])?;
    let mut running = vec![Beam {
        tokens: Vec::new(),
        score: 0.0,
    }];
    let mut finished: Vec<(Beam, bool)> = Vec::new();
    let longest = room(graph, prompt, decoding);
    for length in 1..=longest {
        let mut next: Vec<(f64, usize, usize)> = Vec::new();
        for (place, (beam, logits)) in running.iter().zip(&mut logits).enumerate() {
            check_finite(logits)?;
            let mut scores = log_softmax(logits);
            let occurred = [ending.occurred(prompt), &beam.tokens].concat();
            penalize(&mut scores, &occurred, decoding.repetition_penalty);
            if length <= decoding.min_tokens {
                forbid(&mut scores, &decoding.ends);
            }
            let scores = scores.iter().enumerate();
            next.extend(
                scores.map(|(token, score)| (beam.score + f64::from(*score), place, token)),
            );
        }
        let better = |a: &(f64, usize, usize), b: &(f64, usize, usize)| b.0.total_cmp(&a.0);
        let most = kept.min(next.len());
        next.select_nth_unstable_by(most - 1, better);
        next.truncate(most);
        next.sort_by(better);
        let (mut places, mut tokens, mut going) = (Vec::new(), Vec::new(), Vec::new());
        for (rank, (score, place, token)) in next.into_iter().enumerate() {
            let mut text = running[place].tokens.clone();
            text.push(token as u32);
            let ended = ending.is_reached(&text)?;
            let beam = Beam {
                tokens: text,
                score,
            };
            if ended || length == longest {
                // Only the best of them count: the others are there to have enough to go on with.
                if rank < count {
                    let score = score / (length as f64).powf(f64::from(decoding.length_penalty));
                    finished.push((Beam { score, ..beam }, ended));
                }
            } else if going.len() < count {
                places.push(place);
                tokens.push(token);
                going.push(beam);
            }
        }
        finished.sort_by(|a, b| b.0.score.total_cmp(&a.0.score));
        finished.truncate(count);
        running = going;
        if running.is_empty() || is_over(&running, &finished, length, decoding) {
            break;
        }
        extended.select(&places);
        logits = extended.next(graph, &tokens)?;
    }
    let best = finished.into_iter().next();
    let (beam, ended) = best.ok_or_else(|| Problem::internal("a beam search without a result"))?;
    Ok(Written {
        tokens: beam.tokens,
        ended,
        is_over: true,
    })
}

/// Whether no beam can become better than the worst of the finished ones, by its score at its present length.
fn is_over(
    running: &[Beam],
    finished: &[(Beam, bool)],
    length: usize,
    decoding: &Decoding,
) -> bool {
    let worst = match finished.len() == decoding.beams {
        true => finished.last().map_or(-1e9, |(beam, _)| beam.score),
        false => -1e9,
    };
    let power = (length as f64).powf(f64::from(decoding.length_penalty));
    running[0].score / power <= worst
}

/// Log-probabilities of logits.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = logits.iter().map(|logit| (logit - highest).exp()).sum();
    let log = highest + sum.ln();
    logits.iter().map(|logit| logit - log).collect()
}
