//! Gradients during the backward pass. The first operation that contributes to a gradient allocates it, so no buffer is
//! cleared first. Most gradients get a single contribution.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use dfdx::prelude::Shape;

use super::cpu::elementwise::add_to;
use super::cpu::helpers::share_elements;
use super::ops::norm::Normalized;
use super::profile;
use super::tape::Variable;
use super::tensor::Storage;
use super::{Matrix, Outcome, Tensor, Trace};

/// Holds the gradient of one tensor: the operations that use the tensor add to it in their backward passes, and the
/// operation that made the tensor takes it in its own.
#[derive(Clone)]
pub(super) struct Slot(Rc<Buffer>);

struct Buffer {
    /// The number of elements.
    length: usize,
    /// `None` until something is added.
    gradient: RefCell<Option<Storage>>,
    /// The tensor in the form that its norm keeps anyway, so that an operation that needs the tensor later keeps no
    /// second copy.
    normalized: RefCell<Option<Rc<Normalized>>>,
}

impl Slot {
    pub(super) fn new(length: usize) -> Self {
        Slot(Rc::new(Buffer {
            length,
            gradient: RefCell::default(),
            normalized: RefCell::default(),
        }))
    }

    /// Takes the gradient out; `None` if nothing was added to it.
    pub(super) fn take_storage(&self) -> Option<Storage> {
        self.0.gradient.take()
    }

    /// Adds to the gradient, on any device.
    pub(super) fn add_storage(&self, values: Storage) -> Outcome<()> {
        let sum = match self.take_storage() {
            Some(sum) => sum.plus(values)?,
            None => values,
        };
        self.0.gradient.replace(Some(sum));
        Ok(())
    }

    /// Takes the gradient of a tensor on the CPU; empty if nothing was added to it.
    pub(super) fn take(&self) -> Vec<f32> {
        let gradient = self.take_storage();
        gradient.map(Storage::into_vec).unwrap_or_default()
    }

    fn put(&self, gradient: Vec<f32>) {
        assert_eq!(
            gradient.len(),
            self.0.length,
            "a gradient of another length"
        );
        let gradient = Storage::Cpu(Arc::new(gradient));
        self.0.gradient.replace(Some(gradient));
    }

    /// Adds `values` to the gradient of a tensor on the CPU.
    pub(super) fn add(&self, values: Vec<f32>) {
        let mut gradient = self.take();
        if gradient.is_empty() {
            gradient = values;
        } else {
            profile::moved(2 * gradient.len());
            share_elements(&mut gradient, &values, add_to);
        }
        self.put(gradient);
    }

    /// Sets the gradient to `make()` if there is none yet; otherwise calls `add` on it.
    pub(super) fn make_or_add(
        &self,
        make: impl FnOnce() -> Vec<f32>,
        add: impl FnOnce(&mut [f32]),
    ) {
        let mut gradient = self.take();
        if gradient.is_empty() {
            gradient = make();
            profile::moved(gradient.len());
        } else {
            profile::moved(2 * gradient.len());
            add(&mut gradient);
        }
        self.put(gradient);
    }

    /// Calls `add` on the gradient, which starts as zeros. `add` gets a slice, so it cannot change the length.
    pub(super) fn add_in_place(&self, add: impl FnOnce(&mut [f32])) {
        let mut gradient = self.take();
        gradient.resize(self.0.length, 0.0);
        profile::moved(2 * gradient.len());
        add(&mut gradient);
        self.put(gradient);
    }
}

/// Notes the normalized rows that the norm keeps of its `result`.
pub(super) fn set_normalized(result: &Matrix, rows: Rc<Normalized>) {
    if let Some(slot) = result.slot() {
        slot.0.normalized.replace(Some(rows));
    }
}

/// The normalized rows that a norm keeps of `input`, if a norm made it and nothing has changed it since.
pub(super) fn normalized(input: &Matrix) -> Option<Rc<Normalized>> {
    let slot = input.slot()?;
    let form = slot.0.normalized.borrow();
    form.clone()
}

/// Turns the `values` that a CPU kernel made into a variable. With a live `trace`, records `backward`, which gets the
/// gradient of the result. `backward` does not run if no gradient reached the result.
pub(super) fn record_kernel<S: Shape>(
    values: Vec<f32>,
    shape: S,
    trace: Trace,
    backward: impl FnOnce(Vec<f32>) + 'static,
) -> Variable<S> {
    profile::moved(values.len());
    let slot = Slot::new(values.len());
    let result = Tensor::on_cpu(values, shape);
    let (own, op) = (slot.clone(), profile::current());
    trace.record(move || {
        let upstream = own.take();
        if upstream.is_empty() {
            return Ok(());
        }
        profile::backward(op, || {
            profile::moved(upstream.len());
            backward(upstream);
        });
        Ok(())
    });
    Variable::result(result, trace, slot)
}

/// A tensor on the CPU whose elements an operation overwrites in place.
///
/// Nothing needs the old elements any more, so the result takes over the input's gradient slot as well: the backward
/// pass turns the result's gradient into the input's gradient in place. A tensor that has clones keeps its elements and
/// its gradient; the result is then a new tensor.
pub(super) struct InPlace<S: Shape> {
    values: Vec<f32>,
    shape: S,
    trace: Trace,
    /// The slot of the input's gradient, if it has one.
    input: Option<Slot>,
    /// Where the gradient of the result belongs: the input's slot, unless the input is in use elsewhere.
    own: Slot,
}

impl<S: Shape> InPlace<S> {
    /// Takes the elements of `x` if nothing else holds them, and copies them otherwise.
    pub(super) fn new(x: Variable<S>) -> Self {
        let (mut tensor, trace, input) = x.split();
        let shape = tensor.shape();
        let taken = tensor.own_data().map(std::mem::take);
        let own = match (&taken, &input) {
            (Some(_), Some(slot)) => {
                // The elements are about to change, and the normalized rows would no longer match them.
                slot.0.normalized.replace(None);
                slot.clone()
            }
            _ => Slot::new(shape.num_elements()),
        };
        InPlace {
            values: taken.unwrap_or_else(|| tensor.read()),
            shape,
            trace,
            input,
            own,
        }
    }

    /// Whether the input is recorded.
    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_on()
    }

    /// The elements, to be overwritten.
    pub(super) fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Returns the result. If the input is traced, or the operand that has been `added` to it, records `backward`,
    /// which turns the result's gradient into the input's gradient in place.
    pub(super) fn finish(
        self,
        added: &Trace,
        backward: impl FnOnce(&mut [f32]) + 'static,
    ) -> Variable<S> {
        profile::moved(self.values.len());
        let trace = self.trace.or(added);
        let (own, input, op) = (self.own.clone(), self.input, profile::current());
        trace.record(move || {
            let mut gradient = own.take();
            if gradient.is_empty() {
                return Ok(());
            }
            profile::backward(op, || {
                profile::moved(2 * gradient.len());
                backward(&mut gradient);
                if let Some(slot) = input {
                    slot.add(gradient);
                }
            });
            Ok(())
        });
        Variable::result(Tensor::on_cpu(self.values, self.shape), trace, self.own)
    }
}
