//! Computes logits from the rows that the head reads.

use super::forward::Pass;
use super::layers::{Handle, HeadKind};
use crate::engine::{ops, Activation, Layout, Matrix, Outcome, Shape, Tensor, Variable, Weight};

impl Pass<'_> {
    /// Runs the head in place on the rows that it reads, `(rows, hidden)`, and returns their logits.
    pub(super) fn head(&self, mut x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        assert!(!self.layers.head.is_empty(), "a task is in place");
        for layer in &self.layers.head {
            if let Some(place) = layer.dropout {
                let probability = self.graph.config.classifier_dropout;
                x = self.drop(x, layout, probability, place)?;
            }
            x = match &layer.kind {
                HeadKind::Norm(norm) => self.norm(norm, &x)?,
                HeadKind::Vocabulary { weight, bias } => self.vocabulary(*weight, *bias, &x)?,
                HeadKind::Linear(linear) => {
                    self.linear(linear, &x, &Layout::new([x.shape().0], vec![0]))?
                }
            };
            if let Some(activation) = layer.activation {
                x = ops::activate(x, activation)?;
            }
        }
        Ok(x)
    }

    /// Logits over the vocabulary, `(rows, vocabulary)`. For a cloze, computes only the logits of its label words,
    /// and returns one per label or, for a regression, the number between them.
    fn vocabulary(&self, weight: Handle, bias: Option<Handle>, x: &Matrix) -> Outcome<Matrix> {
        let weight = self.weight(weight);
        let bias = bias.map(|bias| self.vector(bias));
        let scale = self.graph.architecture.logit_scale;
        let x = &match scale {
            1.0 => x.clone(),
            _ => ops::scale(x, scale)?,
        };
        let Some(cloze) = self.graph.task().and_then(|task| task.kind.cloze()) else {
            return ops::linear(x, &weight, bias.as_ref());
        };
        let tokens = cloze.tokens.concat();
        let words = ops::look_up(&weight, &tokens)?; // (tokens, hidden)
        let bias = match bias {
            Some(bias) => {
                let column = bias.reshaped((bias.count(), 1));
                let chosen = ops::select_rows(&column, &tokens)?;
                Some(chosen.reshaped((tokens.len(),)))
            }
            None => None,
        };
        let mut logits = ops::linear(x, &words.into(), bias.as_ref())?; // (rows, tokens)
        if tokens.len() > cloze.tokens.len() {
            logits = ops::linear(&logits, &self.means(&cloze.tokens)?, None)?; // (rows, labels)
        }
        match cloze.range {
            Some(range) => self.interpolate(&logits, range),
            None => Ok(logits),
        }
    }

    /// The `(words, tokens)` matrix that averages the logits of each word's tokens.
    fn means(&self, words: &[Vec<usize>]) -> Outcome<Weight> {
        let all: usize = words.iter().map(Vec::len).sum();
        let mut means = vec![0.0; words.len() * all];
        let mut start = 0;
        for (row, word) in means.chunks_exact_mut(all).zip(words) {
            row[start..start + word.len()].fill(1.0 / word.len() as f32);
            start += word.len();
        }
        Ok(self.constant(means, (words.len(), all))?.into())
    }

    /// Interpolates from `low` to `high` by the probability of the second word: `(rows, 2)` → `(rows, 1)`.
    fn interpolate(&self, logits: &Matrix, (low, high): (f32, f32)) -> Outcome<Matrix> {
        let signs = self.constant(vec![-1.0, 1.0], (1, 2))?.into();
        let share = ops::activate(ops::linear(logits, &signs, None)?, Activation::Sigmoid)?;
        let lowest = self.constant(vec![low], (1,))?;
        ops::add_row(ops::scale(&share, high - low)?, &lowest)
    }

    /// Puts constant values on the pass's device.
    pub(super) fn constant<S: Shape>(&self, values: Vec<f32>, shape: S) -> Outcome<Variable<S>> {
        Tensor::new(self.graph.device(), values, shape).map(Tensor::constant)
    }
}
