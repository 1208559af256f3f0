//! Attention in dfdx operations, the definition that the kernel is compared with.

use dfdx::prelude::*;

use crate::definition::{DfdxDevice, DfdxMatrix, DfdxResult};
use crate::noise::Noise;
use crate::ops::rows::definition::{columns, join_columns, join_rows, select_rows};
use crate::{Attending, AttentionShape, Dropout, Layout};

/// See [`super::attention`].
pub(super) fn attention<D: DfdxDevice>(
    [q, k, v]: [&DfdxMatrix<D>; 3],
    attending: Attending,
    shape: AttentionShape,
    bias: Option<&DfdxMatrix<D>>,
    dropout: Option<Dropout>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let of_all = |q: &DfdxMatrix<D>| attention_of_all([q, k, v], attending, shape, bias, dropout);
    match attending.rows {
        None => of_all(q),
        Some(rows) => of_rows(q, rows, attending.queries.rows(), of_all),
    }
}

/// Attention of all rows. The packed rows are gathered into a padded rectangle, masked, and gathered back.
fn attention_of_all<D: DfdxDevice>(
    [q, k, v]: [&DfdxMatrix<D>; 3],
    attending: Attending,
    shape: AttentionShape,
    bias: Option<&DfdxMatrix<D>>,
    dropout: Option<Dropout>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    let (rows, hidden) = *q.shape();
    let layout = attending.queries;
    assert_eq!(rows, layout.rows(), "attention: rows and layout disagree");
    assert_eq!(
        hidden % shape.heads,
        0,
        "attention: heads do not divide hidden"
    );
    let keys = attending.keys.extended(shape.prefix);
    let (batch, longest, seen) = (layout.sequences(), layout.longest(), keys.longest());
    let (heads, width) = (shape.heads, hidden / shape.heads);
    let device = q.device().clone();

    // Heads that share keys and values get a copy each.
    let group = heads / shape.key_value_heads;
    let shared = |x: &DfdxMatrix<D>| match group {
        1 => Ok(x.clone()),
        _ => {
            let of_head = |head: usize| {
                let first = head / group * width;
                columns(x, first..first + width)
            };
            let copies: Result<Vec<_>, _> = (0..heads).map(of_head).collect();
            join_columns(&copies?)
        }
    };
    let split = |x: &DfdxMatrix<D>, layout: &Layout| -> DfdxResult<_, D> {
        select_rows(x, &padded_rows(layout))?
            .try_reshape_like(&(batch, layout.longest(), heads, width))?
            .try_permute::<_, Axes4<0, 2, 1, 3>>() // (batch, heads, longest, width)
    };
    let (k, v) = (shared(k)?, shared(v)?);
    let (q, k, v) = (split(q, layout)?, split(&k, &keys)?, split(&v, &keys)?);

    let square = (batch, heads, longest, seen);
    let scores = q
        .try_mul(shape.scale)?
        .try_matmul(k.try_permute::<_, Axes4<0, 1, 3, 2>>()?)?; // square
    let scores = match shape.cap {
        Some(cap) => scores.try_div(cap)?.try_tanh()?.try_mul(cap)?,
        None => scores,
    };
    let mask = device.try_tensor_from_vec(mask(attending, shape), (batch, longest, seen))?;
    let mut scores = scores.try_add(mask.try_broadcast_like::<_, Axis<1>>(&square)?)?;
    if let Some(bias) = bias {
        let distances = distances(bias.shape().0, (longest, seen), shape);
        let bias = select_rows(bias, &distances)?
            .try_reshape_like(&(longest, seen, heads))?
            .try_permute::<_, Axes3<2, 0, 1>>()?;
        scores = scores.try_add(bias.try_broadcast_like::<_, Axis<0>>(&square)?)?;
    }

    let (values, trace) = scores.split_tape();
    let highest = values.clone().try_max::<(usize, usize, usize), Axis<3>>()?;
    let shifted = values
        .put_tape(trace)
        .try_sub(highest.try_broadcast_like::<_, Axis<3>>(&square)?)?;
    let exponent = shifted.try_exp()?;
    let sum = exponent
        .clone()
        .try_sum::<(usize, usize, usize), Axis<3>>()?;
    let mut weights = exponent.try_div(sum.try_broadcast_like::<_, Axis<3>>(&square)?)?;
    if let Some(dropout) = dropout {
        let factors = attention_dropout(attending, shape, dropout);
        weights = weights.try_mul(device.try_tensor_from_vec(factors, square)?)?;
    }
    let mixed = weights
        .try_matmul(v)? // (batch, heads, longest, width)
        .try_permute::<_, Axes4<0, 2, 1, 3>>()?
        .try_reshape_like(&(batch * longest, hidden))?;
    let sequences = layout.ranges().enumerate();
    let packed: Vec<usize> = sequences
        .flat_map(|(sequence, range)| (0..range.len()).map(move |i| sequence * longest + i))
        .collect();
    select_rows(&mixed, &packed)
}

