//! The linear layer.

use std::sync::OnceLock;

use dfdx::prelude::*;

use super::bridge::{data, is_traced, output, slot, trace, weight_slot};
use super::deferred::{Deferred, Part};
use super::half::HalfPacked;
use super::packed::{Packed, Scheme};
use super::product::{multiply, View};
use super::Outcome;
use crate::engine::{Backend, Elements, Matrix, Precision, Trace, Vector, Weight};

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
    pub(super) fn forward(&self, weight: &Elements<Cpu>) -> &Packed {
        let (out, input) = weight.shape();
        let pack = |w: &[f32]| Packed::transposed(w, input, input, out);
        self.forward.get_or_init(|| once(weight, pack))
    }

    /// `W (out, in)`.
    pub(super) fn backward(&self, weight: &Elements<Cpu>) -> &Packed {
        let (out, input) = weight.shape();
        let pack = |w: &[f32]| Packed::rows(w, input, out, input);
        self.backward.get_or_init(|| once(weight, pack))
    }
}

impl Prepared {
    /// [`Prepared::forward`], rounded.
    fn half_forward(&self, weight: &Elements<Cpu>) -> &HalfPacked {
        let (out, input) = weight.shape();
        let pack = |w: &[f32]| HalfPacked::new(input, out, |p, j| w[j * input + p]);
        self.half_forward.get_or_init(|| once(weight, pack))
    }

    /// [`Prepared::backward`], rounded.
    fn half_backward(&self, weight: &Elements<Cpu>) -> &HalfPacked {
        let (out, input) = weight.shape();
        let pack = |w: &[f32]| HalfPacked::new(out, input, |p, j| w[p * input + j]);
        self.half_backward.get_or_init(|| once(weight, pack))
    }
}

/// Reads elements that are not needed afterwards.
fn once<T>(weight: &Elements<Cpu>, read: impl FnOnce(&[f32]) -> T) -> T {
    match weight {
        Elements::Held(tensor) => read(data(tensor)),
        Elements::Stored(stored) => {
            let result = read(stored.source().elements());
            stored.source().release();
            result
        }
    }
}

/// See [`crate::engine::Backend::linear`].
pub(super) fn linear(
    x: &Matrix<Cpu>,
    weight: &Weight<Cpu>,
    bias: Option<&Vector<Cpu>>,
) -> Outcome<Matrix<Cpu>> {
    let (rows, input) = *x.shape();
    let (out, weight_input) = weight.shape();
    assert_eq!(
        input, weight_input,
        "linear: x is {rows}x{input}, weight {out}x{weight_input}"
    );
    let is_frozen = !weight.trace.is_on();
    let is_half = weight.precision == Precision::Bf16 && is_frozen;
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    // Below what is trained, and where nothing is, a row's result does not depend on others.
    let scheme = match is_traced(x) {
        true => Scheme::Strassen,
        false => Scheme::InOrder,
    };
    let view = View::strided(data(x), rows, input, input);
    let values = match is_half {
        true => prepared
            .half_forward(&elements)
            .product(view, bias.map(data)),
        false => prepared
            .forward(&elements)
            .product_by(scheme, view, bias.map(data)),
    }; // (rows, out)

    let mut joined = trace(x).merge(weight.trace.clone());
    if let Some(bias) = bias {
        joined = joined.merge(trace(bias));
    }
    let (x_slot, own_slot, bias_slot) = (slot(x), weight_slot(weight)?, bias.and_then(slot));
    let kept_x = (!is_frozen).then(|| x.clone().split_tape().0);
    let deferring = deferring(weight);
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
                    true => prepared.half_backward(&elements).multiply_add(gradient, dy),
                    false => prepared
                        .backward(&elements)
                        .multiply_add_by(scheme, gradient, input, dy),
                }
            }
            if let (Some((trace, parameter)), Some(x)) = (deferring, &kept_x) {
                trace.defer(Deferred {
                    parameter,
                    part: Part::Product {
                        upstream: upstream.to_vec(),
                        input: x.clone(),
                    },
                });
            } else if let (Some(slot), Some(x)) = (&own_slot, &kept_x) {
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

/// See [`crate::engine::Backend::linear_transposed`].
pub(super) fn linear_transposed(x: &Matrix<Cpu>, weight: &Weight<Cpu>) -> Outcome<Matrix<Cpu>> {
    let (rows, out) = *x.shape();
    let (weight_out, input) = weight.shape();
    assert_eq!(
        out, weight_out,
        "linear transposed: x is {rows}x{out}, weight {weight_out}x{input}"
    );
    assert!(
        !weight.trace.is_on(),
        "linear transposed: the weight is to be frozen"
    );
    let is_half = weight.precision == Precision::Bf16;
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    let view = View::strided(data(x), rows, out, out);
    let values = match is_half {
        true => prepared.half_backward(&elements).product(view, None),
        false => prepared.backward(&elements).product(view),
    }; // (rows, in)
    let x_slot = slot(x);
    output(
        values,
        (rows, input),
        trace(x),
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(upstream, rows, input, input);
            if let Some(slot) = &x_slot {
                let gradient = flow.get(slot)?; // (rows, out)
                match is_half {
                    true => prepared.half_forward(&elements).multiply_add(gradient, dy),
                    false => prepared.forward(&elements).multiply_add(gradient, out, dy),
                }
            }
            Ok(())
        },
    )
}

/// Where a weight's gradient is left to be computed, and the weight's address.
fn deferring(weight: &Weight<Cpu>) -> Option<(Trace<Cpu>, usize)> {
    let Elements::Held(tensor) = &weight.elements else {
        return None;
    };
    let address = Cpu::address(tensor)?;
    let is_deferred = weight.trace.defers(address);
    is_deferred.then(|| (weight.trace.clone(), address))
}
