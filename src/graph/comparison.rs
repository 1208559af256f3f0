//! Losses that compare several answers to each prompt.

use super::forward::Pass;
use super::{AnswerPlace, AnswerRows};
use crate::engine::{ops, Layout, Matrix, Outcome, Scalar};
use crate::task::{Compared, Comparison};

/// The logit of an answer that is not there: its probability is 0 in f32.
const ABSENT: f32 = -1e30;

impl Pass<'_> {
    /// The loss of answers, a sum divided by `total`, from the rows that the head reads, `(rows, hidden)`: see
    /// [`Comparison`].
    pub(super) fn loss_of_answers(
        &self,
        x: Matrix,
        layout: &Layout,
        answers: &AnswerRows,
        total: usize,
    ) -> Outcome<Scalar> {
        let comparison = self.graph.task().and_then(|task| task.kind.comparison());
        let comparison = comparison.expect("only a task that compares has several answers");
        let losses = self.losses_of_rows(x, layout, &answers.tokens)?; // (rows, 1)
        let (count, most) = (answers.counts.len(), answers.most());
        let sums = answers.sums(comparison.is_mean());
        let sums = self.constant(sums, (count * most, answers.rows.len()))?;
        let sums = ops::matmul(&sums, &losses)?.reshaped((count, most)); // −log p of the answers
        self.compared
            .set(answers.compared(comparison, &sums.read()));
        let (ratio, shares) = match comparison {
            Comparison::Choice { .. } => {
                let logits = ops::scale(&sums, -1.0)?;
                let absent = self.constant(answers.absent(), (count, most))?;
                let logits = ops::add(logits, &absent)?;
                return ops::cross_entropy(&logits, &answers.right, total);
            }
            Comparison::Dpo { beta, smoothing } => {
                let of_pair = |pair: &[f32]| -beta * (pair[0] - pair[1]);
                let moved = answers.reference.chunks_exact(2).map(of_pair).collect();
                let ratio = self.difference(&sums, [-beta, beta], moved)?;
                (ratio, [smoothing, 1.0 - smoothing])
            }
            Comparison::Simpo {
                beta,
                gamma,
                smoothing,
            } => {
                let ratio = self.difference(&sums, [-beta, beta], vec![-gamma; count])?;
                (ratio, [smoothing, 1.0 - smoothing])
            }
            Comparison::Orpo { beta } => {
                let odds = ops::log_odds(&ops::scale(&sums, -1.0)?)?;
                let ratio = self.difference(&odds, [1.0, -1.0], vec![0.0; count])?;
                (ratio, [0.0, beta])
            }
        };
        // −log σ(x) is the cross-entropy of the logits [0, x] with the second as the label.
        let zeros = self.constant(vec![0.0; count], (count, 1))?;
        let logits = ops::join_columns(&[zeros, ratio])?;
        let loss = ops::soft_cross_entropy(&logits, &shares.repeat(count), total as f32)?;
        if !comparison.reads_prompts() {
            return Ok(loss);
        }
        let all = self.constant(answers.of_right(), (1, answers.rows.len()))?;
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

impl AnswerRows {
    /// How the answers compare, by `sums (prompts, most)` of −log p.
    fn compared(&self, comparison: Comparison, sums: &[f32]) -> Compared {
        let (most, beta) = (self.most(), comparison.beta());
        let mut compared = Compared::default();
        for (prompt, (count, right)) in self.counts.iter().zip(&self.right).enumerate() {
            let score = |answer: usize| {
                let reference = self
                    .reference
                    .get(2 * prompt + answer)
                    .filter(|_| most == 2);
                let reference = reference.copied().unwrap_or(0.0);
                -beta * f64::from(sums[prompt * most + answer] + reference)
            };
            let scores: Vec<f64> = (0..*count).map(score).collect();
            compared.add(&scores, *right);
        }
        compared
    }

    /// The most answers that a prompt has.
    fn most(&self) -> usize {
        self.counts.iter().copied().max().unwrap_or(0)
    }

    /// The `(prompts · most, rows)` matrix that sums the rows of each answer, or takes their mean.
    fn sums(&self, is_mean: bool) -> Vec<f32> {
        let (most, rows) = (self.most(), self.rows.len());
        let number = |place: &AnswerPlace| place.prompt * most + place.answer;
        let own = || {
            let places = self.places.iter().enumerate();
            places.filter(|(_, place)| place.is_own)
        };
        let mut tokens = vec![0; self.counts.len() * most];
        own().for_each(|(_, place)| tokens[number(place)] += 1);
        let mut sums = vec![0.0; tokens.len() * rows];
        for (row, place) in own() {
            sums[number(place) * rows + row] = match is_mean {
                true => 1.0 / tokens[number(place)] as f32,
                false => 1.0,
            };
        }
        sums
    }

    /// `(prompts, most)`: what is added to the logits of answers that a prompt has and of those that it lacks.
    fn absent(&self) -> Vec<f32> {
        let most = self.most();
        let of_prompt = |count: &usize| {
            let count = *count;
            (0..most).map(move |answer| if answer < count { 0.0 } else { ABSENT })
        };
        self.counts.iter().flat_map(of_prompt).collect()
    }

    /// What each row of a right sequence counts in the mean over the whole batch.
    fn of_right(&self) -> Vec<f32> {
        let share = 1.0 / self.total.max(1) as f32;
        let of_row = |place: &AnswerPlace| match place.answer == self.right[place.prompt] {
            true => share,
            false => 0.0,
        };
        self.places.iter().map(of_row).collect()
    }
}
