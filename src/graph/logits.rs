//! Computes logits from the rows that the head reads.

use super::forward::Pass;
use super::layers::{Handle, HeadLayer, HeadStepLayer};
use crate::backbone::family::StepDropout;
use crate::engine::ops::Output;
use crate::engine::{
    ops, Activation, Layout, Matrix, Outcome, Scalar, Shape, Tensor, Variable, Weight,
};
use crate::plan::Cloze;

impl Pass<'_> {
    /// Runs the head in place on the rows that it reads, `(rows, hidden)`, and returns their logits.
    pub(super) fn head(&self, x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        assert!(!self.layers.head.is_empty(), "a task is in place");
        self.steps(&self.layers.head, x, layout)
    }

    /// Whether the head ends with logits over the vocabulary.
    pub(super) fn reads_vocabulary(&self) -> bool {
        let last = self.layers.head.last();
        let is_vocabulary = |layer: &HeadLayer| {
            matches!(layer.kind, HeadStepLayer::Vocabulary { .. }) && layer.activation.is_none()
        };
        last.is_some_and(is_vocabulary) && self.cloze().is_none()
    }

    /// The cross-entropy of the tokens at the rows that the head reads, a sum divided by `total`, without the logits of
    /// all rows in memory.
    pub(super) fn loss_of_tokens(
        &self,
        x: Matrix,
        layout: &Layout,
        tokens: &[usize],
        total: usize,
    ) -> Outcome<Scalar> {
        let (x, output) = self.vocabulary_input(x, layout)?;
        ops::linear_cross_entropy(&x, &output, tokens, total)
    }

    /// `−log` of the probability of the token at each row that the head reads: `(rows, 1)`.
    pub(super) fn losses_of_rows(
        &self,
        x: Matrix,
        layout: &Layout,
        tokens: &[usize],
    ) -> Outcome<Matrix> {
        let (x, output) = self.vocabulary_input(x, layout)?;
        ops::token_losses(&x, &output, tokens)
    }

    /// The last step of a language model's head, and its input.
    fn vocabulary_input(&self, x: Matrix, layout: &Layout) -> Outcome<(Matrix, Output)> {
        let (last, first) = self.layers.head.split_last().expect("a task is in place");
        let HeadStepLayer::Vocabulary { weight, bias } = last.kind else {
            unreachable!("`reads_vocabulary` was asked");
        };
        let mut x = self.steps(first, x, layout)?;
        x = self.drop_step(last, x, layout)?;
        let x = self.scaled(&x)?;
        let output = Output {
            weight: self.weight(weight),
            bias: bias.map(|bias| self.vector(bias)),
            cap: self.graph.architecture.logit_cap,
        };
        Ok((x, output))
    }

    /// The mean over all labels and rows of `−log` of the probability that a row has a label, or has it not:
    /// `−t log σ(x) − (1 − t) log σ(−x)`, which is the cross-entropy of the logits `[0, x]`.
    pub(super) fn loss_of_sets(
        &self,
        logits: &Matrix,
        sets: &[f32],
        total: usize,
    ) -> Outcome<Scalar> {
        let (rows, labels) = logits.shape();
        let count = rows * labels;
        let zeros = self.constant(vec![0.0; count], (count, 1))?;
        let pairs = ops::join_columns(&[zeros, logits.reshaped((count, 1))])?; // (rows · labels, 2)
        let shares: Vec<f32> = sets
            .iter()
            .flat_map(|share| [1.0 - share, *share])
            .collect();
        ops::soft_cross_entropy(&pairs, &shares, (total * labels) as f32)
    }

    fn cloze(&self) -> Option<&Cloze> {
        self.graph.task().and_then(|task| task.kind.cloze())
    }

    /// Hidden states as the output layer of a language model reads them.
    fn scaled(&self, x: &Matrix) -> Outcome<Matrix> {
        match self.graph.architecture.logit_scale {
            1.0 => Ok(x.clone()),
            scale => ops::scale(x, scale),
        }
    }

    fn drop_step(&self, layer: &HeadLayer, x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        let config = &self.graph.config;
        match layer.dropout {
            Some((StepDropout::Classifier, place)) => {
                self.drop(x, layout, config.classifier_dropout, place)
            }
            Some((StepDropout::Hidden, place)) => self.drop(x, layout, config.dropout, place),
            None => Ok(x),
        }
    }

    fn steps(&self, layers: &[HeadLayer], mut x: Matrix, layout: &Layout) -> Outcome<Matrix> {
        for layer in layers {
            x = self.drop_step(layer, x, layout)?;
            x = match &layer.kind {
                HeadStepLayer::Norm(norm) => self.norm(norm, &x)?,
                HeadStepLayer::Vocabulary { weight, bias } => {
                    self.vocabulary(*weight, *bias, &x)?
                }
                HeadStepLayer::Linear(linear) => {
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
        let x = &self.scaled(x)?;
        let Some(cloze) = self.cloze() else {
            let cap = self.graph.architecture.logit_cap;
            return Output { weight, bias, cap }.logits(x);
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
        let logits = ops::linear(x, &words.into(), bias.as_ref())?; // (rows, tokens)
        let mut logits = ops::cap(logits, self.graph.architecture.logit_cap)?;
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
