//! Turns a plan and weights into an executable graph: the transformer interpreter, with the deltas at
//! their sites.
//!
//! In: a plan and a backbone's weights. Out: hidden states, logits, losses and gradients. The graph
//! knows neither example files nor text.

mod activate;
mod attention;
mod batch;
mod comparison;
mod executor;
mod forward;
mod generation;
mod heads;
mod init;
mod layers;
mod load;
mod logits;
mod message;
pub mod optimizations;
mod parameters;
mod recompute;
mod rotary;
mod site;
mod store;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use self::rotary::Frequencies;
use crate::backbone::family::{Family, Head};
use crate::backbone::{head_parameters, Architecture, Config, NormPlace, Parameter, Site, Tree};
use crate::delta::{Method, ParameterId};
use crate::diagnostic::Problem;
use crate::engine::{Deferred, Device, Outcome, Precision, Semaphore, Trace};
use crate::plan::TaskPlan;
use crate::task::Compared;

pub use activate::check_trained;
pub use batch::{AnswerPlace, AnswerRows, Batch, CachedActivations, DecoderRows, Targets};
pub use executor::this_machine;
pub use forward::Pass;
pub use generation::Generation;
pub use heads::{label_order, reordered, HeadOrigin};
use layers::Layers;
pub use store::{Added, Backbones, ParameterValue, Store, Tensors, Views};

/// The executable graph of one plan.
pub struct Graph {
    device: Device,
    config: Config,
    family: &'static Family,
    /// The computations of the backbone.
    architecture: Architecture,
    /// Of rotary embeddings, if the family has them.
    frequencies: Option<Frequencies>,
    tree: Tree,
    /// The precision of products with the backbone's own weights.
    precision: Precision,
    /// The backbone's own weights. They never change.
    base: Arc<Store>,
    /// Parameters of deltas and heads.
    values: Added,
    /// By task, the reason its head was drawn from the seed instead of loaded.
    fresh_heads: BTreeMap<String, String>,
    /// The parameters in `values` that stay at their initial values when their delta is trained.
    constants: BTreeSet<ParameterId>,
    /// The parameters in `values` that are the checkpoint's own and stay so: a language model's head that no stage trains.
    frozen_heads: BTreeSet<ParameterId>,
    active: Active,
    /// Built from `active`.
    layers: Option<Layers>,
}

/// What the current stage has in place and what it trains.
#[derive(Default)]
struct Active {
    /// Path in the backbone or the head → index in `values` of the parameter that a pass reads there.
    replaced: HashMap<String, usize>,
    /// A site's path → the deltas there, in the order of the file.
    sites: HashMap<String, Vec<Placed>>,
    /// How many keys and values deltas put before every sequence's own. They take the first positions.
    prefix_tokens: usize,
    /// How many rows prompts add to every sequence.
    prompt_rows: usize,
    /// Indices in `values` of the parameters that get gradients.
    trained: BTreeSet<usize>,
    /// The large ones of `trained` that only products and look-ups read. Their gradients are deferred.
    deferred: BTreeSet<usize>,
    task: Option<TaskPlan>,
    /// Whether a gate in the last block reads all rows.
    is_gated_at_the_top: bool,
    /// Whether the last attention runs as in `optimizations/absorbed_keys.rs`.
    absorbs_keys: AbsorbsKeys,
    /// Whether the backward pass computes blocks again.
    recomputes: bool,
}

/// In which passes the last attention absorbs its keys.
#[derive(Clone, Copy, Default)]
struct AbsorbsKeys {
    /// In those without dropout.
    inference: bool,
    /// In those with dropout.
    training: bool,
}

/// What the sequences of one group add to the gradients of a batch.
struct GroupGradients {
    loss: f32,
    compared: Compared,
    /// Complete gradients, each with the index of its parameter.
    whole: Vec<(usize, Vec<f32>)>,
    /// Deferred parts of gradients, in the order of the backward pass.
    parts: Vec<(usize, Deferred)>,
}

/// A delta at a site.
pub struct Placed {
    /// Its name.
    pub delta: String,
    /// Its method.
    pub method: Method,
    /// Whether a gate scales the delta's change.
    pub is_gated: bool,
}

/// Parameters with at least this many elements get deferred gradients, which no group holds whole.
const LARGE: usize = 1 << 15;

