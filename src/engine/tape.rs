//! The tape: the backward operations of one pass, recorded by every operation that depends on something trained.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use dfdx::prelude::Shape;

use super::cpu::Deferred;
use super::gradient::Slot;
use super::{Device, Outcome, Tensor};

type BackwardOp = Box<dyn FnOnce() -> Outcome<()>>;

/// The operations and gradients of one pass.
#[derive(Default)]
struct Tape {
    /// In the order of the forward pass.
    operations: RefCell<Vec<BackwardOp>>,
    /// The gradient slot of each leaf of the pass, by the id of its tensor.
    leaves: RefCell<HashMap<u64, Slot>>,
    /// The ids of parameters whose gradients are computed after the pass.
    deferring: BTreeSet<u64>,
    deferred: Deferrals,
}

/// The parts of gradients that are left for after the pass.
pub(super) type Deferrals = Rc<RefCell<Vec<Deferred>>>;

/// A cheap handle to a tape, or to none.
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

    /// Like [`Trace::on`], but products and look-ups leave their contributions to the gradients of `parameters`, known
    /// by [`Tensor::id`], to [`Trace::take_deferred`].
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

    /// The first of the two traces that is live, if either is.
    pub(super) fn or(self, other: &Trace) -> Self {
        Trace(self.0.or_else(|| other.0.clone()))
    }

    /// Records `operation`, to be run when the backward pass reaches this point.
    pub fn record(&self, operation: impl FnOnce() -> Outcome<()> + 'static) {
        if let Some(tape) = &self.0 {
            tape.operations.borrow_mut().push(Box::new(operation));
        }
    }

    /// Where to leave contributions to the gradient of the parameter with this id, if that gradient is computed after
    /// the pass.
    pub(super) fn deferrals(&self, id: u64) -> Option<Deferrals> {
        let tape = self.0.as_ref()?;
        tape.deferring.contains(&id).then(|| tape.deferred.clone())
    }

    /// The number of operations that are recorded and have not run.
    pub fn recorded(&self) -> usize {
        let tape = self.0.as_ref();
        tape.map_or(0, |tape| tape.operations.borrow().len())
    }

    /// Forgets all operations but the first `count`, and with them the activations that they keep.
    pub fn forget(&self, count: usize) {
        if let Some(tape) = &self.0 {
            tape.operations.borrow_mut().truncate(count);
        }
    }

    /// Runs all operations but the first `count`, the last one first.
    ///
    /// # Errors
    /// What the device reports (out of memory).
    pub fn run_back(&self, count: usize) -> Outcome<()> {
        let Some(tape) = &self.0 else {
            return Ok(());
        };
        while tape.operations.borrow().len() > count {
            let last = tape.operations.borrow_mut().pop();
            last.map_or(Ok(()), |operation| operation())?;
        }
        Ok(())
    }

    /// Takes the gradients that a backward pass left.
    pub fn gradients(&self) -> Gradients {
        let leaves = self.0.as_ref().map(|tape| tape.leaves.take());
        Gradients(leaves.unwrap_or_default())
    }

    /// Takes the contributions that a backward pass left, in its order.
    pub fn take_deferred(&self) -> Vec<Deferred> {
        let tape = self.0.as_ref();
        tape.map(|tape| tape.deferred.take()).unwrap_or_default()
    }
}

/// A tensor that may be on a tape: an activation, a parameter in a pass, or a constant.
#[derive(Clone)]
pub struct Variable<S: Shape> {
    pub(super) value: Tensor<S>,
    trace: Trace,
    /// The slot of its gradient, if it has one.
    slot: Option<Slot>,
}

impl<S: Shape> Variable<S> {
    /// A variable that no operation made. All leaves of the same tensor on a tape share a gradient.
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

    /// The result of an operation. With a live trace, its gradient goes to `slot`.
    pub(super) fn result(value: Tensor<S>, trace: Trace, slot: Slot) -> Self {
        let slot = trace.is_on().then_some(slot);
        Variable { value, trace, slot }
    }

    /// Splits it into its value, its trace and its slot.
    pub(super) fn split(self) -> (Tensor<S>, Trace, Option<Slot>) {
        (self.value, self.trace, self.slot)
    }

    /// The tape that records operations on it.
    pub(super) fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// The slot of its gradient, if it needs one.
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

    /// The device that holds it.
    pub fn device(&self) -> Device {
        self.value.device()
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        self.value.read()
    }

    /// Like [`Variable::read`], but without a copy if the device is the host.
    pub(super) fn view(&self) -> std::borrow::Cow<'_, [f32]> {
        self.value.view()
    }

    /// The elements of a variable on the CPU.
    pub(super) fn data(&self) -> &[f32] {
        self.value.data()
    }

    /// The same elements in another shape, with the same number of elements.
    pub fn reshaped<T: Shape>(&self, shape: T) -> Variable<T> {
        Variable {
            value: self.value.reshaped(shape),
            trace: self.trace.clone(),
            slot: self.slot.clone(),
        }
    }

    /// Whether operations on it are recorded.
    pub fn is_traced(&self) -> bool {
        self.trace.is_on()
    }

    /// The same value with a gradient of its own, which the operation that made the value never sees.
    pub fn apart(self) -> Self {
        let slot = Slot::new(self.count());
        Variable::result(self.value, self.trace, slot)
    }

    /// Starts a backward pass here, with a gradient of ones.
    ///
    /// # Errors
    /// What the device reports (out of memory).
    pub fn start_backward(&self) -> Outcome<()> {
        let Some(slot) = &self.slot else {
            return Ok(());
        };
        let ones = vec![1.0; self.value.count()];
        let ones = Tensor::new(&self.value.device(), ones, self.value.shape())?;
        slot.add_storage(ones.storage)
    }

    /// Adds the gradient of `other`, a variable of the same shape, and takes it from there.
    ///
    /// # Errors
    /// What the device reports (out of memory).
    pub fn take_gradient(&self, other: &Self) -> Outcome<()> {
        let gradient = other.slot.as_ref().and_then(Slot::take_storage);
        match (&self.slot, gradient) {
            (Some(slot), Some(gradient)) => slot.add_storage(gradient),
            _ => Ok(()),
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
    /// Takes the gradient of a parameter, row by row; zeros if no gradient reached it.
    pub fn take<S: Shape>(&mut self, parameter: &Tensor<S>) -> Vec<f32> {
        let slot = self.0.remove(&parameter.id());
        let gradient = slot.and_then(|slot| slot.take_storage());
        match gradient {
            Some(gradient) => gradient.into_vec(),
            None => vec![0.0; parameter.count()],
        }
    }
}

/// Runs the recorded operations backwards from `output`, starting with a gradient of ones.
///
/// # Errors
/// What the device reports (out of memory).
pub fn backward<S: Shape>(output: Variable<S>) -> Outcome<Gradients> {
    output.start_backward()?;
    let trace = output.trace();
    drop(output);
    trace.run_back(0)?;
    Ok(trace.gradients())
}
