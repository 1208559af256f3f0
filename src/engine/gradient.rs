//! Gradients on their way back: each is made by the first operation that has something to add, and most get nothing
//! else.

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

/// Where the gradient of one tensor belongs, between the backward passes of what uses it and its own.
#[derive(Clone)]
pub(super) struct Slot(Rc<Buffer>);

struct Buffer {
    /// Elements.
    length: usize,
    /// Nothing while nothing was added.
    gradient: RefCell<Option<Storage>>,
    /// The tensor in a form that is kept anyway, so that who needs it later need not keep it too.
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

    /// Takes the gradient out: nothing where nothing was added to it.
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

    /// Takes the gradient of a tensor on the CPU: empty where nothing was added to it.
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

    /// Adds `values`.
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

    /// Makes the gradient, or adds to what there is of it.
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

    /// Adds to the gradient, which is zeros where there was none. It is a slice: its length cannot change.
    pub(super) fn add_in_place(&self, add: impl FnOnce(&mut [f32])) {
        let mut gradient = self.take();
        gradient.resize(self.0.length, 0.0);
        profile::moved(2 * gradient.len());
        add(&mut gradient);
        self.put(gradient);
    }
}

/// Notes in which form the elements of `result` are kept.
pub(super) fn set_normalized(result: &Matrix, rows: Rc<Normalized>) {
    if let Some(slot) = result.slot() {
        slot.0.normalized.replace(Some(rows));
    }
}

/// The form in which the elements of `input` are kept, if they are.
pub(super) fn normalized(input: &Matrix) -> Option<Rc<Normalized>> {
    let slot = input.slot()?;
    let form = slot.0.normalized.borrow();
    form.clone()
}

/// What a kernel of the CPU made. With a live `trace`, `backward` is recorded; it is given the gradient of the result,
/// unless nothing flowed into that.
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

/// A tensor on the CPU whose elements are about to be changed where they lie.
///
/// What it was is needed no more, so its result takes over its gradient as well: the backward pass turns the gradient
/// of the result into that of the input in place. A tensor that has clones keeps its elements and its gradient: the
/// result is then a new one.
pub(super) struct InPlace<S: Shape> {
    values: Vec<f32>,
    shape: S,
    trace: Trace,
    /// Where the gradient of the input belongs.
    input: Option<Slot>,
    /// Where that of the result belongs: the same place, unless the input is in use elsewhere.
    own: Slot,
}

impl<S: Shape> InPlace<S> {
    /// Begins with `x`.
    pub(super) fn new(x: Variable<S>) -> Self {
        let (mut tensor, trace, input) = x.split();
        let shape = tensor.shape();
        let taken = tensor.own_data().map(std::mem::take);
        let own = match (&taken, &input) {
            (Some(_), Some(slot)) => {
                // The tensor then is not what it was.
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

    /// The elements so far.
    pub(super) fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The result. With a live trace of the input or of what has been `added` to it, `backward` is
    /// recorded: it is given the gradient of the result and leaves that of the input.
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
