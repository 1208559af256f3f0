//! The transformer interpreter: one forward pass of any family, with the deltas at their sites.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use super::optimizations::read_rows::{read_layout, read_rows};
use super::rotary::positions;
use super::{Batch, CachedActivations, Graph, Targets, Value};
use crate::backbone::family::Head;
use crate::backbone::{FeedForwardKind, NormKind, Positions, Stack};
use crate::engine::cpu::Semaphore;
use crate::engine::{
    ops, Angles, Attending, Dropout, Layout, Matrix, Outcome, Precision, Scalar, Tensor, Trace,
    Vector, Weight,
};

/// One forward pass. With a live trace, what is trained is recorded.
pub struct Pass<'g> {
    pub(super) graph: &'g Graph,
    trace: Trace,
    /// In training, when dropout is active: how many blocks keep activations for the backward pass.
    semaphore: Option<Arc<Semaphore>>,
    /// Those of rotary embeddings, for the positions of this pass.
    pub(super) angles: OnceCell<Arc<Angles>>,
}

impl<'g> Pass<'g> {
    /// One with dropout, which records what is trained.
    pub(super) fn training(graph: &'g Graph, trace: Trace, semaphore: &Arc<Semaphore>) -> Self {
        Pass {
            graph,
            trace,
            semaphore: Some(semaphore.clone()),
            angles: OnceCell::new(),
        }
    }

    /// One without.
    pub(super) fn inference(graph: &'g Graph) -> Self {
        Pass {
            graph,
            trace: Trace::off(),
            semaphore: None,
            angles: OnceCell::new(),
        }
    }

    pub(super) fn is_training(&self) -> bool {
        self.semaphore.is_some()
    }

    /// The loss of a batch: cross-entropy, or squared error for a regression, a sum divided by
    /// [`Batch::total`].
    ///
    /// # Errors
    /// What the device reports.
    pub fn loss(&self, batch: &Batch) -> Outcome<Scalar> {
        let logits = self.logits(batch)?;
        match &batch.targets {
            Targets::Classes(labels) => ops::cross_entropy(&logits, labels, batch.total),
            Targets::Numbers(numbers) => ops::squared_error(&logits, numbers, batch.total),
            Targets::Tokens { tokens, .. } => ops::cross_entropy(&logits, tokens, batch.total),
            Targets::None => unreachable!("a loss is only asked for where targets are known"),
        }
    }

    /// What the head in place says of a batch: `(sequences, labels)`, or `(masked, vocabulary)`.
    ///
    /// # Errors
    /// What the device reports.
    pub fn logits(&self, batch: &Batch) -> Outcome<Matrix> {
        let head = self.head();
        let encoded = self.encode(batch)?;
        let (x, layout, first) = match &batch.cached {
            Some(cached) => {
                let hidden = self.graph.config.hidden;
                let shape = (cached.rows.len() / hidden, hidden);
                let x = Tensor::new(self.graph.device(), cached.rows.clone(), shape)?;
                (x.constant(), cached.layout.clone(), cached.block)
            }
            None => {
                let (x, layout) = self.embed_last(batch)?;
                (x, layout, self.last_stack().blocks.start)
            }
        };
        let rows = read_rows(head, batch, &layout);
        let end = self.last_stack().blocks.end;
        let x = self.blocks(first..end, x, &layout, Some(&rows), encoded.as_ref())?;
        let read = read_layout(&layout, &rows);
        let hidden = self.last_norm(self.last_stack(), x, &read)?;
        self.apply_head(head, hidden, &read)
    }

    fn last_stack(&self) -> &Stack {
        let last = self.graph.architecture.stacks.last();
        last.expect("an architecture has at least one stack")
    }

    /// What the encoder makes of a batch, where the backbone has one, and its layout.
    fn encode(&self, batch: &Batch) -> Outcome<Option<(Matrix, Layout)>> {
        let [encoder, _] = self.graph.architecture.stacks.as_slice() else {
            return Ok(None);
        };
        let (x, layout) = self.embed(batch)?;
        let x = self.blocks(encoder.blocks.clone(), x, &layout, None, None)?;
        let x = self.last_norm(encoder, x, &layout)?;
        Ok(Some((x, layout)))
    }

