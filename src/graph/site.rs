//! The deltas at their sites: their parameters drawn, their part of the forward pass.

use std::cell::OnceCell;

use super::forward::Pass;
use super::init::Initializer;
use super::svd::Svd;
use super::{device_problem, Graph, Placed, Value};
use crate::backbone::Module;
use crate::delta::{gate, At, Init, NewParameter, Preposition, Values};
use crate::diagnostic::Problem;
use crate::engine::{ops, Layout, Matrix, Outcome, Vector, Weight};
use crate::plan::{Change, Plan};

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
                        // A pooler that the checkpoint lacks is the head's, not the delta's; the
                        // language-model head is the same for all tasks.
                        let of_head = || {
                            let mut tasks = plan.tasks.iter();
                            let (task, _) = tasks.find(|(_, task)| task.uses_language_model())?;
                            self.values.get(&format!("{task}.{path}"))
                        };
                        let Some(value) = self.base.get(path).or_else(of_head).cloned() else {
                            continue;
                        };
                        let key = format!("{}.{path}", delta.name);
                        let value = value.held().map_err(device_problem)?;
                        self.note_trainable(&delta.name, &key);
                        self.values.insert(key, value);
                    }
                }
                Change::Method { method, sites } => {
                    let tree = self.tree.clone();
                    let modules: Vec<&Module> =
                        sites.iter().filter_map(|site| tree.module(site)).collect();
                    for parameter in method.shared(&modules) {
                        let key = format!("{}.{}", delta.name, parameter.name);
                        self.add_parameter(&delta.name, key, &parameter, None, initializer)?;
                    }
                    for module in modules {
                        let origin = Origin::new(self, module);
                        for parameter in delta.parameters(module) {
                            let key = format!("{}.{}.{}", delta.name, module.path, parameter.name);
                            let origin = Some(&origin);
                            self.add_parameter(&delta.name, key, &parameter, origin, initializer)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn note_trainable(&mut self, delta: &str, key: &str) {
        let keys = self.trainable.entry(delta.to_owned()).or_default();
        keys.insert(key.to_owned());
    }

    fn add_parameter(
        &mut self,
        delta: &str,
        key: String,
        parameter: &NewParameter,
        origin: Option<&Origin>,
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
        let values = match (&parameter.init, own) {
            (_, Some(values)) => values,
            (Init::Rows(chosen), _) => rows(chosen),
            (Init::Vocabulary, _) => {
                let entries = self.config.vocabulary;
                rows(&initializer.choices(&key, parameter.shape[0], entries))
            }
            (init, _) => initializer.values(&key, parameter.count(), init),
        };
        let value = self.put(values, &parameter.shape)?;
        if !parameter.is_frozen {
            self.note_trainable(delta, &key);
        }
        self.values.insert(key, value);
        Ok(())
    }

    fn read_base(&self, path: &str) -> Vec<f32> {
        self.base.get(path).map(Value::read).unwrap_or_default()
    }
}

/// A module's own weight, where a parameter may begin as something made of it.
struct Origin {
    path: String,
    weight: OnceCell<Vec<f32>>,
    columns: usize,
    svd: OnceCell<Option<Svd>>,
    read: Box<dyn Fn() -> Vec<f32>>,
}

impl Origin {
    fn new(graph: &Graph, module: &Module) -> Self {
        let value = graph.base.get(&format!("{}.weight", module.path)).cloned();
        Origin {
            path: module.path.clone(),
            weight: OnceCell::new(),
            columns: module.input.max(1),
            svd: OnceCell::new(),
            read: Box::new(move || value.as_ref().map(Value::read).unwrap_or_default()),
        }
    }

    /// How a parameter begins, if it begins as something made of the weight.
    fn values(&self, parameter: &NewParameter) -> Result<Option<Vec<f32>>, Problem> {
        Ok(match parameter.init {
            Init::RowNorms => {
                let rows = self.weight().chunks_exact(self.columns);
                let norm = |row: &[f32]| row.iter().map(|w| w * w).sum::<f32>().sqrt();
                Some(rows.map(norm).collect())
            }
            Init::PrincipalRows { scale } => Some(self.svd()?.rows(parameter.shape[0], scale)),
            Init::PrincipalColumns { scale } => {
                Some(self.svd()?.columns(parameter.shape[1], scale))
            }
            _ => None,
        })
    }

    fn weight(&self) -> &[f32] {
        self.weight.get_or_init(&self.read)
    }

    fn svd(&self) -> Result<&Svd, Problem> {
        let decompose = || Svd::of(self.weight(), self.columns);
        let svd = self.svd.get_or_init(decompose).as_ref();
        svd.ok_or_else(|| {
            let message = format!(
                "the weight of `{}` has no singular value decomposition: it is not finite",
                self.path
            );
            Problem::new("delta::graph::singular", message)
                .help("give another checkpoint, or write `init = standard`")
        })
    }
}

impl Graph {
    /// The prompts in place, `(tokens, hidden)`, on the host; what encoders make of them included.
    ///
    /// # Errors
    /// What the device reports.
    pub fn prompt(&self) -> Outcome<Vec<f32>> {
        let prompt = self.inference().prompts(&Layout::new([], vec![]))?;
        Ok(prompt.map(|prompt| prompt.read()).unwrap_or_default())
    }

    /// The prefixes in place at an attention: keys and values, `(tokens, hidden)` each.
    ///
    /// # Errors
    /// What the device reports.
    pub fn prefix(&self, path: &str) -> Outcome<Vec<Vec<f32>>> {
        let pass = self.inference();
        let prefixes = pass.prefixes(path, None, &Layout::new([], vec![]))?;
        let joined = |part: usize| -> Outcome<Vec<f32>> {
            let parts: Vec<_> = prefixes.iter().map(|p| p.rows[part].clone()).collect();
            Ok(ops::join_rows(&parts)?.read())
        };
        match prefixes.is_empty() {
            true => Ok(Vec::new()),
            false => Ok(vec![joined(0)?, joined(1)?]),
        }
    }
}

impl Pass<'_> {
    /// What a module reads, with the deltas at it.
    pub(super) fn adapt_input(
        &self,
        path: &str,
        mut x: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        for Placed { delta, method, .. } in self.graph.deltas_at(path) {
            x = method.input(&self.at(delta, path).at(layout, None), x)?;
        }
        Ok(x)
    }

    /// Rows of an embedding table, with the deltas at it.
    pub(super) fn look_up(
        &self,
        path: &str,
        indices: &[usize],
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let table = self.weight(&format!("{path}.weight"));
        let mut y = ops::look_up(&table, indices)?;
        for Placed { delta, method, .. } in self.graph.deltas_at(path) {
            y = method.look_up(&self.at(delta, path).at(layout, None), indices, y)?;
        }
        Ok(y)
    }

    /// What a module gives, with the deltas at it, in the order of the file.
    pub(super) fn adapt(
        &self,
        path: &str,
        x: &Matrix,
        mut y: Matrix,
        layout: &Layout,
        residual: Option<&Matrix>,
    ) -> Outcome<Matrix> {
        for placed in self.graph.deltas_at(path) {
            let site = self.at(&placed.delta, path);
            let at = site.at(layout, residual);
            // Only a gate needs what there was before: without it, the method may change it in place.
            let before = placed.is_gated.then(|| y.clone());
            y = placed.method.forward(&at, x, y)?;
            if let Some(before) = before {
                let reads = match placed.method.preposition() {
                    Preposition::After => &before,
                    _ => x,
                };
                let gates = gate::open(&at, reads)?;
                let change = ops::add(y, &ops::scale(&before, -1.0)?)?;
                y = ops::add(before, &gate::weigh(&gates, &change, layout)?)?;
            }
        }
        Ok(y)
    }

    /// Keys and values with the prefixes at an attention before those of every sequence, and the
    /// number of rows that came before each; `x` is what the attention reads.
    pub(super) fn prefixed(
        &self,
        path: &str,
        x: &Matrix,
        [k, v]: [Matrix; 2],
        layout: &Layout,
    ) -> Outcome<([Matrix; 2], usize)> {
        let prefixes = self.prefixes(path, Some(x), layout)?;
        if prefixes.is_empty() {
            return Ok(([k, v], 0));
        }
        // Where each row lies when all prefixes are followed by the sequences' own rows.
        let count = prefixes.iter().map(|prefix| prefix.tokens).sum();
        let own: usize = prefixes.iter().map(|prefix| prefix.rows[0].shape().0).sum();
        let mut rows = Vec::with_capacity(layout.rows() + count * layout.sequences());
        for (sequence, range) in layout.ranges().enumerate() {
            let mut start = 0;
            for prefix in &prefixes {
                let first = start
                    + if prefix.is_shared {
                        0
                    } else {
                        sequence * prefix.tokens
                    };
                rows.extend(first..first + prefix.tokens);
                start += prefix.rows[0].shape().0;
            }
            rows.extend(own + range.start..own + range.end);
        }
        let extend = |part: usize, own: Matrix| {
            let mut parts: Vec<_> = prefixes.iter().map(|p| p.rows[part].clone()).collect();
            parts.push(own);
            ops::select_rows(&ops::join_rows(&parts)?, &rows)
        };
        Ok(([extend(0, k)?, extend(1, v)?], count))
    }

    /// The prefixes at an attention; those that are gated for each sequence where `x` is given.
    fn prefixes(
        &self,
        path: &str,
        x: Option<&Matrix>,
        layout: &Layout,
    ) -> Outcome<Vec<PrefixRows>> {
        let mut prefixes = Vec::new();
        for placed in self.graph.deltas_at(path) {
            let site = self.at(&placed.delta, path);
            let at = site.at(layout, None);
            let Some(mut rows) = placed.method.prefix(&at)? else {
                continue;
            };
            let tokens = rows[0].shape().0;
            let gated = x.filter(|_| placed.is_gated);
            if let Some(x) = gated {
                let gates = gate::open(&at, x)?;
                let sequences = layout.sequences();
                let copies = Layout::new(vec![tokens; sequences], vec![0; sequences]);
                let rows_of_all = (0..tokens).cycle().take(copies.rows());
                let rows_of_all: Vec<usize> = rows_of_all.collect();
                for part in &mut rows {
                    let all = ops::select_rows(part, &rows_of_all)?;
                    *part = gate::weigh(&gates, &all, &copies)?;
                }
            }
            prefixes.push(PrefixRows {
                rows,
                tokens,
                is_shared: gated.is_none(),
            });
        }
        Ok(prefixes)
    }

    /// The prompts before every sequence, `(tokens, hidden)`, where there are any.
    pub(super) fn prompts(&self, layout: &Layout) -> Outcome<Option<Matrix>> {
        let mut parts = Vec::new();
        for Placed { delta, method, .. } in self.graph.deltas_at(EMBEDDINGS) {
            parts.extend(method.prompt(&self.at(delta, EMBEDDINGS).at(layout, None))?);
        }
        match parts.len() {
            0 => Ok(None),
            _ => ops::join_rows(&parts).map(Some),
        }
    }

    fn at<'a>(&'a self, delta: &'a str, site: &'a str) -> Site<'a> {
        Site {
            pass: self,
            delta,
            site,
        }
    }
}

