//! The tape: the backward operations of one pass, noted by what depends on something trained.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use dfdx::prelude::Shape;

use super::cpu::Deferred;
use super::gradient::Slot;
use super::{Device, Outcome, Tensor};

type BackwardOp = Box<dyn FnOnce() -> Outcome<()>>;

/// What one pass noted.
#[derive(Default)]
struct Tape {
    /// In the order of the forward pass.
    operations: RefCell<Vec<BackwardOp>>,
    /// Where the gradients of the pass's leaves belong, by the id of the tensor.
    leaves: RefCell<HashMap<u64, Slot>>,
    /// The ids of parameters whose gradients are computed after the pass.
    deferring: BTreeSet<u64>,
    deferred: Deferrals,
}

/// Where parts of gradients are left for after the pass.
pub(super) type Deferrals = Rc<RefCell<Vec<Deferred>>>;

/// A cheap handle on a tape, or nothing.
#[derive(Clone)]
pub struct Trace(Option<Rc<Tape>>);

impl Trace {
    /// A trace that records nothing.
    pub fn off() -> Self {
        Trace(None)
    }

    /// A tape for one forward and one backward pass.
    pub fn on() -> Self {
        Trace::deferring(BTreeSet::new())
    }

    /// The same, where what products and look-ups add to the gradients of some parameters is left to
    /// [`Trace::take_deferred`]: each known by [`Tensor::id`].
    pub fn deferring(parameters: BTreeSet<u64>) -> Self {
        Trace(Some(Rc::new(Tape {
            deferring: parameters,
            ..Tape::default()
        })))
    }

    /// Whether operations are recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The one of two that is live, if one is.
    pub(super) fn or(self, other: &Trace) -> Self {
        Trace(self.0.or_else(|| other.0.clone()))
    }

    /// Notes what is to be done when the backward pass comes back to here.
    pub fn record(&self, operation: impl FnOnce() -> Outcome<()> + 'static) {
        if let Some(tape) = &self.0 {
            tape.operations.borrow_mut().push(Box::new(operation));
        }
    }

    /// Where what is added to the gradient of the parameter with this id is left, if that is computed after the pass.
    pub(super) fn deferrals(&self, id: u64) -> Option<Deferrals> {
        let tape = self.0.as_ref()?;
        tape.deferring.contains(&id).then(|| tape.deferred.clone())
    }

    /// What a backward pass left, in its order.
    pub fn take_deferred(&self) -> Vec<Deferred> {
        let tape = self.0.as_ref();
        tape.map(|tape| tape.deferred.take()).unwrap_or_default()
    }
}

/// A tensor on a tape, or beside it: an activation, a parameter in a pass, a constant.
#[derive(Clone)]
pub struct Variable<S: Shape> {
    pub(super) value: Tensor<S>,
    trace: Trace,
    /// Where its gradient belongs, where it has one.
    slot: Option<Slot>,
}

impl<S: Shape> Variable<S> {
    /// One that no operation made: all of the same tensor share a gradient.
    pub(super) fn leaf(value: Tensor<S>, trace: &Trace) -> Self {
        let slot = trace.0.as_ref().map(|tape| {
            let mut leaves = tape.leaves.borrow_mut();
            let slot = leaves.entry(value.id());
            slot.or_insert_with(|| Slot::new(value.count())).clone()
        });
        Variable {
            value,
            trace: trace.clone(),
            slot,
        }
    }

    /// What an operation made. With a live trace, its gradient goes to `slot`.
    pub(super) fn result(value: Tensor<S>, trace: Trace, slot: Slot) -> Self {
        let slot = trace.is_on().then_some(slot);
        Variable { value, trace, slot }
    }

    /// Its parts.
    pub(super) fn split(self) -> (Tensor<S>, Trace, Option<Slot>) {
        (self.value, self.trace, self.slot)
    }

    /// Where operations on it are recorded.
    pub(super) fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// Where its gradient belongs, if it needs one.
    pub(super) fn slot(&self) -> Option<Slot> {
        self.slot.clone()
    }

    /// The number of elements in each dimension.
    pub fn shape(&self) -> S {
        self.value.shape()
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.value.count()
    }

    /// Where it lies.
    pub fn device(&self) -> Device {
        self.value.device()
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        self.value.read()
    }

    /// The elements of one on the CPU.
    pub(super) fn data(&self) -> &[f32] {
        self.value.data()
    }

    /// The same elements in another shape of as many.
    pub fn reshaped<T: Shape>(&self, shape: T) -> Variable<T> {
        Variable {
            value: self.value.reshaped(shape),
            trace: self.trace.clone(),
            slot: self.slot.clone(),
        }
    }

    /// The value as a constant: no gradient flows through it.
    pub fn detached(&self) -> Self {
        Variable::leaf(self.value.clone(), &Trace::off())
    }
}

/// The gradients of a backward pass.
#[derive(Default)]
pub struct Gradients(HashMap<u64, Slot>);

impl Gradients {
    /// Takes that of a parameter, row by row: zeros where nothing flowed into it.
    pub fn take<S: Shape>(&mut self, parameter: &Tensor<S>) -> Vec<f32> {
        let slot = self.0.remove(&parameter.id());
        let gradient = slot.and_then(|slot| slot.take_storage());
        match gradient {
            Some(gradient) => gradient.into_vec(),
            None => vec![0.0; parameter.count()],
        }
    }
}

/// Runs the recorded operations backwards from `output`, whose gradient is taken to be ones.
///
/// # Errors
/// What the device reports (out of memory).
pub fn backward<S: Shape>(output: Variable<S>) -> Outcome<Gradients> {
    let (value, trace, slot) = output.split();
    let (Some(tape), Some(slot)) = (trace.0, slot) else {
        return Ok(Gradients::default());
    };
    let ones = Tensor::new(&value.device(), vec![1.0; value.count()], value.shape())?;
    slot.add_storage(ones.storage)?;
    drop(value);
    let operations = tape.operations.take();
    for operation in operations.into_iter().rev() {
        operation()?;
    }
    Ok(Gradients(tape.leaves.take()))
}
