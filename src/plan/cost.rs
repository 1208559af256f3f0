//! What a stage costs, estimated from shapes alone.

use super::{Change, DeltaPlan, Length, Plan, StagePlan, TaskKind, TaskPlan};
use crate::backbone::family::{Dimension, FeedForwardKind};
use crate::backbone::{head_parameters, language_model_parameters, Architecture, Tree};
use crate::delta::Preposition;
use crate::engine::cpu::{copies_of_a_weight, uses_amx};
use crate::engine::Precision;

/// What a stage trains and needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Parameters that the stage trains.
    pub trained: usize,
    /// Parameters of the backbone, the deltas in place and the head.
    pub total: usize,
    /// Estimated memory, in bytes, when every sequence is `tokens` long.
    pub memory: usize,
    /// Floating-point operations of a step's matrix products.
    pub operations: f64,
    /// The first block with something trained in or below it; the number of blocks if there is none.
    pub first_traced_block: usize,
}

/// Something that this compiler does not compute, and the peers do.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimization {
    /// Its name.
    pub name: &'static str,
    /// Whether it applies.
    pub applies: bool,
    /// Why, in a phrase.
    pub reason: String,
}

impl Plan {
    /// The cost of a stage for sequences of `tokens` tokens, on a device with `threads` groups of
    /// `group_rows` rows in flight.
    pub fn cost(&self, index: usize, tokens: usize, threads: usize, group_rows: usize) -> Cost {
        let stage = &self.stages[index];
        let config = &self.backbone.config;
        let tree = Tree::new(config);
        let backbone: usize = tree.parameters().map(|parameter| parameter.count()).sum();
        let head = self.head_count(stage);
        let added = |name: &String| self.delta_count(&tree, name);
        let trained: usize =
            stage.train.iter().map(added).sum::<usize>() + if stage.train_head { head } else { 0 };
        let in_place: usize = self
            .active(index)
            .iter()
            .filter(|delta| matches!(delta.change, Change::Method { .. }))
            .map(|delta| self.delta_count(&tree, &delta.name))
            .sum();
        let first = self.first_traced_block(stage);
        let blocks = config.block_count();
        let traced_layers = blocks - first;

        let rows = stage.batch * stage.accumulate * tokens;
        let rows_in_flight = rows.min(threads * group_rows.max(tokens));
        // Queries, keys and values, normalized rows, what LoRA reads, and derivatives; where weights are trained, the
        // inputs of their products as well.
        let trained_outputs = self.trained_outputs(stage, &tree);
        let inputs = match trained_outputs {
            0 => 0,
            _ => 3 * config.hidden + config.inner,
        };
        let [queries, keys] = [Dimension::Queries, Dimension::Keys].map(|d| config.size(d, 0));
        let projected = 3 * config.hidden + queries + 2 * keys;
        // A gate keeps both factors beside the derivatives.
        let inner = match config.feed_forward() {
            FeedForwardKind::Plain => config.inner,
            FeedForwardKind::Gated => 3 * config.inner,
        };
        let kept_per_row = traced_layers * (projected + inner + inputs);
        let working_per_row = projected + 2 * config.inner + inner;
        let matrices = tree.parameters().filter(|p| p.shape.len() == 2);
        let mut below = 0;
        let mut traced = 0;
        for matrix in matrices {
            match config.block_of(&matrix.path) {
                Some(block) if block < first => below += matrix.count(),
                Some(_) => traced += matrix.count(),
                None => {}
            }
        }
        // Beside what is trained lie its gradient and AdamW's two means.
        let packed = [(traced, true), (below, false)].map(|(weights, is_passed)| {
            weights as f64 * (copies_of_a_weight(config.hidden, is_passed) - 1.0)
        });
        let floats = backbone
            + packed.iter().sum::<f64>() as usize
            + in_place
            + 4 * trained
            + rows_in_flight * (kept_per_row + working_per_row)
            + rows * trained_outputs;

        let attention = 2 * tokens * queries;
        // A decoder attends twice.
        let attentions =
            |blocks: usize| (blocks + blocks.min(config.decoder_layers.unwrap_or(0))) * attention;
        let forward = below + traced + attentions(blocks);
        let backward = traced + 2 * attentions(traced_layers);
        let weights = (trained as f64) * rows as f64;
        Cost {
            trained,
            total: backbone + in_place + head,
            memory: 4 * floats,
            operations: 2.0 * (rows as f64 * (forward + backward) as f64 + 2.0 * weights),
            first_traced_block: first,
        }
    }

