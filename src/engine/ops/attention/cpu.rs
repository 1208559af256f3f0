//! Attention on the CPU, with a fused softmax. The attention weights grow with the square of the sequence length. Short
//! sequences keep them for the backward pass; for long ones the backward pass computes them again.

use std::ops::Range;

use rayon::prelude::*;

use super::softmax::{cap_backward, cap_scores, softmax, softmax_backward};
use super::{Attending, AttentionShape};
use crate::cpu::helpers::share_items;
use crate::cpu::is_wide;
use crate::cpu::products::{Destination, Packed, View, WriteMode};
use crate::gradient::{record_kernel, Slot};
use crate::noise::Noise;
use crate::{profile, Dropout, Layout, Matrix};

/// The largest number of keys of a sequence whose attention weights are kept, in a model of this width.
fn most_kept_keys(hidden: usize) -> usize {
    match is_wide(hidden) {
        true => 64,
        false => 256,
    }
}

/// See [`super::attention`].
pub(super) fn attention(
    [q, k, v]: [&Matrix; 3],
    attending: Attending,
    shape: AttentionShape,
    bias: Option<&Matrix>,
    dropout: Option<Dropout>,
) -> Matrix {
    let (rows, hidden) = q.shape();
    let plan = Heads::new(attending, shape, bias, hidden, dropout);
    assert_eq!(rows, plan.rows(), "attention: rows and layout disagree");
    let keys = attending.keys;
    let of_keys = (keys.rows() + keys.sequences() * shape.prefix) * plan.keys_stride();
    assert!(
        [k, v].iter().all(|x| x.count() == of_keys),
        "attention: keys or values and layout disagree"
    );
    let mut joined = q.trace().or(&k.trace()).or(&v.trace());
    if let Some(bias) = bias {
        joined = joined.or(&bias.trace());
    }
    let is_kept = joined.is_on() && keys.longest() + shape.prefix <= most_kept_keys(hidden);
    let heads = plan.heads();
    // The weights of all heads, if the backward pass needs them; otherwise one head at a time has them in a buffer.
    let mut kept = vec![Vec::new(); heads.len()];
    let mut values = vec![0.0; rows * hidden];
    let place = Destination::new(&mut values, hidden, WriteMode::Set);
    let inputs = [q, k, v].map(Matrix::data);
    let [q_data, k_data, v_data] = inputs;
    share_items(
        heads.par_iter().zip(&mut kept),
        Buffers::default,
        |buffers, (&head, kept)| {
            let Buffers {
                packed,
                weights,
                dropped,
                ..
            } = buffers;
            let weights = if is_kept { kept } else { weights };
            plan.weights(packed, head, q_data, k_data, weights);
            let weights = View::new(plan.dropped(weights, head, dropped), head.keys);
            let v = &v_data[head.key_start..];
            packed.pack_rows(v, plan.keys_stride(), head.keys, plan.width());
            // SAFETY: these are the rows and columns of the head, which lie in q by the assertions above.
            unsafe { packed.plain().multiply_at(place.at(head.start), weights) };
        },
    );
    if joined.is_on() {
        let inputs = inputs.map(<[f32]>::len).iter().sum::<usize>();
        profile::kept(inputs + kept.iter().map(Vec::len).sum::<usize>());
    }
    let slots = [q.slot(), k.slot(), v.slot(), bias.and_then(Matrix::slot)];
    let [q, k, v] = [q, k, v].map(|x| x.value.clone());
    record_kernel(values, (rows, hidden), joined, move |upstream| {
        let kept = is_kept.then_some(kept.as_slice());
        let inputs = [q.data(), k.data(), v.data()];
        plan.backward(inputs, &upstream, kept, &slots);
    })
}

/// The parameters that the forward and the backward pass share.
struct Heads {
    queries: Layout,
    keys: Layout,
    shape: AttentionShape,
    hidden: usize,
    dropout: Option<Dropout>,
    /// The bias of each head's scores, by the distance of the key: `(heads, distances)`.
    bias: Option<Vec<f32>>,
    /// `starts[i]..starts[i + 1]` are the rows of q that belong to sequence `i`.
    starts: Vec<usize>,
    /// The place of each row of q in its sequence.
    places: Vec<usize>,
}

