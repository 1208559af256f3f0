//! The transformer interpreter: one forward pass of any family, with the deltas at their sites.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use dfdx::prelude::{HasErr, HasShape, Tape};

use super::read::{read_layout, read_rows};
use super::rotary::positions;
use super::{Batch, Graph, Prefix, Targets, Value};
use crate::backbone::family::Head;
use crate::backbone::{FeedForwardKind, NormKind, Positions};
use crate::engine::cpu::Pace;
use crate::engine::{
    with_trace, Angles, AttentionShape, Backend, Dropout, Layout, Matrix, Precision, Scalar, Trace,
    Vector, Weight,
};

type Outcome<T, D> = Result<T, <D as HasErr>::Err>;

/// One forward pass. With a live trace, what is trained is recorded.
pub struct Pass<'g, D: Backend> {
    pub(super) graph: &'g Graph<D>,
    trace: Trace<D>,
    /// In training, when dropout is active: how much is kept for the backward pass.
    pace: Option<Arc<Pace>>,
    /// Those of rotary embeddings, for the positions of this pass.
    pub(super) angles: OnceCell<Arc<Angles>>,
}

impl<'g, D: Backend> Pass<'g, D> {
    /// One with dropout, which records what is trained.
    pub(super) fn training(graph: &'g Graph<D>, trace: Trace<D>, pace: &Arc<Pace>) -> Self {
        Pass {
            graph,
            trace,
            pace: Some(pace.clone()),
            angles: OnceCell::new(),
        }
    }

    /// One without.
    pub(super) fn inference(graph: &'g Graph<D>) -> Self {
        Pass {
            graph,
            trace: Trace::off(),
            pace: None,
            angles: OnceCell::new(),
        }
    }

    fn is_training(&self) -> bool {
        self.pace.is_some()
    }

