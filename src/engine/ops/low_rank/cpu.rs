//! LoRA's low-rank change on the CPU: two small products, added in place.

use std::rc::Rc;

use crate::cpu::elementwise::scale_by;
use crate::cpu::products::{multiply_add_once, View};
use crate::gradient::{normalized, InPlace};
use crate::ops::norm::Normalized;
use crate::{profile, Matrix, Precision, Tensor, Weight};

/// The form in which `x (rows, in)` is kept for the gradient of A.
enum Input {
    Rows(Tensor<(usize, usize)>),
    Normalized(Rc<Normalized>),
}

impl Input {
    fn of(x: &Matrix) -> Self {
        match normalized(x) {
            Some(rows) => Input::Normalized(rows),
            None => Input::Rows(x.value.clone()),
        }
    }

    /// `sum ← sum + aᵀ x`: `sum (rank, in)`, `a (rows, rank)`.
    fn add_product(&self, sum: &mut [f32], a: &[f32], rank: usize) {
        match self {
            Input::Rows(x) => {
                let input = x.shape().1;
                multiply_add_once(sum, View::new(a, rank).t(), x.data(), input);
            }
            Input::Normalized(x) => x.add_product(sum, a, rank),
        }
    }
}

/// See [`super::add_low_rank`].
pub(super) fn add_low_rank(y: Matrix, x: &Matrix, a: &Weight, b: &Weight, scale: f32) -> Matrix {
    let ((rows, input), (out, rank)) = (x.shape(), b.shape());
    let added = x.trace().or(&a.trace).or(&b.trace);
    let slots = [x.slot(), a.slot.clone(), b.slot.clone()];
    let [(a_elements, a_prepared), (b_elements, b_prepared)] =
        [a, b].map(|weight| (weight.elements.clone(), weight.prepared.clone()));

    let x_view = View::strided(x.data(), rows, input, input);
    let exact = Precision::F32;
    let operand = a_prepared.forward(exact, &a_elements);
    let mut low = operand.product(x_view, None); // (rows, rank)
    scale_by(&mut low, scale);
    let mut sum = InPlace::new(y);
    let low_view = View::strided(&low, rows, rank, rank);
    let operand = b_prepared.forward(exact, &b_elements);
    operand.multiply_add(sum.values(), low_view); // (rows, out)
    let x = Input::of(x);
    profile::kept(match (added.is_on(), &x) {
        (true, Input::Rows(x)) => low.len() + x.count(),
        (true, Input::Normalized(_)) => low.len(),
        (false, _) => 0,
    });
    sum.finish(&added, move |upstream| {
        let [x_slot, a_slot, b_slot] = &slots;
        let dy = View::strided(upstream, rows, out, out);
        if let Some(slot) = b_slot {
            // dBᵀ = lowᵀ dy, not dB = dyᵀ low, because its rows are wide.
            let low = View::strided(&low, rows, rank, rank);
            let mut transposed = vec![0.0; rank * out];
            multiply_add_once(&mut transposed, low.t(), upstream, out);
            slot.add_in_place(|sum| {
                for (i, row) in sum.chunks_exact_mut(rank).enumerate() {
                    let column = transposed[i..].iter().step_by(out);
                    row.iter_mut().zip(column).for_each(|(sum, d)| *sum += d);
                }
            });
        }
        if x_slot.is_none() && a_slot.is_none() {
            return;
        }
        let operand = b_prepared.backward(exact, &b_elements);
        let mut d_low = operand.product(dy, None); // (rows, rank)
        scale_by(&mut d_low, scale);
        if let Some(slot) = a_slot {
            slot.add_in_place(|sum| x.add_product(sum, &d_low, rank));
        }
        if let Some(slot) = x_slot {
            let d_low = View::strided(&d_low, rows, rank, rank);
            let operand = a_prepared.backward(exact, &a_elements);
            operand.add_product(d_low, slot); // (rows, in)
        }
    })
}
