//! Extends sequences token by token. The keys and values of what was read are kept, so that a step reads only the new
//! tokens.

use std::cell::RefCell;

use super::forward::{Mode, Pass};
use super::optimizations::read_rows::read_layout;
use super::{Batch, DecoderRows, Graph};
use crate::backbone::LARGEST;
use crate::engine::{KeyValues, Layout, Matrix, Outcome};

/// Sequences that are being extended.
pub struct Generation {
    /// By the number of the attention.
    kept: RefCell<Vec<KeyValues>>,
    /// The encoder's output, if the backbone has an encoder.
    encoded: Option<(Matrix, Layout)>,
    /// How many positions each sequence has.
    lengths: Vec<usize>,
}

impl Generation {
    /// Goes on with the sequences `order`, in this order; one may occur several times.
    pub fn select(&mut self, order: &[usize]) {
        for kept in self.kept.get_mut() {
            if !kept.is_empty() {
                kept.select(order);
            }
        }
        self.lengths = order.iter().map(|place| self.lengths[*place]).collect();
    }
}

impl Graph {
    /// Whether a token can be added to what was read. A gate cannot: it reads all rows of a sequence.
    pub fn keeps_what_it_read(&self) -> bool {
        let placed = self.active.sites.values().flatten();
        placed.into_iter().all(|delta| !delta.is_gated)
    }

    /// How many rows a sequence may have; `None` if there are positions for any number.
    pub fn most_rows(&self) -> Option<usize> {
        let own = self.active.prefix_tokens + self.active.prompt_rows;
        let limit = self.config.limit();
        (limit < LARGEST).then(|| limit.saturating_sub(own))
    }

    /// Reads the sequences of a batch; of a backbone with a decoder, its texts and the first tokens of the decoder.
    /// Returns the logits of the token after each, `(sequences, vocabulary)`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn begin(&self, batch: &Batch) -> Outcome<(Generation, Matrix)> {
        let kept = RefCell::new(vec![KeyValues::default(); 2 * self.layers().blocks.len()]);
        let encoded = self.inference().encode(batch)?;
        let pass = Pass::new(self, Mode::Begin(&kept));
        let (x, layout) = pass.embed_last(batch)?;
        let logits = pass.last_logits(x, &layout, encoded.as_ref())?;
        let generation = Generation {
            kept,
            encoded,
            lengths: layout.ranges().map(|range| range.len()).collect(),
        };
        Ok((generation, logits))
    }

    /// Adds a token to each sequence. Returns the logits of the token after it, `(sequences, vocabulary)`.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn extend(&self, generation: &mut Generation, tokens: &[usize]) -> Outcome<Matrix> {
        let layout = Layout::of_next(generation.lengths.clone());
        let decoder = generation.encoded.as_ref().map(|_| DecoderRows {
            tokens: tokens.to_vec(),
            layout: layout.clone(),
        });
        let batch = Batch::of_tokens(tokens.to_vec(), layout.clone(), decoder);
        let pass = Pass::new(self, Mode::Extend(&generation.kept));
        let (x, _) = pass.embed_last(&batch)?;
        let logits = pass.last_logits(x, &layout, generation.encoded.as_ref())?;
        generation
            .lengths
            .iter_mut()
            .for_each(|length| *length += 1);
        Ok(logits)
    }
}

impl Graph {
    /// The keys and the values of every self-attention of a decoder after it read these tokens, `(tokens, columns)` each.
    pub(super) fn keys_and_values(&self, tokens: &[usize]) -> Outcome<Vec<[Vec<f32>; 2]>> {
        let kept = RefCell::new(vec![KeyValues::default(); 2 * self.layers().blocks.len()]);
        let layout = Layout::new([tokens.len()], vec![0]);
        let batch = Batch::of_tokens(tokens.to_vec(), layout.clone(), None);
        let pass = Pass::new(self, Mode::Begin(&kept));
        let (x, layout) = pass.embed_last(&batch)?;
        pass.blocks(pass.last_stack().blocks.clone(), x, &layout, None, None)?;
        let kept = kept.into_inner();
        let of_block = |kept: &KeyValues| kept.rows(0).map(<[f32]>::to_vec);
        Ok(kept.iter().step_by(2).map(of_block).collect())
    }
}

impl Pass<'_> {
    /// Runs the last stack on its embedded input, and the head on the last row of each sequence.
    fn last_logits(
        &self,
        x: Matrix,
        layout: &Layout,
        encoded: Option<&(Matrix, Layout)>,
    ) -> Outcome<Matrix> {
        let last = self.last_stack();
        let rows: Vec<usize> = layout.ranges().map(|range| range.end - 1).collect();
        let read = match self.mode {
            Mode::Extend(_) => None,
            _ => Some(rows.as_slice()),
        };
        let x = self.blocks(last.blocks.clone(), x, layout, read, encoded)?;
        let read = read_layout(layout, &rows);
        let x = self.last_norm(last, x, &read)?;
        self.head(x, &read)
    }
}