    /// What the last stack begins with: the embeddings of the text, or of what the decoder reads.
    fn embed_last(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
        let Some(decoder) = &batch.decoder else {
            return self.embed(batch);
        };
        let layout = decoder.layout.clone();
        let x = self.look_up("embeddings.word", &decoder.tokens, &layout)?;
        let dropout = self.graph.config.embedding_dropout();
        let x = self.drop(x, &layout, dropout, "decoder.embeddings")?;
        Ok((x, layout))
    }

    /// What the embeddings and the blocks below `block` make of a batch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn below(&self, batch: &Batch, block: usize) -> Outcome<CachedActivations> {
        let (x, layout) = self.embed(batch)?;
        let rows = read_rows(self.head(), batch, &layout);
        let x = self.blocks(0..block, x, &layout, Some(&rows), None)?;
        let is_all = block < self.graph.block_paths.len();
        let count = |range: Range<usize>| match is_all {
            true => range.len(),
            false => rows.iter().filter(|row| range.contains(row)).count(),
        };
        Ok(CachedActivations {
            block,
            rows: x.read(),
            counts: layout.ranges().map(count).collect(),
            layout,
        })
    }

    fn head(&self) -> &Head {
        let task = self.graph.task();
        let head = task.and_then(|task| self.graph.head(task));
        head.unwrap_or(&self.graph.family.heads.classify)
    }

    /// The last hidden state of all rows, those of a prompt included: the decoder's where there is one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn hidden(&self, batch: &Batch) -> Outcome<Matrix> {
        let encoded = self.encode(batch)?;
        let (x, layout) = self.embed_last(batch)?;
        let stack = self.last_stack();
        let x = self.blocks(stack.blocks.clone(), x, &layout, None, encoded.as_ref())?;
        self.last_norm(stack, x, &layout)
    }

    /// The last hidden state of the encoder, where the backbone has one.
    ///
    /// # Errors
    /// What the device reports.
    pub fn encoded(&self, batch: &Batch) -> Outcome<Option<Matrix>> {
        Ok(self.encode(batch)?.map(|(x, _)| x))
    }

    /// Blocks `range` of one stack: the last of the backbone for all rows, or for those that are read; its queries
    /// and its feed-forward then run on those alone.
    fn blocks(
        &self,
        range: Range<usize>,
        mut x: Matrix,
        layout: &Layout,
        read: Option<&[usize]>,
        encoded: Option<&(Matrix, Layout)>,
    ) -> Outcome<Matrix> {
        let count = self.graph.block_paths.len();
        // A gate reads all rows of a sequence.
        let (early, late) = match self.graph.is_gated(count - 1) {
            true => (None, read),
            false => (read, None),
        };
        let stacks = &self.graph.architecture.stacks;
        let stack = stacks.iter().find(|stack| stack.blocks.end >= range.end);
        let stack = stack.unwrap_or_else(|| self.last_stack());
        let bias = self.distance_bias(stack, layout)?;
        for block in range.clone() {
            if let Some(semaphore) = &self.semaphore {
                let permit = semaphore.acquire();
                self.trace.record(move || {
                    drop(permit);
                    Ok(())
                });
            }
            let rows = Rows {
                layout,
                read: if block + 1 == count { early } else { None },
                encoded,
                is_causal: stack.is_causal,
                bias: bias.as_ref(),
            };
            x = self.block(&self.graph.block_paths[block], x, &rows)?;
        }
        match late {
            Some(rows) if !range.is_empty() && range.end == count => ops::select_rows(&x, rows),
            _ => Ok(x),
        }
    }

    /// The norm behind the last block of a stack, where the family has one, and the dropout behind it.
    fn last_norm(&self, stack: &Stack, x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        let path = format!("{}norm", stack.path);
        let x = match self.graph.pre_norm() {
            true => self.norm(&path, &x)?,
            false => x,
        };
        self.drop(x, layout, self.graph.architecture.last_dropout, &path)
    }

    /// The embeddings of a batch, with prompts before or in every sequence, and their layout.
    fn embed(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
        let config = &self.graph.config;
        let mut layout = batch.layout.clone();
        let mut x = self.look_up("embeddings.word", &batch.tokens, &layout)?;
        let mut types = batch.types.clone();
        if let Some(prompt) = self.prompts(&layout)? {
            let before = prompt.shape().0;
            let rows = layout.extended_rows(before, &batch.soft);
            x = ops::select_rows(&ops::join_rows(&[prompt, x])?, &rows)?;
            let type_of = |row: usize| row.checked_sub(before).map_or(0, |row| types[row]);
            types = rows.into_iter().map(type_of).collect();
            layout = layout.extended(before);
        }
        if config.types > 0 {
            x = ops::add(x, &self.look_up("embeddings.type", &types, &layout)?)?;
        }
        if let Positions::Learned { first } = self.graph.architecture.positions {
            // A prompt has positions of its own, and so has, as in PEFT, a prefix without rows here.
            let first = first + self.graph.active.prefix_tokens;
            let positions = positions(&layout, first);
            let positions = self.look_up("embeddings.position", &positions, &layout)?;
            x = ops::add(x, &positions)?;
        }
        if !self.graph.pre_norm() {
            x = self.norm("embeddings.norm", &x)?;
        }
        let x = self.drop(x, &layout, config.embedding_dropout(), "embeddings")?;
        Ok((x, layout))
    }

    fn block(&self, path: &str, x: Matrix, rows: &Rows) -> Outcome<Matrix> {
        let attn = format!("{path}.attn");
        let input = self.sub_layer_input(&attn, &x)?;
        let (mut x, mut input, all) = (x, input.clone(), input);
        let read_layout = rows.read.map(|read| read_layout(rows.layout, read));
        if let Some(read) = rows.read {
            x = ops::select_rows(&x, read)?;
            input = ops::select_rows(&input, read)?;
        }
        let layout = read_layout.as_ref().unwrap_or(rows.layout);
        let attending = Attending::within(rows.layout, rows.read);
        let scores = (rows.is_causal, rows.bias);
        let mixed = self.attention(&attn, &all, (&input, layout), attending, scores)?; // (rows, queries)
        let out = self.linear(&format!("{attn}.o"), &mixed, layout)?;
        x = self.close(&attn, &input, x, out, layout)?;

        if let Some((encoded, keys)) = rows.encoded {
            let cross = format!("{path}.cross");
            let input = self.sub_layer_input(&cross, &x)?;
            let attending = Attending { keys, ..attending };
            let scores = (false, None);
            let mixed = self.attention(&cross, encoded, (&input, layout), attending, scores)?;
            let out = self.linear(&format!("{cross}.o"), &mixed, layout)?;
            x = self.close(&cross, &input, x, out, layout)?;
        }

        let ff = format!("{path}.ff");
        let input = self.sub_layer_input(&ff, &x)?;
        let feed_forward = self.graph.architecture.feed_forward;
        let up = self.linear(&format!("{ff}.up"), &input, layout)?; // (rows, inner)
        let inner = match feed_forward.kind {
            FeedForwardKind::Plain => ops::activate(up, feed_forward.activation)?,
            FeedForwardKind::Gated => {
                let gate = self.linear(&format!("{ff}.gate"), &input, layout)?;
                ops::multiply(&ops::activate(gate, feed_forward.activation)?, &up)?
            }
        };
        let down = format!("{ff}.down");
        let inner = self.drop(inner, layout, feed_forward.dropout, &down)?;
        let out = self.linear(&down, &inner, layout)?;
        self.close(&ff, &input, x, out, layout)
    }

    /// What a sub-layer reads: normalized where the family's norms precede them.
    fn sub_layer_input(&self, path: &str, x: &Matrix) -> Outcome<Matrix> {
        match self.graph.pre_norm() {
            true => self.norm(&format!("{path}.norm"), x),
            false => Ok(x.clone()),
        }
    }

    /// Dropout, the deltas behind the sub-layer, the residual sum, and the norm after it.
    fn close(
        &self,
        path: &str,
        input: &Matrix,
        residual: Matrix,
        out: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let out = self.drop(out, layout, self.graph.config.dropout, path)?;
        let out = self.adapt(path, input, out, layout, Some(&residual))?;
        let sum = ops::add(out, &residual)?;
        match self.graph.pre_norm() {
            true => Ok(sum),
            false => self.norm(&format!("{path}.norm"), &sum),
        }
    }

    pub(super) fn linear(&self, path: &str, x: &Matrix, layout: &Layout) -> Outcome<Matrix> {
        let weight = self.weight(&format!("{path}.weight"));
        let x = self.adapt_input(path, x.clone(), layout)?;
        let y = ops::linear(&x, &weight, self.bias(path).as_ref())?;
        self.adapt(path, &x, y, layout, None)
    }

    pub(super) fn norm(&self, path: &str, x: &Matrix) -> Outcome<Matrix> {
        let norm = self.graph.architecture.norm;
        let weight = self.vector(&format!("{path}.weight"));
        match norm.kind {
            NormKind::Layer => {
                let bias = self.vector(&format!("{path}.bias"));
                ops::layer_norm(x, &weight, &bias, norm.epsilon)
            }
            NormKind::Rms => ops::rms_norm(x, &weight, norm.epsilon),
        }
    }

    pub(super) fn drop(
        &self,
        x: Matrix,
        layout: &Layout,
        probability: f32,
        path: &str,
    ) -> Outcome<Matrix> {
        match self.dropout(probability, path) {
            Some(dropout) => ops::dropout(x, layout, dropout),
            None => Ok(x),
        }
    }

    pub(super) fn dropout(&self, probability: f32, path: &str) -> Option<Dropout> {
        (self.is_training() && probability > 0.0).then(|| Dropout {
            probability,
            site: site_number(path),
        })
    }

    /// The key of a path, and the value there.
    pub(super) fn value(&self, path: &str) -> Option<(&str, &Value)> {
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

    fn trace_of(&self, key: &str) -> Trace {
        if self.graph.active.trained.contains(key) {
            self.trace.clone()
        } else {
            Trace::off()
        }
    }

    pub(super) fn weight(&self, path: &str) -> Weight {
        match self.value(path) {
            Some((key, Value::Matrix(elements, prepared))) => {
                let precision = match self.graph.base.contains_key(key) {
                    true => self.graph.precision,
                    false => Precision::F32,
                };
                Weight::new(elements, prepared, &self.trace_of(key)).in_precision(precision)
            }
            _ => unreachable!("`{path}` is a matrix of every graph: the tree has it"),
        }
    }

    pub(super) fn vector(&self, path: &str) -> Vector {
        match self.value(path) {
            Some((key, Value::Vector(tensor))) => tensor.on(&self.trace_of(key)),
            _ => unreachable!("`{path}` is a vector of every graph: the tree has it"),
        }
    }

    pub(super) fn bias(&self, path: &str) -> Option<Vector> {
        let path = format!("{path}.bias");
        self.value(&path).is_some().then(|| self.vector(&path))
    }
}

/// What a block is given beside its rows.
struct Rows<'a> {
    layout: &'a Layout,
    /// Those of its rows that go on behind its attention; all where none are named.
    read: Option<&'a [usize]>,
    /// What the encoder made, and its layout, where the block is a decoder's.
    encoded: Option<&'a (Matrix, Layout)>,
    is_causal: bool,
    /// What is added to the scores of its attention by the distance of the key.
    bias: Option<&'a Matrix>,
}

/// A number of its own for each place (FNV-1a over the path).
fn site_number(path: &str) -> u32 {
    path.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
