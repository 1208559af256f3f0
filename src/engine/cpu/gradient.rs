//! Gradients on their way back.
//!
//! dfdx keeps the gradients of a pass in a map and makes each of zeros, to be added to. Those of the results
//! of kernels are here instead, made by the first operation that has something to add: most get nothing
//! else.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use dfdx::prelude::{Cpu, Gradients, Shape, SplitTape, Tensor};
use dfdx::tensor::CpuError;

use super::bridge::data;
use super::helpers::share_elements;
use super::norm::Normalized;
use super::rows::add_to;
use crate::engine::{profile, Matrix, Trace, Weight};

/// The gradient of one result, between the backward passes of what uses it and its own.
#[derive(Default)]
pub(in crate::engine) struct Buffer {
    /// Empty while nothing was added.
    values: RefCell<Vec<f32>>,
    /// The gradient is in dfdx's map instead.
    is_left_to_map: Cell<bool>,
    /// The result in a form that is kept anyway, so that who needs it later need not keep it too.
    form: RefCell<Option<Rc<Normalized>>>,
}

impl Buffer {
    /// Notes in the forward pass that operations of dfdx will add to the gradient, which know of their map
    /// alone: it will be kept there.
    pub(in crate::engine) fn leave_to_map(&self) {
        self.is_left_to_map.set(true);
    }

    /// Its tensor is about to be changed: it then is not what it was.
    pub(super) fn forget_form(&self) {
        self.form.replace(None);
    }
}

/// Notes in which form the elements of `result` are kept.
pub(super) fn set_form(result: &Matrix<Cpu>, form: Rc<Normalized>) {
    let (_, trace) = result.clone().split_tape();
    if let Some(buffer) = trace.buffer() {
        buffer.form.replace(Some(form));
    }
}

/// The form in which the elements of `input` are kept, if they are.
pub(super) fn form(input: &Matrix<Cpu>) -> Option<Rc<Normalized>> {
    let (_, trace) = input.clone().split_tape();
    trace
        .buffer()
        .and_then(|buffer| buffer.form.borrow().clone())
}

type Map = Gradients<f32, Cpu>;
type Lookup = Box<dyn for<'a> Fn(&'a mut Map) -> Result<&'a mut Vec<f32>, CpuError>>;

/// Where the gradient of one tensor belongs.
pub(super) struct Slot {
    /// Elements.
    length: usize,
    buffer: Option<Rc<Buffer>>,
    in_map: Lookup,
}

impl Slot {
    /// That of a tensor whose gradient is in `buffer`, or else in dfdx's map alone.
    pub(super) fn new<S: Shape, T>(
        tensor: &Tensor<S, f32, Cpu, T>,
        buffer: Option<Rc<Buffer>>,
    ) -> Self {
        let ghost = tensor.ghost();
        Slot {
            length: data(tensor).len(),
            buffer,
            in_map: Box::new(move |map| Ok(&mut **map.get_or_alloc_mut(&ghost)?)),
        }
    }

    /// The place of its own, unless operations of dfdx add to the gradient too.
    fn own(&self) -> Option<&RefCell<Vec<f32>>> {
        let buffer = self.buffer.as_ref()?;
        (!buffer.is_left_to_map.get()).then_some(&buffer.values)
    }
}

/// The slot of an input, or nothing when it needs no gradient.
pub(super) fn slot<S: Shape>(input: &Tensor<S, f32, Cpu, Trace<Cpu>>) -> Option<Slot> {
    let (_, trace) = input.clone().split_tape();
    let buffer = trace.buffer().cloned();
    trace.is_on().then(|| Slot::new(input, buffer))
}

/// The same for a weight.
pub(super) fn weight_slot(weight: &Weight<Cpu>) -> Result<Option<Slot>, CpuError> {
    match weight.trace.is_on() {
        true => Ok(slot(&weight.matrix()?)),
        false => Ok(None),
    }
}

/// Where operations on this tensor are recorded: a trace for what a kernel makes of it.
pub(super) fn trace<S: Shape>(input: &Tensor<S, f32, Cpu, Trace<Cpu>>) -> Trace<Cpu> {
    input.clone().split_tape().1.with_buffer(None)
}

/// The gradients of a pass.
pub(super) struct Flow<'a>(&'a mut Map);

impl<'a> Flow<'a> {
    pub(super) fn new(map: &'a mut Map) -> Self {
        Flow(map)
    }

    /// Takes a gradient out: nothing where nothing was added to it.
    pub(super) fn take(&mut self, slot: &Slot) -> Result<Vec<f32>, CpuError> {
        Ok(match slot.own() {
            Some(own) => own.take(),
            None => std::mem::take((slot.in_map)(self.0)?),
        })
    }

    fn put(&mut self, slot: &Slot, gradient: Vec<f32>) -> Result<(), CpuError> {
        assert_eq!(gradient.len(), slot.length, "a gradient of another length");
        match slot.own() {
            Some(own) => *own.borrow_mut() = gradient,
            None => *(slot.in_map)(self.0)? = gradient,
        }
        Ok(())
    }

    /// Adds `values` to a gradient.
    pub(super) fn add(&mut self, slot: &Slot, values: Vec<f32>) -> Result<(), CpuError> {
        let mut gradient = self.take(slot)?;
        if gradient.is_empty() {
            gradient = values;
        } else {
            profile::moved(2 * gradient.len());
            share_elements(&mut gradient, &values, add_to);
        }
        self.put(slot, gradient)
    }

    /// Makes a gradient, or adds to what there is of it.
    pub(super) fn make_or_add(
        &mut self,
        slot: &Slot,
        make: impl FnOnce() -> Vec<f32>,
        add: impl FnOnce(&mut [f32]),
    ) -> Result<(), CpuError> {
        let mut gradient = self.take(slot)?;
        if gradient.is_empty() {
            gradient = make();
            profile::moved(gradient.len());
        } else {
            profile::moved(2 * gradient.len());
            add(&mut gradient);
        }
        self.put(slot, gradient)
    }

    /// Adds to a gradient, which is zeros where there was none. It is a slice: its length cannot change.
    pub(super) fn add_in_place(
        &mut self,
        slot: &Slot,
        add: impl FnOnce(&mut [f32]),
    ) -> Result<(), CpuError> {
        let mut gradient = self.take(slot)?;
        gradient.resize(slot.length, 0.0);
        profile::moved(2 * gradient.len());
        add(&mut gradient);
        self.put(slot, gradient)
    }
}
