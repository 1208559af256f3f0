//! The one place where a kernel meets dfdx's tensors: data in place, a result moved in, a
//! gradient buffer borrowed. Gradients, ids and raw pointers stay inside.

use dfdx::prelude::{
    Cpu, Gradients, HasShape, Merge, PutTape, Shape, SplitTape, Tape, Tensor, TensorFromVec,
};
use dfdx::tensor::CpuError;

use super::rows::add_to;
use crate::engine::{profile, Trace, Weight};

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

/// Gradient buffers during the backward pass.
pub(super) struct Flow<'a>(&'a mut Gradients<f32, Cpu>);

type Lookup =
    Box<dyn for<'a> Fn(&'a mut Gradients<f32, Cpu>) -> Result<&'a mut Vec<f32>, CpuError>>;

/// Where the gradient of one input belongs.
pub(super) struct Slot(Lookup);

/// The slot of an input, or nothing when it needs no gradient.
pub(super) fn slot<S: Shape>(input: &Tensor<S, f32, Cpu, Trace<Cpu>>) -> Option<Slot> {
    is_traced(input).then(|| {
        let ghost = input.ghost();
        Slot(Box::new(move |gradients| {
            Ok(&mut **gradients.get_or_alloc_mut(&ghost)?)
        }))
    })
}

/// The same for a weight.
pub(super) fn weight_slot(weight: &Weight<Cpu>) -> Result<Option<Slot>, CpuError> {
    match weight.trace.is_on() {
        true => Ok(slot(&weight.matrix()?)),
        false => Ok(None),
    }
}

/// Whether operations on this tensor are recorded.
pub(super) fn is_traced<S: Shape>(input: &Tensor<S, f32, Cpu, Trace<Cpu>>) -> bool {
    trace(input).is_on()
}

/// The trace of a tensor.
pub(super) fn trace<S: Shape>(input: &Tensor<S, f32, Cpu, Trace<Cpu>>) -> Trace<Cpu> {
    input.clone().split_tape().1
}

impl Flow<'_> {
    /// The gradient buffer of a slot, to be added to. It is a slice: its length cannot change.
    pub(super) fn get(&mut self, slot: &Slot) -> Result<&mut [f32], CpuError> {
        let gradient = (slot.0)(self.0)?.as_mut_slice();
        profile::moved(2 * gradient.len());
        Ok(gradient)
    }

    /// Takes the gradient buffer of a slot out, to be put back when it has been added to.
    pub(super) fn take(&mut self, slot: &Slot) -> Result<Vec<f32>, CpuError> {
        let gradient = std::mem::take((slot.0)(self.0)?);
        profile::moved(2 * gradient.len());
        Ok(gradient)
    }

    /// Puts it back.
    pub(super) fn put(&mut self, slot: &Slot, gradient: Vec<f32>) -> Result<(), CpuError> {
        *(slot.0)(self.0)? = gradient;
        Ok(())
    }

    /// Adds `values` to the gradient of a slot.
    pub(super) fn add(&mut self, slot: &Slot, values: &[f32]) -> Result<(), CpuError> {
        add_to(self.get(slot)?, values);
        Ok(())
    }
}

/// Moves `values` into a tensor of `shape`. With a live `trace`, `backward` is recorded; it is
/// given the gradient of the result, whose buffer is freed as soon as it has run.
pub(super) fn output<S: Shape>(
    values: Vec<f32>,
    shape: S,
    mut trace: Trace<Cpu>,
    device: &Cpu,
    backward: impl FnOnce(&mut Flow, &[f32]) -> Result<(), CpuError> + 'static,
) -> Result<Tensor<S, f32, Cpu, Trace<Cpu>>, CpuError> {
    profile::moved(values.len());
    profile::kept(if trace.is_on() { values.len() } else { 0 });
    let op = profile::current();
    let result = device.try_tensor_from_vec(values, shape)?;
    let ghost = result.ghost();
    trace.add_backward_op(move |gradients| {
        let upstream: Vec<f32> = std::mem::take(&mut **gradients.get_or_alloc_mut(&ghost)?);
        profile::backward(op, || {
            profile::moved(upstream.len());
            backward(&mut Flow(gradients), &upstream)
        })
    });
    Ok(result.put_tape(trace))
}

/// A tensor whose elements are about to be changed where they lie.
///
/// What it was is needed no more, so its result takes over its gradient buffer as well: the backward pass
/// turns the gradient of the result into that of the input in place. A tensor that has copies keeps its
/// elements and its buffer: the result is then a new one.
pub(super) struct InPlace<S: Shape> {
    tensor: Tensor<S, f32, Cpu>,
    trace: Trace<Cpu>,
    /// Where the gradient of the input belongs, where that is another buffer.
    other: Option<Slot>,
}

impl<S: Shape> InPlace<S> {
    /// Begins with `x`.
    pub(super) fn new(x: Tensor<S, f32, Cpu, Trace<Cpu>>) -> Result<Self, CpuError> {
        let x_slot = slot(&x);
        let (mut tensor, trace) = x.split_tape();
        let before = data(&tensor).as_ptr();
        let values = data_mut(&mut tensor);
        let is_shared = values.as_ptr() != before;
        if is_shared {
            profile::kept(if trace.is_on() { values.len() } else { 0 });
            let values = values.to_vec();
            tensor = tensor
                .device()
                .try_tensor_from_vec(values, *tensor.shape())?;
        }
        Ok(InPlace {
            tensor,
            trace,
            other: x_slot.filter(|_| is_shared),
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
        let (is_own, other) = (self.trace.is_on() && self.other.is_none(), self.other);
        let ghost = self.tensor.ghost();
        let op = profile::current();
        let mut trace = self.trace.merge(added);
        trace.add_backward_op(move |gradients| {
            let mut gradient = std::mem::take(&mut **gradients.get_or_alloc_mut(&ghost)?);
            profile::backward(op, || {
                let mut flow = Flow(gradients);
                profile::moved(2 * gradient.len());
                backward(&mut flow, &mut gradient)?;
                match &other {
                    Some(slot) => flow.add(slot, &gradient),
                    None => Ok(()),
                }
            })?;
            if is_own {
                **gradients.get_or_alloc_mut(&ghost)? = gradient;
            }
            Ok(())
        });
        self.tensor.put_tape(trace)
    }
}
