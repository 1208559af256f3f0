//! The attentions of a block: self-attention, and a decoder's cross-attention to the encoder's output.

use std::cell::RefCell;

use super::forward::{Mode, Pass};
use super::layers::{Attention, DeltaLayer, Norm, StackLayers};
use crate::backbone::Positions;
use crate::engine::{ops, Attending, AttentionShape, KeyValues, Layout, Matrix, Outcome};

impl Pass<'_> {
    /// Attends from the rows `asking`, given with their layout, to the rows `x`:
    /// `(asking, hidden)` → `(asking, heads · width)`. `causal` masks the keys after a row, and `bias` is added to
    /// the scores.
    pub(super) fn attention(
        &self,
        layer: &Attention,
        x: &Matrix,
        asking: (&Matrix, &Layout),
        attending: Attending,
        (causal, bias): (bool, Option<&Matrix>),
    ) -> Outcome<Matrix> {
        let attention = &self.graph.architecture.attention;
        let (asking, own) = asking;
        let [q, k, v] = match layer.fused.is_empty() {
            true => {
                let q = self.linear(&layer.q, asking, own)?;
                if let Mode::Extend(kept) = self.mode {
                    return self.attend_kept(layer, q, (x, own), kept, bias);
                }
                let absorbs = self.graph.active.absorbs_keys;
                let absorbs = match self.is_training() {
                    true => absorbs.training,
                    false => absorbs.inference,
                };
                let is_absorbed = self.graph.device().absorbs_keys() && absorbs;
                if let (true, Some(rows)) = (is_absorbed, attending.rows) {
                    return self.attend_absorbed(layer, &q, x, attending.keys, (rows, causal));
                }
                let [k, v] = [&layer.k, &layer.v].map(|part| self.linear(part, x, attending.keys));
                [q, k?, v?]
            }
            false => {
                let parts = [&layer.q, &layer.k, &layer.v];
                let [q, k, v] = parts.map(|part| self.linear(part, x, attending.keys));
                let [q, k, v] = self.adapt_fused(&layer.fused, x, [q?, k?, v?], attending.keys)?;
                if let Mode::Extend(kept) = self.mode {
                    return self.extend(layer, [q, k, v], own, kept, bias);
                }
                match attending.rows {
                    Some(rows) => [ops::select_rows(&q, rows)?, k, v],
                    None => [q, k, v],
                }
            }
        };
        let [q, k] = self.placed(layer, [q, k], attending.keys, attending.rows)?;
        let ([k, v], prefix) = self.prefixed(&layer.around.deltas, x, [k, v], attending.keys)?;
        if let Mode::Begin(kept) = self.mode {
            let counts = attending.keys.ranges().map(|range| range.len() + prefix);
            kept.borrow_mut()[layer.number].push(&k, &v, counts);
        }
        let shape = AttentionShape {
            causal,
            prefix,
            ..self.shape(layer)
        };
        let dropout = self.dropout(attention.dropout, layer.dropout);
        ops::attention(&q, &k, &v, attending, shape, bias, dropout)
    }

    /// Queries and keys as they are compared: normalized head by head and rotated, where the family does so.
    fn placed(
        &self,
        layer: &Attention,
        [q, k]: [Matrix; 2],
        layout: &Layout,
        queries: Option<&[usize]>,
    ) -> Outcome<[Matrix; 2]> {
        let q = self.head_norm(&layer.q_norm, q)?;
        let k = self.head_norm(&layer.k_norm, k)?;
        self.rotary(layer.kind.rotation, [q, k], layout, queries)
    }

    /// Applies a norm to every head of a row.
    fn head_norm(&self, norm: &Option<Norm>, x: Matrix) -> Outcome<Matrix> {
        let Some(norm) = norm else { return Ok(x) };
        let (shape, width) = (x.shape(), self.graph.architecture.attention.width);
        let heads = x.reshaped((shape.0 * shape.1 / width, width)); // (rows · heads, width)
        Ok(self.norm(norm, &heads)?.reshaped(shape))
    }

    fn shape(&self, layer: &Attention) -> AttentionShape {
        let attention = &self.graph.architecture.attention;
        AttentionShape {
            heads: attention.heads,
            key_value_heads: attention.key_value_heads,
            scale: attention.scale,
            causal: true,
            prefix: 0,
            window: layer.kind.window,
            cap: attention.cap,
        }
    }

    /// Attends from the queries `q` of one new row per sequence, whose input is `x`, to what is kept. An attention to
    /// the encoder's output adds nothing to that.
    fn attend_kept(
        &self,
        layer: &Attention,
        q: Matrix,
        (x, layout): (&Matrix, &Layout),
        kept: &RefCell<Vec<KeyValues>>,
        bias: Option<&Matrix>,
    ) -> Outcome<Matrix> {
        if layer.is_cross {
            return ops::attend_kept(&q, &kept.borrow()[layer.number], self.shape(layer), bias);
        }
        let [k, v] = [&layer.k, &layer.v].map(|part| self.linear(part, x, layout));
        self.extend(layer, [q, k?, v?], layout, kept, bias)
    }

    /// Adds the key and value of one new row per sequence to what is kept, and attends to all of it.
    fn extend(
        &self,
        layer: &Attention,
        [q, k, v]: [Matrix; 3],
        layout: &Layout,
        kept: &RefCell<Vec<KeyValues>>,
        bias: Option<&Matrix>,
    ) -> Outcome<Matrix> {
        let [q, k] = self.placed(layer, [q, k], layout, None)?;
        let kept = &mut kept.borrow_mut()[layer.number];
        kept.push(&k, &v, layout.ranges().map(|range| range.len()));
        ops::attend_kept(&q, kept, self.shape(layer), bias)
    }

    /// Applies the deltas on a fused checkpoint weight. They act on the outputs of its parts side by side.
    pub(super) fn adapt_fused<const N: usize>(
        &self,
        deltas: &[DeltaLayer],
        x: &Matrix,
        mut parts: [Matrix; N],
        layout: &Layout,
    ) -> Outcome<[Matrix; N]> {
        let joined = ops::join_columns(&parts)?; // (rows, all outputs)
        let joined = self.adapt(deltas, x, joined, layout, None)?;
        let mut first = 0;
        for part in &mut parts {
            let columns = first..first + part.shape().1;
            first = columns.end;
            *part = ops::columns(&joined, columns)?;
        }
        Ok(parts)
    }

    /// The bias that a stack's attentions add to a score by the distance of the key, if the family has one:
    /// `(distances, heads)`. It covers all distances within the longest sequence and the prefixes before it.
    pub(super) fn distance_bias(
        &self,
        stack: &StackLayers,
        layout: &Layout,
    ) -> Outcome<Option<Matrix>> {
        let positions = &self.graph.architecture.positions;
        let (Positions::Distances(distances), Some(table)) = (positions, &stack.distances) else {
            return Ok(None);
        };
        let positions = (self.graph.active.prefix_tokens + layout.end()) as isize;
        let bucket = |distance: isize| distances.bucket(distance, !stack.is_causal);
        let buckets: Vec<usize> = (1 - positions..positions).map(bucket).collect();
        // These rows are not a text's, but those of a table that all sequences share.
        let alone = Layout::new([buckets.len()], vec![0]);
        self.look_up(table, &buckets, &alone).map(Some)
    }
}
