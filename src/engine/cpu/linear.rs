//! The linear layer.

use std::sync::OnceLock;

use dfdx::prelude::*;

use super::bridge::{data, output};
use super::deferred::{Deferred, Part};
use super::gradient::{slot, trace, weight_slot, Flow, Slot};
use super::half::{self, HalfPacked};
use super::operand::Operand;
use super::packed::Packed;
use super::product::{multiply, View};
use super::rows::add_to;
use super::{amx, is_wide, Outcome};
use crate::engine::{profile, Backend, Elements, Matrix, Precision, Trace, Vector, Weight};

/// How often a frozen weight whose smaller side is `least_side` lies in memory, counted in its size in f32, where a
/// gradient passes through it and where none does.
pub fn copies_of_a_weight(least_side: usize, is_passed: bool) -> f64 {
    let directions = if is_passed { 2.0 } else { 1.0 };
    let forms = if is_wide(least_side) { 1.0 } else { directions };
    let size = match amx::pays(least_side, least_side) {
        true => 0.75,
        false => 1.0,
    };
    forms * size
}

/// A weight, packed for `x Wᵀ` and for `dy W` when either is first needed: a wide one once for both, in half the memory
/// or less, though `dy W` then takes a tenth longer (Zen 3) or a sixth (AMX).
#[derive(Default)]
pub struct Prepared {
    forward: Forms,
    backward: Forms,
}

/// A form for each precision.
#[derive(Default)]
struct Forms {
    f32: OnceLock<WeightForm>,
    bf16: OnceLock<WeightForm>,
}

impl Forms {
    fn of(&self, precision: Precision) -> &OnceLock<WeightForm> {
        match precision {
            Precision::F32 => &self.f32,
            Precision::Bf16 => &self.bf16,
        }
    }
}

impl Prepared {
    /// `Wᵀ (in, out)`.
    pub(super) fn forward(&self, precision: Precision, weight: &Elements<Cpu>) -> Factor<'_> {
        let (out, input) = weight.shape();
        let pack = || match weight {
            Elements::Stored(stored) if stored.source().has_rows() => {
                let read = |range, rows: &mut _| stored.source().append(range, rows);
                Packed::transposed_by(read, input, out)
            }
            _ => once(weight, |w| Packed::transposed(w, input, input, out)),
        };
        let form = self.forward.of(precision);
        form.get_or_init(|| WeightForm::new(precision, pack()))
            .factor()
    }

    /// `W (out, in)`.
    pub(super) fn backward(&self, precision: Precision, weight: &Elements<Cpu>) -> Factor<'_> {
        let (out, input) = weight.shape();
        if precision == Precision::F32 && is_wide(out.min(input)) {
            return self.forward(precision, weight).t();
        }
        let pack = |w: &[f32]| WeightForm::new(precision, Packed::rows(w, input, out, input));
        let form = self.backward.of(precision);
        form.get_or_init(|| once(weight, pack)).factor()
    }
}

/// A matrix as this processor multiplies with it.
pub(super) enum WeightForm {
    Packed(Packed),
    Half(HalfPacked),
    Tiled(amx::Tiled),
}

impl WeightForm {
    /// That of a packed matrix in a precision.
    pub(super) fn new(precision: Precision, packed: Packed) -> Self {
        let (depth, columns) = packed.plain().shape();
        let is_tiled = match precision {
            Precision::F32 => amx::pays(depth, columns),
            Precision::Bf16 => amx::is_available(),
        };
        match precision {
            _ if is_tiled => WeightForm::Tiled(amx::Tiled::new(&packed, precision)),
            Precision::F32 => WeightForm::Packed(packed),
            Precision::Bf16 => WeightForm::Half(HalfPacked::new(packed.plain())),
        }
    }

    pub(super) fn factor(&self) -> Factor<'_> {
        match self {
            WeightForm::Packed(packed) => Factor::Plain(packed.plain()),
            WeightForm::Half(packed) => Factor::Half(packed),
            WeightForm::Tiled(tiled) => Factor::Tiled(tiled.plain()),
        }
    }
}

/// Whether this processor has products of a precision.
pub(super) fn has(precision: Precision) -> bool {
    precision == Precision::F32 || half::is_available() || amx::is_available()
}

/// A matrix to multiply with.
#[derive(Clone, Copy)]
pub(super) enum Factor<'a> {
    Plain(Operand<'a>),
    Half(&'a HalfPacked),
    Tiled(amx::Factor<'a>),
}

impl Factor<'_> {
    /// The transpose. Rounded forms are made for one direction.
    fn t(self) -> Self {
        match self {
            Factor::Plain(b) => Factor::Plain(b.t()),
            Factor::Tiled(b) => Factor::Tiled(b.t()),
            Factor::Half(_) => unreachable!("packed for one direction"),
        }
    }

    /// Whether the elements of a row of `a` have to lie one after the other, or had better.
    pub(super) fn takes_rows(self) -> bool {
        match self {
            Factor::Plain(_) => false,
            Factor::Half(_) | Factor::Tiled(_) => true,
        }
    }

    /// `a b`, and `bias` added to each row.
    pub(super) fn product(self, a: View, bias: Option<&[f32]>) -> Vec<f32> {
        match self {
            Factor::Plain(b) => b.product(a, bias),
            Factor::Half(b) => b.product(a, bias),
            Factor::Tiled(b) => b.product(a, bias),
        }
    }

    /// `out ← out + a b`, `out (rows, columns)`.
    pub(super) fn multiply_add(self, out: &mut [f32], a: View) {
        match self {
            Factor::Plain(b) => b.multiply_add(out, b.shape().1, a),
            Factor::Half(b) => b.multiply_add(out, a),
            Factor::Tiled(b) => b.multiply_add(out, a),
        }
    }

    /// Adds `a b` to a gradient `(rows, columns)`.
    pub(super) fn add_product(self, a: View, flow: &mut Flow, slot: &Slot) -> Outcome<()> {
        let make = || self.product(a, None);
        flow.make_or_add(slot, make, |sum| self.multiply_add(sum, a))
    }
}

/// Reads elements that are not needed afterwards.
fn once<T>(weight: &Elements<Cpu>, read: impl FnOnce(&[f32]) -> T) -> T {
    match weight {
        Elements::Held(tensor) => read(data(tensor)),
        Elements::Stored(stored) => {
            let result = read(&stored.source().elements());
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
    let view = View::strided(data(x), rows, input, input);
    let factor = prepared.forward(precision, &elements);
    let values = factor.product(view, bias.map(data)); // (rows, out)

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
                let factor = prepared.backward(precision, &elements);
                factor.add_product(dy, flow, slot)?; // (rows, in)
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
    let precision = weight.precision;
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    let view = View::strided(data(x), rows, out, out);
    let factor = prepared.backward(precision, &elements);
    let values = factor.product(view, None); // (rows, in)
    let x_slot = slot(x);
    output(
        values,
        (rows, input),
        trace(x),
        x.device(),
        move |flow, upstream| {
            let dy = View::strided(&upstream, rows, input, input);
            let Some(slot) = &x_slot else { return Ok(()) };
            let factor = prepared.forward(precision, &elements);
            factor.add_product(dy, flow, slot) // (rows, out)
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
