//! Attention of one new position per sequence to keys and values that were kept, for the generation of text.

use multiversion::multiversion;
use rayon::prelude::*;

use super::softmax::{cap_scores, softmax};
use super::AttentionShape;
use crate::cpu::helpers::share_items;
use crate::cpu::lanes::sum_lanes;
use crate::profile::{self, Op};
use crate::{Matrix, Outcome, Tensor};

/// The keys and values of several sequences at one attention, after rotation, prefixes included.
#[derive(Clone, Debug, Default)]
pub struct KeyValues {
    sequences: Vec<Kept>,
}

/// Those of one sequence: `(rows, columns)` each, on the host.
#[derive(Clone, Debug, Default)]
struct Kept {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KeyValues {
    /// Whether nothing is kept yet.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The keys and the values of a sequence, `(rows, columns)` each.
    pub fn rows(&self, sequence: usize) -> [&[f32]; 2] {
        let kept = &self.sequences[sequence];
        [&kept.keys, &kept.values]
    }

    /// Appends rows of `k` and `v` to each sequence: `counts` of them, one sequence after the other.
    pub fn push(&mut self, k: &Matrix, v: &Matrix, counts: impl Iterator<Item = usize>) {
        let columns = k.shape().1;
        let (k, v) = (k.view(), v.view());
        let mut start = 0;
        for (sequence, count) in counts.enumerate() {
            if sequence == self.sequences.len() {
                self.sequences.push(Kept::default());
            }
            let rows = start..start + count * columns;
            start = rows.end;
            let kept = &mut self.sequences[sequence];
            kept.keys.extend_from_slice(&k[rows.clone()]);
            kept.values.extend_from_slice(&v[rows]);
        }
    }

    /// Keeps the sequences `order`, in this order; one may occur several times.
    pub fn select(&mut self, order: &[usize]) {
        let mut left: Vec<Option<Kept>> = std::mem::take(&mut self.sequences)
            .into_iter()
            .map(Some)
            .collect();
        let uses = |place: usize| order.iter().filter(|other| **other == place).count();
        let mut used = vec![0; left.len()];
        let pick = |&place: &usize| {
            used[place] += 1;
            let kept = match used[place] == uses(place) {
                true => left[place].take(),
                false => left[place].clone(),
            };
            kept.unwrap_or_default()
        };
        self.sequences = order.iter().map(pick).collect();
    }
}

/// `softmax(scale · q kᵀ + bias) v` for one row of `q (sequences, heads · width)` per sequence, which is the last
/// position of its sequence: `(sequences, heads · width)`. `bias` is as for [`super::attention`]. All devices compute it
/// on the CPU, where the keys and values are. It has no gradient.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn attend_kept(
    q: &Matrix,
    kept: &KeyValues,
    shape: AttentionShape,
    bias: Option<&Matrix>,
) -> Outcome<Matrix> {
    let (sequences, hidden) = q.shape();
    assert_eq!(sequences, kept.sequences.len(), "attention: sequences");
    let width = hidden / shape.heads;
    let group = shape.heads / shape.key_value_heads;
    let bias = bias.map(Matrix::view);
    let mut values = vec![0.0; sequences * hidden];
    let kernel = || {
        let queries = q.view();
        let heads = values
            .par_chunks_mut((group * width).max(1))
            .zip(queries.par_chunks(group * width))
            .enumerate();
        share_items(
            heads,
            Vec::new,
            |weights: &mut Vec<f32>, (number, (out, q))| {
                let (sequence, head) = (
                    number / shape.key_value_heads,
                    number % shape.key_value_heads,
                );
                let Kept { keys, values } = &kept.sequences[sequence];
                let columns = shape.key_value_heads * width;
                // An attention to the encoder's output has no window.
                let seen = shape.window.unwrap_or(usize::MAX);
                let first = (keys.len() / columns).saturating_sub(seen) * columns;
                let (keys, values) = (&keys[first..], &values[first..]);
                let count = keys.len() / columns;
                for (place, (out, q)) in out.chunks_mut(width).zip(q.chunks(width)).enumerate() {
                    weights.resize(count, 0.0);
                    products(weights, q, &keys[head * width..], columns);
                    let mut scale = shape.scale;
                    if let Some(cap) = shape.cap {
                        cap_scores(weights, scale, cap);
                        scale = 1.0;
                    }
                    if let Some(bias) = &bias {
                        // The query is the last position, so its keys take the distances up to 0.
                        let middle = bias.len() / shape.heads / 2;
                        let first = middle + 1 - count;
                        for (key, weight) in weights.iter_mut().enumerate() {
                            let bias = bias[(first + key) * shape.heads + head * group + place];
                            *weight = scale * *weight + bias;
                        }
                        scale = 1.0;
                    }
                    softmax(weights, scale);
                    mixture(out, weights, &values[head * width..], columns);
                }
            },
        );
    };
    profile::forward(Op::Attention, q.count(), kernel);
    let device = q.device();
    Tensor::new(&device, values, (sequences, hidden)).map(Tensor::constant)
}

/// `products[i] ← q · row i of rows`, whose rows are `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn products(products: &mut [f32], q: &[f32], rows: &[f32], stride: usize) {
    for (product, row) in products.iter_mut().zip(rows.chunks(stride)) {
        *product = sum_lanes(q, &row[..q.len()], |x, y| x * y);
    }
}

/// `out ← Σ weights[i] · row i of rows`, whose rows are `stride` apart.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn mixture(out: &mut [f32], weights: &[f32], rows: &[f32], stride: usize) {
    out.fill(0.0);
    for (weight, row) in weights.iter().zip(rows.chunks(stride)) {
        for (out, value) in out.iter_mut().zip(row) {
            *out += weight * value;
        }
    }
}
