//! Attention over packed rows, with the softmax inside. The weights are kept for the backward pass
//! where they are few, and computed again where they are many: they are the one thing that grows with
//! the square of the length.

use std::ops::Range;

use dfdx::prelude::*;
use multiversion::multiversion;

use super::bridge::{data, output};
use super::gradient::{slot, trace, Flow, Slot};
use super::math::exp;
use super::norm::{join_lanes, sum_lanes, LANES};
use super::packed::{Packed, Scheme};
use super::product::View;
use super::Outcome;
use crate::engine::noise::Noise;
use crate::engine::{profile, AttentionShape, Dropout, Layout, Matrix};

/// Keys of a sequence up to which its weights are kept.
const MOST_KEPT_KEYS: usize = 256;

/// See [`crate::engine::Backend::attention`].
pub(super) fn attention(
    q: &Matrix<Cpu>,
    k: &Matrix<Cpu>,
    v: &Matrix<Cpu>,
    layout: &Layout,
    queries: Option<&[usize]>,
    shape: AttentionShape,
    dropout: Option<Dropout>,
) -> Outcome<Matrix<Cpu>> {
    let (rows, hidden) = *q.shape();
    let plan = Heads::new(layout, queries, shape, hidden, dropout);
    assert_eq!(rows, plan.rows(), "attention: rows and layout disagree");
    let [own, others @ ..] = [q, k, v].map(|tensor| data(tensor).as_ptr());
    let joined = trace(q).merge(trace(k)).merge(trace(v));
    assert!(
        !joined.is_on() || (others[0] != others[1] && !others.contains(&own)),
        "attention: q, k and v are to be three tensors"
    );
    let is_kept = joined.is_on() && layout.longest() + shape.prefix <= MOST_KEPT_KEYS;
    // Of all heads where the backward pass needs them, of one at a time elsewhere.
    let mut kept = Vec::with_capacity(if is_kept { plan.count() } else { 0 });
    let mut values = vec![0.0; rows * hidden];
    let mut buffers = Buffers::default();
    plan.each(|head| {
        let Buffers {
            packed, dropped, ..
        } = &mut buffers;
        if !is_kept {
            kept.clear();
        }
        plan.append_weights(packed, head, data(q), data(k), &mut kept);
        let weights = plan.dropped(
            &kept[kept.len() - head.queries * head.keys..],
            head,
            dropped,
        );
        let weights = View::new(weights, head.keys);
        packed.pack_rows(&data(v)[head.key_start..], hidden, head.keys, plan.width());
        packed
            .plain()
            .multiply_into(&mut values[head.start..], hidden, weights);
    });
    if joined.is_on() {
        let inputs = [q, k, v].map(|tensor| data(tensor).len());
        profile::kept(inputs.iter().sum::<usize>() + if is_kept { kept.len() } else { 0 });
    }
    let slots = [slot(q), slot(k), slot(v)];
    let [q, k, v] = [q, k, v].map(|tensor| tensor.clone().split_tape().0);
    let device = q.device().clone();
    output(
        values,
        (rows, hidden),
        joined,
        &device,
        move |flow, upstream| {
            let kept = is_kept.then_some(kept.as_slice());
            plan.backward(
                [data(&q), data(&k), data(&v)],
                &upstream,
                kept,
                &slots,
                flow,
            )
        },
    )
}

