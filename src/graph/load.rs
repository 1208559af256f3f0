//! Reads or draws the weights of a plan: those of the backbone, the heads and the deltas.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::init::Initializer;
use super::rotary::Frequencies;
use super::{
    device_problem, reordered, Active, Added, Backbones, Graph, HeadOrigin, ParameterValue, Store,
};
use crate::backbone::{Architecture, Checkpoint, Module, Parameter, Positions, Tree};
use crate::delta::{Init, Method, NewParameter, ParameterId};
use crate::diagnostic::Problem;
use crate::engine::{Device, Svd};
use crate::plan::{BackbonePlan, Change, DeltaPlan, Plan, StagePlan, TaskPlan};

impl Graph {
    /// Reads or draws every weight of a plan.
    ///
    /// # Errors
    /// A file that cannot be read, a tensor that is missing or misshapen.
    pub fn load(plan: &Plan, device: Device) -> Result<Self, Problem> {
        Graph::load_beside(plan, device, &Backbones::default())
    }

    /// Like [`Graph::load`], but shares the backbone of an earlier graph if it is the same one.
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
            Positions::Rotary { usual, local } => {
                let width = architecture.attention.width;
                Some(Frequencies {
                    usual: usual.frequencies(width),
                    local: local.as_ref().map(|local| local.frequencies(width)),
                })
            }
            Positions::Learned { .. } | Positions::Distances(_) => None,
        };
        let mut graph = Graph {
            family: config.family(),
            architecture,
            frequencies,
            tree: Tree::new(&config),
            config,
            device,
            precision: plan.backbone.precision,
            base: Arc::default(),
            values: Added::new(),
            fresh_heads: BTreeMap::new(),
            constants: BTreeSet::new(),
            frozen_heads: BTreeSet::new(),
            active: Active::default(),
            layers: None,
        };
        let initializer = Initializer {
            seed: plan.seed,
            deviation: graph.config.initializer_range,
            norm: match graph.family.config.initializer_factor {
                Some(_) => graph.config.initializer_range,
                None if graph.architecture.norm.is_offset => 0.0,
                None => 1.0,
            },
        };
        graph.base = backbones.get(plan, &graph.device, || {
            graph.load_base(&plan.backbone, checkpoint.as_ref(), &initializer)
        })?;
        for (name, task) in &plan.tasks {
            graph.load_head(plan, (name, task), checkpoint.as_ref(), &initializer)?;
        }
        graph.add_deltas(plan, &initializer)?;
        // Sort by path, so that sums over all parameters have a fixed order.
        graph.values.sort_keys();
        graph.layers = Some(graph.layers_in_place());
        graph.begin_prefixes(plan)?;
        Ok(graph)
    }

    /// Sets the prefixes that begin as the keys and values of a text. No delta is in place yet.
    fn begin_prefixes(&mut self, plan: &Plan) -> Result<(), Problem> {
        for delta in &plan.deltas {
            let Some(tokens) = delta.method().and_then(Method::begins_after) else {
                continue;
            };
            let all = self.keys_and_values(tokens).map_err(device_problem)?;
            for site in delta.sites() {
                let block = self.config.block_of(site).unwrap_or_default();
                for (name, values) in ["keys", "values"].into_iter().zip(&all[block]) {
                    let shape = [tokens.len(), values.len() / tokens.len()];
                    let id = ParameterId::at_site(&delta.name, site, name);
                    let value = self.put(values.clone(), &shape)?;
                    self.values.insert(id, value);
                }
            }
        }
        Ok(())
    }

    pub(super) fn put(&self, values: Vec<f32>, shape: &[usize]) -> Result<ParameterValue, Problem> {
        ParameterValue::new(&self.device, values, shape).map_err(device_problem)
    }

    /// The backbone's weights. A module that only the head reads (BERT's pooler) may be missing; it
    /// then belongs to the head.
    fn load_base(
        &self,
        backbone: &BackbonePlan,
        checkpoint: Option<&Checkpoint>,
        initializer: &Initializer,
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
            let prefix = &self.family.base_model_prefix;
            let value = match checkpoint {
                None => self.put(initializer.parameter(parameter), &parameter.shape)?,
                Some(file) => {
                    if is_of_head(&parameter.path) && file.find(parameter, prefix).is_none() {
                        continue;
                    }
                    match *parameter.shape.as_slice() {
                        [out, input] => {
                            let stored = file.stored(parameter, prefix)?;
                            let storage = backbone.storage_of(&parameter.path);
                            ParameterValue::stored(
                                &self.device,
                                storage,
                                Box::new(stored),
                                (out, input),
                            )
                        }
                        _ => self.put(file.load(parameter, prefix)?, &parameter.shape)?,
                    }
                }
            };
            base.insert(parameter.path.clone(), value);
        }
        Ok(base)
    }

    /// Loads the head of a task from the checkpoint if it has one that fits, and draws it otherwise.
    fn load_head(
        &mut self,
        plan: &Plan,
        (name, task): (&str, &TaskPlan),
        checkpoint: Option<&Checkpoint>,
        initializer: &Initializer,
    ) -> Result<(), Problem> {
        let origin = HeadOrigin::of(&self.config, task, checkpoint);
        if let HeadOrigin::Drawn(reason) = &origin {
            self.fresh_heads.insert(name.to_owned(), reason.clone());
        }
        for parameter in self.head_parameters(task) {
            let id = ParameterId::of_head(name, &parameter.path);
            let prefix = &self.family.base_model_prefix;
            let has_own = |file: &&Checkpoint| {
                let found = file.find(&parameter, prefix);
                found.and_then(|found| file.shape(&found)) == Some(parameter.shape.as_slice())
            };
            // An output table of the checkpoint that no stage trains may be as large as the embeddings: it is stored like
            // a weight of the backbone, and no run saves it.
            let is_frozen = is_frozen_head(plan, name, task, &parameter);
            let file = checkpoint.filter(has_own).filter(|_| is_frozen);
            if file.is_some() {
                self.frozen_heads.insert(id.clone());
            }
            if let (Some(file), [out, input]) = (file, parameter.shape.as_slice()) {
                let source = Box::new(file.stored(&parameter, prefix)?);
                let storage = plan.backbone.storage_of(&parameter.path);
                let value = ParameterValue::stored(&self.device, storage, source, (*out, *input));
                self.values.insert(id, value);
                continue;
            }
            let stored = match checkpoint {
                Some(file) => self.stored_head(&parameter, task, &origin, file)?,
                None => None,
            };
            let values = stored.unwrap_or_else(|| {
                // transformers takes a missing bias as zero, so we do not call such a head fresh.
                if !parameter.is_bias() {
                    let reason = format!("the checkpoint has no `{}`", parameter.source.name);
                    self.fresh_heads.entry(name.to_owned()).or_insert(reason);
                }
                initializer.parameter(&Parameter {
                    path: id.path().to_owned(),
                    ..parameter.clone()
                })
            });
            let value = self.put(values, &parameter.shape)?;
            self.values.insert(id, value);
        }
        Ok(())
    }

    /// A head's parameter from the checkpoint, with outputs in the order of the task's labels; `None` if it must be
    /// drawn.
    fn stored_head(
        &self,
        parameter: &Parameter,
        task: &TaskPlan,
        origin: &HeadOrigin,
        file: &Checkpoint,
    ) -> Result<Option<Vec<f32>>, Problem> {
        let prefix = &self.family.base_model_prefix;
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
}

