//! The one place where a kernel meets dfdx's tensors: data in place, a result moved in. Raw pointers stay
//! inside.

use std::rc::Rc;

use dfdx::prelude::{Cpu, HasShape, Merge, PutTape, Shape, SplitTape, Tape, Tensor, TensorFromVec};
use dfdx::tensor::CpuError;

use super::gradient::{slot, trace, Buffer, Flow, Slot};
use crate::engine::{profile, Trace};

/// The elements of a contiguous tensor, row by row, in place.
///
/// Every tensor that reaches a kernel was made by [`output`] or by `tensor_from_vec`, never by a
/// dfdx view (broadcast, permute), whose storage is shorter than its shape or in another order.
pub(super) fn data<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> &[f32] {
    let length = tensor.shape().num_elements();
    if length == 0 {
        return &[];
    }
    let first: &f32 = &tensor[S::Concrete::default()];
    let last_index = {
        let mut last = tensor.shape().concrete();
        for i in 0..S::NUM_DIMS {
            last[i] -= 1;
        }
        last
    };
    let last: &f32 = &tensor[last_index];
    let span = (last as *const f32 as usize - first as *const f32 as usize) / 4 + 1;
    assert_eq!(
        span, length,
        "a kernel was given a tensor that is not contiguous"
    );
    // SAFETY: `first` and `last` both point into the tensor's one `Vec<f32>`, `span` elements
    // apart, so all elements between them are initialized and live as long as `tensor`.
    unsafe { std::slice::from_raw_parts(first, length) }
}

/// The same, to be written; a storage that other tensors share is copied first.
pub(super) fn data_mut<S: Shape>(tensor: &mut Tensor<S, f32, Cpu>) -> &mut [f32] {
    let length = data(tensor).len();
    if length == 0 {
        return &mut [];
    }
    let first: *mut f32 = &mut tensor[S::Concrete::default()];
    // SAFETY: `data` has just asserted that all `length` elements lie behind the first one in the
    // tensor's one `Vec<f32>`; indexing has made it this tensor's own, which is borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(first, length) }
}

/// Moves `values` into a tensor of `shape`. With a live `trace`, `backward` is recorded; it is
/// given the gradient of the result, unless nothing flowed into that.
pub(super) fn output<S: Shape>(
    values: Vec<f32>,
    shape: S,
    mut trace: Trace<Cpu>,
    device: &Cpu,
    backward: impl FnOnce(&mut Flow, Vec<f32>) -> Result<(), CpuError> + 'static,
) -> Result<Tensor<S, f32, Cpu, Trace<Cpu>>, CpuError> {
    profile::moved(values.len());
    let op = profile::current();
    let result = device.try_tensor_from_vec(values, shape)?;
    if !trace.is_on() {
        return Ok(result.put_tape(trace));
    }
    let buffer = Rc::new(Buffer::default());
    let own = Slot::new(&result, Some(buffer.clone()));
    trace.add_backward_op(move |gradients| {
        let mut flow = Flow::new(gradients);
        let upstream = flow.take(&own)?;
        if upstream.is_empty() {
            return Ok(());
        }
        profile::backward(op, || {
            profile::moved(upstream.len());
            backward(&mut flow, upstream)
        })
    });
    Ok(result.put_tape(trace.with_buffer(Some(buffer))))
}

/// A tensor whose elements are about to be changed where they lie.
///
/// What it was is needed no more, so its result takes over its gradient buffer as well: the backward pass
/// turns the gradient of the result into that of the input in place. A tensor that has copies keeps its
/// elements and its buffer: the result is then a new one.
pub(super) struct InPlace<S: Shape> {
    tensor: Tensor<S, f32, Cpu>,
    trace: Trace<Cpu>,
    /// Where the gradient of the input belongs.
    input: Option<Slot>,
    /// Where that of the result belongs: the same place, unless the input is in use elsewhere.
    buffer: Rc<Buffer>,
}

impl<S: Shape> InPlace<S> {
    /// Begins with `x`.
    pub(super) fn new(x: Tensor<S, f32, Cpu, Trace<Cpu>>) -> Result<Self, CpuError> {
        let (input, trace) = (slot(&x), trace(&x));
        let (mut tensor, on_input) = x.split_tape();
        let before = data(&tensor).as_ptr();
        let values = data_mut(&mut tensor);
        let is_shared = values.as_ptr() != before;
        if is_shared {
            let values = values.to_vec();
            tensor = tensor
                .device()
                .try_tensor_from_vec(values, *tensor.shape())?;
        }
        let buffer = match on_input.buffer() {
            Some(own) if !is_shared => {
                own.forget_form();
                own.clone()
            }
            _ => Rc::default(),
        };
        Ok(InPlace {
            tensor,
            trace,
            input,
            buffer,
        })
    }

    /// Whether the input is recorded.
    pub(super) fn is_traced(&self) -> bool {
        self.trace.is_on()
    }

    /// The elements so far.
    pub(super) fn values(&mut self) -> &mut [f32] {
        data_mut(&mut self.tensor)
    }

    /// The result. With a live trace of the input or of what has been `added` to it, `backward` is
    /// recorded: it is given the gradient of the result and leaves that of the input.
    pub(super) fn finish(
        self,
        added: Trace<Cpu>,
        backward: impl FnOnce(&mut Flow, &mut [f32]) -> Result<(), CpuError> + 'static,
    ) -> Tensor<S, f32, Cpu, Trace<Cpu>> {
        profile::moved(data(&self.tensor).len());
        let mut trace = self.trace.merge(added);
        if !trace.is_on() {
            return self.tensor.put_tape(trace);
        }
        let own = Slot::new(&self.tensor, Some(self.buffer.clone()));
        let (input, op) = (self.input, profile::current());
        trace.add_backward_op(move |gradients| {
            let mut flow = Flow::new(gradients);
            let mut gradient = flow.take(&own)?;
            if gradient.is_empty() {
                return Ok(());
            }
            profile::backward(op, || {
                profile::moved(2 * gradient.len());
                backward(&mut flow, &mut gradient)?;
                match &input {
                    Some(slot) => flow.add(slot, gradient),
                    None => Ok(()),
                }
            })
        });
        self.tensor.put_tape(trace.with_buffer(Some(self.buffer)))
    }
}
