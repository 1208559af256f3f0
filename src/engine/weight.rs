//! Weights, with their elements in memory or in a source from which they are read when needed.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use super::cpu::products::Prepared;
use super::gradient::Slot;
use super::{Device, Matrix, Outcome, Tensor, Trace};

/// A weight `(out, in)`, with the packed forms that the device keeps to multiply faster.
pub struct Weight {
    pub(super) elements: Elements,
    /// The tape that records operations with it; off while it is frozen.
    pub(super) trace: Trace,
    /// The slot of its gradient, if it has one.
    pub(super) slot: Option<Slot>,
    pub(super) prepared: Arc<Prepared>,
    pub(super) precision: Precision,
}

/// How products with a frozen weight are computed. Sums and all other operations are in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// With operands in f32.
    #[default]
    F32,
    /// With operands rounded to bfloat16.
    Bf16,
}

impl Weight {
    /// A parameter on a tape, with the packed forms that were prepared from the same elements.
    pub fn new(elements: &Elements, prepared: &Arc<Prepared>, trace: &Trace) -> Self {
        let slot = match elements {
            Elements::Held(tensor) => tensor.on(trace).slot(),
            Elements::Stored(_) => None,
        };
        Weight {
            elements: elements.clone(),
            trace: trace.clone(),
            slot,
            prepared: prepared.clone(),
            precision: Precision::F32,
        }
    }

    /// The weight, to be multiplied in this precision while it is frozen.
    pub fn in_precision(self, precision: Precision) -> Self {
        Weight { precision, ..self }
    }

    /// `(out, in)`
    pub fn shape(&self) -> (usize, usize) {
        self.elements.shape()
    }

    /// Whether it gets a gradient.
    pub fn is_traced(&self) -> bool {
        self.trace.is_on()
    }

    /// The weight as a tensor. The tensor stays in memory from then on.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn matrix(&self) -> Outcome<Matrix> {
        let tensor = self.elements.tensor()?;
        Ok(match &self.slot {
            Some(slot) => Matrix::result(tensor, self.trace.clone(), slot.clone()),
            None => tensor.constant(),
        })
    }
}

impl From<Matrix> for Weight {
    fn from(matrix: Matrix) -> Self {
        let (tensor, trace, slot) = matrix.split();
        Weight {
            elements: Elements::Held(tensor),
            trace,
            slot,
            prepared: Arc::default(),
            precision: Precision::F32,
        }
    }
}

/// The elements of a weight `(out, in)`.
#[derive(Clone)]
pub enum Elements {
    /// On the device.
    Held(Tensor<(usize, usize)>),
    /// In a source from which they can be read; they never change.
    Stored(Arc<Stored>),
}

impl Elements {
    /// `(out, in)`
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Elements::Held(tensor) => tensor.shape(),
            Elements::Stored(stored) => stored.shape,
        }
    }

    /// The elements as a tensor. The tensor stays in memory from then on.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn tensor(&self) -> Outcome<Tensor<(usize, usize)>> {
        match self {
            Elements::Held(tensor) => Ok(tensor.clone()),
            Elements::Stored(stored) => stored.tensor(),
        }
    }

    /// The elements on the device, to be changed. Stored elements are read first; their source is not changed.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn held(&mut self) -> Outcome<&mut Tensor<(usize, usize)>> {
        if let Elements::Stored(stored) = self {
            *self = Elements::Held(stored.read()?);
        }
        match self {
            Elements::Held(tensor) => Ok(tensor),
            Elements::Stored(_) => unreachable!("it was just read"),
        }
    }
}

/// A source from which elements are read when they are needed, such as a mapped file.
pub trait WeightSource: Send + Sync {
    /// The number of elements.
    fn count(&self) -> usize;
    /// The elements, row by row: borrowed in place, or converted from the source's format.
    fn elements(&self) -> Cow<'_, [f32]>;
    /// Whether the source has the elements row by row, so that [`WeightSource::read`] reads only its range.
    fn has_rows(&self) -> bool;
    /// Whether the elements are kept in codes that products decode as they need them, instead of packing all of them.
    fn is_coded(&self) -> bool {
        false
    }
    /// Reads the elements of `range` into `values`. Brings nothing else into memory if the source has rows.
    fn read(&self, range: Range<usize>, values: &mut [f32]);
    /// Tells the source that its elements are not needed for now, so that it may free their memory.
    fn release(&self);
}

/// A weight that is read from a [`WeightSource`] on demand.
pub struct Stored {
    source: Box<dyn WeightSource>,
    shape: (usize, usize),
    device: Device,
    tensor: OnceLock<Tensor<(usize, usize)>>,
}

impl Stored {
    /// A weight of `shape` on `device`. Panics if `source` has another number of elements.
    pub fn new(source: Box<dyn WeightSource>, shape: (usize, usize), device: Device) -> Self {
        assert_eq!(
            source.count(),
            shape.0 * shape.1,
            "stored: source and shape disagree"
        );
        Stored {
            source,
            shape,
            device,
            tensor: OnceLock::new(),
        }
    }

    /// `(out, in)`
    pub(super) fn shape(&self) -> (usize, usize) {
        self.shape
    }

    /// The device that the weight is read to.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The source of the elements.
    pub fn source(&self) -> &dyn WeightSource {
        &*self.source
    }

    fn tensor(&self) -> Outcome<Tensor<(usize, usize)>> {
        if let Some(tensor) = self.tensor.get() {
            return Ok(tensor.clone());
        }
        let tensor = self.read()?;
        Ok(self.tensor.get_or_init(|| tensor).clone())
    }

    fn read(&self) -> Outcome<Tensor<(usize, usize)>> {
        let elements = self.source.elements().into_owned();
        self.source.release();
        Tensor::new(&self.device, elements, self.shape)
    }
}
