//! From the rows that a head reads to logits.

use super::forward::Pass;
use crate::backbone::family::{Head, HeadStep, Kind};
use crate::engine::{ops, Activation, Layout, Matrix, Outcome, Shape, Tensor, Variable, Weight};

impl Pass<'_> {
    /// What a head makes of the rows that it reads: logits.
    pub(super) fn apply_head(
        &self,
        head: &Head,
        mut x: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
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
                x = ops::activate(x, activation)?;
            }
        }
        Ok(x)
    }

    fn head_step(&self, step: &HeadStep, x: &Matrix) -> Outcome<Matrix> {
        match (step.kind, &step.weight) {
            (Some(Kind::Norm), _) => self.norm(&step.module, x),
            (Some(Kind::Tied), Some(embedding)) => self.decode(&step.module, embedding, x),
            // The pooler is a module of the backbone, where deltas may sit.
            _ => self.linear(&step.module, x, &Layout::new([x.shape().0], vec![0])),
        }
    }

    /// Logits over the vocabulary, or what a cloze makes of those of its label words.
    fn decode(&self, module: &str, embedding: &str, x: &Matrix) -> Outcome<Matrix> {
        let own = format!("{module}.weight");
        let weight = match self.value(&own) {
            Some(_) => self.weight(&own),
            None => self.weight(&format!("{embedding}.weight")),
        };
        let bias = self.bias(module);
        let scale = self.graph.architecture.logit_scale;
        let x = &match scale {
            1.0 => x.clone(),
            _ => ops::scale(x, scale)?,
        };
        let Some(cloze) = self.graph.task().and_then(|task| task.cloze.as_ref()) else {
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

    /// `(words, tokens)`: times the logits of all words' tokens, the mean of each word's.
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

    /// The number between two that the logits of their words make likely: `(rows, 2)` → `(rows, 1)`.
    fn interpolate(&self, logits: &Matrix, (low, high): (f32, f32)) -> Outcome<Matrix> {
        let signs = self.constant(vec![-1.0, 1.0], (1, 2))?.into();
        let share = ops::activate(ops::linear(logits, &signs, None)?, Activation::Sigmoid)?;
        let lowest = self.constant(vec![low], (1,))?;
        ops::add_row(ops::scale(&share, high - low)?, &lowest)
    }

    /// Values that nothing trains.
    pub(super) fn constant<S: Shape>(&self, values: Vec<f32>, shape: S) -> Outcome<Variable<S>> {
        Tensor::new(self.graph.device(), values, shape).map(Tensor::constant)
    }
}
