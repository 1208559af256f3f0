//! A plan and weights become something that runs: the transformer interpreter, with the deltas at
//! their sites.
//!
//! In: a [`Plan`] and a backbone's weights. Out: hidden states, logits, losses and gradients. It
//! knows no files of examples and no text.

mod activate;
mod attention;
mod batch;
mod executor;
mod forward;
mod heads;
mod init;
mod logits;
pub mod optimizations;
mod rotary;
mod site;
mod store;
mod svd;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::backbone::family::{Family, Head};
use crate::backbone::{
    head_parameters, Architecture, Checkpoint, Config, NormPlace, Parameter, Positions, Site, Tree,
};
use crate::delta::Method;
use crate::diagnostic::Problem;
use crate::engine::cpu::Semaphore;
use crate::engine::{backward, Deferred, Device, Outcome, Precision, Trace};
use crate::plan::{Plan, TaskPlan};

pub use batch::{Batch, CachedActivations, DecoderRows, Targets};
pub use executor::this_machine;
pub use forward::Pass;
pub use heads::{label_order, reordered, HeadOrigin};
pub use store::{Backbones, Store, Tensors, Value, Views};
pub(crate) use svd::Svd;

/// The executable graph of one plan.
pub struct Graph {
    device: Device,
    config: Config,
    family: &'static Family,
    /// What the backbone computes.
    architecture: Architecture,
    /// The paths of its blocks, in the order of the forward pass.
    block_paths: Vec<String>,
    /// Of rotary embeddings: what turns each pair of columns from one position to the next, and the factor of
    /// cosines and sines.
    frequencies: Option<(Vec<f32>, f32)>,
    tree: Tree,
    /// How products with the backbone's own weights are computed.
    precision: Precision,
    /// The backbone's own weights. They never change.
    base: Arc<Store>,
    /// Parameters of deltas and heads: `delta.site.name`, `task.head.weight`.
    values: Store,
    /// Heads that were drawn, by task, and why.
    fresh_heads: BTreeMap<String, String>,
    /// Keys of `values` that are trained when a delta is, by the delta's name.
    trainable: BTreeMap<String, BTreeSet<String>>,
    active: Active,
}

/// What is in place and what is trained at the moment.
#[derive(Default)]
struct Active {
    /// A path of the backbone or the head → the key that holds its value instead.
    redirects: HashMap<String, String>,
    /// A site's path → the deltas there, in the order of the file.
    sites: HashMap<String, Vec<Placed>>,
    /// Keys and values that deltas put before every sequence's own: they take the first positions.
    prefix_tokens: usize,
    /// Keys that get gradients.
    trained: BTreeSet<String>,
    /// Those of them that are large and that only products and look-ups read.
    deferred: BTreeSet<String>,
    task: Option<TaskPlan>,
    /// Whether the last attention mixes its inputs: in a pass without dropout, and in one with it.
    absorbs_keys: [bool; 2],
}

/// What the sequences of one group add to the gradients of a batch.
struct GroupGradients {
    loss: f32,
    /// By key.
    whole: BTreeMap<String, Vec<f32>>,
    /// What is still to be computed, with its key, in the order of the backward pass.
    parts: Vec<(String, Deferred)>,
}

/// A delta at a site.
pub struct Placed {
    /// Its name.
    pub delta: String,
    /// Its method.
    pub method: Method,
    /// Whether a gate weighs what it changes.
    pub is_gated: bool,
}

/// Elements from which on a gradient is not held for each group.
const LARGE: usize = 1 << 15;

/// What a device reports, for the user.
pub fn device_problem(error: impl std::fmt::Display) -> Problem {
    Problem::failure(
        "delta::engine::device",
        format!("the device failed: {error}"),
    )
    .help("use a smaller batch or shorter texts, or another device")
}

impl Graph {
    /// Reads or draws every weight of a plan.
    ///
    /// # Errors
    /// A file that cannot be read, a tensor that is missing or misshapen.
    pub fn load(plan: &Plan, device: Device) -> Result<Self, Problem> {
        Graph::load_beside(plan, device, &Backbones::default())
    }

