//! The run-time tape: a tensor carries a recorder exactly when it depends on something trained.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::cpu::{Buffer, Deferred};
use dfdx::prelude::{Gradients, HasErr, Merge, NoneTape, PutTape, Shape, Storage, Tape, Tensor};

type BackwardOp<D> =
    Box<dyn FnOnce(&mut Gradients<f32, D>) -> Result<(), <D as HasErr>::Err> + 'static>;

/// Where the backward operations of one pass are noted, in the order of the forward pass.
pub struct Recorder<D: Storage<f32>> {
    operations: RefCell<Vec<BackwardOp<D>>>,
    /// The addresses of parameters whose gradients are computed after the pass.
    deferring: BTreeSet<usize>,
    deferred: RefCell<Vec<Deferred>>,
}

impl<D: Storage<f32>> Recorder<D> {
    /// A recorder for one forward and one backward pass.
    #[allow(clippy::new_ret_no_self)]
    pub fn new() -> Trace<D> {
        Recorder::deferring(BTreeSet::new())
    }

    /// The same, where what products and look-ups add to the gradients of some parameters is left to
    /// [`Trace::take_deferred`]: each known by [`super::Backend::address`].
    pub fn deferring(addresses: BTreeSet<usize>) -> Trace<D> {
        Trace {
            recorder: Some(Rc::new(Recorder {
                operations: RefCell::default(),
                deferring: addresses,
                deferred: RefCell::default(),
            })),
            buffer: None,
        }
    }
}

/// A cheap handle on a [`Recorder`], or nothing. dfdx's tapes are a matter of types; this one is
/// a matter of run time, so that one graph serves every choice of what is trained.
///
/// Its default is "off". dfdx's `softmax`, `log_softmax`, `normalize`, `var` and `prelu` put a
/// default tape on a tensor half-way, which would cut the gradient in silence: the engine does
/// not build on them.
pub struct Trace<D: Storage<f32>> {
    recorder: Option<Rc<Recorder<D>>>,
    /// Where the gradient of the tensor that it is on belongs, where that is not dfdx's map of gradients.
    buffer: Option<Rc<Buffer>>,
}

impl<D: Storage<f32>> Trace<D> {
    /// A trace that records nothing.
    pub fn off() -> Self {
        Trace {
            recorder: None,
            buffer: None,
        }
    }

    /// Whether operations on this tensor are recorded.
    pub fn is_on(&self) -> bool {
        self.recorder.is_some()
    }

    /// The same for a tensor whose gradient belongs in `buffer`.
    pub(super) fn with_buffer(self, buffer: Option<Rc<Buffer>>) -> Self {
        Trace { buffer, ..self }
    }

    /// Where the gradient of this tensor belongs, if not in dfdx's map of gradients.
    pub(super) fn buffer(&self) -> Option<&Rc<Buffer>> {
        self.buffer.as_ref()
    }

    /// An operation of dfdx takes the tensor: it knows of the map alone, and what it computes is another
    /// tensor.
    fn taken_by_dfdx(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            buffer.leave_to_map();
        }
    }

    /// Whether the gradient of the parameter at this address is computed after the pass.
    pub(super) fn defers(&self, address: usize) -> bool {
        let recorder = self.recorder.as_ref();
        recorder.is_some_and(|recorder| recorder.deferring.contains(&address))
    }

    /// Leaves a part of a gradient for after the pass.
    pub(super) fn defer(&self, part: Deferred) {
        if let Some(recorder) = &self.recorder {
            recorder.deferred.borrow_mut().push(part);
        }
    }

    /// What a backward pass left, in its order.
    pub fn take_deferred(&self) -> Vec<Deferred> {
        self.recorder
            .as_ref()
            .map(|recorder| recorder.deferred.take())
            .unwrap_or_default()
    }
}

impl<D: Storage<f32>> Clone for Trace<D> {
    fn clone(&self) -> Self {
        Trace {
            recorder: self.recorder.clone(),
            buffer: self.buffer.clone(),
        }
    }
}

impl<D: Storage<f32>> Default for Trace<D> {
    fn default() -> Self {
        Trace::off()
    }
}

impl<D: Storage<f32>> std::fmt::Debug for Trace<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_on() { "recorded" } else { "off" })
    }
}

impl<D: Storage<f32>> Merge<Trace<D>> for Trace<D> {
    fn merge(mut self, mut other: Trace<D>) -> Self {
        self.taken_by_dfdx();
        other.taken_by_dfdx();
        Trace {
            recorder: self.recorder.or(other.recorder),
            buffer: None,
        }
    }
}

impl<D: Storage<f32>> Merge<NoneTape> for Trace<D> {
    fn merge(self, _: NoneTape) -> Self {
        self
    }
}

impl<D: Storage<f32>> Tape<f32, D> for Trace<D> {
    const OWNS_TAPE: bool = true;

    fn add_backward_op<F>(&mut self, operation: F)
    where
        F: 'static + FnOnce(&mut Gradients<f32, D>) -> Result<(), D::Err>,
    {
        self.taken_by_dfdx();
        if let Some(recorder) = &self.recorder {
            recorder.operations.borrow_mut().push(Box::new(operation));
        }
    }
}

/// `tensor` with `trace` on it: gradients are stored under the tensor's own id.
pub fn with_trace<S: Shape, D: Storage<f32>>(
    tensor: &Tensor<S, f32, D>,
    trace: &Trace<D>,
) -> Tensor<S, f32, D, Trace<D>> {
    tensor.clone().put_tape(trace.clone().with_buffer(None))
}

/// Runs the recorded operations backwards from `output`, a tensor whose gradient is taken to be
/// ones, and returns all gradients.
///
/// # Errors
/// What the device reports (out of memory).
pub fn backward<S: Shape, D: super::Backend>(
    output: Tensor<S, f32, D, Trace<D>>,
) -> Result<Gradients<f32, D>, D::Err> {
    use dfdx::prelude::SplitTape;
    let (output, mut trace) = output.split_tape();
    trace.taken_by_dfdx();
    let mut gradients = Gradients::leaky();
    let Some(recorder) = trace.recorder else {
        return Ok(gradients);
    };
    let device = output.device().clone();
    device.try_fill_with_ones(gradients.get_or_alloc_mut(&output)?)?;
    let operations = recorder.operations.take();
    for operation in operations.into_iter().rev() {
        operation(&mut gradients)?;
    }
    Ok(gradients)
}
