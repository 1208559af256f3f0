//! Applies deltas at their sites in the forward pass.

use super::forward::Pass;
use super::layers::{DeltaLayer, EmbeddingTable};
use super::Graph;
use crate::delta::{gate, At, Preposition, Values};
use crate::engine::{ops, Layout, Matrix, Outcome, Vector, Weight};

impl Graph {
    /// The prompts in place, after their encoders if they have any: `(tokens, hidden)`, on the host.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn prompt(&self) -> Outcome<Vec<f32>> {
        let prompt = self.inference().prompts(&Layout::new([], vec![]))?;
        Ok(prompt.map(|prompt| prompt.read()).unwrap_or_default())
    }

    /// The prefixes in place at an attention: keys and values, `(tokens, hidden)` each; empty if there are none.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn prefix(&self, path: &str) -> Outcome<Vec<Vec<f32>>> {
        let pass = self.inference();
        let deltas = self.delta_layers(path);
        let prefixes = pass.prefixes(&deltas, None, &Layout::new([], vec![]))?;
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
    /// Applies the deltas at a module to its input.
    pub(super) fn adapt_input(
        &self,
        deltas: &[DeltaLayer],
        mut x: Matrix,
        layout: &Layout,
    ) -> Outcome<Matrix> {
        for delta in deltas {
            x = delta.method.input(&self.at(delta).at(layout, None), x)?;
        }
        Ok(x)
    }

    /// Looks up rows of an embedding table and applies the deltas at it.
    pub(super) fn look_up(
        &self,
        table: &EmbeddingTable,
        indices: &[usize],
        layout: &Layout,
    ) -> Outcome<Matrix> {
        let mut y = ops::look_up(&self.weight(table.weight), indices)?;
        for delta in &table.deltas {
            let site = self.at(delta);
            y = delta.method.look_up(&site.at(layout, None), indices, y)?;
        }
        Ok(y)
    }

    /// Applies the deltas at a module to its output, in the order of the file.
    pub(super) fn adapt(
        &self,
        deltas: &[DeltaLayer],
        x: &Matrix,
        mut y: Matrix,
        layout: &Layout,
        residual: Option<&Matrix>,
    ) -> Outcome<Matrix> {
        for delta in deltas {
            let site = self.at(delta);
            let at = site.at(layout, residual);
            // Only a gate needs the old `y`. Without a second reference, the method may change `y` in place.
            let before = delta.is_gated.then(|| y.clone());
            y = delta.method.forward(&at, x, y)?;
            if let Some(before) = before {
                let reads = match delta.method.preposition() {
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

    /// Puts the prefixes at an attention before the keys and values of every sequence. Also returns how many
    /// rows each sequence gained. `x` is the attention's input.
    pub(super) fn prefixed(
        &self,
        deltas: &[DeltaLayer],
        x: &Matrix,
        [k, v]: [Matrix; 2],
        layout: &Layout,
    ) -> Outcome<([Matrix; 2], usize)> {
        let prefixes = self.prefixes(deltas, Some(x), layout)?;
        if prefixes.is_empty() {
            return Ok(([k, v], 0));
        }
        // Indices into a matrix that has the rows of all prefixes first, and then the sequences' own rows.
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

    /// The prefixes at an attention. If `x` is given, a gated prefix gets rows of its own for each sequence.
    fn prefixes(
        &self,
        deltas: &[DeltaLayer],
        x: Option<&Matrix>,
        layout: &Layout,
    ) -> Outcome<Vec<PrefixRows>> {
        let mut prefixes = Vec::new();
        for delta in deltas {
            let site = self.at(delta);
            let at = site.at(layout, None);
            let Some(mut rows) = delta.method.prefix(&at)? else {
                continue;
            };
            let tokens = rows[0].shape().0;
            let gated = x.filter(|_| delta.is_gated);
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

    /// The rows of all prompts in place, `(tokens, hidden)`, if there are any.
    pub(super) fn prompts(&self, layout: &Layout) -> Outcome<Option<Matrix>> {
        let mut parts = Vec::new();
        for delta in &self.layers.embeddings.deltas {
            parts.extend(delta.method.prompt(&self.at(delta).at(layout, None))?);
        }
        match parts.len() {
            0 => Ok(None),
            _ => ops::join_rows(&parts).map(Some),
        }
    }

    fn at<'a>(&'a self, delta: &'a DeltaLayer) -> DeltaInPass<'a> {
        DeltaInPass { pass: self, delta }
    }
}

/// Keys and values of one prefix.
struct PrefixRows {
    /// `(tokens, hidden)`, or `(sequences · tokens, hidden)` where sequences do not share them.
    rows: [Matrix; 2],
    tokens: usize,
    is_shared: bool,
}

/// What a method sees of the pass at its site.
struct DeltaInPass<'a> {
    pass: &'a Pass<'a>,
    delta: &'a DeltaLayer,
}

impl DeltaInPass<'_> {
    fn at<'a>(&'a self, layout: &'a Layout, residual: Option<&'a Matrix>) -> At<'a> {
        At {
            values: self,
            layout,
            residual,
        }
    }
}

impl Values for DeltaInPass<'_> {
    fn weight(&self, name: &str) -> Weight {
        self.pass.weight(self.delta.parameter(name))
    }

    fn vector(&self, name: &str) -> Vector {
        self.pass.vector(self.delta.parameter(name))
    }

    fn site(&self) -> &str {
        &self.delta.site
    }

    fn module_weight(&self) -> Weight {
        let weight = self.delta.weight.expect("the module has a weight");
        self.pass.weight(weight)
    }

    fn module_bias(&self) -> Option<Vector> {
        self.delta.bias.map(|bias| self.pass.vector(bias))
    }

    fn norm(&self, sum: &Matrix) -> Outcome<Matrix> {
        match &self.delta.norm {
            Some(norm) => self.pass.norm(norm, sum),
            None => Ok(sum.clone()),
        }
    }

    fn dropout(&self, x: &Matrix, layout: &Layout, probability: f32) -> Outcome<Matrix> {
        let place = self.delta.dropout;
        self.pass.drop(x.clone(), layout, probability, place)
    }
}