    /// The loss of a batch: cross-entropy, or squared error for a regression, a sum divided by
    /// [`Batch::total`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn loss(&self, batch: &Batch) -> Outcome<Scalar<D>, D> {
        let logits = self.logits(batch)?;
        match &batch.targets {
            Targets::Classes(labels) => D::cross_entropy(&logits, labels, batch.total),
            Targets::Numbers(numbers) => D::squared_error(&logits, numbers, batch.total),
            Targets::Tokens { tokens, .. } => D::cross_entropy(&logits, tokens, batch.total),
            Targets::None => unreachable!("a loss is only asked for where targets are known"),
        }
    }

    /// What the head in place says of a batch: `(sequences, labels)`, or `(masked, vocabulary)`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn logits(&self, batch: &Batch) -> Outcome<Matrix<D>, D> {
        let head = self.head();
        let (x, layout, first) = match &batch.prefix {
            Some(prefix) => {
                let hidden = self.graph.config.hidden;
                let shape = (prefix.rows.len() / hidden, hidden);
                let device = self.graph.device();
                let x = device.try_tensor_from_vec(prefix.rows.clone(), shape)?;
                (
                    with_trace(&x, &Trace::off()),
                    prefix.layout.clone(),
                    prefix.block,
                )
            }
            None => {
                let (x, layout) = self.embed(batch)?;
                (x, layout, 0)
            }
        };
        let rows = read_rows(head, batch, &layout);
        let x = self.blocks(first..self.graph.config.layers, x, &layout, Some(&rows))?;
        let hidden = self.last_norm(x)?;
        self.apply_head(head, hidden, &read_layout(&layout, &rows))
    }

    /// What the embeddings and the blocks below `block` make of a batch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn prefix(&self, batch: &Batch, block: usize) -> Outcome<Prefix, D> {
        let (x, layout) = self.embed(batch)?;
        let rows = read_rows(self.head(), batch, &layout);
        let x = self.blocks(0..block, x, &layout, Some(&rows))?;
        let is_all = block < self.graph.config.layers;
        let count = |range: Range<usize>| match is_all {
            true => range.len(),
            false => rows.iter().filter(|row| range.contains(row)).count(),
        };
        Ok(Prefix {
            block,
            rows: D::read(&x),
            counts: layout.ranges().map(count).collect(),
            layout,
        })
    }

    fn head(&self) -> &Head {
        let task = self.graph.task();
        let head = task.and_then(|task| self.graph.head(task));
        head.unwrap_or(&self.graph.family.heads.classify)
    }

    /// The last hidden state of all rows, those of a prompt included.
    ///
    /// # Errors
    /// What the device reports.
    pub fn hidden(&self, batch: &Batch) -> Outcome<Matrix<D>, D> {
        let (x, layout) = self.embed(batch)?;
        let x = self.blocks(0..self.graph.config.layers, x, &layout, None)?;
        self.last_norm(x)
    }

    /// Blocks `range`: the last of the backbone for all rows, or for those that are read; its queries
    /// and its feed-forward then run on those alone.
    fn blocks(
        &self,
        range: Range<usize>,
        mut x: Matrix<D>,
        layout: &Layout,
        read: Option<&[usize]>,
    ) -> Outcome<Matrix<D>, D> {
        let layers = self.graph.config.layers;
        // A gate reads all rows of a sequence.
        let (early, late) = match self.graph.is_gated(layers - 1) {
            true => (None, read),
            false => (read, None),
        };
        for block in range.clone() {
            let read = if block + 1 == layers { early } else { None };
            if let Some(pace) = &self.pace {
                let kept = pace.keep();
                self.trace.clone().add_backward_op(move |_| {
                    drop(kept);
                    Ok(())
                });
            }
            x = self.block(block, x, layout, read)?;
        }
        match late {
            Some(rows) if !range.is_empty() && range.end == layers => D::select_rows(&x, rows),
            _ => Ok(x),
        }
    }

    /// The norm behind the last block, where the family has one.
    fn last_norm(&self, x: Matrix<D>) -> Outcome<Matrix<D>, D> {
        match self.graph.pre_norm() {
            true => self.norm("norm", &x),
            false => Ok(x),
        }
    }

    /// The embeddings of a batch, with prompts before or in every sequence, and their layout.
    fn embed(&self, batch: &Batch) -> Outcome<(Matrix<D>, Layout), D> {
        let config = &self.graph.config;
        let mut layout = batch.layout.clone();
        let mut x = self.look_up("embeddings.word", &batch.tokens, &layout)?;
        let mut types = batch.types.clone();
        if let Some(prompt) = self.prompts(&layout)? {
            let before = prompt.shape().0;
            let rows = layout.extended_rows(before, &batch.soft);
            x = D::select_rows(&D::join_rows(&[prompt, x])?, &rows)?;
            let type_of = |row: usize| row.checked_sub(before).map_or(0, |row| types[row]);
            types = rows.into_iter().map(type_of).collect();
            layout = layout.extended(before);
        }
        if config.types > 0 {
            x = D::add(x, &self.look_up("embeddings.type", &types, &layout)?)?;
        }
        if let Positions::Learned { first } = self.graph.architecture.positions {
            // A prompt has positions of its own, and so has, as in PEFT, a prefix without rows here.
            let first = first + self.graph.active.prefix_tokens;
            let positions = positions(&layout, first);
            let positions = self.look_up("embeddings.position", &positions, &layout)?;
            x = D::add(x, &positions)?;
        }
        if !self.graph.pre_norm() {
            x = self.norm("embeddings.norm", &x)?;
        }
        let x = self.drop(x, &layout, config.embedding_dropout(), "embeddings")?;
        Ok((x, layout))
    }

    fn block(
        &self,
        block: usize,
        x: Matrix<D>,
        layout: &Layout,
        read: Option<&[usize]>,
    ) -> Outcome<Matrix<D>, D> {
        let attn = format!("block.{block}.attn");
        let ff = format!("block.{block}.ff");
        let pre = self.graph.pre_norm();
        let input = if pre {
            self.norm(&format!("{attn}.norm"), &x)?
        } else {
            x.clone()
        };
        let (mut x, mut input, all) = (x, input.clone(), input);
        let read_layout = read.map(|rows| read_layout(layout, rows));
        if let Some(rows) = read {
            x = D::select_rows(&x, rows)?;
            input = D::select_rows(&input, rows)?;
        }
        let queries = read.zip(read_layout.as_ref());
        let mixed = self.attention(&attn, &all, &input, layout, queries)?; // (rows, hidden)
        let layout = read_layout.as_ref().unwrap_or(layout);
        let out = self.linear(&format!("{attn}.o"), &mixed, layout)?;
        x = self.close(&attn, &input, x, out, layout)?;

        let input = if pre {
            self.norm(&format!("{ff}.norm"), &x)?
        } else {
            x.clone()
        };
        let feed_forward = self.graph.architecture.feed_forward;
        let up = self.linear(&format!("{ff}.up"), &input, layout)?; // (rows, inner)
        let inner = match feed_forward.kind {
            FeedForwardKind::Plain => D::activate(up, feed_forward.activation)?,
            FeedForwardKind::Gated => {
                let gate = self.linear(&format!("{ff}.gate"), &input, layout)?;
                D::multiply(&D::activate(gate, feed_forward.activation)?, &up)?
            }
        };
        let out = self.linear(&format!("{ff}.down"), &inner, layout)?;
        self.close(&ff, &input, x, out, layout)
    }

    /// Dropout, the deltas behind the sub-layer, the residual sum, and the norm after it.
    fn close(
        &self,
        path: &str,
        input: &Matrix<D>,
        residual: Matrix<D>,
        out: Matrix<D>,
        layout: &Layout,
    ) -> Outcome<Matrix<D>, D> {
        let out = self.drop(out, layout, self.graph.config.dropout, path)?;
        let out = self.adapt(path, input, out, layout, Some(&residual))?;
        let sum = D::add(out, &residual)?;
        match self.graph.pre_norm() {
            true => Ok(sum),
            false => self.norm(&format!("{path}.norm"), &sum),
        }
    }

    /// Keys and values of all rows `x`; queries of the rows `asking`, which are `x` or, with their
    /// numbers and layout, some of it.
    fn attention(
        &self,
        path: &str,
        x: &Matrix<D>,
        asking: &Matrix<D>,
        layout: &Layout,
        queries: Option<(&[usize], &Layout)>,
    ) -> Outcome<Matrix<D>, D> {
        let attention = &self.graph.architecture.attention;
        let project = |name: &str| self.linear(&format!("{path}.{name}"), x, layout);
        let fused = format!("{path}.qkv");
        let [q, k, v] = match self.graph.deltas_at(&fused).is_empty() {
            true => {
                let own = queries.map_or(layout, |(_, layout)| layout);
                let q = self.linear(&format!("{path}.q"), asking, own)?;
                let mixes = D::MIXES_INPUTS
                    && self.graph.active.mixes_inputs[usize::from(self.is_training())];
                if let (true, Some((rows, _))) = (mixes, queries) {
                    return self.mix_inputs(path, &q, x, layout, rows);
                }
                [q, project("k")?, project("v")?]
            }
            false => {
                let parts = [project("q")?, project("k")?, project("v")?];
                let [q, k, v] = self.adapt_fused(&fused, x, parts, layout)?;
                match queries {
                    Some((rows, _)) => [D::select_rows(&q, rows)?, k, v],
                    None => [q, k, v],
                }
            }
        };
        let queries = queries.map(|(rows, _)| rows);
        let [q, k] = self.rotary([q, k], layout, queries)?;
        let ([k, v], prefix) = self.prefixed(path, x, [k, v], layout)?;
        let shape = AttentionShape {
            heads: attention.heads,
            key_value_heads: attention.key_value_heads,
            scale: attention.scale,
            causal: attention.causal,
            prefix,
        };
        let dropout = self.dropout(attention.dropout, path);
        D::attention(&q, &k, &v, layout, queries, shape, dropout)
    }

    /// Deltas on a weight that the checkpoint stores fused: they act on q, k and v side by side.
    fn adapt_fused(
        &self,
        path: &str,
        x: &Matrix<D>,
        parts: [Matrix<D>; 3],
        layout: &Layout,
    ) -> Outcome<[Matrix<D>; 3], D> {
        let hidden = parts[0].shape().1;
        let joined = D::join_columns(&parts)?; // (rows, 3 hidden)
        let joined = self.adapt(path, x, joined, layout, None)?;
        Ok([
            D::columns(&joined, 0..hidden)?,
            D::columns(&joined, hidden..2 * hidden)?,
            D::columns(&joined, 2 * hidden..3 * hidden)?,
        ])
    }

    pub(super) fn linear(
        &self,
        path: &str,
        x: &Matrix<D>,
        layout: &Layout,
    ) -> Outcome<Matrix<D>, D> {
        let weight = self.weight(&format!("{path}.weight"));
        let x = self.adapt_input(path, x.clone(), layout)?;
        let y = D::linear(&x, &weight, self.bias(path).as_ref())?;
        self.adapt(path, &x, y, layout, None)
    }

    pub(super) fn norm(&self, path: &str, x: &Matrix<D>) -> Outcome<Matrix<D>, D> {
        let norm = self.graph.architecture.norm;
        let gain = self.vector(&format!("{path}.weight"));
        match norm.kind {
            NormKind::Layer => {
                let bias = self.vector(&format!("{path}.bias"));
                D::layer_norm(x, &gain, &bias, norm.epsilon)
            }
            NormKind::Rms => D::rms_norm(x, &gain, norm.epsilon),
        }
    }

    pub(super) fn drop(
        &self,
        x: Matrix<D>,
        layout: &Layout,
        probability: f32,
        path: &str,
    ) -> Outcome<Matrix<D>, D> {
        match self.dropout(probability, path) {
            Some(dropout) => D::dropout(x, layout, dropout),
            None => Ok(x),
        }
    }

    fn dropout(&self, probability: f32, path: &str) -> Option<Dropout> {
        (self.is_training() && probability > 0.0).then(|| Dropout {
            probability,
            site: site_number(path),
        })
    }

    /// The key of a path, and the value there.
    pub(super) fn value(&self, path: &str) -> Option<(&str, &Value<D>)> {
        let graph = self.graph;
        if let Some(key) = graph.active.redirects.get(path) {
            return Some((key, graph.values.get(key)?));
        }
        graph
            .values
            .get_key_value(path)
            .or_else(|| graph.base.get_key_value(path))
            .map(|(k, v)| (k.as_str(), v))
    }

    fn trace_of(&self, key: &str) -> Trace<D> {
        if self.graph.active.trained.contains(key) {
            self.trace.clone()
        } else {
            Trace::off()
        }
    }

    pub(super) fn weight(&self, path: &str) -> Weight<D> {
        match self.value(path) {
            Some((key, Value::Matrix(elements, prepared))) => Weight {
                elements: elements.clone(),
                trace: self.trace_of(key),
                prepared: prepared.clone(),
                precision: match self.graph.base.contains_key(key) {
                    true => self.graph.precision,
                    false => Precision::F32,
                },
            },
            _ => unreachable!("`{path}` is a matrix of every graph: the tree has it"),
        }
    }

    pub(super) fn vector(&self, path: &str) -> Vector<D> {
        match self.value(path) {
            Some((key, Value::Vector(tensor))) => with_trace(tensor, &self.trace_of(key)),
            _ => unreachable!("`{path}` is a vector of every graph: the tree has it"),
        }
    }

    pub(super) fn bias(&self, path: &str) -> Option<Vector<D>> {
        let path = format!("{path}.bias");
        self.value(&path).is_some().then(|| self.vector(&path))
    }
}

/// A number of its own for each place (FNV-1a over the path).
fn site_number(path: &str) -> u32 {
    path.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