/// Whether a parameter belongs to the head of a language model and no stage trains it.
fn is_frozen_head(plan: &Plan, name: &str, task: &TaskPlan, parameter: &Parameter) -> bool {
    let is_trained = |stage: &StagePlan| stage.train_head && stage.task == name;
    let is_unfrozen = |delta: &DeltaPlan| delta.unfrozen().contains(&parameter.path);
    task.kind.uses_language_model()
        && !plan.stages.iter().any(is_trained)
        && !plan.deltas.iter().any(is_unfrozen)
}

impl Graph {
    /// Draws the parameters of all deltas.
    pub(super) fn add_deltas(
        &mut self,
        plan: &Plan,
        initializer: &Initializer,
    ) -> Result<(), Problem> {
        for delta in &plan.deltas {
            match &delta.change {
                Change::Unfreeze { parameters } => {
                    for path in parameters {
                        // A pooler that the checkpoint lacks belongs to the head, not to the delta. All
                        // language-model tasks begin with the same head, so we take the first one's.
                        let of_head = || {
                            let mut tasks = plan.tasks.iter();
                            let (task, _) =
                                tasks.find(|(_, task)| task.kind.uses_language_model())?;
                            self.values.get(&ParameterId::of_head(task, path))
                        };
                        let Some(value) = self.base.get(path).or_else(of_head) else {
                            continue;
                        };
                        let value = value.copied().map_err(device_problem)?;
                        let id = ParameterId::of_delta(&delta.name, path);
                        self.values.insert(id, value);
                    }
                }
                Change::Method { method, sites } => {
                    let tree = self.tree.clone();
                    let modules: Vec<&Module> =
                        sites.iter().filter_map(|site| tree.module(site)).collect();
                    for parameter in method.shared(&modules) {
                        let id = ParameterId::of_delta(&delta.name, parameter.name);
                        self.add_parameter(id, &parameter, None, initializer)?;
                    }
                    for module in modules {
                        let origin = OwnWeight::new(self, module);
                        for parameter in delta.parameters(module) {
                            let id =
                                ParameterId::at_site(&delta.name, &module.path, parameter.name);
                            self.add_parameter(id, &parameter, Some(&origin), initializer)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn add_parameter(
        &mut self,
        id: ParameterId,
        parameter: &NewParameter,
        origin: Option<&OwnWeight>,
        initializer: &Initializer,
    ) -> Result<(), Problem> {
        let own = match origin {
            Some(origin) => origin.values(parameter)?,
            None => None,
        };
        let rows = |chosen: &[usize]| -> Vec<f32> {
            let table = self.read_base("embeddings.word.weight");
            let rows: Vec<&[f32]> = table.chunks_exact(parameter.shape[1]).collect();
            let chosen = chosen.iter().cycle().take(parameter.shape[0]);
            chosen.flat_map(|row| rows[*row]).copied().collect()
        };
        let scaled = |mut rows: Vec<f32>| {
            let scale = self.architecture.embedding_scale;
            rows.iter_mut().for_each(|value| *value *= scale);
            rows
        };
        let values = match (&parameter.init, own) {
            (_, Some(values)) => values,
            (Init::Rows(chosen), _) => rows(chosen),
            (Init::Words(chosen), _) => scaled(rows(chosen)),
            (Init::Vocabulary, _) => {
                let entries = self.config.vocabulary;
                scaled(rows(&initializer.choices(
                    id.path(),
                    parameter.shape[0],
                    entries,
                )))
            }
            (init, _) => initializer.values(id.path(), parameter.count(), init),
        };
        let value = self.put(values, &parameter.shape)?;
        if parameter.is_frozen {
            self.constants.insert(id.clone());
        }
        self.values.insert(id, value);
        Ok(())
    }

    fn read_base(&self, path: &str) -> Vec<f32> {
        self.base
            .get(path)
            .map(ParameterValue::read)
            .unwrap_or_default()
    }
}

/// A module's own weight, from which some methods derive initial values.
struct OwnWeight {
    path: String,
    weight: OnceCell<Vec<f32>>,
    columns: usize,
    svd: OnceCell<Option<Svd>>,
    read: Box<dyn Fn() -> Vec<f32>>,
}

impl OwnWeight {
    fn new(graph: &Graph, module: &Module) -> Self {
        let value = graph.base.get(&format!("{}.weight", module.path)).cloned();
        OwnWeight {
            path: module.path.clone(),
            weight: OnceCell::new(),
            columns: module.input.max(1),
            svd: OnceCell::new(),
            read: Box::new(move || value.as_ref().map(ParameterValue::read).unwrap_or_default()),
        }
    }

    /// The initial elements of a parameter, if they derive from the weight; else `None`.
    fn values(&self, parameter: &NewParameter) -> Result<Option<Vec<f32>>, Problem> {
        Ok(match parameter.init {
            Init::RowNorms => {
                let rows = self.weight().chunks_exact(self.columns);
                let norm = |row: &[f32]| row.iter().map(|w| w * w).sum::<f32>().sqrt();
                Some(rows.map(norm).collect())
            }
            Init::PrincipalRows { scale } => Some(self.svd(parameter.shape[0])?.rows(scale)),
            Init::PrincipalColumns { scale } => Some(self.svd(parameter.shape[1])?.columns(scale)),
            _ => None,
        })
    }

    fn weight(&self) -> &[f32] {
        self.weight.get_or_init(&self.read)
    }

    /// The parameters of a module that begin so have one rank.
    fn svd(&self, rank: usize) -> Result<&Svd, Problem> {
        let decompose = || Svd::of(self.weight(), self.columns, rank);
        let svd = self.svd.get_or_init(decompose).as_ref();
        svd.ok_or_else(|| {
            let message = format!(
                "the weight of `{}` has no singular value decomposition: it contains NaN or infinity",
                self.path
            );
            Problem::new("delta::graph::singular", message)
                .help("use another checkpoint, or write `init = standard`")
        })
    }
}
