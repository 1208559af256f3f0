//! Chooses a token from logits.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Decoding;
use crate::task::{highest, softmax};

/// Divides the logits of tokens that occurred, or multiplies them if they are negative (Keskar et al., arXiv 1909.05858,
/// section 4.1).
pub(super) fn penalize(logits: &mut [f32], occurred: &[u32], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut tokens: Vec<u32> = occurred.to_vec();
    tokens.sort_unstable();
    tokens.dedup();
    for token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            match *logit < 0.0 {
                true => *logit *= penalty,
                false => *logit /= penalty,
            }
        }
    }
}

/// Keeps tokens from being chosen.
pub(super) fn forbid(logits: &mut [f32], tokens: &[u32]) {
    for token in tokens {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The next token: the most probable one, or one that is drawn.
pub(super) fn choose(logits: &mut [f32], decoding: &Decoding, random: &mut ChaCha8Rng) -> usize {
    if decoding.temperature == 0.0 {
        return highest(logits);
    }
    logits
        .iter_mut()
        .for_each(|logit| *logit /= decoding.temperature);
    let left = left(logits, decoding);
    let probabilities = softmax(
        &left
            .iter()
            .map(|place| logits[*place])
            .collect::<Vec<f32>>(),
    );
    let mut draw: f64 = random.random();
    for (place, probability) in left.iter().zip(probabilities) {
        draw -= probability;
        if draw < 0.0 {
            return *place;
        }
    }
    left[0]
}

/// The tokens among which one is drawn, the most probable first. The limits apply one after the other, in transformers'
/// order.
fn left(logits: &[f32], decoding: &Decoding) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
    if decoding.top_k > 0 {
        order.truncate(decoding.top_k);
    }
    let probabilities = |order: &[usize]| {
        softmax(
            &order
                .iter()
                .map(|place| logits[*place])
                .collect::<Vec<f32>>(),
        )
    };
    if decoding.top_p < 1.0 {
        let mut before = 0.0;
        let all = probabilities(&order);
        let count = all.iter().take_while(|probability| {
            let is_in = before < f64::from(decoding.top_p);
            before += **probability;
            is_in
        });
        let count = count.count();
        order.truncate(count.max(1));
    }
    if decoding.min_p > 0.0 {
        let all = probabilities(&order);
        let least = f64::from(decoding.min_p) * all[0];
        let count = all
            .iter()
            .take_while(|probability| **probability >= least)
            .count();
        order.truncate(count.max(1));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Wishes;

    /// Values by transformers 5.23: its warpers, on the logits `log [0.4, 0.3, 0.15, 0.1, 0.05]`.
    #[test]
    fn limits_leave_the_tokens_that_transformers_leaves() {
        let logits = [0.4f32, 0.3, 0.15, 0.1, 0.05].map(f32::ln);
        let count =
            |wishes: Wishes| left(&logits, &Decoding::of(wishes, Vec::new()).unwrap()).len();
        let wishes = Wishes::default;
        assert_eq!(
            count(Wishes {
                top_k: Some(2),
                ..wishes()
            }),
            2
        );
        assert_eq!(
            count(Wishes {
                top_p: Some(0.69),
                ..wishes()
            }),
            2
        );
        assert_eq!(
            count(Wishes {
                top_p: Some(0.71),
                ..wishes()
            }),
            3
        );
        assert_eq!(
            count(Wishes {
                min_p: Some(0.3),
                ..wishes()
            }),
            3
        );
        // Among the first three, the first two have 0.82 of the probability.
        assert_eq!(
            count(Wishes {
                top_k: Some(3),
                top_p: Some(0.8),
                ..wishes()
            }),
            2
        );
    }
}
