//! Tensors: a shape, and elements on a device that is known at run time.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

use dfdx::prelude::Shape;

#[cfg(feature = "dfdx-cuda")]
use super::cuda::OnCard;
use super::definition::{DfdxDevice, Flat};
use super::tape::Variable;
use super::{Device, Outcome, Trace};

/// A tensor of f32 elements, row by row. A clone shares the elements and is the same tensor to a tape.
#[derive(Clone)]
pub struct Tensor<S: Shape> {
    id: u64,
    shape: S,
    pub(super) storage: Storage,
}

/// The elements, on their device. A further number format, or kernels for a further device, would be another variant.
#[derive(Clone)]
pub(super) enum Storage {
    Cpu(Arc<Vec<f32>>),
    DfdxCpu(Flat<dfdx::tensor::Cpu>),
    #[cfg(feature = "dfdx-cuda")]
    DfdxCuda(OnCard<Flat<dfdx::tensor::Cuda>>),
}

impl<S: Shape> Tensor<S> {
    /// Moves `values` to a device.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn new(device: &Device, values: Vec<f32>, shape: S) -> Outcome<Self> {
        Storage::new(device, values).map(|storage| Tensor::of(storage, shape))
    }

    pub(super) fn of(storage: Storage, shape: S) -> Self {
        assert_eq!(
            storage.len(),
            shape.num_elements(),
            "tensor: elements and shape disagree"
        );
        let id = new_id();
        Tensor { id, shape, storage }
    }

    /// A new tensor, with an id of its own, that starts with the same elements.
    pub fn copied(&self) -> Self {
        Tensor::of(self.storage.clone(), self.shape)
    }

    /// A tensor on the CPU.
    pub(super) fn on_cpu(values: Vec<f32>, shape: S) -> Self {
        Tensor::of(Storage::Cpu(Arc::new(values)), shape)
    }

    /// The id of the tensor. Clones and reshaped tensors share it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The number of elements in each dimension.
    pub fn shape(&self) -> S {
        self.shape
    }

    /// The number of elements.
    pub fn count(&self) -> usize {
        self.storage.len()
    }

    /// The device that holds it.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::DfdxCpu(_) => Device::DfdxCpu,
            #[cfg(feature = "dfdx-cuda")]
            Storage::DfdxCuda(flat) => Device::DfdxCuda(OnCard::new(flat.device().clone())),
        }
    }

    /// The same elements in another shape, with the same number of elements.
    pub fn reshaped<T: Shape>(&self, shape: T) -> Tensor<T> {
        let (id, storage) = (self.id, self.storage.clone());
        assert_eq!(storage.len(), shape.num_elements(), "reshaped: as many");
        Tensor { id, shape, storage }
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        self.view().into_owned()
    }

    /// Like [`Tensor::read`], but borrows the elements if the host can access them in place.
    pub fn view(&self) -> Cow<'_, [f32]> {
        self.storage.view()
    }

    /// The elements of a tensor on the CPU.
    pub(super) fn data(&self) -> &[f32] {
        match &self.storage {
            Storage::Cpu(values) => values,
            _ => unreachable!("a kernel of the CPU is given tensors of the CPU"),
        }
    }

    /// The elements of a tensor on the CPU, to be overwritten; `None` if something else holds them.
    pub(super) fn own_data(&mut self) -> Option<&mut Vec<f32>> {
        match &mut self.storage {
            Storage::Cpu(values) => Arc::get_mut(values),
            _ => unreachable!("a kernel of the CPU is given tensors of the CPU"),
        }
    }

    /// Changes the elements. The tensor keeps its id.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) -> Outcome<()> {
        if let Storage::Cpu(values) = &mut self.storage {
            change(Arc::make_mut(values).as_mut_slice());
            return Ok(());
        }
        let mut values = self.read();
        change(&mut values);
        self.storage = Storage::new(&self.device(), values)?;
        Ok(())
    }

    /// The tensor as a leaf of a tape. It gets a gradient if `trace` is live.
    pub fn on(&self, trace: &Trace) -> Variable<S> {
        Variable::leaf(self.clone(), trace)
    }

    /// The tensor as a constant.
    pub fn constant(self) -> Variable<S> {
        Variable::leaf(self, &Trace::off())
    }
}

fn new_id() -> u64 {
    static IDS: AtomicU64 = AtomicU64::new(0);
    IDS.fetch_add(1, Relaxed)
}

impl Storage {
    fn new(device: &Device, values: Vec<f32>) -> Outcome<Self> {
        Ok(match device {
            Device::Cpu => Storage::Cpu(Arc::new(values)),
            Device::DfdxCpu => Storage::DfdxCpu(dfdx::tensor::Cpu::flat_of(device, values)?),
            #[cfg(feature = "dfdx-cuda")]
            Device::DfdxCuda(_) => {
                let flat = dfdx::tensor::Cuda::flat_of(device, values)?;
                Storage::DfdxCuda(OnCard::new(flat))
            }
        })
    }

    fn len(&self) -> usize {
        use dfdx::prelude::HasShape;
        match self {
            Storage::Cpu(values) => values.len(),
            Storage::DfdxCpu(flat) => flat.shape().0,
            #[cfg(feature = "dfdx-cuda")]
            Storage::DfdxCuda(flat) => flat.shape().0,
        }
    }

    fn view(&self) -> Cow<'_, [f32]> {
        match self {
            Storage::Cpu(values) => Cow::Borrowed(values),
            Storage::DfdxCpu(flat) => Cow::Owned(flat.as_vec()),
            #[cfg(feature = "dfdx-cuda")]
            Storage::DfdxCuda(flat) => Cow::Owned(super::cuda::with_card_lock(|| flat.as_vec())),
        }
    }

    /// The elements on the host. They are moved, not copied, if they are there already and nothing else holds them.
    pub(super) fn into_vec(self) -> Vec<f32> {
        match self {
            Storage::Cpu(values) => Arc::try_unwrap(values).unwrap_or_else(|v| v.to_vec()),
            other => other.view().into_owned(),
        }
    }
}
