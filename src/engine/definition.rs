//! Turns the dfdx definition of an operation into an operation of this engine.
//!
//! A definition takes and returns dfdx tensors that share a [`SharedTape`], and it runs on any dfdx device. Its gradient
//! for an upstream gradient `g` is the one that dfdx computes for the scalar `Σ g ⊙ y`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};

use dfdx::prelude::{
    Axis, Gradients, HasShape, Merge, NoneTape, PutTape, ReshapeTo, Shape, SplitTape, SumTo, Tape,
    TryAdd, TryMul,
};
use dfdx::tensor::Cpu;

use super::cpu::elementwise::add_to;
#[cfg(feature = "dfdx-cuda")]
use super::cuda::OnCard;
use super::device::Error;
use super::gradient::Slot;
use super::tape::Variable;
use super::tensor::Storage;
use super::{Device, Outcome, Tensor, Trace};

/// The elements of one of our tensors, as a dfdx vector.
pub(super) type Flat<D> = dfdx::prelude::Tensor<(usize,), f32, D>;
/// A tensor inside a definition.
pub(super) type DfdxTensor<S, D> = dfdx::prelude::Tensor<S, f32, D, SharedTape<D>>;
/// An activation or a weight inside a definition.
pub(super) type DfdxMatrix<D> = DfdxTensor<(usize, usize), D>;
/// A vector inside a definition.
pub(super) type DfdxVector<D> = DfdxTensor<(usize,), D>;
/// The result of a definition, or dfdx's error.
pub(super) type DfdxResult<T, D> = Result<T, <D as dfdx::prelude::HasErr>::Err>;

type BackwardOp<D> = Box<dyn FnOnce(&mut Gradients<f32, D>) -> DfdxResult<(), D>>;

/// A dfdx tape that several tensors share, so that a definition may use a tensor more than once. dfdx's own tape
/// belongs to a single tensor, and code that forgets to pass it on loses the gradients.
pub(super) struct SharedTape<D: dfdx::prelude::Storage<f32>>(Rc<RefCell<Vec<Numbered<D>>>>);

/// A backward operation with its position in the order of the forward pass.
type Numbered<D> = (u64, BackwardOp<D>);

impl<D: dfdx::prelude::Storage<f32>> SharedTape<D> {
    /// Runs the recorded operations backwards from `sum`.
    fn backward(sum: DfdxTensor<(), D>) -> DfdxResult<Gradients<f32, D>, D>
    where
        D: dfdx::tensor_ops::Device<f32>,
    {
        let (sum, tape) = sum.split_tape();
        let mut gradients = Gradients::leaky();
        let device = sum.device().clone();
        device.try_fill_with_ones(gradients.get_or_alloc_mut(&sum)?)?;
        // Merging appends one tape's operations to the other's, so their forward order has to be restored.
        let mut operations = tape.0.take();
        operations.sort_by_key(|(number, _)| *number);
        for (_, operation) in operations.into_iter().rev() {
            operation(&mut gradients)?;
        }
        Ok(gradients)
    }
}

impl<D: dfdx::prelude::Storage<f32>> Clone for SharedTape<D> {
    fn clone(&self) -> Self {
        SharedTape(self.0.clone())
    }
}

/// Some dfdx operations start with an empty tape and merge it with their input's tape later.
impl<D: dfdx::prelude::Storage<f32>> Default for SharedTape<D> {
    fn default() -> Self {
        SharedTape(Rc::default())
    }
}

impl<D: dfdx::prelude::Storage<f32>> Merge<SharedTape<D>> for SharedTape<D> {
    fn merge(self, other: Self) -> Self {
        if !Rc::ptr_eq(&self.0, &other.0) {
            self.0.borrow_mut().append(&mut other.0.borrow_mut());
        }
        self
    }
}

impl<D: dfdx::prelude::Storage<f32>> Merge<NoneTape> for SharedTape<D> {
    fn merge(self, _: NoneTape) -> Self {
        self
    }
}

impl<D: dfdx::prelude::Storage<f32>> Tape<f32, D> for SharedTape<D> {
    const OWNS_TAPE: bool = true;

    fn add_backward_op<F>(&mut self, operation: F)
    where
        F: 'static + FnOnce(&mut Gradients<f32, D>) -> Result<(), D::Err>,
    {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        let number = NUMBERS.fetch_add(1, Relaxed);
        self.0.borrow_mut().push((number, Box::new(operation)));
    }
}

/// A dfdx device that definitions run on.
pub(super) trait DfdxDevice: dfdx::tensor_ops::Device<f32> {
    /// The dfdx device behind one of our devices.
    fn of(device: &Device) -> &Self;
    /// Our elements as a dfdx vector: shared if dfdx already holds them, copied if the CPU's kernels do.
    fn from_storage(storage: &Storage) -> Outcome<Flat<Self>>;
    /// dfdx's elements as the storage of our `device`.
    fn into_storage(flat: Flat<Self>, device: &Device) -> Storage;

    /// Runs `work`, alone on the device if dfdx needs that (on a CUDA card).
    fn locked<T>(work: impl FnOnce() -> T) -> T {
        work()
    }