/// Turns a device's error into a problem for the user.
pub fn device_problem(error: impl std::fmt::Display) -> Problem {
    Problem::failure(
        "delta::engine::device",
        format!("the device failed: {error}"),
    )
    .help("use a smaller batch or shorter texts, or another device")
}

impl Graph {
    /// Whether a parameter of a task's head has a row for each label.
    pub fn is_output(&self, task: &TaskPlan, path: &str) -> bool {
        let last = self.head(task).and_then(|head| head.steps.last());
        let rest = last.and_then(|step| path.strip_prefix(&step.module));
        matches!(rest, Some(".weight" | ".bias")) && !task.kind.uses_language_model()
    }

    /// The path of the table whose weight the head in place uses; `None` if the head has its own.
    pub fn tied_table(&self) -> Option<&str> {
        let step = self.head(self.task()?)?.steps.last()?;
        let table = step.weight.as_deref();
        table.filter(|_| !self.config.is_head_own())
    }

    fn head(&self, task: &TaskPlan) -> Option<&Head> {
        self.family.heads.of(task.kind.head())
    }

    /// The parameters that belong to a task's head.
    fn head_parameters(&self, task: &TaskPlan) -> Vec<Parameter> {
        let Some(head) = self.head(task) else {
            return Vec::new();
        };
        let missing = head
            .steps
            .iter()
            .filter_map(|step| self.tree.module(&step.module))
            .flat_map(|module| &module.parameters)
            .filter(|parameter| !self.base.contains_key(&parameter.path))
            .cloned();
        missing
            .chain(head_parameters(&self.config, head, task.kind.outputs()))
            .collect()
    }

    /// Treats all heads as trained, because their values came from another run or file.
    pub fn adopt_heads(&mut self) {
        self.fresh_heads.clear();
    }

    /// Computes products with frozen weights in this precision from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The task in place.
    pub fn task(&self) -> Option<&TaskPlan> {
        self.active.task.as_ref()
    }

    /// The parameters that get gradients.
    pub fn trained(&self) -> impl Iterator<Item = &ParameterId> {
        let places = self.active.trained.iter();
        places.filter_map(|index| self.values.get_index(*index).map(|(id, _)| id))
    }

    /// The parameters of deltas and heads, on the host.
    pub fn tensors(&self) -> Tensors {
        self.values
            .iter()
            .map(|(id, value)| (id.to_string(), (value.read(), value.shape())))
            .collect()
    }

