//! What LoRA adds to a linear layer's result: two small products, added in place.

use dfdx::prelude::*;

use super::bridge::{data, InPlace};
use super::gradient::{slot, trace, weight_slot};
use super::packed::Packed;
use super::product::View;
use super::rows::scale_by;
use super::Outcome;
use crate::engine::{profile, Matrix, Weight};

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
    let mut low = a_prepared.forward(&a_elements).product(x_view); // (rows, rank)
    scale_by(&mut low, scale);
    let mut sum = InPlace::new(y)?;
    let packed = b_prepared.forward(&b_elements);
    packed.multiply_add(sum.values(), out, View::strided(&low, rows, rank, rank)); // (rows, out)
    profile::kept(if added.is_on() { low.len() } else { 0 });
    let x = x.clone().split_tape().0;
    Ok(sum.finish(added, move |flow, upstream| {
        let [x_slot, a_slot, b_slot] = &slots;
        let dy = View::strided(upstream, rows, out, out);
        if let Some(slot) = b_slot {
            // dB = dyᵀ low (out, rank)
            let low = Packed::rows(&low, rank, rows, rank);
            flow.add_in_place(slot, |sum| low.multiply_add(sum, rank, dy.t()))?;
        }
        if x_slot.is_none() && a_slot.is_none() {
            return Ok(());
        }
        let mut d_low = b_prepared.backward(&b_elements).product(dy); // (rows, rank)
        scale_by(&mut d_low, scale);
        if let Some(slot) = a_slot {
            // dAᵀ = xᵀ d_low: the narrow one of the two ways to compute it.
            let packed = Packed::rows(&d_low, rank, rows, rank);
            let x = View::strided(data(&x), rows, input, input);
            let transposed = packed.product(x.t()); // (in, rank)
            flow.add_in_place(slot, |sum| {
                for (i, row) in sum.chunks_exact_mut(input).enumerate() {
                    for (sum, column) in row.iter_mut().zip(transposed.chunks_exact(rank)) {
                        *sum += column[i];
                    }
                }
            })?;
        }
        if let Some(slot) = x_slot {
            let d_low = View::strided(&d_low, rows, rank, rank);
            let packed = a_prepared.backward(&a_elements);
            let make = || packed.product(d_low); // (rows, in)
            flow.make_or_add(slot, make, |sum| packed.multiply_add(sum, input, d_low))?;
        }
        Ok(())
    }))
}