/// What forward and backward share.
struct Heads {
    layout: Layout,
    shape: AttentionShape,
    hidden: usize,
    dropout: Option<Dropout>,
    /// `starts[i]..starts[i + 1]` are the rows of q that belong to sequence `i`.
    starts: Vec<usize>,
    /// The place of each row of q in its sequence.
    places: Vec<usize>,
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct Head {
    sequence: usize,
    index: usize,
    /// The first of its rows of q, and their number.
    row: usize,
    queries: usize,
    /// Rows of k and v, and how many of them are the sequence's own.
    keys: usize,
    length: usize,
    /// Where its first element lies in q.
    start: usize,
    /// Where its first element lies in k and v.
    key_start: usize,
}

/// What is written anew for each head.
#[derive(Default)]
struct Buffers {
    packed: Packed,
    /// `(queries, keys)` each.
    dropped: Vec<f32>,
    slopes: Vec<f32>,
}

impl Heads {
    fn new(
        layout: &Layout,
        queries: Option<&[usize]>,
        shape: AttentionShape,
        hidden: usize,
        dropout: Option<Dropout>,
    ) -> Self {
        let (mut starts, mut places) = (vec![0], Vec::new());
        for range in layout.ranges() {
            match queries {
                None => places.extend(0..range.len()),
                Some(rows) => {
                    let own = rows[starts[starts.len() - 1]..].iter();
                    let own = own.take_while(|row| range.contains(row));
                    places.extend(own.map(|row| row - range.start));
                }
            }
            starts.push(places.len());
        }
        Heads {
            layout: layout.clone(),
            shape,
            hidden,
            dropout,
            starts,
            places,
        }
    }

    /// The weights of all heads.
    fn count(&self) -> usize {
        let mut count = 0;
        self.each(|head| count += head.queries * head.keys);
        count
    }

    /// Rows of q.
    fn rows(&self) -> usize {
        self.places.len()
    }

    fn width(&self) -> usize {
        self.hidden / self.shape.heads
    }

    fn each(&self, mut work: impl FnMut(Head)) {
        for (sequence, range) in self.layout.ranges().enumerate() {
            let first_key = range.start + sequence * self.shape.prefix;
            let own: Range<usize> = self.starts[sequence]..self.starts[sequence + 1];
            if own.is_empty() {
                continue;
            }
            for index in 0..self.shape.heads {
                let column = index * self.width();
                work(Head {
                    sequence,
                    index,
                    row: own.start,
                    queries: own.len(),
                    keys: range.len() + self.shape.prefix,
                    length: range.len(),
                    start: own.start * self.hidden + column,
                    key_start: first_key * self.hidden + column,
                });
            }
        }
    }

