//! Attention over packed rows, with the softmax inside. The weights are computed again in the
//! backward pass instead of being kept: they are the one thing that grows with the square of the
//! length.

use dfdx::prelude::*;
use multiversion::multiversion;

use super::bridge::{data, output, slot, trace};
use super::math::exp;
use super::norm::{sum_lanes, LANES};
use super::packed::Packed;
use super::product::View;
use super::Outcome;
use crate::engine::noise::Noise;
use crate::engine::{AttentionShape, Dropout, Layout, Matrix};

/// See [`crate::engine::Backend::attention`].
pub(super) fn attention(
    q: &Matrix<Cpu>,
    k: &Matrix<Cpu>,
    v: &Matrix<Cpu>,
    layout: &Layout,
    shape: AttentionShape,
    dropout: Option<Dropout>,
) -> Outcome<Matrix<Cpu>> {
    let (rows, hidden) = *q.shape();
    assert_eq!(rows, layout.rows(), "attention: rows and layout disagree");
    let plan = Heads {
        layout: layout.clone(),
        shape,
        hidden,
        dropout,
    };
    let mut values = vec![0.0; rows * hidden];
    let mut buffer = plan.square();
    plan.each(|head| {
        plan.weights(&mut buffer, &head, data(q), data(k));
        plan.drop(&mut buffer, &head);
        let weights = View::new(&buffer[..head.size()], head.keys);
        plan.pack_keys(data(v), &head)
            .multiply_add(&mut values[head.start..], hidden, weights);
    });
    let joined = trace(q).merge(trace(k)).merge(trace(v));
    let slots = [slot(q), slot(k), slot(v)];
    let [q, k, v] = [q, k, v].map(|tensor| tensor.clone().split_tape().0);
    let device = q.device().clone();
    output(
        values,
        (rows, hidden),
        joined,
        &device,
        move |flow, upstream| {
            plan.backward([data(&q), data(&k), data(&v)], upstream, |gradients| {
                for (slot, gradient) in slots.iter().zip(gradients) {
                    if let Some(slot) = slot {
                        flow.add(slot, gradient)?;
                    }
                }
                Ok(())
            })
        },
    )
}

/// What forward and backward share.
struct Heads {
    layout: Layout,
    shape: AttentionShape,
    hidden: usize,
    dropout: Option<Dropout>,
}

/// One head of one sequence.
struct Head {
    sequence: usize,
    index: usize,
    /// Rows of q.
    length: usize,
    /// Rows of k and v.
    keys: usize,
    /// Where its first element lies in q.
    start: usize,
    /// Where its first element lies in k and v.
    key_start: usize,
}

impl Head {
    /// The number of its weights.
    fn size(&self) -> usize {
        self.length * self.keys
    }
}

impl Heads {
    fn width(&self) -> usize {
        self.hidden / self.shape.heads
    }

    /// A buffer for the weights of one head.
    fn square(&self) -> Vec<f32> {
        let longest = self.layout.longest();
        vec![0.0; longest * (longest + self.shape.prefix)]
    }

    fn each(&self, mut work: impl FnMut(Head)) {
        for (sequence, range) in self.layout.ranges().enumerate() {
            let first_key = range.start + sequence * self.shape.prefix;
            for index in 0..self.shape.heads {
                let column = index * self.width();
                work(Head {
                    sequence,
                    index,
                    length: range.len(),
                    keys: range.len() + self.shape.prefix,
                    start: range.start * self.hidden + column,
                    key_start: first_key * self.hidden + column,
                });
            }
        }
    }

