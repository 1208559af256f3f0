//! Losses of pairs of sequences; the first of each is preferred.

use super::forward::Pass;
use super::{Batch, Pairs};
use crate::engine::{ops, Layout, Matrix, Outcome, Scalar};
use crate::task::Preference;

impl Pass<'_> {
    /// The loss of a batch of pairs, from the rows that the head reads, `(rows, hidden)`: see [`Preference`].
    pub(super) fn loss_of_pairs(
        &self,
        x: Matrix,
        layout: &Layout,
        pairs: &Pairs,
        batch: &Batch,
    ) -> Outcome<Scalar> {
        let preference = self.graph.task().and_then(|task| task.kind.preference());
        let preference = preference.expect("only a task of preferences has pairs");
        let losses = self.losses_of_rows(x, layout, &pairs.tokens)?; // (rows, 1)
        let count = batch.layout.sequences() / 2;
        let is_mean = !preference.has_reference();
        let sums = self.constant(
            pairs.sums(2 * count, is_mean),
            (2 * count, pairs.rows.len()),
        )?;
        let sums = ops::matmul(&sums, &losses)?.reshaped((count, 2)); // −log p of both answers
        let (ratio, shares) = match preference {
            Preference::Dpo { beta, smoothing } => {
                let of_pair = |pair: &[f32]| -beta * (pair[0] - pair[1]);
                let moved = pairs.reference.chunks_exact(2).map(of_pair).collect();
                let ratio = self.difference(&sums, [-beta, beta], moved)?;
                (ratio, [smoothing, 1.0 - smoothing])
            }
            Preference::Simpo {
                beta,
                gamma,
                smoothing,
            } => {
                let ratio = self.difference(&sums, [-beta, beta], vec![-gamma; count])?;
                (ratio, [smoothing, 1.0 - smoothing])
            }
            Preference::Orpo { beta } => {
                let odds = ops::log_odds(&ops::scale(&sums, -1.0)?)?;
                let ratio = self.difference(&odds, [1.0, -1.0], vec![0.0; count])?;
                (ratio, [0.0, beta])
            }
        };
        // −log σ(x) is the cross-entropy of the logits [0, x] with the second as the label.
        let zeros = self.constant(vec![0.0; count], (count, 1))?;
        let logits = ops::join_columns(&[zeros, ratio])?;
        let loss = ops::soft_cross_entropy(&logits, &shares.repeat(count), batch.total as f32)?;
        if !preference.reads_prompts() {
            return Ok(loss);
        }
        let all = self.constant(pairs.preferred(), (1, pairs.rows.len()))?;
        let whole = ops::matmul(&all, &losses)?;
        Ok(ops::add(whole, &loss.reshaped((1, 1)))?.reshaped(()))
    }

    /// `x (pairs, 2)` → `x factorsᵀ + moved`, `(pairs, 1)`.
    fn difference(&self, x: &Matrix, factors: [f32; 2], moved: Vec<f32>) -> Outcome<Matrix> {
        let factors = self.constant(factors.to_vec(), (1, 2))?.into();
        let shape = (moved.len(), 1);
        let moved = self.constant(moved, shape)?;
        ops::add(ops::linear(x, &factors, None)?, &moved)
    }
}

impl Pairs {
    /// The `(sequences, rows)` matrix that sums the rows of each answer, or takes their mean.
    fn sums(&self, sequences: usize, is_mean: bool) -> Vec<f32> {
        let counts = self.answer_tokens(sequences);
        let rows = self.rows.len();
        let mut sums = vec![0.0; sequences * rows];
        for (row, (sequence, is_answer)) in self.places.iter().enumerate() {
            if *is_answer {
                sums[sequence * rows + row] = match is_mean {
                    true => 1.0 / counts[*sequence] as f32,
                    false => 1.0,
                };
            }
        }
        sums
    }

    /// The number of tokens of the answer in each sequence.
    pub fn answer_tokens(&self, sequences: usize) -> Vec<usize> {
        let mut counts = vec![0; sequences];
        for (sequence, is_answer) in &self.places {
            counts[*sequence] += usize::from(*is_answer);
        }
        counts
    }

    /// What each row of a preferred sequence counts in the mean over the whole batch.
    fn preferred(&self) -> Vec<f32> {
        let share = 1.0 / self.total.max(1) as f32;
        let of_row = |(sequence, _): &(usize, bool)| match sequence % 2 {
            0 => share,
            _ => 0.0,
        };
        self.places.iter().map(of_row).collect()
    }
}