    /// Outputs of the blocks' weights that a stage trains: their gradients are kept for all rows of a step,
    /// until those of the weights are made of them.
    fn trained_outputs(&self, stage: &StagePlan, tree: &Tree) -> usize {
        let is_trained = |path: &String| {
            self.deltas.iter().any(|delta| {
                stage.train.contains(&delta.name)
                    && matches!(&delta.change, Change::Unfreeze { parameters } if parameters.contains(path))
            })
        };
        tree.parameters()
            .filter(|parameter| parameter.shape.len() == 2)
            .filter(|parameter| self.backbone.config.block_of(&parameter.path).is_some())
            .filter(|parameter| is_trained(&parameter.path))
            .map(|parameter| parameter.shape[0])
            .sum()
    }

    /// Which of the compiler's optimizations apply to a stage.
    pub fn optimizations(&self, index: usize) -> Vec<Optimization> {
        let stage = &self.stages[index];
        let first = self.first_traced_block(stage);
        let layers = self.backbone.config.block_count();
        let unfrozen = stage.train.iter().any(|name| {
            self.deltas.iter().any(|delta| {
                &delta.name == name
                    && matches!(&delta.change, Change::Unfreeze { parameters } if parameters.iter().any(|path| path.ends_with(".weight")))
            })
        });
        vec![
            Optimization {
                name: "no gradient for frozen weights",
                applies: true,
                reason: match unfrozen {
                    true => "one product instead of two wherever a weight is frozen".to_owned(),
                    false => {
                        "every backward product of the backbone is one instead of two".to_owned()
                    }
                },
            },
            Optimization {
                name: "nothing recorded below the lowest trained site",
                applies: first > 0,
                reason: match first {
                    0 => "something is trained in the first block or below it".to_owned(),
                    _ if first == layers => "only the head is trained".to_owned(),
                    _ => format!("{} run forward only", self.blocks_below(first)),
                },
            },
            match self.frozen_blocks(index) {
                Ok(block) => Optimization {
                    name: "the frozen blocks computed once",
                    applies: true,
                    reason: match block {
                        _ if block == layers => "all blocks are, in the first epoch".to_owned(),
                        _ => format!("{} are, in the first epoch", self.blocks_below(block)),
                    },
                },
                Err(reason) => Optimization {
                    name: "the frozen blocks computed once",
                    applies: false,
                    reason,
                },
            },
            Optimization {
                name: "the last block only for the rows that are read",
                applies: !self.is_gated_at_the_top(index),
                reason: match self.tasks.get(&stage.task) {
                    _ if self.is_gated_at_the_top(index) => {
                        "a gate in it reads all rows of a sequence".to_owned()
                    }
                    Some(task) if task.uses_language_model() => {
                        "behind its attention, only the tokens that a target is read off go on"
                            .to_owned()
                    }
                    _ => "behind its attention, one row of a sequence goes on".to_owned(),
                },
            },
            match self.absorbs_keys(index, true) {
                Ok(()) => Optimization {
                    name: "the last block without keys and values",
                    applies: true,
                    reason: "one row asks: it mixes what the block reads".to_owned(),
                },
                Err(reason) => Optimization {
                    name: "the last block without keys and values",
                    applies: false,
                    reason,
                },
            },
            Optimization {
                name: "products in 16 bits",
                applies: self.backbone.precision == Precision::Bf16,
                reason: match self.backbone.precision {
                    Precision::Bf16 => {
                        "frozen weights and what they multiply are rounded to bfloat16".to_owned()
                    }
                    Precision::F32 => {
                        "not asked for: `precision = bf16` in `backbone`, with its error".to_owned()
                    }
                },
            },
            self.products_on_amx(),
            Optimization {
                name: "no padding",
                applies: true,
                reason: "sequences are packed, row after row, on the CPU".to_owned(),
            },
        ]
    }