/// Keys and values of one prefix.
struct PrefixRows {
    /// `(tokens, hidden)`, or `(sequences · tokens, hidden)` where sequences do not share them.
    rows: [Matrix; 2],
    tokens: usize,
    is_shared: bool,
}

/// The path of the embeddings as a whole.
pub(super) const EMBEDDINGS: &str = "embeddings";

/// What a method sees of the pass at its site.
struct Site<'a> {
    pass: &'a Pass<'a>,
    delta: &'a str,
    site: &'a str,
}

impl Site<'_> {
    fn at<'a>(&'a self, layout: &'a Layout, residual: Option<&'a Matrix>) -> At<'a> {
        At {
            values: self,
            layout,
            residual,
        }
    }

    /// The key of a parameter: the site's own, or one that the delta's sites share.
    fn key(&self, name: &str) -> String {
        let own = format!("{}.{}.{name}", self.delta, self.site);
        match self.pass.graph.values.contains_key(&own) {
            true => own,
            false => format!("{}.{name}", self.delta),
        }
    }
}

impl Values for Site<'_> {
    fn weight(&self, name: &str) -> Weight {
        self.pass.weight(&self.key(name))
    }

    fn vector(&self, name: &str) -> Vector {
        self.pass.vector(&self.key(name))
    }

    fn site(&self) -> &str {
        self.site
    }

    fn module_weight(&self) -> Weight {
        self.pass.weight(&format!("{}.weight", self.site))
    }

    fn module_bias(&self) -> Option<Vector> {
        self.pass.bias(self.site)
    }

    fn norm(&self, sum: &Matrix) -> Outcome<Matrix> {
        match self.pass.graph.pre_norm() {
            true => Ok(sum.clone()),
            false => self.pass.norm(&format!("{}.norm", self.site), sum),
        }
    }

    fn dropout(&self, x: &Matrix, layout: &Layout, probability: f32) -> Outcome<Matrix> {
        let place = format!("{}.{}", self.delta, self.site);
        self.pass.drop(x.clone(), layout, probability, &place)
    }
}
