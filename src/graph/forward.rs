//! The transformer interpreter: one forward pass of any family, with the deltas at their sites.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use super::layers::{
    Block, DropoutPlace, Handle, Layers, Linear, Norm, ParameterIndex, StackLayers, SubLayer,
};
use super::optimizations::read_rows::{read_layout, read_rows};
use super::rotary::positions;
use super::{Batch, CachedActivations, Graph, Targets, Value};
use crate::backbone::Positions;
use crate::engine::{
    ops, Angles, Attending, Dropout, Layout, Matrix, Outcome, Precision, Scalar, Semaphore, Tensor,
    Trace, Vector, Weight,
};

/// One forward pass. With a live trace, what is trained is recorded.
pub struct Pass<'g> {
    pub(super) graph: &'g Graph,
    pub(super) layers: &'g Layers,
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
            layers: graph.layers(),
            trace,
            semaphore: Some(semaphore.clone()),
            angles: OnceCell::new(),
        }
    }

    /// One without.
    pub(super) fn inference(graph: &'g Graph) -> Self {
        Pass {
            graph,
            layers: graph.layers(),
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
        let encoded = self.encode(batch)?;
        let last = self.last_stack();
        let (x, layout, first) = match &batch.cached {
            Some(cached) => {
                let hidden = self.graph.config.hidden;
                let shape = (cached.rows.len() / hidden, hidden);
                let x = Tensor::new(self.graph.device(), cached.rows.clone(), shape)?;
                (x.constant(), cached.layout.clone(), cached.block)
            }
            None => {
                let (x, layout) = self.embed_last(batch)?;
                (x, layout, last.blocks.start)
            }
        };
        let rows = read_rows(self.layers.reads, batch, &layout);
        let range = first..last.blocks.end;
        let x = self.blocks(range, x, &layout, Some(&rows), encoded.as_ref())?;
        let read = read_layout(&layout, &rows);
        let hidden = self.last_norm(last, x, &read)?;
        self.head(hidden, &read)
    }

    fn last_stack(&self) -> &'g StackLayers {
        let last = self.layers.stacks.last();
        last.expect("an architecture has at least one stack")
    }

    /// What the encoder makes of a batch, where the backbone has one, and its layout.
    fn encode(&self, batch: &Batch) -> Outcome<Option<(Matrix, Layout)>> {
        let [encoder, _] = self.layers.stacks.as_slice() else {
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
        let (layout, layers) = (decoder.layout.clone(), &self.layers.embeddings);
        let x = self.look_up(&layers.word, &decoder.tokens, &layout)?;
        let dropout = self.graph.config.embedding_dropout();
        let x = self.drop(x, &layout, dropout, layers.decoder_dropout)?;
        Ok((x, layout))
    }

    /// What the embeddings and the blocks below `block` make of a batch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn below(&self, batch: &Batch, block: usize) -> Outcome<CachedActivations> {
        let (x, layout) = self.embed(batch)?;
        let rows = read_rows(self.layers.reads, batch, &layout);
        let x = self.blocks(0..block, x, &layout, Some(&rows), None)?;
        let is_all = block < self.layers.blocks.len();
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
        let blocks = &self.layers.blocks;
        let count = blocks.len();
        // A gate reads all rows of a sequence.
        let (early, late) = match self.graph.active.is_gated_at_the_top {
            true => (None, read),
            false => (read, None),
        };
        let mut stacks = self.layers.stacks.iter();
        let stack = stacks.find(|stack| stack.blocks.end >= range.end);
        let stack = stack.unwrap_or_else(|| self.last_stack());
        let bias = self.distance_bias(stack, layout)?;
        for (number, block) in blocks.iter().enumerate().take(range.end).skip(range.start) {
            if let Some(semaphore) = &self.semaphore {
                let permit = semaphore.acquire();
                self.trace.record(move || {
                    drop(permit);
                    Ok(())
                });
            }
            let rows = Rows {
                layout,
                read: if number + 1 == count { early } else { None },
                encoded,
                is_causal: stack.is_causal,
                bias: bias.as_ref(),
            };
            x = self.block(block, x, &rows)?;
        }
        match late {
            Some(rows) if !range.is_empty() && range.end == count => ops::select_rows(&x, rows),
            _ => Ok(x),
        }
    }

    /// The norm behind the last block of a stack, where the family has one, and the dropout behind it.
    fn last_norm(&self, stack: &StackLayers, x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        let x = match &stack.norm {
            Some(norm) => self.norm(norm, &x)?,
            None => x,
        };
        let probability = self.graph.architecture.last_dropout;
        self.drop(x, layout, probability, stack.dropout)
    }

    /// The embeddings of a batch, with prompts before or in every sequence, and their layout.
    fn embed(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
        let layers = &self.layers.embeddings;
        let mut layout = batch.layout.clone();
        let mut x = self.look_up(&layers.word, &batch.tokens, &layout)?;
        let mut types = batch.types.clone();
        if let Some(prompt) = self.prompts(&layout)? {
            let before = prompt.shape().0;
            let rows = layout.extended_rows(before, &batch.soft);
            x = ops::select_rows(&ops::join_rows(&[prompt, x])?, &rows)?;
            let type_of = |row: usize| row.checked_sub(before).map_or(0, |row| types[row]);
            types = rows.into_iter().map(type_of).collect();
            layout = layout.extended(before);
        }
        if let Some(table) = &layers.types {
            x = ops::add(x, &self.look_up(table, &types, &layout)?)?;
        }
        if let (Positions::Learned { first }, Some(table)) =
            (&self.graph.architecture.positions, &layers.positions)
        {
            // A prompt has positions of its own, and so has, as in PEFT, a prefix without rows here.
            let first = first + self.graph.active.prefix_tokens;
            let positions = positions(&layout, first);
            x = ops::add(x, &self.look_up(table, &positions, &layout)?)?;
        }
        if let Some(norm) = &layers.norm {
            x = self.norm(norm, &x)?;
        }
        let dropout = self.graph.config.embedding_dropout();
        let x = self.drop(x, &layout, dropout, layers.dropout)?;
        Ok((x, layout))
    }

    fn block(&self, block: &Block, x: Matrix, rows: &Rows) -> Outcome<Matrix> {
        let attn = &block.attention;
        let input = self.sub_layer_input(&attn.around, &x)?;
        let (mut x, mut input, all) = (x, input.clone(), input);
        let read_layout = rows.read.map(|read| read_layout(rows.layout, read));
        if let Some(read) = rows.read {
            x = ops::select_rows(&x, read)?;
            input = ops::select_rows(&input, read)?;
        }
        let layout = read_layout.as_ref().unwrap_or(rows.layout);
        let attending = Attending::within(rows.layout, rows.read);
        let scores = (rows.is_causal, rows.bias);
        let mixed = self.attention(attn, &all, (&input, layout), attending, scores)?; // (rows, queries)
        let out = self.linear(&attn.o, &mixed, layout)?;
        x = self.close(&attn.around, &input, x, out, layout)?;

        if let (Some((encoded, keys)), Some(cross)) = (rows.encoded, &block.cross) {
            let input = self.sub_layer_input(&cross.around, &x)?;
            let attending = Attending { keys, ..attending };
            let scores = (false, None);
            let mixed = self.attention(cross, encoded, (&input, layout), attending, scores)?;
            let out = self.linear(&cross.o, &mixed, layout)?;
            x = self.close(&cross.around, &input, x, out, layout)?;
        }

        let ff = &block.feed_forward;
        let input = self.sub_layer_input(&ff.around, &x)?;
        let of_family = self.graph.architecture.feed_forward;
        let up = self.linear(&ff.up, &input, layout)?; // (rows, inner)
        let inner = match &ff.gate {
            None => ops::activate(up, of_family.activation)?,
            Some(gate) => {
                let gate = self.linear(gate, &input, layout)?;
                ops::multiply(&ops::activate(gate, of_family.activation)?, &up)?
            }
        };
        let inner = self.drop(inner, layout, of_family.dropout, ff.dropout)?;
        let out = self.linear(&ff.down, &inner, layout)?;
        self.close(&ff.around, &input, x, out, layout)
    }

    /// What a sub-layer reads: normalized where the family's norms precede them.
    fn sub_layer_input(&self, around: &SubLayer, x: &Matrix) -> Outcome<Matrix> {
        match &around.norm {
            Some(norm) if self.graph.pre_norm() => self.norm(norm, x),
            _ => Ok(x.clone()),
        }
    }

    /// Dropout, the deltas behind the sub-layer, the residual sum, and the norm after it.
    fn close(
        &self,
        around: &SubLayer,
        input: &Matrix,
        residual: Matrix,
        out: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let out = self.drop(out, layout, self.graph.config.dropout, around.dropout)?;
        let out = self.adapt(&around.deltas, input, out, layout, Some(&residual))?;
        let sum = ops::add(out, &residual)?;
        match &around.norm {
            Some(norm) if !self.graph.pre_norm() => self.norm(norm, &sum),
            _ => Ok(sum),
        }
    }

    pub(super) fn linear(&self, layer: &Linear, x: &Matrix, layout: &Layout) -> Outcome<Matrix> {
        let x = self.adapt_input(&layer.deltas, x.clone(), layout)?;
        let bias = layer.bias.map(|bias| self.vector(bias));
        let y = ops::linear(&x, &self.weight(layer.weight), bias.as_ref())?;
        self.adapt(&layer.deltas, &x, y, layout, None)
    }

    pub(super) fn norm(&self, layer: &Norm, x: &Matrix) -> Outcome<Matrix> {
        let epsilon = self.graph.architecture.norm.epsilon;
        match *layer {
            Norm::Rms { weight } => ops::rms_norm(x, &self.vector(weight), epsilon),
            Norm::Layer { weight, bias } => {
                ops::layer_norm(x, &self.vector(weight), &self.vector(bias), epsilon)
            }
        }
    }

    pub(super) fn drop(
        &self,
        x: Matrix,
        layout: &Layout,
        probability: f32,
        place: DropoutPlace,
    ) -> Outcome<Matrix> {
        match self.dropout(probability, place) {
            Some(dropout) => ops::dropout(x, layout, dropout),
            None => Ok(x),
        }
    }

    pub(super) fn dropout(&self, probability: f32, place: DropoutPlace) -> Option<Dropout> {
        (self.is_training() && probability > 0.0).then_some(Dropout {
            probability,
            place: place.0,
        })
    }

    fn value(&self, handle: Handle) -> (&Value, Trace) {
        let trace = match handle.is_trained {
            true => self.trace.clone(),
            false => Trace::off(),
        };
        let value = match handle.index {
            ParameterIndex::Backbone(index) => &self.graph.base[index],
            ParameterIndex::Added(index) => &self.graph.values[index],
        };
        (value, trace)
    }

    pub(super) fn weight(&self, handle: Handle) -> Weight {
        let (Value::Matrix(elements, prepared), trace) = self.value(handle) else {
            unreachable!("a weight is a matrix");
        };
        Weight::new(elements, prepared, &trace).in_precision(match handle.index {
            ParameterIndex::Backbone(_) => self.graph.precision,
            ParameterIndex::Added(_) => Precision::F32,
        })
    }

    pub(super) fn vector(&self, handle: Handle) -> Vector {
        let (Value::Vector(tensor), trace) = self.value(handle) else {
            unreachable!("a bias, or the weight of a norm, is a vector");
        };
        tensor.on(&trace)
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
