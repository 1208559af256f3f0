//! The linear layer.

use std::sync::OnceLock;

use dfdx::prelude::*;

use super::bridge::{data, output};
use super::deferred::{Deferred, Part};
use super::gradient::{is_traced, slot, trace, weight_slot, Flow, Slot};
use super::half::HalfPacked;
use super::operand::{Operand, Scheme};
use super::packed::Packed;
use super::product::{multiply, View};
use super::rows::add_to;
use super::Outcome;
use crate::engine::{profile, Backend, Elements, Matrix, Precision, Trace, Vector, Weight};

/// Rows and columns from which on a weight is packed once for both directions, in half the memory: `dy W` then
/// takes a tenth longer (Zen 3). What weights take grows with the square of a model's width.
pub const LEAST_SIDE_PACKED_ONCE: usize = 512;

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
    pub(super) fn forward(&self, weight: &Elements<Cpu>) -> Operand<'_> {
        let (out, input) = weight.shape();
        let pack = |w: &[f32]| Packed::transposed(w, input, input, out);
        self.forward.get_or_init(|| once(weight, pack)).plain()
    }

    /// `W (out, in)`.
    pub(super) fn backward(&self, weight: &Elements<Cpu>) -> Operand<'_> {
        let (out, input) = weight.shape();
        if out.min(input) >= LEAST_SIDE_PACKED_ONCE {
            return self.forward(weight).t();
        }
        let pack = |w: &[f32]| Packed::rows(w, input, out, input);
        self.backward.get_or_init(|| once(weight, pack)).plain()
    }

    /// [`Prepared::forward`] in a precision.
    fn forward_in(&self, precision: Precision, weight: &Elements<Cpu>) -> Factor<'_> {
        match precision {
            Precision::F32 => Factor::F32(self.forward(weight)),
            Precision::Bf16 => Factor::Bf16(self.half_forward(weight)),
        }
    }

    /// [`Prepared::backward`] in a precision.
    fn backward_in(&self, precision: Precision, weight: &Elements<Cpu>) -> Factor<'_> {
        match precision {
            Precision::F32 => Factor::F32(self.backward(weight)),
            Precision::Bf16 => Factor::Bf16(self.half_backward(weight)),
        }
    }

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

/// A packed weight in the precision that it is multiplied in.
#[derive(Clone, Copy)]
enum Factor<'a> {
    F32(Operand<'a>),
    Bf16(&'a HalfPacked),
}

impl Factor<'_> {
    /// `a b`, and `bias` added to each row.
    fn product(self, scheme: Scheme, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        match self {
            Factor::F32(b) => b.product_by(scheme, a, bias),
            Factor::Bf16(b) => b.product(a, bias),
        }
    }

    /// Adds `a b` to a gradient `(rows, columns)`.
    fn add_product(self, scheme: Scheme, a: View, flow: &mut Flow, slot: &Slot) -> Outcome<()> {
        let make = || self.product(scheme, a, None);
        let add = |sum: &mut [f32]| match self {
            Factor::F32(b) => b.multiply_add_by(scheme, sum, b.shape().1, a),
            Factor::Bf16(b) => b.multiply_add(sum, a),
        };
        flow.make_or_add(slot, make, add)
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
    let precision = match is_frozen {
        true => weight.precision,
        false => Precision::F32,
    };
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    // Below what is trained, and where nothing is, a row's result does not depend on others.
    let scheme = match is_traced(x) {
        true => Scheme::Strassen,
        false => Scheme::InOrder,
    };
    let view = View::strided(data(x), rows, input, input);
    let factor = prepared.forward_in(precision, &elements);
    let values = factor.product(scheme, view, bias.map(data)); // (rows, out)

    let mut joined = trace(x).merge(weight.trace.clone());
    if let Some(bias) = bias {
        joined = joined.merge(trace(bias));
    }
    let (x_slot, own_slot, bias_slot) = (slot(x), weight_slot(weight)?, bias.and_then(slot));
    let kept_x = (!is_frozen).then(|| x.clone().split_tape().0);
    profile::kept(if is_frozen { 0 } else { rows * input });
    let deferring = deferring(weight);
    output(
        values,
        (rows, out),
        joined,
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(&upstream, rows, out, out);
            if let Some(slot) = &x_slot {
                let factor = prepared.backward_in(precision, &elements);
                factor.add_product(scheme, dy, flow, slot)?; // (rows, in)
            }
            if let Some(slot) = &bias_slot {
                flow.add_in_place(slot, |sum| {
                    upstream.chunks_exact(out).for_each(|row| add_to(sum, row));
                })?;
            }
            if let (Some((trace, parameter)), Some(x)) = (deferring, &kept_x) {
                let input = x.clone();
                trace.defer(Deferred {
                    parameter,
                    part: Part::Product { upstream, input },
                });
            } else if let (Some(slot), Some(x)) = (&own_slot, &kept_x) {
                let x = View::strided(data(x), rows, input, input);
                // (out, in)
                flow.add_in_place(slot, |sum| multiply(sum, input, dy.t(), x, 1.0, true))?;
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
    let (precision, scheme) = (weight.precision, Scheme::InOrder);
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    let view = View::strided(data(x), rows, out, out);
    let factor = prepared.backward_in(precision, &elements);
    let values = factor.product(scheme, view, None); // (rows, in)
    let x_slot = slot(x);
    output(
        values,
        (rows, input),
        trace(x),
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(&upstream, rows, input, input);
            let Some(slot) = &x_slot else { return Ok(()) };
            let factor = prepared.forward_in(precision, &elements);
            factor.add_product(scheme, dy, flow, slot) // (rows, out)
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