    /// The `(length, width)` part of q, or of something of its shape, that belongs to `head`.
    fn view<'a>(&self, data: &'a [f32], head: &Head) -> View<'a> {
        View::strided(&data[head.start..], head.length, self.width(), self.hidden)
    }

    /// That part, packed to be multiplied by something `(…, length)`.
    fn pack(&self, data: &[f32], head: &Head) -> Packed {
        Packed::rows(&data[head.start..], self.hidden, head.length, self.width())
    }

    /// The `(keys, width)` part of k or v, packed to be multiplied by something `(…, keys)`.
    fn pack_keys(&self, data: &[f32], head: &Head) -> Packed {
        Packed::rows(
            &data[head.key_start..],
            self.hidden,
            head.keys,
            self.width(),
        )
    }

    /// Its transpose, packed to be multiplied by something `(…, width)`.
    fn pack_keys_transposed(&self, data: &[f32], head: &Head) -> Packed {
        Packed::transposed(
            &data[head.key_start..],
            self.hidden,
            self.width(),
            head.keys,
        )
    }

    /// `softmax(q kᵀ / √width)` of one head, without dropout, into `buffer (length, keys)`.
    fn weights(&self, buffer: &mut [f32], head: &Head, q: &[f32], k: &[f32]) {
        let buffer = &mut buffer[..head.size()];
        buffer.fill(0.0);
        self.pack_keys_transposed(k, head)
            .multiply_add(buffer, head.keys, self.view(q, head));
        for (i, row) in buffer.chunks_exact_mut(head.keys.max(1)).enumerate() {
            let seen = match self.shape.causal {
                true => self.shape.prefix + i + 1,
                false => head.keys,
            };
            softmax(&mut row[..seen], self.scale());
            row[seen..].fill(0.0);
        }
    }

    /// `1 / √width`
    fn scale(&self) -> f32 {
        1.0 / (self.width() as f32).sqrt()
    }

    /// Applies the dropout's factors to the weights of one head.
    fn drop(&self, buffer: &mut [f32], head: &Head) {
        let Some(dropout) = self.dropout else { return };
        let noise = Noise::new(self.layout.key(head.sequence), dropout.site);
        let mut factors = vec![0.0; head.keys];
        for (i, row) in buffer
            .chunks_exact_mut(head.keys)
            .take(head.length)
            .enumerate()
        {
            let position = head.index * head.length + i;
            noise.dropout_row(position, dropout.probability, &mut factors);
            row.iter_mut()
                .zip(&factors)
                .for_each(|(weight, factor)| *weight *= factor);
        }
    }

    /// Gradients of q, k and v, `(rows, hidden)` each, given to `done`.
    fn backward<E>(
        &self,
        [q, k, v]: [&[f32]; 3],
        upstream: &[f32],
        done: impl FnOnce([&[f32]; 3]) -> Result<(), E>,
    ) -> Result<(), E> {
        let hidden = self.hidden;
        let mut dq = vec![0.0; q.len()];
        let [mut dk, mut dv] = [(); 2].map(|()| vec![0.0; k.len()]);
        let (mut weights, mut dropped, mut slopes) = (self.square(), self.square(), self.square());
        self.each(|head| {
            let (keys, size) = (head.keys, head.size());
            let dy = self.view(upstream, &head);
            self.weights(&mut weights, &head, q, k);
            dropped[..size].copy_from_slice(&weights[..size]);
            self.drop(&mut dropped, &head);
            let transposed = View::new(&dropped[..size], keys).t();
            self.pack(upstream, &head)
                .multiply_add(&mut dv[head.key_start..], hidden, transposed);
            // The gradient of the dropped weights, then of the weights, then of the scores.
            slopes[..size].fill(0.0);
            self.pack_keys_transposed(v, &head)
                .multiply_add(&mut slopes[..size], keys, dy);
            self.drop(&mut slopes, &head);
            for (slopes, weights) in slopes[..size]
                .chunks_exact_mut(keys)
                .zip(weights.chunks_exact(keys))
            {
                softmax_backward(slopes, weights, self.scale());
            }
            let slopes = View::new(&slopes[..size], keys);
            self.pack_keys(k, &head)
                .multiply_add(&mut dq[head.start..], hidden, slopes);
            self.pack(q, &head)
                .multiply_add(&mut dk[head.key_start..], hidden, slopes.t());
        });
        done([&dq, &dk, &dv])
    }
}

/// `row ← softmax(scale · row)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn softmax(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = row.chunks_exact(LANES);
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in &mut chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *value);
        }
    }
    let highest = chunks
        .remainder()
        .iter()
        .chain(&lanes)
        .fold(f32::NEG_INFINITY, |a, b| larger(a, *b));
    for value in row.iter_mut() {
        *value = exp((*value - highest) * scale);
    }
    let inverse = 1.0 / sum_lanes(row, row, |x, _| x);
    for value in row.iter_mut() {
        *value *= inverse;
    }
}

/// `slopes ← scale · weights ⊙ (slopes − Σ slopes ⊙ weights)`.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn softmax_backward(slopes: &mut [f32], weights: &[f32], scale: f32) {
    let along = sum_lanes(slopes, weights, |s, w| s * w);
    for (slope, weight) in slopes.iter_mut().zip(weights) {
        *slope = scale * weight * (*slope - along);
    }
}