    /// Moves values to the device.
    fn flat_of(device: &Device, values: Vec<f32>) -> Outcome<Flat<Self>> {
        let length = (values.len(),);
        let flat = || Self::of(device).try_tensor_from_vec(values, length);
        Self::locked(flat).map_err(Error::of)
    }
}

impl DfdxDevice for Cpu {
    fn of(_: &Device) -> &Self {
        static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::default);
        &CPU
    }

    fn from_storage(storage: &Storage) -> Outcome<Flat<Cpu>> {
        match storage {
            Storage::Cpu(values) => Cpu::flat_of(&Device::Cpu, values.to_vec()),
            Storage::DfdxCpu(flat) => Ok(flat.clone()),
            #[cfg(feature = "dfdx-cuda")]
            Storage::DfdxCuda(_) => unreachable!("operands lie on one device"),
        }
    }

    fn into_storage(flat: Flat<Cpu>, device: &Device) -> Storage {
        match device {
            Device::Cpu => Storage::Cpu(Arc::new(flat.as_vec())),
            _ => Storage::DfdxCpu(flat),
        }
    }
}

#[cfg(feature = "dfdx-cuda")]
impl DfdxDevice for dfdx::tensor::Cuda {
    fn of(device: &Device) -> &Self {
        match device {
            Device::DfdxCuda(cuda) => cuda,
            _ => unreachable!("only a tensor on the device calls it"),
        }
    }

    fn from_storage(storage: &Storage) -> Outcome<Flat<Self>> {
        match storage {
            Storage::DfdxCuda(flat) => Ok(flat.clone().into_inner()),
            _ => unreachable!("operands lie on one device"),
        }
    }

    fn into_storage(flat: Flat<Self>, _: &Device) -> Storage {
        Storage::DfdxCuda(OnCard::new(flat))
    }

    fn locked<T>(work: impl FnOnce() -> T) -> T {
        super::cuda::with_card_lock(work)
    }
}

impl Storage {
    /// The sum of two storages on the same device.
    pub(super) fn plus(self, other: Storage) -> Outcome<Storage> {
        match (self, other) {
            (Storage::DfdxCpu(x), Storage::DfdxCpu(y)) => {
                x.try_add(y).map(Storage::DfdxCpu).map_err(Error::of)
            }
            #[cfg(feature = "dfdx-cuda")]
            (Storage::DfdxCuda(x), Storage::DfdxCuda(y)) => {
                let sum = super::cuda::with_card_lock(|| x.into_inner().try_add(y.into_inner()));
                sum.map(|sum| Storage::DfdxCuda(OnCard::new(sum)))
                    .map_err(Error::of)
            }
            (Storage::Cpu(x), Storage::Cpu(y)) => {
                let mut sum = Storage::Cpu(x).into_vec();
                add_to(&mut sum, &y);
                Ok(Storage::Cpu(Arc::new(sum)))
            }
            _ => unreachable!("operands lie on one device"),
        }
    }
}

type ReadGradient<D> = Box<dyn Fn(&mut Gradients<f32, D>) -> DfdxResult<Flat<D>, D>>;

/// One call of a definition.
pub(super) struct Invocation<D: DfdxDevice> {
    device: Device,
    tape: SharedTape<D>,
    trace: Trace,
    /// The ids of the inputs so far.
    seen: Vec<u64>,
    /// The slot of each input that needs a gradient, and how to read that gradient from dfdx's.
    inputs: Vec<(Slot, ReadGradient<D>)>,
}

impl<D: DfdxDevice> Invocation<D> {
    pub(super) fn new(device: &Device) -> Self {
        Invocation {
            device: device.clone(),
            tape: SharedTape::default(),
            trace: Trace::off(),
            seen: Vec::new(),
            inputs: Vec::new(),
        }
    }

    fn input<S: Shape>(&mut self, x: &Variable<S>) -> Outcome<DfdxTensor<S, D>> {
        let mut flat = D::from_storage(&x.value.storage)?;
        if self.seen.contains(&x.value.id()) {
            // dfdx assumes that the inputs of an operation are different tensors, so a repeated input is copied.
            flat = flat.try_mul(1.0).map_err(Error::of)?;
        }
        self.seen.push(x.value.id());
        let own = flat.try_reshape_like(&x.shape()).map_err(Error::of)?;
        self.trace = self.trace.clone().or(&x.trace());
        if let Some(slot) = x.slot() {
            let (ghost, length) = (own.ghost(), (x.count(),));
            let read: ReadGradient<D> = Box::new(move |gradients| {
                gradients.get_or_alloc_mut(&ghost)?;
                gradients.get(&ghost).try_reshape_like(&length)
            });
            self.inputs.push((slot, read));
        }
        Ok(own.put_tape(self.tape.clone()))
    }

