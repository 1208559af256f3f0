//! Parameters on a device, by dotted path.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfdx::prelude::{HasErr, HasShape, Tensor};

use crate::engine::Backend;

/// One parameter.
pub enum Value<D: Backend> {
    /// `(out, in)`, and what the device keeps beside it.
    Matrix(Tensor<(usize, usize), f32, D>, Arc<D::Prepared>),
    /// `(out)`
    Vector(Tensor<(usize,), f32, D>),
}

impl<D: Backend> Clone for Value<D> {
    fn clone(&self) -> Self {
        match self {
            Value::Matrix(tensor, prepared) => Value::Matrix(tensor.clone(), prepared.clone()),
            Value::Vector(tensor) => Value::Vector(tensor.clone()),
        }
    }
}

impl<D: Backend> Value<D> {
    /// Moves elements to the device.
    ///
    /// # Errors
    /// What the device reports.
    pub fn new(device: &D, values: Vec<f32>, shape: &[usize]) -> Result<Self, <D as HasErr>::Err> {
        Ok(match shape {
            [out, input] => {
                let tensor = device.try_tensor_from_vec(values, (*out, *input))?;
                let prepared = Arc::new(D::prepare(&tensor));
                Value::Matrix(tensor, prepared)
            }
            _ => {
                let length = values.len();
                Value::Vector(device.try_tensor_from_vec(values, (length,))?)
            }
        })
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        match self {
            Value::Matrix(tensor, _) => D::read(tensor),
            Value::Vector(tensor) => D::read(tensor),
        }
    }

    /// `[out, in]` or `[out]`.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Value::Matrix(tensor, _) => vec![tensor.shape().0, tensor.shape().1],
            Value::Vector(tensor) => vec![tensor.shape().0],
        }
    }
}

/// Parameters by key.
pub type Store<D> = BTreeMap<String, Value<D>>;

/// Parameters on the host: elements and shape by key.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;
