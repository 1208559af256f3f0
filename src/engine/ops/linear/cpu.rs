//! Linear layers on the CPU, by products with packed weights.

use crate::cpu::deferred::{Contribution, Deferred};
use crate::cpu::elementwise::add_to;
use crate::cpu::products::{multiply, View};
use crate::gradient::record_kernel;
use crate::tape::Deferrals;
use crate::{profile, Elements, Matrix, Precision, Vector, Weight};

/// See [`super::linear`].
pub(super) fn linear(x: &Matrix, weight: &Weight, bias: Option<&Vector>) -> Matrix {
    let ((rows, input), (out, _)) = (x.shape(), weight.shape());
    let is_frozen = !weight.is_traced();
    let precision = match is_frozen {
        true => weight.precision,
        false => Precision::F32,
    };
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    let view = View::strided(x.data(), rows, input, input);
    let operand = prepared.forward(precision, &elements);
    let values = operand.product(view, bias.map(Vector::data)); // (rows, out)

    let mut trace = x.trace().or(&weight.trace);
    if let Some(bias) = bias {
        trace = trace.or(&bias.trace());
    }
    let (x_slot, own_slot) = (x.slot(), weight.slot.clone());
    let bias_slot = bias.and_then(Vector::slot);
    let kept_x = (!is_frozen).then(|| x.value.clone());
    profile::kept(if is_frozen { 0 } else { rows * input });
    let deferring = deferring(weight);
    record_kernel(values, (rows, out), trace, move |upstream| {
        let dy = View::strided(&upstream, rows, out, out);
        if let Some(slot) = &x_slot {
            let operand = prepared.backward(precision, &elements);
            operand.add_product(dy, slot); // (rows, in)
        }
        if let Some(slot) = &bias_slot {
            slot.add_in_place(|sum| {
                upstream.chunks_exact(out).for_each(|row| add_to(sum, row));
            });
        }
        if let (Some((deferrals, parameter)), Some(x)) = (deferring, &kept_x) {
            let input = x.clone();
            deferrals.borrow_mut().push(Deferred {
                parameter,
                contribution: Contribution::Product { upstream, input },
            });
        } else if let (Some(slot), Some(x)) = (&own_slot, &kept_x) {
            let x = View::strided(x.data(), rows, input, input);
            // (out, in)
            slot.add_in_place(|sum| multiply(sum, input, dy.t(), x, 1.0, true));
        }
    })
}

/// See [`super::linear_transposed`].
pub(super) fn linear_transposed(x: &Matrix, weight: &Weight) -> Matrix {
    let ((rows, out), (_, input)) = (x.shape(), weight.shape());
    let precision = weight.precision;
    let (elements, prepared) = (weight.elements.clone(), weight.prepared.clone());
    let view = View::strided(x.data(), rows, out, out);
    let operand = prepared.backward(precision, &elements);
    let values = operand.product(view, None); // (rows, in)
    let x_slot = x.slot();
    record_kernel(values, (rows, input), x.trace(), move |upstream| {
        let dy = View::strided(&upstream, rows, input, input);
        if let Some(slot) = &x_slot {
            let operand = prepared.forward(precision, &elements);
            operand.add_product(dy, slot); // (rows, out)
        }
    })
}

/// Where to leave contributions to a weight's gradient, and the weight's id, if the gradient is computed after the
/// pass.
fn deferring(weight: &Weight) -> Option<(Deferrals, u64)> {
    let Elements::Held(tensor) = &weight.elements else {
        return None;
    };
    let deferrals = weight.trace.deferrals(tensor.id())?;
    Some((deferrals, tensor.id()))
}