    /// Turns the result of the definition into a variable and records its backward pass.
    pub(super) fn finish<S: Shape>(
        self,
        result: DfdxResult<DfdxTensor<S, D>, D>,
    ) -> Outcome<Variable<S>> {
        let result = result.map_err(Error::of)?;
        let shape = *result.shape();
        let length = (shape.num_elements(),);
        let flat = result.try_reshape_like(&length).map_err(Error::of)?;
        let (plain, tape) = flat.split_tape();
        let value = Tensor::of(D::into_storage(plain.clone(), &self.device), shape);
        let slot = Slot::new(length.0);
        let Invocation {
            inputs,
            trace,
            device,
            ..
        } = self;
        if trace.is_on() {
            let own = slot.clone();
            trace.record(move || {
                let Some(upstream) = own.take_storage() else {
                    return Ok(());
                };
                D::locked(|| {
                    let upstream = D::from_storage(&upstream)?;
                    let weighted = plain.put_tape(tape).try_mul(upstream);
                    let sum = weighted.and_then(SumTo::try_sum::<(), Axis<0>>);
                    let gradients = sum.and_then(SharedTape::backward);
                    let mut gradients = gradients.map_err(Error::of)?;
                    for (slot, read) in inputs {
                        let gradient = read(&mut gradients).map_err(Error::of)?;
                        slot.add_storage(D::into_storage(gradient, &device))?;
                    }
                    Ok(())
                })
            });
        }
        Ok(Variable::result(value, trace, slot))
    }
}

/// An argument of a definition.
pub(super) trait Input {
    /// The argument in dfdx's tensors on `D`.
    type On<D: DfdxDevice>;
    fn on<D: DfdxDevice>(self, call: &mut Invocation<D>) -> Outcome<Self::On<D>>;
}

impl<S: Shape> Input for &Variable<S> {
    type On<D: DfdxDevice> = DfdxTensor<S, D>;

    fn on<D: DfdxDevice>(self, call: &mut Invocation<D>) -> Outcome<DfdxTensor<S, D>> {
        call.input(self)
    }
}

impl<S: Shape> Input for Variable<S> {
    type On<D: DfdxDevice> = DfdxTensor<S, D>;

    fn on<D: DfdxDevice>(self, call: &mut Invocation<D>) -> Outcome<DfdxTensor<S, D>> {
        call.input(&self)
    }
}

impl<T: Input> Input for Option<T> {
    type On<D: DfdxDevice> = Option<T::On<D>>;

    fn on<D: DfdxDevice>(self, call: &mut Invocation<D>) -> Outcome<Option<T::On<D>>> {
        self.map(|input| input.on(call)).transpose()
    }
}

impl<S: Shape> Input for &[Variable<S>] {
    type On<D: DfdxDevice> = Vec<DfdxTensor<S, D>>;

    fn on<D: DfdxDevice>(self, call: &mut Invocation<D>) -> Outcome<Vec<DfdxTensor<S, D>>> {
        self.iter().map(|input| call.input(input)).collect()
    }
}

/// Runs a definition on the device of its inputs: `run_definition!(x.device(), |x, bias| definition::add(&x, &bias))`.
macro_rules! run_definition {
    ($device:expr, |$($input:ident),+| $definition:expr) => {
        match &$device {
            device @ (Device::Cpu | Device::DfdxCpu) => {
                run_definition!(dfdx::tensor::Cpu, device, |$($input),+| $definition)
            }
            #[cfg(feature = "dfdx-cuda")]
            device @ Device::DfdxCuda(_) => {
                run_definition!(dfdx::tensor::Cuda, device, |$($input),+| $definition)
            }
        }
    };
    ($home:ty, $device:expr, |$($input:ident),+| $definition:expr) => {
        <$home as $crate::definition::DfdxDevice>::locked(|| {
            let mut call = $crate::definition::Invocation::<$home>::new($device);
            $(let $input = $crate::definition::Input::on($input, &mut call)?;)+
            call.finish($definition)
        })
    };
}
pub(super) use run_definition;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backward;

    /// dfdx's softmax starts a tape of its own half-way. The gradient of `Σ g ⊙ softmax(x)` has to be `s ⊙ (g − Σ g ⊙
    /// s)`.
    #[test]
    fn tapes_that_dfdx_begins_half_way_are_joined() {
        let x = Tensor::new(&Device::Cpu, vec![0.3, -1.2, 0.9], (1, 3)).unwrap();
        let trace = Trace::on();
        let traced = x.on(&trace);
        let y = |x: &Variable<(usize, usize)>| -> Outcome<Variable<(usize, usize)>> {
            run_definition!(x.device(), |x| x.try_softmax::<dfdx::shapes::Axis<1>>())
        };
        let g = [2.0, -1.0, 0.5];
        let factors = Tensor::new(&Device::Cpu, g.to_vec(), (1, 3)).unwrap();
        let softmax = y(&traced).unwrap();
        let s = softmax.read();
        let sum = crate::ops::multiply(&softmax, &factors.constant()).unwrap();
        let gradient = backward(sum).unwrap().take(&x);
        let along: f32 = s.iter().zip(g).map(|(s, g)| s * g).sum();
        for (i, found) in gradient.iter().enumerate() {
            assert!((found - s[i] * (g[i] - along)).abs() < 1e-6, "{gradient:?}");
        }
    }
}
