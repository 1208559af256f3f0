//! The linear layer.

use dfdx::prelude::*;

use super::bridge::{data, is_traced, output, slot, trace};
use super::product::{multiply, View};
use super::Outcome;
use crate::engine::{Matrix, Vector};

/// See [`crate::engine::Backend::linear`].
pub(super) fn linear(
    x: &Matrix<Cpu>,
    weight: &Matrix<Cpu>,
    bias: Option<&Vector<Cpu>>,
) -> Outcome<Matrix<Cpu>> {
    let (rows, input) = *x.shape();
    let (out, weight_input) = *weight.shape();
    assert_eq!(
        input, weight_input,
        "linear: x is {rows}x{input}, weight {out}x{weight_input}"
    );
    let mut values = vec![0.0; rows * out];
    if let Some(bias) = bias {
        let bias = data(bias);
        for row in values.chunks_exact_mut(out) {
            row.copy_from_slice(bias);
        }
    }
    let (a, w) = (View::new(data(x), input), View::new(data(weight), input));
    multiply(&mut values, out, a, w.t(), 1.0, true); // (rows, out)

    let mut joined = trace(x).merge(trace(weight));
    if let Some(bias) = bias {
        joined = joined.merge(trace(bias));
    }
    let (x_slot, weight_slot, bias_slot) = (slot(x), slot(weight), bias.and_then(slot));
    let kept_x = is_traced(weight).then(|| x.clone().split_tape().0);
    let kept_weight = is_traced(x).then(|| weight.clone().split_tape().0);
    output(
        values,
        (rows, out),
        joined,
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(upstream, rows, out, out);
            if let (Some(slot), Some(weight)) = (&x_slot, &kept_weight) {
                let weight = View::new(data(weight), input);
                multiply(flow.get(slot)?, input, dy, weight, 1.0, true); // (rows, in)
            }
            if let (Some(slot), Some(x)) = (&weight_slot, &kept_x) {
                let x = View::strided(data(x), rows, input, input);
                multiply(flow.get(slot)?, input, dy.t(), x, 1.0, true); // (out, in)
            }
            if let Some(slot) = &bias_slot {
                let gradient = flow.get(slot)?;
                for row in upstream.chunks_exact(out) {
                    for (sum, value) in gradient.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
            Ok(())
        },
    )
}
