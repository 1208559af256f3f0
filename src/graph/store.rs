//! Parameters on a device, by dotted path.

use std::collections::BTreeMap;

use dfdx::prelude::{HasErr, HasShape, Tensor};

use crate::engine::Backend;

/// One parameter.
#[derive(Clone)]
pub enum Value<D: Backend> {
    /// `(out, in)`
    Matrix(Tensor<(usize, usize), f32, D>),
    /// `(out)`
    Vector(Tensor<(usize,), f32, D>),
}

impl<D: Backend> Value<D> {
    /// Moves elements to the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(device: &D, values: Vec<f32>, shape: &[usize]) -> Result<Self, <D as HasErr>::Err> {
        Ok(match shape {
            [out, input] => Value::Matrix(device.try_tensor_from_vec(values, (*out, *input))?),
            _ => {
                let length = values.len();
                Value::Vector(device.try_tensor_from_vec(values, (length,))?)
            }
        })
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        match self {
            Value::Matrix(tensor) => D::read(tensor),
            Value::Vector(tensor) => D::read(tensor),
        }
    }

    /// `[out, in]` or `[out]`.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Value::Matrix(tensor) => vec![tensor.shape().0, tensor.shape().1],
            Value::Vector(tensor) => vec![tensor.shape().0],
        }
    }
}

/// Parameters by key.
pub type Store<D> = BTreeMap<String, Value<D>>;

/// Parameters on the host: elements and shape by key.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;