    /// The blocks below one, for people.
    fn blocks_below(&self, first: usize) -> String {
        let paths = self.backbone.config.block_paths();
        match self.backbone.config.decoder_layers {
            None => format!("blocks 0 to {}", first - 1),
            Some(_) => format!("`{}` to `{}`", paths[0], paths[first - 1]),
        }
    }

    /// Whether the last block's attention can mix its inputs instead of values made of all of them, in a
    /// pass with dropout or without, or why it cannot.
    ///
    /// # Errors
    /// Why, in a phrase.
    pub fn absorbs_keys(&self, index: usize, drops: bool) -> Result<(), String> {
        let task = match self.stages.get(index) {
            Some(stage) => self.tasks.get(&stage.task),
            None => self.final_task().map(|(_, task)| task),
        };
        if task.is_some_and(TaskPlan::uses_language_model) {
            return Err("its head reads more than one row of a sequence".to_owned());
        }
        if self.is_gated_at_the_top(index) {
            return Err("a gate in it reads all rows of a sequence".to_owned());
        }
        Architecture::new(&self.backbone.config).absorbs_keys()?;
        if drops && self.backbone.config.attention_dropout > 0.0 {
            return Err("dropout of attention weights, which then do not sum to 1".to_owned());
        }
        let last = self.backbone.config.block_paths().pop().unwrap_or_default();
        let attention = format!("{last}.attn");
        let [keys, values, fused] = ["k", "v", "qkv"].map(|name| format!("{attention}.{name}"));
        let stage = self.stages.get(index);
        let is_trained = |name: &String| stage.is_some_and(|stage| stage.train.contains(name));
        for delta in self.active(index) {
            match &delta.change {
                Change::Unfreeze { parameters } => {
                    if is_trained(&delta.name) && parameters.contains(&format!("{keys}.weight")) {
                        return Err(format!("`{}` trains the weight of its keys", delta.name));
                    }
                }
                Change::Method { method, sites } => {
                    let is_at = |path: &String| sites.contains(path);
                    let is_prefix = method.preposition() == Preposition::Before;
                    if is_at(&keys) || is_at(&fused) || is_prefix && is_at(&attention) {
                        return Err(format!("`{}` changes its keys", delta.name));
                    }
                    if drops && method.dropout() > 0.0 && is_at(&values) {
                        return Err(format!("`{}` has a dropout before its values", delta.name));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether products in f32 are computed on the processor's AMX.
    fn products_on_amx(&self) -> Optimization {
        let hidden = self.backbone.config.hidden;
        let (applies, reason) = match self.backbone.precision {
            Precision::Bf16 => (false, "products are in 16 bits"),
            _ if uses_amx(hidden, hidden) => (true, "elements are whole numbers of 24 bits"),
            _ => (
                false,
                "the processor has none, or the backbone is too narrow",
            ),
        };
        Optimization {
            name: "products in f32 on AMX",
            applies,
            reason: reason.to_owned(),
        }
    }

    /// The block below which a stage computes the same for an example in every epoch, or why it does not.
    ///
    /// # Errors
    /// Why, in a phrase.
    pub fn frozen_blocks(&self, index: usize) -> Result<usize, String> {
        let stage = &self.stages[index];
        let first = self.first_traced_block(stage);
        let config = &self.backbone.config;
        let is_below = |site: &String| config.reader_of(site) < first;
        let draws = |delta: &&&DeltaPlan| match &delta.change {
            Change::Method { method, sites } => {
                method.dropout() > 0.0 && sites.iter().any(is_below)
            }
            Change::Unfreeze { .. } => false,
        };
        let active = self.active(index);
        if first == 0 {
            Err("something is trained in the first block or below it".to_owned())
        } else if config.decoder_layers.is_some() {
            Err("the decoder reads what the encoder makes in each of its blocks".to_owned())
        } else if self.tasks[&stage.task].kind == TaskKind::MaskedLm {
            Err("masks are drawn anew in every epoch".to_owned())
        } else if config.dropout > 0.0
            || config.embedding_dropout() > 0.0
            || config.attention_dropout > 0.0
        {
            Err("dropout below the lowest trained site; `dropout = off` in `backbone`".to_owned())
        } else if let Some(delta) = active.iter().find(draws) {
            Err(format!(
                "`{}` has a dropout below the lowest trained site",
                delta.name
            ))
        } else if matches!(stage.length, Length::Epochs(epochs) if epochs <= 1.0) {
            Err("there is one epoch".to_owned())
        } else {
            Ok(first)
        }
    }

    /// Whether what lies below the lowest trained site of a stage is the backbone's alone, read in the same
    /// way by every task: the same in all runs with this backbone.
    pub fn shares_frozen_blocks(&self, index: usize) -> bool {
        let first = self.first_trained_block(index);
        let is_below = |path: &String| self.backbone.config.reader_of(path) < first;
        let has_part = |delta: &&DeltaPlan| match &delta.change {
            Change::Method { sites, .. } => sites.iter().any(is_below),
            Change::Unfreeze { parameters } => parameters.iter().any(is_below),
        };
        let task = &self.tasks[&self.stages[index].task];
        let is_read_alike =
            first < self.backbone.config.block_count() || !task.uses_language_model();
        let active = self.active(index);
        !self.backbone.random && is_read_alike && !active.iter().any(has_part)
    }

    /// The first block with something trained in or below it, which all of a stage's passes have in
    /// common.
    pub fn first_trained_block(&self, index: usize) -> usize {
        self.first_traced_block(&self.stages[index])
    }

    /// Whether a delta in the last block is gated.
    fn is_gated_at_the_top(&self, stage: usize) -> bool {
        let last = self.backbone.config.block_paths().pop().unwrap_or_default() + ".";
        let is_there = |delta: &&DeltaPlan| match &delta.change {
            Change::Method { sites, .. } => sites.iter().any(|site| site.starts_with(&last)),
            Change::Unfreeze { .. } => false,
        };
        let mut active = self.active(stage).into_iter();
        active.any(|delta| delta.is_gated && is_there(&delta))
    }

    fn head_count(&self, stage: &StagePlan) -> usize {
        let Some(task) = self.tasks.get(&stage.task) else {
            return 0;
        };
        let config = &self.backbone.config;
        let head = config.family().heads.of(task.uses_language_model());
        let parameters = head.map(|head| head_parameters(config, head, task.outputs()));
        parameters
            .unwrap_or_default()
            .iter()
            .map(|parameter| parameter.count())
            .sum()
    }

    fn delta_count(&self, tree: &Tree, name: &str) -> usize {
        let Some(delta) = self.deltas.iter().find(|delta| delta.name == name) else {
            return 0;
        };
        match &delta.change {
            Change::Unfreeze { parameters } => {
                let head = language_model_parameters(&self.backbone.config);
                tree.parameters()
                    .chain(&head)
                    .filter(|parameter| parameters.contains(&parameter.path))
                    .map(|parameter| parameter.count())
                    .sum()
            }
            Change::Method { method, sites } => {
                let modules: Vec<_> = sites.iter().filter_map(|site| tree.module(site)).collect();
                let own = modules.iter().flat_map(|module| delta.parameters(module));
                own.chain(method.shared(&modules))
                    .filter(|parameter| !parameter.is_frozen)
                    .map(|parameter| parameter.count())
                    .sum()
            }
        }
    }

    fn first_traced_block(&self, stage: &StagePlan) -> usize {
        let config = &self.backbone.config;
        let deltas = self
            .deltas
            .iter()
            .filter(|delta| stage.train.contains(&delta.name));
        deltas
            .flat_map(|delta| match &delta.change {
                Change::Unfreeze { parameters } => parameters.iter(),
                Change::Method { sites, .. } => sites.iter(),
            })
            .map(|path| config.reader_of(path))
            .min()
            .unwrap_or(config.block_count())
    }
}
