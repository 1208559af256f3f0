//! Parameters on a device, by dotted path.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dfdx::prelude::{HasErr, HasShape, Tensor};

use crate::diagnostic::Problem;
use crate::engine::{Backend, Elements, Stored, WeightSource};
use crate::plan::Plan;

/// One parameter.
pub enum Value<D: Backend> {
    /// `(out, in)`, and what the device keeps beside it.
    Matrix(Elements<D>, Arc<D::Prepared>),
    /// `(out)`
    Vector(Tensor<(usize,), f32, D>),
}

impl<D: Backend> Clone for Value<D> {
    fn clone(&self) -> Self {
        match self {
            Value::Matrix(elements, prepared) => Value::Matrix(elements.clone(), prepared.clone()),
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
                Value::Matrix(Elements::Held(tensor), Arc::default())
            }
            _ => {
                let length = values.len();
                Value::Vector(device.try_tensor_from_vec(values, (length,))?)
            }
        })
    }

    /// A matrix that is read from `source` when it is asked for.
    pub(super) fn stored(device: &D, source: Box<dyn WeightSource>, shape: (usize, usize)) -> Self {
        let stored = Stored::new(source, shape, device.clone());
        Value::Matrix(Elements::Stored(Arc::new(stored)), Arc::default())
    }

    /// The same with elements on the device.
    ///
    /// # Errors
    /// What the device reports.
    pub(super) fn held(mut self) -> Result<Self, <D as HasErr>::Err> {
        if let Value::Matrix(elements, _) = &mut self {
            elements.held()?;
        }
        Ok(self)
    }

    /// Changes the elements.
    ///
    /// # Errors
    /// What the device reports.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) -> Result<(), <D as HasErr>::Err> {
        match self {
            Value::Matrix(elements, prepared) => {
                *prepared = Arc::default();
                D::update(elements.held()?, change)
            }
            Value::Vector(tensor) => D::update(tensor, change),
        }
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        self.view().into_owned()
    }

    /// The elements where they lie, if the host can see them there.
    pub(super) fn view(&self) -> Cow<'_, [f32]> {
        match self {
            Value::Matrix(Elements::Held(tensor), _) => D::view(tensor),
            Value::Matrix(Elements::Stored(stored), _) => stored.source().elements(),
            Value::Vector(tensor) => D::view(tensor),
        }
    }

    /// See [`Backend::address`].
    pub(super) fn address(&self) -> Option<usize> {
        match self {
            Value::Matrix(Elements::Held(tensor), _) => D::address(tensor),
            Value::Matrix(Elements::Stored(_), _) => None,
            Value::Vector(tensor) => D::address(tensor),
        }
    }

    /// `[out, in]` or `[out]`.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Value::Matrix(elements, _) => vec![elements.shape().0, elements.shape().1],
            Value::Vector(tensor) => vec![tensor.shape().0],
        }
    }
}

/// Parameters by key.
pub type Store<D> = BTreeMap<String, Value<D>>;

/// Parameters on the host: elements and shape by key.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// The same, where they lie if the host can see them there.
pub type Views<'a> = BTreeMap<String, (Cow<'a, [f32]>, Vec<usize>)>;

/// Backbones in memory, for graphs that share them.
pub struct Backbones<D: Backend>(Mutex<BTreeMap<PathBuf, Arc<Store<D>>>>);

impl<D: Backend> Default for Backbones<D> {
    fn default() -> Self {
        Backbones(Mutex::default())
    }
}

impl<D: Backend> Backbones<D> {
    /// That of a plan, loaded where it is not there yet.
    pub(super) fn get(
        &self,
        plan: &Plan,
        load: impl FnOnce() -> Result<Store<D>, Problem>,
    ) -> Result<Arc<Store<D>>, Problem> {
        if plan.backbone.random {
            return load().map(Arc::new);
        }
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = &plan.backbone.directory;
        if let Some(base) = loaded.get(directory) {
            return Ok(base.clone());
        }
        let base = Arc::new(load()?);
        loaded.insert(directory.clone(), base.clone());
        Ok(base)
    }
}