/// One head of one sequence.
#[derive(Clone, Copy)]
struct HeadOfSequence {
    sequence: usize,
    index: usize,
    /// Its first row in q. `queries` is the number of its rows there.
    row: usize,
    queries: usize,
    /// Rows of k and v.
    keys: usize,
    /// The number of rows of its sequence; q may have only some of them.
    length: usize,
    /// Where its first element lies in q.
    start: usize,
    /// Where its first element lies in k and v.
    key_start: usize,
}

/// Buffers that are overwritten for each head.
#[derive(Default)]
struct Buffers {
    packed: Packed,
    /// `(queries, keys)` each.
    weights: Vec<f32>,
    dropped: Vec<f32>,
    dscores: Vec<f32>,
    capped: Vec<f32>,
}

impl Heads {
    fn new(
        attending: Attending,
        shape: AttentionShape,
        bias: Option<&Matrix>,
        hidden: usize,
        dropout: Option<Dropout>,
    ) -> Self {
        let (mut starts, mut places) = (vec![0], Vec::new());
        for range in attending.queries.ranges() {
            match attending.rows {
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
            queries: attending.queries.clone(),
            keys: attending.keys.clone(),
            shape,
            hidden,
            dropout,
            bias: bias.map(|bias| transposed(bias.data(), shape.heads)),
            starts,
            places,
        }
    }

    /// Rows of q.
    fn rows(&self) -> usize {
        self.places.len()
    }

    fn width(&self) -> usize {
        self.hidden / self.shape.heads
    }

    /// The number of query heads for each head of keys and values.
    fn group(&self) -> usize {
        self.shape.heads / self.shape.key_value_heads
    }

    /// Columns of k and v.
    fn keys_stride(&self) -> usize {
        self.width() * self.shape.key_value_heads
    }

    /// All heads of all sequences that have a row of q.
    fn heads(&self) -> Vec<HeadOfSequence> {
        let own = |sequence: usize| self.starts[sequence]..self.starts[sequence + 1];
        let sequences = self.queries.ranges().zip(self.keys.ranges()).enumerate();
        sequences
            .filter(|(sequence, _)| !own(*sequence).is_empty())
            .flat_map(|(sequence, (range, keys))| {
                let first_key = keys.start + sequence * self.shape.prefix;
                let own = own(sequence);
                (0..self.shape.heads).map(move |index| {
                    let column = index * self.width();
                    let key_column = index / self.group() * self.width();
                    HeadOfSequence {
                        sequence,
                        index,
                        row: own.start,
                        queries: own.len(),
                        keys: keys.len() + self.shape.prefix,
                        length: range.len(),
                        start: own.start * self.hidden + column,
                        key_start: first_key * self.keys_stride() + key_column,
                    }
                })
            })
            .collect()
    }

    /// The `(queries, width)` part of `data` that belongs to `head`. `data` is q or has its shape.
    fn view<'a>(&self, data: &'a [f32], head: HeadOfSequence) -> View<'a> {
        View::strided(&data[head.start..], head.queries, self.width(), self.hidden)
    }

    /// The range of the head's distances whose biases are added to the scores of a row of q, from its first key on.
    fn distances(&self, head: HeadOfSequence, row: usize) -> Option<Range<usize>> {
        let count = self.bias.as_ref()?.len() / self.shape.heads;
        let first = count / 2 - self.shape.prefix - self.places[head.row + row];
        Some(first..first + head.keys)
    }

    /// The keys of a head that a row of q sees.
    fn seen(&self, head: HeadOfSequence, row: usize) -> Range<usize> {
        let query = self.shape.prefix + self.places[head.row + row];
        self.shape.seen(query, head.keys)
    }

    /// `weights ← softmax(scale · q kᵀ + bias)` of one head, without dropout.
    fn weights(
        &self,
        packed: &mut Packed,
        head: HeadOfSequence,
        q: &[f32],
        k: &[f32],
        weights: &mut Vec<f32>,
    ) {
        let stride = self.keys_stride();
        packed.pack_transposed(&k[head.key_start..], stride, self.width(), head.keys);
        let (room, q) = (std::mem::take(weights), self.view(q, head));
        *weights = packed.plain().product_in(room, q, None);
        let rows = weights.chunks_exact_mut(head.keys.max(1));
        for (i, row) in rows.enumerate() {
            let seen = self.seen(head, i);
            let mut scale = self.shape.scale;
            if let Some(cap) = self.shape.cap {
                cap_scores(&mut row[seen.clone()], scale, cap);
                scale = 1.0;
            }
            if let (Some(bias), Some(distances)) = (&self.bias, self.distances(head, i)) {
                let bias = &bias[head.index * (bias.len() / self.shape.heads)..][distances];
                let scores = row.iter_mut().zip(bias);
                scores.for_each(|(score, bias)| *score = scale * *score + bias);
                scale = 1.0;
            }
            softmax(&mut row[seen.clone()], scale);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
    }

    /// Applies the dropout's factors to the weights of one head.
    fn drop(&self, weights: &mut [f32], head: HeadOfSequence) {
        let Some(dropout) = self.dropout else { return };
        let noise = Noise::new(self.queries.key(head.sequence), dropout.place);
        let mut factors = vec![0.0; head.keys];
        for (i, row) in weights.chunks_exact_mut(head.keys.max(1)).enumerate() {
            let position = head.index * head.length + self.places[head.row + i];
            noise.dropout_row(position, dropout.probability, &mut factors);
            row.iter_mut()
                .zip(&factors)
                .for_each(|(weight, factor)| *weight *= factor);
        }
    }

    /// The weights of one head after dropout: `weights` itself if there is no dropout, else a copy in `buffer`.
    fn dropped<'a>(
        &self,
        weights: &'a [f32],
        head: HeadOfSequence,
        buffer: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        if self.dropout.is_none() {
            return weights;
        }
        buffer.clear();
        buffer.extend_from_slice(weights);
        self.drop(buffer, head);
        buffer
    }

    /// Adds to the gradients of q, k, v and the bias: those that have slots.
    fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        upstream: &[f32],
        kept: Option<&[Vec<f32>]>,
        slots: &[Option<Slot>; 4],
    ) {
        let hidden = self.hidden;
        let zeros =
            |values: &[f32], slot: &Option<Slot>| slot.is_some().then(|| vec![0.0; values.len()]);
        let [q_slot, k_slot, v_slot, bias_slot] = slots;
        let mut gradients = [zeros(q, q_slot), zeros(k, k_slot), zeros(v, v_slot)];
        let strides = [hidden, self.keys_stride(), self.keys_stride()];
        let [dq, dk, dv] = std::array::from_fn(|number| {
            let values = gradients[number].as_mut();
            values.map(|values| Destination::new(values, strides[number], WriteMode::Set))
        });
        let heads = self.heads();
        let group = self.group();
        // Every head has a gradient of its own, so that they are always summed in the same order.
        let of_bias = bias_slot.as_ref().and(self.bias.as_ref());
        let distances = of_bias.map_or(0, |bias| bias.len() / self.shape.heads);
        let mut bias_gradients = vec![vec![0.0; distances]; heads.len()];
        let work =
            |buffers: &mut Buffers, number: usize, head: HeadOfSequence, bias: &mut [f32]| {
                let Buffers {
                    packed,
                    weights,
                    dropped,
                    dscores,
                    capped,
                } = buffers;
                // The first head of a group writes the gradients of its keys and values, the others add to them.
                let shared = |place: Destination| Destination {
                    mode: match number % group {
                        0 => WriteMode::Set,
                        _ => WriteMode::Add,
                    },
                    ..place.at(head.key_start)
                };
                let weights = match kept {
                    Some(kept) => &kept[number],
                    None => {
                        self.weights(packed, head, q, k, weights);
                        &*weights
                    }
                };
                if let Some(dv) = dv {
                    // dv ← weightsᵀ dy, with the weights after dropout.
                    let weights = self.dropped(weights, head, dropped);
                    let weights = View::strided(weights, head.queries, head.keys, head.keys);
                    packed.pack_rows(&upstream[head.start..], hidden, head.queries, self.width());
                    // SAFETY: these are the head's rows and columns, here in k and v, below in q, k or v.
                    unsafe { packed.plain().multiply_at(shared(dv), weights.t()) };
                }
                if dq.is_none() && dk.is_none() && bias.is_empty() {
                    return;
                }
                self.scores_backward(packed, dscores, head, weights, v, upstream);
                self.bias_backward(dscores, head, bias);
                self.cap_backward(packed, (capped, dscores), head, [q, k]);
                let dscores = View::strided(dscores, head.queries, head.keys, head.keys);
                if let Some(dq) = dq {
                    let k = &k[head.key_start..];
                    packed.pack_rows(k, self.keys_stride(), head.keys, self.width());
                    unsafe { packed.plain().multiply_at(dq.at(head.start), dscores) };
                }
                if let Some(dk) = dk {
                    packed.pack_rows(&q[head.start..], hidden, head.queries, self.width());
                    unsafe { packed.plain().multiply_at(shared(dk), dscores.t()) };
                }
            };
        // Heads that share keys and values come one after the other.
        let of_group = |buffers: &mut Buffers, (first, (heads, biases)): (usize, _)| {
            let (heads, biases): (&[HeadOfSequence], &mut [Vec<f32>]) = (heads, biases);
            let heads = heads.iter().zip(biases).enumerate();
            heads.for_each(|(index, (head, bias))| {
                work(buffers, first * group + index, *head, bias)
            });
        };
        let groups = heads
            .par_chunks(group)
            .zip(bias_gradients.par_chunks_mut(group));
        share_items(groups.enumerate(), Buffers::default, of_group);
        if let Some(slot) = bias_slot {
            slot.add(self.sum_biases(&heads, &bias_gradients, distances));
        }
        for (gradient, slot) in gradients.into_iter().zip(slots) {
            if let (Some(gradient), Some(slot)) = (gradient, slot) {
                slot.add(gradient);
            }
        }
    }

    /// The gradient of the bias, `(distances, heads)`: the sum over all heads of all sequences.
    fn sum_biases(
        &self,
        heads: &[HeadOfSequence],
        gradients: &[Vec<f32>],
        distances: usize,
    ) -> Vec<f32> {
        let mut sums = vec![0.0; distances * self.shape.heads];
        for (head, gradient) in heads.iter().zip(gradients) {
            let column = sums[head.index..].iter_mut().step_by(self.shape.heads);
            column.zip(gradient).for_each(|(sum, add)| *sum += add);
        }
        sums
    }

    /// Adds the gradient of a head's scores to the gradient of its bias, then scales it into the gradient of the
    /// products q kᵀ.
    fn bias_backward(&self, dscores: &mut [f32], head: HeadOfSequence, gradient: &mut [f32]) {
        for (i, dscores) in dscores.chunks_exact_mut(head.keys.max(1)).enumerate() {
            let Some(distances) = self.distances(head, i) else {
                return;
            };
            if let Some(gradient) = gradient.get_mut(distances) {
                let sums = gradient.iter_mut().zip(&*dscores);
                sums.for_each(|(sum, dscore)| *sum += dscore);
            }
            if self.shape.cap.is_none() {
                let scores = dscores.iter_mut();
                scores.for_each(|dscore| *dscore *= self.shape.scale);
            }
        }
    }

    /// Turns the gradient of a head's capped scores into that of the products q kᵀ, which it computes once more.
    fn cap_backward(
        &self,
        packed: &mut Packed,
        (products, dscores): (&mut Vec<f32>, &mut [f32]),
        head: HeadOfSequence,
        [q, k]: [&[f32]; 2],
    ) {
        let Some(cap) = self.shape.cap else { return };
        let stride = self.keys_stride();
        packed.pack_transposed(&k[head.key_start..], stride, self.width(), head.keys);
        let room = std::mem::take(products);
        *products = packed.plain().product_in(room, self.view(q, head), None);
        cap_backward(dscores, products, self.shape.scale, cap);
    }

    /// Computes in `dscores` the gradient of the weights after dropout, from it the gradient of the weights, and from
    /// that the gradient of the scores. Without a bias and a cap the last step also applies the scale, which gives the
    /// gradient of the products q kᵀ.
    fn scores_backward(
        &self,
        packed: &mut Packed,
        dscores: &mut Vec<f32>,
        head: HeadOfSequence,
        weights: &[f32],
        v: &[f32],
        dy: &[f32],
    ) {
        let keys = head.keys;
        let stride = self.keys_stride();
        packed.pack_transposed(&v[head.key_start..], stride, self.width(), keys);
        dscores.resize(head.queries * keys, 0.0);
        packed
            .plain()
            .multiply_into(dscores, keys, self.view(dy, head));
        self.drop(dscores, head);
        let rows = weights.chunks_exact(keys.max(1));
        let scale = match (&self.bias, self.shape.cap) {
            (None, None) => self.shape.scale,
            _ => 1.0,
        };
        for (dscores, weights) in dscores.chunks_exact_mut(keys.max(1)).zip(rows) {
            softmax_backward(dscores, weights, scale);
        }
    }
}

/// `(rows, columns)` → `(columns, rows)`.
fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |column: usize| values[column..].iter().step_by(columns);
    (0..columns).flat_map(column).copied().collect()
}
