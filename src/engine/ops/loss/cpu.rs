//! Cross-entropy on the CPU, with a fused softmax.

use crate::gradient::record_kernel;
use crate::{profile, Matrix, Scalar};

/// See [`super::cross_entropy`].
pub(super) fn cross_entropy(logits: &Matrix, labels: &[usize], total: usize) -> Scalar {
    let (_, classes) = logits.shape();
    let mut loss = 0.0f64;
    let mut softmax = logits.read();
    for (row, &label) in softmax.chunks_exact_mut(classes).zip(labels) {
        let highest = row
            .iter()
            .fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        let mut sum = 0.0f64;
        let target = f64::from(row[label] - highest);
        for value in row.iter_mut() {
            *value = (*value - highest).exp();
            sum += f64::from(*value);
        }
        loss += sum.ln() - target;
        row.iter_mut()
            .for_each(|value| *value = (f64::from(*value) / sum) as f32);
    }
    let labels = labels.to_vec();
    let logits_slot = logits.slot();
    profile::kept(logits_slot.as_ref().map_or(0, |_| softmax.len()));
    let scale = 1.0 / total as f64;
    let values = vec![(loss * scale) as f32];
    record_kernel(values, (), logits.trace(), move |upstream| {
        let Some(slot) = &logits_slot else { return };
        let factor = upstream[0] * scale as f32;
        let mut gradient = softmax;
        for (row, &label) in gradient.chunks_exact_mut(classes).zip(&labels) {
            row.iter_mut().for_each(|value| *value *= factor);
            row[label] -= factor;
        }
        slot.add(gradient);
    })
}
