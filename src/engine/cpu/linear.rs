//! The linear layer.

use std::sync::OnceLock;

use dfdx::prelude::*;

use super::bridge::{data, is_traced, output, slot, trace};
use super::deferred::{Deferred, Part};
use super::half::HalfPacked;
use super::packed::{Packed, Scheme};
use super::product::{multiply, View};
use super::Outcome;
use crate::engine::{Matrix, Precision, Vector, Weight};

/// A weight, packed for `x Wᵀ` and for `dy W` when either is first needed.
#[derive(Default)]
pub struct Prepared {
    forward: OnceLock<Packed>,
    backward: OnceLock<Packed>,
    half_forward: OnceLock<HalfPacked>,
    half_backward: OnceLock<HalfPacked>,
}

impl Prepared {
    /// `Wᵀ (in, out)`.
    pub(super) fn forward(&self, weight: &Plain) -> &Packed {
        let (out, input) = *weight.shape();
        self.forward
            .get_or_init(|| Packed::transposed(data(weight), input, input, out))
    }

    /// `W (out, in)`.
    pub(super) fn backward(&self, weight: &Plain) -> &Packed {
        let (out, input) = *weight.shape();
        self.backward
            .get_or_init(|| Packed::rows(data(weight), input, out, input))
    }
}

impl Prepared {
    /// [`Prepared::forward`], rounded.
    fn half_forward(&self, weight: &Plain) -> &HalfPacked {
        let ((out, input), w) = (*weight.shape(), data(weight));
        self.half_forward
            .get_or_init(|| HalfPacked::new(input, out, |p, j| w[j * input + p]))
    }

    /// [`Prepared::backward`], rounded.
    fn half_backward(&self, weight: &Plain) -> &HalfPacked {
        let ((out, input), w) = (*weight.shape(), data(weight));
        self.half_backward
            .get_or_init(|| HalfPacked::new(out, input, |p, j| w[p * input + j]))
    }
}

type Plain = Tensor<(usize, usize), f32, Cpu>;

/// See [`crate::engine::Backend::linear`].
pub(super) fn linear(
    x: &Matrix<Cpu>,
    weight: &Weight<Cpu>,
    bias: Option<&Vector<Cpu>>,
) -> Outcome<Matrix<Cpu>> {
    let Weight {
        matrix: weight,
        prepared,
        precision,
    } = weight;
    let (rows, input) = *x.shape();
    let (out, weight_input) = *weight.shape();
    assert_eq!(
        input, weight_input,
        "linear: x is {rows}x{input}, weight {out}x{weight_input}"
    );
    let (plain, weight_trace) = weight.clone().split_tape();
    let is_half = *precision == Precision::Bf16 && !weight_trace.is_on();
    // Below what is trained, and where nothing is, a row's result does not depend on others.
    let scheme = match is_traced(x) {
        true => Scheme::Strassen,
        false => Scheme::InOrder,
    };
    let view = View::strided(data(x), rows, input, input);
    let values = match is_half {
        true => prepared.half_forward(&plain).product(view, bias.map(data)),
        false => prepared
            .forward(&plain)
            .product_by(scheme, view, bias.map(data)),
    }; // (rows, out)

    let mut joined = trace(x).merge(weight_trace.clone());
    if let Some(bias) = bias {
        joined = joined.merge(trace(bias));
    }
    let (x_slot, weight_slot, bias_slot) = (slot(x), slot(weight), bias.and_then(slot));
    let kept_x = is_traced(weight).then(|| x.clone().split_tape().0);
    let prepared = prepared.clone();
    let address = data(&plain).as_ptr() as usize;
    let deferring = weight_trace.defers(address).then_some(weight_trace);
    output(
        values,
        (rows, out),
        joined,
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(upstream, rows, out, out);
            if let Some(slot) = &x_slot {
                let gradient = flow.get(slot)?; // (rows, in)
                match is_half {
                    true => prepared.half_backward(&plain).multiply_add(gradient, dy),
                    false => prepared
                        .backward(&plain)
                        .multiply_add_by(scheme, gradient, input, dy),
                }
            }
            if let (Some(trace), Some(x)) = (&deferring, &kept_x) {
                trace.defer(Deferred {
                    parameter: address,
                    part: Part::Product {
                        upstream: upstream.to_vec(),
                        input: x.clone(),
                    },
                });
            } else if let (Some(slot), Some(x)) = (&weight_slot, &kept_x) {
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
