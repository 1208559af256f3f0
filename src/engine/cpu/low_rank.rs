//! What LoRA adds to a linear layer's result: two small products, added in place.

use std::rc::Rc;

use dfdx::prelude::*;

use super::bridge::{data, InPlace};
use super::gradient::{form, slot, trace, weight_slot};
use super::norm::Normalized;
use super::operand::multiply_add_once;
use super::product::View;
use super::rows::scale_by;
use super::Outcome;
use crate::engine::{profile, Matrix, Precision, Weight};

/// What the gradient of A needs of x, `(rows, in)`.
enum Input {
    Rows(Tensor<(usize, usize), f32, Cpu>),
    Normalized(Rc<Normalized>),
}

impl Input {
    fn of(x: &Matrix<Cpu>) -> Self {
        match form(x) {
            Some(form) => Input::Normalized(form),
            None => Input::Rows(x.clone().split_tape().0),
        }
    }

    /// `sum ← sum + aᵀ x`: `sum (rank, in)`, `a (rows, rank)`.
    fn add_product(&self, sum: &mut [f32], a: &[f32], rank: usize) {
        match self {
            Input::Rows(x) => {
                let input = x.shape().1;
                multiply_add_once(sum, View::new(a, rank).t(), data(x), input);
            }
            Input::Normalized(x) => x.add_product(sum, a, rank),
        }
    }
}

/// See [`crate::engine::Backend::add_low_rank`].
pub(super) fn add_low_rank(
    y: Matrix<Cpu>,
    x: &Matrix<Cpu>,
    a: &Weight<Cpu>,
    b: &Weight<Cpu>,
    scale: f32,
) -> Outcome<Matrix<Cpu>> {
    let ((rows, input), (out, rank)) = (*x.shape(), b.shape());
    assert_eq!(*y.shape(), (rows, out), "low rank: y and b disagree");
    assert_eq!(
        a.shape(),
        (rank, input),
        "low rank: a disagrees with x or b"
    );
    let added = trace(x).merge(a.trace.clone()).merge(b.trace.clone());
    let slots = [slot(x), weight_slot(a)?, weight_slot(b)?];
    let [(a_elements, a_prepared), (b_elements, b_prepared)] =
        [a, b].map(|weight| (weight.elements.clone(), weight.prepared.clone()));

    let x_view = View::strided(data(x), rows, input, input);
    let exact = Precision::F32;
    let factor = a_prepared.forward(exact, &a_elements);
    let mut low = factor.product(x_view, None); // (rows, rank)
    scale_by(&mut low, scale);
    let mut sum = InPlace::new(y)?;
    let low_view = View::strided(&low, rows, rank, rank);
    let factor = b_prepared.forward(exact, &b_elements);
    factor.multiply_add(sum.values(), low_view); // (rows, out)
    let x = Input::of(x);
    profile::kept(match (added.is_on(), &x) {
        (true, Input::Rows(x)) => low.len() + data(x).len(),
        (true, Input::Normalized(_)) => low.len(),
        (false, _) => 0,
    });
    Ok(sum.finish(added, move |flow, upstream| {
        let [x_slot, a_slot, b_slot] = &slots;
        let dy = View::strided(upstream, rows, out, out);
        if let Some(slot) = b_slot {
            // dBᵀ = lowᵀ dy: of the two ways to compute it, the one whose rows are wide.
            let low = View::strided(&low, rows, rank, rank);
            let mut transposed = vec![0.0; rank * out];
            multiply_add_once(&mut transposed, low.t(), upstream, out);
            flow.add_in_place(slot, |sum| {
                for (i, row) in sum.chunks_exact_mut(rank).enumerate() {
                    let column = transposed[i..].iter().step_by(out);
                    row.iter_mut().zip(column).for_each(|(sum, d)| *sum += d);
                }
            })?;
        }
        if x_slot.is_none() && a_slot.is_none() {
            return Ok(());
        }
        let factor = b_prepared.backward(exact, &b_elements);
        let mut d_low = factor.product(dy, None); // (rows, rank)
        scale_by(&mut d_low, scale);
        if let Some(slot) = a_slot {
            flow.add_in_place(slot, |sum| x.add_product(sum, &d_low, rank))?;
        }
        if let Some(slot) = x_slot {
            let d_low = View::strided(&d_low, rows, rank, rank);
            let factor = a_prepared.backward(exact, &a_elements);
            factor.add_product(d_low, flow, slot)?; // (rows, in)
        }
        Ok(())
    }))
}