    /// The same, with the backbone of an earlier graph where it is the same one.
    ///
    /// # Errors
    /// See [`Graph::load`].
    pub fn load_beside(
        plan: &Plan,
        device: Device,
        backbones: &Backbones,
    ) -> Result<Self, Problem> {
        let config = plan.backbone.config.clone();
        let checkpoint = match plan.backbone.random {
            true => None,
            false => Some(Checkpoint::open_directory(&plan.backbone.directory)?),
        };
        let architecture = Architecture::new(&config);
        let frequencies = match &architecture.positions {
            Positions::Rotary(rotary) => Some(rotary.frequencies(architecture.attention.width)),
            Positions::Learned { .. } | Positions::Distances(_) => None,
        };
        let mut graph = Graph {
            family: config.family(),
            architecture,
            frequencies,
            block_paths: config.block_paths(),
            tree: Tree::new(&config),
            config,
            device,
            precision: plan.backbone.precision,
            base: Arc::default(),
            values: Store::new(),
            fresh_heads: BTreeMap::new(),
            trainable: BTreeMap::new(),
            active: Active::default(),
        };
        let initializer = init::Initializer {
            seed: plan.seed,
            deviation: graph.config.initializer_range,
            norm: match graph.family.config.initializer_factor {
                Some(_) => graph.config.initializer_range,
                None => 1.0,
            },
        };
        graph.base = backbones.get(plan, || graph.load_base(checkpoint.as_ref(), &initializer))?;
        for (name, task) in &plan.tasks {
            graph.load_head(name, task, checkpoint.as_ref(), &initializer)?;
        }
        graph.add_deltas(plan, &initializer)?;
        Ok(graph)
    }

    fn put(&self, values: Vec<f32>, shape: &[usize]) -> Result<Value, Problem> {
        Value::new(&self.device, values, shape).map_err(device_problem)
    }

    /// The backbone's weights. A module that only the head reads (BERT's pooler) may be missing; it
    /// then belongs to the head.
    fn load_base(
        &self,
        checkpoint: Option<&Checkpoint>,
        initializer: &init::Initializer,
    ) -> Result<Store, Problem> {
        let mut base = Store::new();
        let head = &self.family.heads.classify;
        let is_of_head = |path: &str| {
            head.steps.iter().any(|step| {
                path.strip_prefix(&step.module)
                    .is_some_and(|rest| rest.starts_with('.'))
            })
        };
        for parameter in self.tree.parameters() {
            let prefix = &self.family.prefix;
            let value = match checkpoint {
                None => self.put(initializer.parameter(parameter), &parameter.shape)?,
                Some(file) => {
                    if is_of_head(&parameter.path) && file.find(parameter, prefix).is_none() {
                        continue;
                    }
                    match *parameter.shape.as_slice() {
                        [out, input] => {
                            let stored = file.stored(parameter, prefix)?;
                            Value::stored(&self.device, Box::new(stored), (out, input))
                        }
                        _ => self.put(file.load(parameter, prefix)?, &parameter.shape)?,
                    }
                }
            };
            base.insert(parameter.path.clone(), value);
        }
        Ok(base)
    }

    /// The head of a task: from the checkpoint where it has one that fits, drawn otherwise.
    fn load_head(
        &mut self,
        name: &str,
        task: &TaskPlan,
        checkpoint: Option<&Checkpoint>,
        initializer: &init::Initializer,
    ) -> Result<(), Problem> {
        let origin = HeadOrigin::of(&self.config, task, checkpoint);
        if let HeadOrigin::Drawn(reason) = &origin {
            self.fresh_heads.insert(name.to_owned(), reason.clone());
        }
        for parameter in self.head_parameters(task) {
            let key = format!("{name}.{}", parameter.path);
            let stored = match checkpoint {
                Some(file) => self.stored_head(&parameter, task, &origin, file)?,
                None => None,
            };
            let values = stored.unwrap_or_else(|| {
                // A bias that is not there is zero to transformers, and makes no head a new one.
                if !parameter.path.ends_with(".bias") {
                    let reason = format!("the checkpoint has no `{}`", parameter.source.name);
                    self.fresh_heads.entry(name.to_owned()).or_insert(reason);
                }
                initializer.parameter(&Parameter {
                    path: key.clone(),
                    ..parameter.clone()
                })
            });
            let value = self.put(values, &parameter.shape)?;
            self.values.insert(key, value);
        }
        Ok(())
    }

