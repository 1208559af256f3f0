//! Parameters on a device, by dotted path.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use indexmap::IndexMap;

use crate::delta::ParameterId;
use crate::diagnostic::Problem;
use crate::engine::{
    Coded, Device, Elements, Outcome, Prepared, Storage, Stored, Tensor, WeightSource,
};
use crate::plan::Plan;

/// One parameter.
#[derive(Clone)]
pub enum ParameterValue {
    /// `(out, in)`, and what the device has prepared from it.
    Matrix(Elements, Arc<Prepared>),
    /// `(out)`
    Vector(Tensor<(usize,)>),
}

impl ParameterValue {
    /// Moves elements to the device.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn new(device: &Device, values: Vec<f32>, shape: &[usize]) -> Outcome<Self> {
        Ok(match shape {
            [out, input] => {
                let tensor = Tensor::new(device, values, (*out, *input))?;
                ParameterValue::Matrix(Elements::Held(tensor), Arc::default())
            }
            _ => {
                let length = values.len();
                ParameterValue::Vector(Tensor::new(device, values, (length,))?)
            }
        })
    }

    /// A matrix that is read from `source` on demand, or encoded now.
    pub(super) fn stored(
        device: &Device,
        storage: Storage,
        source: Box<dyn WeightSource>,
        shape: (usize, usize),
    ) -> Self {
        let source = match Coded::new(storage, &*source, shape) {
            Some(coded) => Box::new(coded),
            None => source,
        };
        let stored = Stored::new(source, shape, device.clone());
        ParameterValue::Matrix(Elements::Stored(Arc::new(stored)), Arc::default())
    }

    /// An independent copy on the device, which can be trained.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub(super) fn copied(&self) -> Outcome<Self> {
        Ok(match self {
            ParameterValue::Matrix(elements, _) => {
                let copy = elements.clone().held()?.copied();
                ParameterValue::Matrix(Elements::Held(copy), Arc::default())
            }
            ParameterValue::Vector(tensor) => ParameterValue::Vector(tensor.copied()),
        })
    }

    /// Changes the elements.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn update(&mut self, change: impl FnOnce(&mut [f32])) -> Outcome<()> {
        match self {
            ParameterValue::Matrix(elements, prepared) => {
                *prepared = Arc::default();
                elements.held()?.update(change)
            }
            ParameterValue::Vector(tensor) => tensor.update(change),
        }
    }

    /// The elements, row by row.
    pub fn read(&self) -> Vec<f32> {
        self.view().into_owned()
    }

    /// The elements, row by row. Borrows them if the host can address them, else copies them.
    pub(super) fn view(&self) -> Cow<'_, [f32]> {
        match self {
            ParameterValue::Matrix(Elements::Held(tensor), _) => tensor.view(),
            ParameterValue::Matrix(Elements::Stored(stored), _) => stored.source().elements(),
            ParameterValue::Vector(tensor) => tensor.view(),
        }
    }

    /// See [`Tensor::id`]. A matrix that is read on demand has no tensor, and so no id.
    pub(super) fn id(&self) -> Option<u64> {
        match self {
            ParameterValue::Matrix(Elements::Held(tensor), _) => Some(tensor.id()),
            ParameterValue::Matrix(Elements::Stored(_), _) => None,
            ParameterValue::Vector(tensor) => Some(tensor.id()),
        }
    }

    /// `[out, in]` or `[out]`.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            ParameterValue::Matrix(elements, _) => vec![elements.shape().0, elements.shape().1],
            ParameterValue::Vector(tensor) => vec![tensor.shape().0],
        }
    }
}

/// A backbone's parameters by their paths.
pub type Store = IndexMap<String, ParameterValue>;

/// Parameters of deltas and heads, in the order of their paths.
pub type Added = IndexMap<ParameterId, ParameterValue>;

/// Parameters on the host: elements and shape by key.
pub type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// Like [`Tensors`], but elements are borrowed if the host can address them.
pub type Views<'a> = BTreeMap<String, (Cow<'a, [f32]>, Vec<usize>)>;

/// Loaded backbones by device, directory and storage, so that several graphs can share one.
#[derive(Default)]
pub struct Backbones(Mutex<BTreeMap<(String, PathBuf, Storage), Arc<Store>>>);

impl Backbones {
    /// The backbone of a plan; `load` reads it if no graph has yet. Random backbones are not shared.
    pub(super) fn get(
        &self,
        plan: &Plan,
        device: &Device,
        load: impl FnOnce() -> Result<Store, Problem>,
    ) -> Result<Arc<Store>, Problem> {
        if plan.backbone.random {
            return load().map(Arc::new);
        }
        let mut loaded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let backbone = &plan.backbone;
        let key = (
            format!("{device:?}"),
            backbone.directory.clone(),
            backbone.storage,
        );
        if let Some(base) = loaded.get(&key) {
            return Ok(base.clone());
        }
        let base = Arc::new(load()?);
        loaded.insert(key, base.clone());
        Ok(base)
    }
}
