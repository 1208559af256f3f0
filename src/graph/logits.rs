//! From the rows that a head reads to logits.

use dfdx::prelude::{HasShape, ReshapeTo};

use super::forward::Pass;
use super::Outcome;
use crate::backbone::family::{Head, HeadStep, Kind};
use crate::engine::{with_trace, Activation, Backend, Layout, Matrix, Trace, Weight};

impl<D: Backend> Pass<'_, D> {
    /// What a head makes of the rows that it reads: logits.
    pub(super) fn apply_head(
        &self,
        head: &Head,
        mut x: Matrix<D>,
        layout: &Layout,
    ) -> Outcome<Matrix<D>, D> {
        for step in &head.steps {
            if step.dropout {
                let probability = self.graph.config.classifier_dropout;
                x = self.drop(x, layout, probability, &step.module)?;
            }
            x = self.head_step(step, &x)?;
            let activation = match step.activation.as_deref() {
                Some("config") => Some(self.graph.config.activation),
                Some(name) => Activation::from_name(name),
                None => None,
            };
            if let Some(activation) = activation {
                x = D::activate(x, activation)?;
            }
        }
        Ok(x)
    }

    fn head_step(&self, step: &HeadStep, x: &Matrix<D>) -> Outcome<Matrix<D>, D> {
        match (step.kind, &step.weight) {
            (Some(Kind::Norm), _) => self.norm(&step.module, x),
            (Some(Kind::Tied), Some(embedding)) => self.decode(&step.module, embedding, x),
            // The pooler is a module of the backbone, where deltas may sit.
            _ => self.linear(&step.module, x, &Layout::new([x.shape().0], vec![0])),
        }
    }

    /// Logits over the vocabulary, or what a cloze makes of those of its label words.
    fn decode(&self, module: &str, embedding: &str, x: &Matrix<D>) -> Outcome<Matrix<D>, D> {
        let own = format!("{module}.weight");
        let weight = match self.value(&own) {
            Some(_) => self.weight(&own),
            None => self.weight(&format!("{embedding}.weight")),
        };
        let bias = self.bias(module);
        let scale = self.graph.architecture.logit_scale;
        let x = &match scale {
            1.0 => x.clone(),
            _ => D::scale(x, scale)?,
        };
        let Some(cloze) = self.graph.task().and_then(|task| task.cloze.as_ref()) else {
            return D::linear(x, &weight, bias.as_ref());
        };
        let tokens = cloze.tokens.concat();
        let words = D::look_up(&weight, &tokens)?; // (tokens, hidden)
        let bias = match bias {
            Some(bias) => {
                let count = bias.shape().0;
                let column = bias.try_reshape_like(&(count, 1))?;
                let chosen = D::select_rows(&column, &tokens)?;
                Some(chosen.try_reshape_like(&(tokens.len(),))?)
            }
            None => None,
        };
        let mut logits = D::linear(x, &words.into(), bias.as_ref())?; // (rows, tokens)
        if tokens.len() > cloze.tokens.len() {
            logits = D::linear(&logits, &self.means(&cloze.tokens)?, None)?; // (rows, labels)
        }
        match cloze.range {
            Some(range) => self.interpolate(&logits, range),
            None => Ok(logits),
        }
    }

    /// `(words, tokens)`: times the logits of all words' tokens, the mean of each word's.
    fn means(&self, words: &[Vec<usize>]) -> Outcome<Weight<D>, D> {
        let all: usize = words.iter().map(Vec::len).sum();
        let mut means = vec![0.0; words.len() * all];
        let mut start = 0;
        for (row, word) in means.chunks_exact_mut(all).zip(words) {
            row[start..start + word.len()].fill(1.0 / word.len() as f32);
            start += word.len();
        }
        let device = self.graph.device();
        let means = device.try_tensor_from_vec(means, (words.len(), all))?;
        Ok(with_trace(&means, &Trace::off()).into())
    }

    /// The number between two that the logits of their words make likely: `(rows, 2)` → `(rows, 1)`.
    fn interpolate(&self, logits: &Matrix<D>, (low, high): (f32, f32)) -> Outcome<Matrix<D>, D> {
        let device = self.graph.device();
        let signs = device.try_tensor_from_vec(vec![-1.0, 1.0], (1, 2))?;
        let signs = with_trace(&signs, &Trace::off()).into();
        let share = D::activate(D::linear(logits, &signs, None)?, Activation::Sigmoid)?;
        let lowest = device.try_tensor_from_vec(vec![low], (1,))?;
        let lowest = with_trace(&lowest, &Trace::off());
        D::add_row(&D::scale(&share, high - low)?, &lowest)
    }
}
