//! Attention from one query row per sequence, computed without the keys and values of the other rows.
//!
//! For one head, `softmax(q (x Wkᵀ + bk)ᵀ) (x Wvᵀ + bv)` is `(softmax((q Wk) xᵀ) x) Wvᵀ + bv`: `q bk` is
//! the same for all keys, so the softmax does not change, and the softmax weights sum to 1. Attention
//! therefore mixes the rows of `x` themselves, once per head, and projects only the mixtures to values.

use super::super::forward::Pass;
use super::super::layers::Attention;
use super::is_gated_at_the_top;
use crate::backbone::family::HeadKind;
use crate::backbone::Architecture;
use crate::delta::Preposition;
use crate::engine::{ops, Attending, AttentionShape, Layout, Matrix, Outcome};
use crate::plan::{Change, Plan};

/// Checks that the last block's attention can mix its input rows instead of projecting every row to a
/// value. `drops` says whether the pass applies dropout.
///
/// # Errors
/// The reason it cannot, as a phrase.
pub fn check(plan: &Plan, index: usize, drops: bool) -> Result<(), String> {
    let task = match plan.stages.get(index) {
        Some(stage) => plan.tasks.get(&stage.task),
        None => plan.final_task().map(|(_, task)| task),
    };
    if task.is_some_and(|task| task.kind.head() != HeadKind::Classify) {
        return Err("the head reads more than one row of a sequence".to_owned());
    }
    if is_gated_at_the_top(plan, index) {
        return Err("a gate in the last block reads all rows of a sequence".to_owned());
    }
    Architecture::new(&plan.backbone.config).absorbs_keys()?;
    if drops && plan.backbone.config.attention_dropout > 0.0 {
        return Err("attention dropout keeps the attention weights from summing to 1".to_owned());
    }
    let last = plan.backbone.config.block_paths().pop().unwrap_or_default();
    let attention = format!("{last}.attn");
    let [keys, values, fused] = ["k", "v", "qkv"].map(|name| format!("{attention}.{name}"));
    let stage = plan.stages.get(index);
    let is_trained = |name: &String| stage.is_some_and(|stage| stage.train.contains(name));
    for delta in plan.active(index) {
        match &delta.change {
            Change::Unfreeze { parameters } => {
                if is_trained(&delta.name) && parameters.contains(&format!("{keys}.weight")) {
                    return Err(format!(
                        "`{}` trains the weight of the key projection",
                        delta.name
                    ));
                }
            }
            Change::Method { method, sites } => {
                let is_at = |path: &String| sites.contains(path);
                let is_prefix = method.preposition() == Preposition::Before;
                if is_at(&keys) || is_at(&fused) || is_prefix && is_at(&attention) {
                    return Err(format!("`{}` changes the keys", delta.name));
                }
                if drops && method.dropout() > 0.0 && is_at(&values) {
                    return Err(format!(
                        "`{}` applies dropout before the value projection",
                        delta.name
                    ));
                }
            }
        }
    }
    Ok(())
}

impl Pass<'_> {
    /// Attends from the rows `asking`, with the queries `q (asking, hidden)`, to all rows of
    /// `x (rows, hidden)`. Returns `(asking, hidden)`.
    pub(in crate::graph) fn attend_absorbed(
        &self,
        layer: &Attention,
        q: &Matrix,
        x: &Matrix,
        layout: &Layout,
        (asking, causal): (&[usize], bool),
    ) -> Outcome<Matrix> {
        let heads = self.graph.config.heads;
        let of_each_head = |rows: &[usize]| -> Vec<usize> {
            let rows = rows.iter();
            rows.flat_map(|&row| std::iter::repeat_n(row, heads))
                .collect()
        };
        let own = self.own_columns(asking.len())?;
        let numbers: Vec<usize> = (0..asking.len()).collect();
        let queries = ops::multiply(&ops::select_rows(q, &of_each_head(&numbers))?, &own)?;
        let keys = self.weight(layer.k.weight);
        let queries = ops::linear_transposed(&queries, &keys)?; // (asking · heads, hidden)
        let attention = &self.graph.architecture.attention;
        let shape = AttentionShape {
            heads: 1,
            key_value_heads: 1,
            scale: attention.scale,
            causal,
            prefix: 0,
            window: None,
            cap: None,
        };
        let rows = of_each_head(asking);
        let attending = Attending::within(layout, Some(&rows));
        let mixed = ops::attention(&queries, x, x, attending, shape, None, None)?;
        let alone = Layout::new(vec![1; rows.len()], vec![0; rows.len()]);
        let values = self.linear(&layer.v, &mixed, &alone)?;
        ops::matmul(&self.sums(asking.len())?, &ops::multiply(&values, &own)?)
    }

    /// `(asking · heads, hidden)`: 1 where the column belongs to the row's head, 0 elsewhere.
    fn own_columns(&self, asking: usize) -> Outcome<Matrix> {
        let (heads, hidden) = (self.graph.config.heads, self.graph.config.hidden);
        let width = hidden / heads;
        let is_own = |i: usize| (i / hidden) % heads == (i % hidden) / width;
        self.ones_where((asking * heads, hidden), is_own)
    }

    /// `(asking, asking · heads)`: 1 where the column belongs to a head of the row, 0 elsewhere.
    fn sums(&self, asking: usize) -> Outcome<Matrix> {
        let heads = self.graph.config.heads;
        let columns = asking * heads;
        self.ones_where((asking, columns), |i| i % columns / heads == i / columns)
    }

    fn ones_where(&self, shape: (usize, usize), is_one: impl Fn(usize) -> bool) -> Outcome<Matrix> {
        let ones = (0..shape.0 * shape.1).map(|i| f32::from(is_one(i)));
        self.constant(ones.collect(), shape)
    }
}