/// Attention of some rows, by the attention of `all` rows. Rows that are not in `queries` take some other row of `q` in
/// their place, and their results are left out.
fn of_rows<D: DfdxDevice>(
    q: &DfdxMatrix<D>,
    queries: &[usize],
    all: usize,
    attention: impl Fn(&DfdxMatrix<D>) -> DfdxResult<DfdxMatrix<D>, D>,
) -> DfdxResult<DfdxMatrix<D>, D> {
    assert_eq!(
        q.shape().0,
        queries.len(),
        "attention: rows and queries disagree"
    );
    // A row that occurs several times needs as many rounds.
    let mut rounds: Vec<Vec<usize>> = Vec::new();
    let mut chosen = Vec::with_capacity(queries.len());
    for (place, row) in queries.iter().enumerate() {
        let earlier = queries[..place].iter().filter(|other| *other == row);
        let round = earlier.count();
        if round == rounds.len() {
            rounds.push(vec![0; all]);
        }
        rounds[round][*row] = place;
        chosen.push(round * all + row);
    }
    let mixed: Vec<DfdxMatrix<D>> = rounds
        .iter()
        .map(|sources| attention(&select_rows(q, sources)?))
        .collect::<Result<_, _>>()?;
    match mixed.is_empty() {
        // A copy, so that the result is a tensor of its own.
        true => q.clone().try_mul(1.0),
        false => select_rows(&join_rows(&mixed)?, &chosen),
    }
}

/// The row that each position of a padded rectangle reads. Padding may read any row, because it is masked.
fn padded_rows(layout: &Layout) -> Vec<usize> {
    let longest = layout.longest();
    let rows = layout.ranges();
    rows.flat_map(|range| (0..longest).map(move |i| range.start + i.min(range.len() - 1)))
        .collect()
}

/// The row of a bias with `rows` distances for each pair of a query and a key, `(longest, seen)`.
fn distances(rows: usize, (longest, seen): (usize, usize), shape: AttentionShape) -> Vec<usize> {
    let none = rows / 2 - shape.prefix;
    let of_query = |query: usize| (0..seen).map(move |key| none + key - query);
    (0..longest).flat_map(of_query).collect()
}

/// `(sequences, longest, prefix + longest of the keys)`: 0 where a position is seen, a large negative number
/// elsewhere.
fn mask(attending: Attending, shape: AttentionShape) -> Vec<f32> {
    let (longest, keys) = (attending.queries.longest(), attending.keys);
    let columns = shape.prefix + keys.longest();
    let mut mask = Vec::with_capacity(keys.sequences() * longest * columns);
    for range in keys.ranges() {
        for from in 0..longest {
            let seen = shape.seen(shape.prefix + from, shape.prefix + range.len());
            let is_seen = |to: usize| seen.contains(&to) && to < shape.prefix + range.len();
            mask.extend((0..columns).map(|to| match is_seen(to) {
                true => 0.0,
                false => -1e30,
            }));
        }
    }
    mask
}

/// The dropout factors of attention weights, `(sequences, heads, longest, prefix + longest of the keys)`.
fn attention_dropout(attending: Attending, shape: AttentionShape, dropout: Dropout) -> Vec<f32> {
    let Attending { queries, keys, .. } = attending;
    let longest = queries.longest();
    let columns = shape.prefix + keys.longest();
    let mut factors = vec![0.0; queries.sequences() * shape.heads * longest * columns];
    for (sequence, (own, keys)) in queries.ranges().zip(keys.ranges()).enumerate() {
        let length = own.len();
        let noise = Noise::new(queries.key(sequence), dropout.place);
        for head in 0..shape.heads {
            for from in 0..length {
                let start = ((sequence * shape.heads + head) * longest + from) * columns;
                let row = &mut factors[start..start + shape.prefix + keys.len()];
                noise.dropout_row(head * length + from, dropout.probability, row);
            }
        }
    }
    factors
}