    /// A parameter of a head as the checkpoint has it, its outputs in the order of the task's labels; nothing where
    /// it is to be drawn.
    fn stored_head(
        &self,
        parameter: &Parameter,
        task: &TaskPlan,
        origin: &HeadOrigin,
        file: &Checkpoint,
    ) -> Result<Option<Vec<f32>>, Problem> {
        let prefix = &self.family.prefix;
        let is_output = self.is_output(task, &parameter.path);
        let name = file.find(parameter, prefix);
        let shape = name.and_then(|name| file.shape(&name));
        if shape != Some(parameter.shape.as_slice()) {
            return Ok(None);
        }
        match origin {
            HeadOrigin::Drawn(_) if is_output => Ok(None),
            HeadOrigin::Checkpoint(order, _) if is_output && !order.is_empty() => {
                Ok(Some(reordered(&file.load(parameter, prefix)?, order)))
            }
            _ => file.load(parameter, prefix).map(Some),
        }
    }

    /// Whether a parameter of a task's head has a row for each label.
    pub fn is_output(&self, task: &TaskPlan, path: &str) -> bool {
        let last = self.head(task).and_then(|head| head.steps.last());
        let rest = last.and_then(|step| path.strip_prefix(&step.module));
        matches!(rest, Some(".weight" | ".bias")) && !task.uses_language_model()
    }

    /// The path of the table whose weight is that of the head in place as well.
    pub fn tied_table(&self) -> Option<&str> {
        let step = self.head(self.task()?)?.steps.last()?;
        let table = step.weight.as_deref();
        table.filter(|_| !self.config.is_head_own())
    }

    fn head(&self, task: &TaskPlan) -> Option<&Head> {
        self.family.heads.of(task.uses_language_model())
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
            .chain(head_parameters(&self.config, head, task.outputs()))
            .collect()
    }

    /// Takes the heads as they are for trained: their values came from elsewhere.
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

    /// The keys that get gradients.
    pub fn trained(&self) -> &BTreeSet<String> {
        &self.active.trained
    }

    /// The parameters of deltas and heads, on the host.
    pub fn tensors(&self) -> Tensors {
        self.values
            .iter()
            .map(|(key, value)| (key.clone(), (value.read(), value.shape())))
            .collect()
    }