    /// The parameters that a run saves: all of deltas and heads but what is the checkpoint's own. Without a copy if the
    /// device is the host.
    pub fn views(&self) -> Views<'_> {
        self.values
            .iter()
            .filter(|(id, _)| !self.frozen_heads.contains(*id))
            .map(|(id, value)| (id.to_string(), (value.view(), value.shape())))
            .collect()
    }

    /// The parameters that get gradients, on the host.
    pub fn trained_tensors(&self) -> Tensors {
        let trained = self.trained_values();
        trained
            .map(|(id, value)| (id.to_string(), (value.read(), value.shape())))
            .collect()
    }

    fn trained_values(&self) -> impl Iterator<Item = (&ParameterId, &ParameterValue)> {
        let places = self.active.trained.iter();
        places.filter_map(|index| self.values.get_index(*index))
    }

    /// The elements of a delta's parameters that get gradients.
    pub fn trained_values_of(&self, delta: &str) -> BTreeMap<ParameterId, Vec<f32>> {
        self.trained_values()
            .filter(|(id, _)| id.delta() == Some(delta))
            .map(|(id, value)| (id.clone(), value.read()))
            .collect()
    }

    /// One parameter of a delta or head, on the host.
    pub fn tensor(&self, path: &str) -> Option<Vec<f32>> {
        self.values.get(path).map(ParameterValue::read)
    }

    /// A parameter of a delta at a site, or one that its sites share, on the host.
    pub fn delta_tensor(&self, delta: &str, site: &str, name: &str) -> Option<Vec<f32>> {
        let own = ParameterId::at_site(delta, site, name);
        let shared = ParameterId::of_delta(delta, name);
        let found = self.values.get(&own).or_else(|| self.values.get(&shared));
        found.map(ParameterValue::read)
    }

    /// One weight as the forward pass reads it: the trained copy if a delta unfreezes it.
    pub fn effective(&self, path: &str) -> Option<Vec<f32>> {
        let replaced = self.active.replaced.get(path);
        let replaced = replaced.map(|index| &self.values[*index]);
        replaced
            .or_else(|| self.base.get(path))
            .map(ParameterValue::read)
    }

    /// The module tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The deltas at a site, in the order of the file.
    pub fn deltas_at(&self, site: &str) -> &[Placed] {
        self.active
            .sites
            .get(site)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }

    /// The parameters of the head in place.
    pub fn head_ids(&self) -> Vec<(Parameter, ParameterId)> {
        let Some(task) = self.task() else {
            return Vec::new();
        };
        let id = |path: &String| {
            let index = self.active.replaced.get(path)?;
            self.values.get_index(*index).map(|(id, _)| id.clone())
        };
        self.head_parameters(task)
            .into_iter()
            .filter_map(|parameter| id(&parameter.path).map(|id| (parameter, id)))
            .collect()
    }

    /// Replaces parameters of deltas and heads.
    ///
    /// # Errors
    /// A key that the graph does not have, or a shape that differs.
    pub fn set(&mut self, tensors: Tensors) -> Result<(), Problem> {
        for (key, (values, shape)) in tensors {
            match self.values.get(key.as_str()) {
                Some(old) if old.shape() == shape => {}
                Some(old) => {
                    let message = format!(
                        "`{key}` has the shape {shape:?}, but the pipeline needs {:?}",
                        old.shape()
                    );
                    return Err(Problem::new("delta::graph::wrong_shape", message)
                        .help("restore the file that this run wrote"));
                }
                None => {
                    let message = format!("`{key}` is not a parameter of this pipeline");
                    return Err(Problem::new("delta::graph::unknown_tensor", message)
                        .help("restore the file that this run wrote"));
                }
            }
            let value = self.put(values, &shape)?;
            if let Some(own) = self.values.get_mut(key.as_str()) {
                *own = value;
            }
        }
        Ok(())
    }

    /// Updates every parameter that has a gradient. `step` gets its elements, its gradient, and the number of its columns,
    /// 1 for a vector.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn update(
        &mut self,
        gradients: &BTreeMap<ParameterId, Vec<f32>>,
        mut step: impl FnMut(&ParameterId, &mut [f32], &[f32], usize),
    ) -> Result<(), Problem> {
        for (id, gradient) in gradients {
            if let Some(value) = self.values.get_mut(id) {
                let columns = value.shape().get(1).copied().unwrap_or(1);
                let change = |values: &mut [f32]| step(id, values, gradient, columns);
                value.update(change).map_err(device_problem)?;
            }
        }
        Ok(())
    }

    fn layers(&self) -> &Layers {
        let layers = self.layers.as_ref();
        layers.expect("a graph has layers when it is loaded")
    }

    /// A forward pass without gradients and without dropout.
    pub fn inference(&self) -> Pass<'_> {
        Pass::inference(self)
    }

    /// The loss of one group, and the gradient of everything trained.
    fn group_gradients(
        &self,
        batch: &Batch,
        semaphore: &Arc<Semaphore>,
        start_next: &mut dyn FnMut(),
    ) -> Outcome<GroupGradients> {
        let deferred = self.active.deferred.iter();
        let places: BTreeMap<u64, usize> = deferred
            .filter_map(|index| Some((self.values[*index].id()?, *index)))
            .collect();
        let trace = Trace::deferring(places.keys().copied().collect());
        let pass = Pass::training(self, trace.clone(), semaphore);
        let loss = pass.loss(batch)?;
        let value = loss.read()[0];
        start_next();
        let mut gradients = pass.backward(loss)?;
        let parts = trace.take_deferred().into_iter();
        let whole = self.active.trained.difference(&self.active.deferred);
        Ok(GroupGradients {
            loss: value,
            compared: pass.compared.get(),
            parts: parts.map(|part| (places[&part.parameter], part)).collect(),
            whole: whole
                .map(|index| match &self.values[*index] {
                    ParameterValue::Matrix(elements, _) => {
                        Ok((*index, gradients.take(&elements.tensor()?)))
                    }
                    ParameterValue::Vector(tensor) => Ok((*index, gradients.take(tensor))),
                })
                .collect::<Outcome<_>>()?,
        })
    }

    /// Whether a path names a module that a checkpoint stores fused with others.
    pub fn is_fused(&self, path: &str) -> bool {
        let module = self.tree.module(path);
        module.is_some_and(|module| module.site == Site::Fused)
    }

    fn pre_norm(&self) -> bool {
        self.architecture.norm.place == NormPlace::Pre
    }
}
