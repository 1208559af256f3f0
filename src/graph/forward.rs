//! The transformer interpreter: one forward pass of any family, with the deltas at their sites.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use super::layers::{Block, DropoutPlace, Layers, Linear, Norm, StackLayers, SubLayer};
use super::optimizations::read_rows::{read_layout, read_rows};
use super::recompute::Forgotten;
use super::rotary::{positions, PassAngles};
use super::{Batch, CachedActivations, Graph, Targets};
use crate::backbone::family::Reads;
use crate::backbone::Positions;
use crate::engine::{
    ops, Attending, Dropout, KeyValues, Layout, Matrix, Outcome, Scalar, Semaphore, Tensor, Trace,
};
use crate::task::Compared;

/// One forward pass. A live trace records every operation on a trained parameter.
pub struct Pass<'g> {
    pub(super) graph: &'g Graph,
    pub(super) layers: &'g Layers,
    pub(super) trace: Trace,
    pub(super) mode: Mode<'g>,
    pub(super) angles: PassAngles,
    /// How answers compare, once a loss compared them.
    pub(super) compared: Cell<Compared>,
    /// The blocks that the backward pass computes again, in the order of the forward pass.
    pub(super) forgotten: RefCell<Vec<Forgotten>>,
}

/// What a pass is for.
pub(super) enum Mode<'g> {
    /// Applies dropout. The throttle limits how many blocks keep activations for the backward pass.
    Training(&'g Arc<Semaphore>),
    /// Applies no dropout.
    Inference,
    /// The same, and keeps the keys and values of every attention.
    Begin(&'g RefCell<Vec<KeyValues>>),
    /// Attends from one new row per sequence to keys and values that are kept, and adds its own.
    Extend(&'g RefCell<Vec<KeyValues>>),
}

impl<'g> Pass<'g> {
    /// A pass that applies dropout and records operations on trained parameters.
    pub(super) fn training(graph: &'g Graph, trace: Trace, throttle: &'g Arc<Semaphore>) -> Self {
        Pass {
            trace,
            ..Pass::new(graph, Mode::Training(throttle))
        }
    }

    /// A pass that applies no dropout and records nothing.
    pub(super) fn inference(graph: &'g Graph) -> Self {
        Pass::new(graph, Mode::Inference)
    }

    /// A pass that records nothing.
    pub(super) fn new(graph: &'g Graph, mode: Mode<'g>) -> Self {
        Pass {
            graph,
            layers: graph.layers(),
            trace: Trace::off(),
            mode,
            angles: PassAngles::default(),
            compared: Cell::default(),
            forgotten: RefCell::default(),
        }
    }

    pub(super) fn is_training(&self) -> bool {
        matches!(self.mode, Mode::Training(_))
    }

    /// The loss of a batch: cross-entropy, or squared error for a regression, a sum divided by
    /// [`Batch::total`].
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn loss(&self, batch: &Batch) -> Outcome<Scalar> {
        let (x, read) = self.head_input(batch)?;
        if let (Targets::Tokens { tokens, .. }, true) = (&batch.targets, self.reads_vocabulary()) {
            return self.loss_of_tokens(x, &read, tokens, batch.total);
        }
        if let Targets::Answers(answers) = &batch.targets {
            return self.loss_of_answers(x, &read, answers, batch.total);
        }
        let logits = self.head(x, &read)?;
        match &batch.targets {
            Targets::Classes(labels) => ops::cross_entropy(&logits, labels, batch.total),
            Targets::Shares { shares, total } => {
                ops::soft_cross_entropy(&logits, shares, *total as f32)
            }
            Targets::Sets(sets) => self.loss_of_sets(&logits, sets, batch.total),
            Targets::Answers(_) => unreachable!("a language model's head ends with a vocabulary"),
            Targets::Numbers(numbers) => ops::squared_error(&logits, numbers, batch.total),
            Targets::Tokens { tokens, .. } => ops::cross_entropy(&logits, tokens, batch.total),
            Targets::None => unreachable!("a loss needs targets"),
        }
    }

    /// The logits of the head in place: `(sequences, labels)`, or `(target rows, vocabulary)` for a language model.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn logits(&self, batch: &Batch) -> Outcome<Matrix> {
        let (x, read) = self.head_input(batch)?;
        self.head(x, &read)
    }

    /// `−log` of the probability of each token that a batch asks for: `(tokens, 1)`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn token_losses(&self, batch: &Batch, tokens: &[usize]) -> Outcome<Matrix> {
        let (x, read) = self.head_input(batch)?;
        self.losses_of_rows(x, &read, tokens)
    }

    /// The last hidden states of the rows that the head reads, `(rows, hidden)`, and their layout.
    fn head_input(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
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
        let x = self.last_norm(last, x, &read)?;
        match self.layers.reads {
            Reads::Mean => self.means_of_sequences(&x, &layout),
            _ => Ok((x, read)),
        }
    }

    /// The mean of the rows of each sequence, `(rows, hidden)` → `(sequences, hidden)`, and its layout.
    fn means_of_sequences(&self, x: &Matrix, layout: &Layout) -> Outcome<(Matrix, Layout)> {
        let rows = layout.rows();
        let mut shares = vec![0.0; layout.sequences() * rows];
        for (range, shares) in layout.ranges().zip(shares.chunks_exact_mut(rows)) {
            let share = 1.0 / range.len() as f32;
            shares[range].fill(share);
        }
        let shares = self.constant(shares, (layout.sequences(), rows))?;
        let firsts: Vec<usize> = layout.ranges().map(|range| range.start).collect();
        Ok((ops::matmul(&shares, x)?, read_layout(layout, &firsts)))
    }

    pub(super) fn last_stack(&self) -> &'g StackLayers {
        let last = self.layers.stacks.last();
        last.expect("an architecture has at least one stack")
    }

    /// The encoder's output and layout; `None` if the backbone has a single stack.
    pub(super) fn encode(&self, batch: &Batch) -> Outcome<Option<(Matrix, Layout)>> {
        let [encoder, _] = self.layers.stacks.as_slice() else {
            return Ok(None);
        };
        let (x, layout) = self.embed(batch)?;
        let x = self.blocks(encoder.blocks.clone(), x, &layout, None, None)?;
        let x = self.last_norm(encoder, x, &layout)?;
        Ok(Some((x, layout)))
    }

    /// The input of the last stack: the embeddings of the text, or of the decoder's tokens if there is a decoder.
    pub(super) fn embed_last(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
        let Some(decoder) = &batch.decoder else {
            return self.embed(batch);
        };
        let (layout, layers) = (decoder.layout.clone(), &self.layers.embeddings);
        let x = self.words(&decoder.tokens, &layout)?;
        let dropout = self.graph.config.embedding_dropout();
        let x = self.drop(x, &layout, dropout, layers.decoder_dropout)?;
        Ok((x, layout))
    }

    /// Runs the embeddings and the blocks below `block`. The result can start a later pass.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
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

    /// The last hidden state of all rows, prompt rows included: `(rows, hidden)`. If there is a decoder, it is the
    /// decoder's.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn hidden(&self, batch: &Batch) -> Outcome<Matrix> {
        let encoded = self.encode(batch)?;
        let (x, layout) = self.embed_last(batch)?;
        let stack = self.last_stack();
        let x = self.blocks(stack.blocks.clone(), x, &layout, None, encoded.as_ref())?;
        self.last_norm(stack, x, &layout)
    }

    /// The last hidden state of the encoder, `(rows, hidden)`; `None` if the backbone has a single stack.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn encoded(&self, batch: &Batch) -> Outcome<Option<Matrix>> {
        Ok(self.encode(batch)?.map(|(x, _)| x))
    }

    /// Runs blocks `range` of one stack. If `read` is given, the backbone's last block computes queries and the
    /// feed-forward for these rows only.
    pub(super) fn blocks(
        &self,
        range: Range<usize>,
        mut x: Matrix,
        layout: &Layout,
        read: Option<&[usize]>,
        encoded: Option<&(Matrix, Layout)>,
    ) -> Outcome<Matrix> {
        let blocks = &self.layers.blocks;
        let count = blocks.len();
        // A gate in the last block reads all rows of a sequence, so we select rows only after that block.
        let (early, late) = match self.graph.active.is_gated_at_the_top {
            true => (None, read),
            false => (read, None),
        };
        let mut stacks = self.layers.stacks.iter();
        let stack = stacks.find(|stack| stack.blocks.end >= range.end);
        let stack = stack.unwrap_or_else(|| self.last_stack());
        let bias = self.distance_bias(stack, layout)?;
        for (number, block) in blocks.iter().enumerate().take(range.end).skip(range.start) {
            let early = early.filter(|_| number + 1 == count);
            let rows = BlockRows {
                layout: layout.clone(),
                read: early.map(<[usize]>::to_vec),
                encoded: encoded.cloned(),
                is_causal: stack.is_causal,
                bias: bias.clone(),
            };
            x = match self.mode {
                // The backward pass begins with the last block: it would be forgotten for nothing.
                Mode::Training(_) if self.graph.active.recomputes && number + 1 < count => {
                    self.forget_block(number, x, rows)?
                }
                Mode::Training(throttle) => {
                    let permit = throttle.acquire();
                    self.trace.record(move || {
                        drop(permit);
                        Ok(())
                    });
                    self.block(block, x, &rows)?
                }
                _ => self.block(block, x, &rows)?,
            };
        }
        match late {
            Some(rows) if !range.is_empty() && range.end == count => ops::select_rows(&x, rows),
            _ => Ok(x),
        }
    }

    /// Applies the norm after the last block of a stack, if the family has one, and the dropout after it.
    pub(super) fn last_norm(
        &self,
        stack: &StackLayers,
        x: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let x = match &stack.norm {
            Some(norm) => self.norm(norm, &x)?,
            None => x,
        };
        let probability = self.graph.architecture.last_dropout;
        self.drop(x, layout, probability, stack.dropout)
    }

    /// The embeddings of tokens.
    fn words(&self, tokens: &[usize], layout: &Layout) -> Outcome<Matrix> {
        let x = self.look_up(&self.layers.embeddings.word, tokens, layout)?;
        match self.graph.architecture.embedding_scale {
            1.0 => Ok(x),
            scale => ops::scale(&x, scale),
        }
    }

    /// The embeddings of a batch, with prompts before or in every sequence, and their layout.
    fn embed(&self, batch: &Batch) -> Outcome<(Matrix, Layout)> {
        let layers = &self.layers.embeddings;
        let mut layout = batch.layout.clone();
        let mut x = self.words(&batch.tokens, &layout)?;
        let mut types = batch.types.clone();
        // A prompt is before the rows that an earlier pass kept.
        let prompt = match self.mode {
            Mode::Extend(_) => None,
            _ => self.prompts(&layout)?,
        };
        if let Some(prompt) = prompt {
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
            // Prompt rows take positions. As in PEFT, so does a prefix, although it has no rows here.
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

    pub(super) fn block(&self, block: &Block, x: Matrix, rows: &BlockRows) -> Outcome<Matrix> {
        let attn = &block.attention;
        let input = self.sub_layer_input(&attn.around, &x)?;
        let (mut x, mut input, all) = (x, input.clone(), input);
        let read = rows.read.as_deref();
        let read_layout = read.map(|read| read_layout(&rows.layout, read));
        if let Some(read) = read {
            x = ops::select_rows(&x, read)?;
            input = ops::select_rows(&input, read)?;
        }
        let layout = read_layout.as_ref().unwrap_or(&rows.layout);
        let attending = Attending::within(&rows.layout, read);
        let scores = (rows.is_causal, rows.bias.as_ref());
        let mixed = self.attention(attn, &all, (&input, layout), attending, scores)?; // (rows, queries)
        let out = self.linear(&attn.o, &mixed, layout)?;
        x = self.close(&attn.around, &input, x, out, layout)?;

        if let (Some((encoded, keys)), Some(cross)) = (&rows.encoded, &block.cross) {
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
        let mut up = self.linear(&ff.up, &input, layout)?; // (rows, inner)
        let inner = match &ff.gate {
            None => ops::activate(up, of_family.activation)?,
            Some(gate) => {
                let mut gate = self.linear(gate, &input, layout)?;
                if !ff.fused.is_empty() {
                    [gate, up] = self.adapt_fused(&ff.fused, &input, [gate, up], layout)?;
                }
                ops::multiply(&ops::activate(gate, of_family.activation)?, &up)?
            }
        };
        let inner = self.drop(inner, layout, of_family.dropout, ff.dropout)?;
        let out = self.linear(&ff.down, &inner, layout)?;
        self.close(&ff.around, &input, x, out, layout)
    }

    /// The input of a sub-layer, which a pre-norm family normalizes.
    fn sub_layer_input(&self, around: &SubLayer, x: &Matrix) -> Outcome<Matrix> {
        match &around.norm {
            Some(norm) if self.graph.pre_norm() => self.norm(norm, x),
            _ => Ok(x.clone()),
        }
    }

    /// Ends a sub-layer: dropout, the deltas on it, the residual sum, and a post-norm family's norm.
    fn close(
        &self,
        around: &SubLayer,
        input: &Matrix,
        residual: Matrix,
        out: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let out = match &around.norm_after {
            Some(norm) => self.norm(norm, &out)?,
            None => out,
        };
        let out = self.drop(out, layout, around.probability, around.dropout)?;
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
        let norm = self.graph.architecture.norm;
        let epsilon = norm.epsilon;
        match *layer {
            Norm::Rms { weight } => {
                let mut weight = self.vector(weight);
                if norm.is_offset {
                    let count = weight.count();
                    let ones = self.constant(vec![1.0; count], (1, count))?;
                    let sum = ops::add(ones, &weight.reshaped((1, count)))?;
                    weight = sum.reshaped((count,));
                }
                ops::rms_norm(x, &weight, epsilon)
            }
            Norm::Layer { weight, bias } => {
                let weight = self.vector(weight);
                let bias = match bias {
                    Some(bias) => self.vector(bias),
                    None => self.constant(vec![0.0; weight.count()], (weight.count(),))?,
                };
                ops::layer_norm(x, &weight, &bias, epsilon)
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
}

/// What a block needs to know about its input rows.
pub(super) struct BlockRows {
    layout: Layout,
    /// The rows that go on after the attention; `None` for all rows.
    read: Option<Vec<usize>>,
    /// For a decoder's block, the encoder's output and its layout.
    encoded: Option<(Matrix, Layout)>,
    is_causal: bool,
    /// The bias of the attention scores by the distance of the key.
    bias: Option<Matrix>,
}