    /// The `(queries, width)` part of q, or of something of its shape, that belongs to `head`.
    fn view<'a>(&self, data: &'a [f32], head: Head) -> View<'a> {
        View::strided(&data[head.start..], head.queries, self.width(), self.hidden)
    }

    /// Appends `softmax(q kᵀ / √width)` of one head, without dropout, to `weights`.
    fn append_weights(
        &self,
        packed: &mut Packed,
        head: Head,
        q: &[f32],
        k: &[f32],
        weights: &mut Vec<f32>,
    ) {
        let first = weights.len();
        packed.pack_transposed(&k[head.key_start..], self.hidden, self.width(), head.keys);
        packed
            .plain()
            .append(Scheme::InOrder, weights, self.view(q, head), None);
        let rows = weights[first..].chunks_exact_mut(head.keys.max(1));
        for (i, row) in rows.enumerate() {
            let seen = match self.shape.causal {
                true => self.shape.prefix + self.places[head.row + i] + 1,
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
    fn drop(&self, weights: &mut [f32], head: Head) {
        let Some(dropout) = self.dropout else { return };
        let noise = Noise::new(self.layout.key(head.sequence), dropout.site);
        let mut factors = vec![0.0; head.keys];
        for (i, row) in weights.chunks_exact_mut(head.keys.max(1)).enumerate() {
            let position = head.index * head.length + self.places[head.row + i];
            noise.dropout_row(position, dropout.probability, &mut factors);
            row.iter_mut()
                .zip(&factors)
                .for_each(|(weight, factor)| *weight *= factor);
        }
    }

    /// The weights of one head as they are dropped: themselves, or what is then in `buffer`.
    fn dropped<'a>(&self, weights: &'a [f32], head: Head, buffer: &'a mut Vec<f32>) -> &'a [f32] {
        if self.dropout.is_none() {
            return weights;
        }
        buffer.clear();
        buffer.extend_from_slice(weights);
        self.drop(buffer, head);
        buffer
    }

    /// Adds to the gradients of q, k and v where they are asked for.
    fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        upstream: &[f32],
        kept: Option<&[f32]>,
        slots: &[Option<Slot>; 3],
        flow: &mut Flow,
    ) -> Outcome<()> {
        let hidden = self.hidden;
        let zeros =
            |values: &[f32], slot: &Option<Slot>| slot.is_some().then(|| vec![0.0; values.len()]);
        let [q_slot, k_slot, v_slot] = slots;
        let (mut dq, mut dk, mut dv) = (zeros(q, q_slot), zeros(k, k_slot), zeros(v, v_slot));
        let mut buffers = Buffers::default();
        let mut recomputed = Vec::new();
        let mut left = kept;
        self.each(|head| {
            let keys = head.keys;
            let weights = match &mut left {
                Some(kept) => {
                    let (own, others) = kept.split_at(head.queries * keys);
                    *kept = others;
                    own
                }
                None => {
                    recomputed.clear();
                    self.append_weights(&mut buffers.packed, head, q, k, &mut recomputed);
                    &recomputed
                }
            };
            if let Some(dv) = &mut dv {
                self.values_backward(&mut buffers, head, weights, upstream, dv);
            }
            if dq.is_none() && dk.is_none() {
                return;
            }
            self.scores_backward(&mut buffers, head, weights, v, upstream);
            let slopes = View::strided(&buffers.slopes, head.queries, keys, keys);
            let packed = &mut buffers.packed;
            if let Some(dq) = &mut dq {
                packed.pack_rows(&k[head.key_start..], hidden, keys, self.width());
                packed
                    .plain()
                    .multiply_into(&mut dq[head.start..], hidden, slopes);
            }
            if let Some(dk) = &mut dk {
                packed.pack_rows(&q[head.start..], hidden, head.queries, self.width());
                packed
                    .plain()
                    .multiply_into(&mut dk[head.key_start..], hidden, slopes.t());
            }
        });
        for (gradient, slot) in [dq, dk, dv].into_iter().zip(slots) {
            if let (Some(gradient), Some(slot)) = (gradient, slot) {
                flow.add(slot, gradient)?;
            }
        }
        Ok(())
    }

    /// The gradient of v: `dv ← weightsᵀ dy`, with the weights as they were dropped.
    fn values_backward(
        &self,
        buffers: &mut Buffers,
        head: Head,
        weights: &[f32],
        dy: &[f32],
        dv: &mut [f32],
    ) {
        let Buffers {
            packed, dropped, ..
        } = buffers;
        let weights = self.dropped(weights, head, dropped);
        let weights = View::strided(weights, head.queries, head.keys, head.keys);
        packed.pack_rows(&dy[head.start..], self.hidden, head.queries, self.width());
        packed
            .plain()
            .multiply_into(&mut dv[head.key_start..], self.hidden, weights.t());
    }

    /// The gradient of the dropped weights, then of the weights, then of the scores.
    fn scores_backward(
        &self,
        buffers: &mut Buffers,
        head: Head,
        weights: &[f32],
        v: &[f32],
        dy: &[f32],
    ) {
        let keys = head.keys;
        let packed = &mut buffers.packed;
        packed.pack_transposed(&v[head.key_start..], self.hidden, self.width(), keys);
        let slopes = &mut buffers.slopes;
        slopes.resize(head.queries * keys, 0.0);
        packed
            .plain()
            .multiply_into(slopes, keys, self.view(dy, head));
        self.drop(slopes, head);
        let rows = weights.chunks_exact(keys.max(1));
        for (slopes, weights) in slopes.chunks_exact_mut(keys.max(1)).zip(rows) {
            softmax_backward(slopes, weights, self.scale());
        }
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
    let rest = chunks.remainder().iter();
    let highest = rest.fold(join_lanes(lanes, larger), |a, b| larger(a, *b));
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