    /// The same without a copy where the device is the host.
    pub fn views(&self) -> Views<'_> {
        self.values
            .iter()
            .map(|(key, value)| (key.clone(), (value.view(), value.shape())))
            .collect()
    }

    /// Those of them that get gradients.
    pub fn trained_tensors(&self) -> Tensors {
        let trained = self
            .active
            .trained
            .iter()
            .filter_map(|key| self.values.get_key_value(key));
        trained
            .map(|(key, value)| (key.clone(), (value.read(), value.shape())))
            .collect()
    }

    /// Those of them that belong to a delta.
    pub fn trained_tensors_of(&self, delta: &str) -> Tensors {
        let own = self.trainable.get(delta);
        let mut tensors = self.trained_tensors();
        tensors.retain(|key, _| own.is_some_and(|own| own.contains(key)));
        tensors
    }

    /// One parameter of a delta or head, on the host.
    pub fn tensor(&self, key: &str) -> Option<Vec<f32>> {
        self.values.get(key).map(Value::read)
    }

    /// A parameter of a delta at a site, or one that its sites share, on the host.
    pub fn delta_tensor(&self, delta: &str, site: &str, name: &str) -> Option<Vec<f32>> {
        self.tensor(&format!("{delta}.{site}.{name}"))
            .or_else(|| self.tensor(&format!("{delta}.{name}")))
    }

    /// One weight as the forward pass sees it, deltas that unfreeze it included.
    pub fn effective(&self, path: &str) -> Option<Vec<f32>> {
        let redirected = self
            .active
            .redirects
            .get(path)
            .and_then(|key| self.values.get(key));
        redirected.or_else(|| self.base.get(path)).map(Value::read)
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

    /// Whether something is gated in a block.
    fn is_gated(&self, block: usize) -> bool {
        let prefix = format!("{}.", self.block_paths[block]);
        let mut sites = self.active.sites.iter();
        sites.any(|(site, placed)| {
            site.starts_with(&prefix) && placed.iter().any(|placed| placed.is_gated)
        })
    }

    /// The parameters of the head in place: path and key.
    pub fn head_keys(&self) -> Vec<(Parameter, String)> {
        let Some(task) = self.task() else {
            return Vec::new();
        };
        let key = |path: &String| self.active.redirects.get(path).cloned();
        self.head_parameters(task)
            .into_iter()
            .filter_map(|parameter| key(&parameter.path).map(|key| (parameter.clone(), key)))
            .collect()
    }

    /// Replaces parameters of deltas and heads.
    ///
    /// # Errors
    /// A key that there is not, or another shape.
    pub fn set(&mut self, tensors: Tensors) -> Result<(), Problem> {
        for (key, (values, shape)) in tensors {
            match self.values.get(&key) {
                Some(old) if old.shape() == shape => {}
                Some(old) => {
                    let message = format!(
                        "`{key}` has the shape {shape:?}, but {:?} is needed",
                        old.shape()
                    );
                    return Err(Problem::new("delta::graph::wrong_shape", message)
                        .help("give the file that this run wrote"));
                }
                None => {
                    let message = format!("`{key}` is no parameter of this pipeline");
                    return Err(Problem::new("delta::graph::unknown_tensor", message)
                        .help("give the file that this run wrote"));
                }
            }
            let value = self.put(values, &shape)?;
            self.values.insert(key, value);
        }
        Ok(())
    }

    /// Moves every trained parameter: `step` is given its key, its elements and its gradient.
    ///
    /// # Errors
    /// What the device reports.
    pub fn update(
        &mut self,
        gradients: &BTreeMap<String, Vec<f32>>,
        mut step: impl FnMut(&str, &mut [f32], &[f32]),
    ) -> Result<(), Problem> {
        for (key, gradient) in gradients {
            if let Some(value) = self.values.get_mut(key) {
                let change = |values: &mut [f32]| step(key, values, gradient);
                value.update(change).map_err(device_problem)?;
            }
        }
        Ok(())
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
        let ids: BTreeMap<u64, &String> = deferred
            .filter_map(|key| Some((self.values[key].id()?, key)))
            .collect();
        let trace = Trace::deferring(ids.keys().copied().collect());
        let loss = Pass::training(self, trace.clone(), semaphore).loss(batch)?;
        let mut group = GroupGradients {
            loss: loss.read()[0],
            whole: BTreeMap::new(),
            parts: Vec::new(),
        };
        start_next();
        let mut gradients = backward(loss)?;
        let key_of = |part: &Deferred| ids[&part.parameter].clone();
        let parts = trace.take_deferred().into_iter();
        group.parts = parts.map(|part| (key_of(&part), part)).collect();
        for key in &self.active.trained {
            if ids.values().any(|deferred| *deferred == key) {
                continue;
            }
            let gradient = match &self.values[key] {
                Value::Matrix(elements, _) => gradients.take(&elements.tensor()?),
                Value::Vector(tensor) => gradients.take(tensor),
            };
            group.whole.insert(key.clone(), gradient);
        }
        Ok(group)
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
