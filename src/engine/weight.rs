//! Weights, and where their elements are.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use dfdx::prelude::{HasShape, PutTape, SplitTape, Tensor};

use super::{Backend, Matrix, Trace};

/// A weight `(out, in)`, and what the device keeps beside it to multiply faster.
pub struct Weight<D: Backend> {
    /// Its elements.
    pub elements: Elements<D>,
    /// Where what is computed with it is recorded: off while it is frozen.
    pub trace: Trace<D>,
    /// Made from the same elements.
    pub prepared: Arc<D::Prepared>,
    /// How it is multiplied while it is frozen.
    pub precision: Precision,
}

/// How products with a frozen weight are computed. Sums, and all else, are in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// With operands in f32.
    #[default]
    F32,
    /// With operands rounded to bfloat16.
    Bf16,
}

impl<D: Backend> Weight<D> {
    /// `(out, in)`
    pub fn shape(&self) -> (usize, usize) {
        self.elements.shape()
    }

    /// The weight as a tensor, which stays in memory from then on.
    ///
    /// # Errors
    /// What the device reports.
    pub fn matrix(&self) -> Result<Matrix<D>, D::Err> {
        Ok(self.elements.tensor()?.put_tape(self.trace.clone()))
    }
}

impl<D: Backend> From<Matrix<D>> for Weight<D> {
    fn from(matrix: Matrix<D>) -> Self {
        let (tensor, trace) = matrix.split_tape();
        Weight {
            elements: Elements::Held(tensor),
            trace,
            prepared: Arc::default(),
            precision: Precision::F32,
        }
    }
}

type Plain<D> = Tensor<(usize, usize), f32, D>;

/// The elements of a weight `(out, in)`.
pub enum Elements<D: Backend> {
    /// On the device.
    Held(Plain<D>),
    /// Elsewhere; they never change.
    Stored(Arc<Stored<D>>),
}

impl<D: Backend> Clone for Elements<D> {
    fn clone(&self) -> Self {
        match self {
            Elements::Held(tensor) => Elements::Held(tensor.clone()),
            Elements::Stored(stored) => Elements::Stored(stored.clone()),
        }
    }
}

impl<D: Backend> Elements<D> {
    /// `(out, in)`
    pub fn shape(&self) -> (usize, usize) {
        match self {
            Elements::Held(tensor) => *tensor.shape(),
            Elements::Stored(stored) => stored.shape,
        }
    }

    /// The elements as a tensor, which stays in memory from then on.
    ///
    /// # Errors
    /// What the device reports.
    pub fn tensor(&self) -> Result<Plain<D>, D::Err> {
        match self {
            Elements::Held(tensor) => Ok(tensor.clone()),
            Elements::Stored(stored) => stored.tensor(),
        }
    }

    /// The elements on the device, to be changed; what is stored stays as it is.
    ///
    /// # Errors
    /// What the device reports.
    pub fn held(&mut self) -> Result<&mut Plain<D>, D::Err> {
        if let Elements::Stored(stored) = self {
            *self = Elements::Held(stored.read()?);
        }
        match self {
            Elements::Held(tensor) => Ok(tensor),
            Elements::Stored(_) => unreachable!("it was just read"),
        }
    }
}

/// Elements that can be read when they are needed, such as in a mapped file.
pub trait WeightSource: Send + Sync {
    /// The number of elements.
    fn count(&self) -> usize;
    /// The elements, row by row: where they lie, or converted from what is there.
    fn elements(&self) -> Cow<'_, [f32]>;
    /// Whether rows lie one after the other, so that [`WeightSource::append`] takes no more than it gives.
    fn has_rows(&self) -> bool;
    /// Appends the elements of `range` to `values`, and brings nothing else into memory.
    fn append(&self, range: Range<usize>, values: &mut Vec<f32>);
    /// Says that they have been read for now, so that they need take no memory.
    fn release(&self);
}

/// A weight that is read from a [`WeightSource`] when it is asked for.
pub struct Stored<D: Backend> {
    source: Box<dyn WeightSource>,
    shape: (usize, usize),
    device: D,
    tensor: OnceLock<Plain<D>>,
}

impl<D: Backend> Stored<D> {
    /// A weight of `shape`, for a device.
    pub fn new(source: Box<dyn WeightSource>, shape: (usize, usize), device: D) -> Self {
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

    /// Where the elements lie.
    pub fn source(&self) -> &dyn WeightSource {
        &*self.source
    }

    fn tensor(&self) -> Result<Plain<D>, D::Err> {
        if let Some(tensor) = self.tensor.get() {
            return Ok(tensor.clone());
        }
        let tensor = self.read()?;
        Ok(self.tensor.get_or_init(|| tensor).clone())
    }

    fn read(&self) -> Result<Plain<D>, D::Err> {
        let elements = self.source.elements().into_owned();
        self.source.release();
        self.device.try_tensor_from_vec(elements, self.shape)
    }
}
