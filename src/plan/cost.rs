//! Estimates the cost of a stage from shapes alone.

use super::{DeltaPlan, Plan, StagePlan};
use crate::backbone::family::{Dimension, FeedForwardKind};
use crate::backbone::{head_parameters, language_model_parameters, Tree};
use crate::engine::{Precision, Storage};

/// The estimated cost of a stage.
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
    pub first_trained_block: usize,
    /// Groups of sequences in a step. Several processes share them out.
    pub groups: usize,
    /// Bytes of gradients that each of several processes receives per step.
    pub received: usize,
}

/// Bytes per second between processes, as estimates assume them: a network of 10 gigabits per second.
pub const BETWEEN_PROCESSES: f64 = 1.25e9;

impl Cost {
    /// Seconds per step on 1, 2, 4 and more processes, up to `most`.
    pub fn by_processes(&self, most: usize, rate: f64) -> Vec<(usize, f64)> {
        let doubled = std::iter::successors(Some(1), |number| Some(2 * number));
        let numbers = doubled.take_while(|number| *number <= most);
        numbers
            .map(|number| (number, self.seconds(number, rate)))
            .collect()
    }

    /// Seconds per step on several processes that compute `rate` operations per second each.
    pub fn seconds(&self, processes: usize, rate: f64) -> f64 {
        let share = self.groups.div_ceil(processes) as f64 / self.groups as f64;
        let messages = match processes {
            1 => 0.0,
            _ => self.received as f64 / BETWEEN_PROCESSES,
        };
        share * self.operations / rate + messages
    }
}

/// The properties of a machine that determine costs.
#[derive(Clone, Copy)]
pub struct Machine {
    /// Groups of sequences that run at the same time.
    pub threads: usize,
    /// Rows of a group.
    pub group_rows: usize,
    /// The most trained elements whose gradients processes send each other group by group. Of more, they send sums.
    pub most_sent_by_group: usize,
    /// Memory of a frozen weight, in multiples of its size in f32. The arguments are the precision of its products, the length of its smaller side,
    /// and whether a gradient passes through it.
    pub copies_of_a_weight: fn(Precision, usize, bool) -> f64,
}

impl Plan {
    /// The cost of a stage for sequences of `tokens` tokens, on a machine.
    pub fn cost(&self, index: usize, tokens: usize, machine: &Machine) -> Cost {
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
            .filter(|delta| !delta.unfreezes())
            .map(|delta| self.delta_count(&tree, &delta.name))
            .sum();
        let first = self.lowest_trained_block(stage);
        let blocks = config.block_count();
        let traced_layers = blocks - first;

        let rows = stage.batch * stage.accumulate * tokens;
        let rows_in_flight = rows.min(machine.threads * machine.group_rows.max(tokens));
        // The backward pass needs queries, keys, values, normalized rows, LoRA's inputs, and derivatives. If weights
        // are trained, it also needs the inputs of their products.
        let trained_outputs = self.trained_outputs(stage, &tree);
        let inputs = match trained_outputs {
            0 => 0,
            _ => 3 * config.hidden + config.inner,
        };
        let [queries, keys] = [Dimension::Queries, Dimension::Keys].map(|d| config.size(d, 0));
        let projected = 3 * config.hidden + queries + 2 * keys;
        // A gated feed-forward also keeps both factors of its product.
        let inner = match config.feed_forward() {
            FeedForwardKind::Plain => config.inner,
            FeedForwardKind::Gated => 3 * config.inner,
        };
        let kept_in_block = projected + inner + inputs;
        let kept_per_row = match stage.recompute {
            false => traced_layers * kept_in_block,
            true => traced_layers * config.hidden + kept_in_block,
        };
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
        // Each trained element also has a gradient and AdamW's two means: hence `4 * trained`. Codes are not packed.
        let packed = [(traced, true), (below, false)].map(|(weights, is_passed)| {
            let copies =
                (machine.copies_of_a_weight)(self.backbone.precision, config.hidden, is_passed)
                    - 1.0;
            match self.backbone.storage {
                Storage::F32 => weights as f64 * copies,
                _ => 0.0,
            }
        });
        let floats = self.backbone.weight_bytes() / 4
            + packed.iter().sum::<f64>() as usize
            + in_place
            + 4 * trained
            + rows_in_flight * (kept_per_row + working_per_row)
            + rows * trained_outputs;

        let attention = 2 * tokens * queries;
        // A decoder's block also has cross-attention.
        let attentions =
            |blocks: usize| (blocks + blocks.min(config.decoder_layers.unwrap_or(0))) * attention;
        let forward = below + traced + attentions(blocks);
        let again = match stage.recompute {
            false => 0,
            true => traced + attentions(traced_layers),
        };
        let backward = again + traced + 2 * attentions(traced_layers);
        let weights = (trained as f64) * rows as f64;
        let sequences = stage.batch * stage.accumulate;
        let groups = rows.div_ceil(machine.group_rows).clamp(1, sequences);
        let sends_groups = trained_outputs == 0 && trained <= machine.most_sent_by_group;
        // An all-reduce receives each element twice: its sum in parts, and then whole.
        let times_received = if sends_groups { groups } else { 2 };
        Cost {
            trained,
            total: backbone + in_place + head,
            memory: 4 * floats,
            operations: 2.0 * (rows as f64 * (forward + backward) as f64 + 2.0 * weights),
            first_trained_block: first,
            groups,
            received: times_received * 4 * trained,
        }
    }

    /// Total output width of the block weights that a stage unfreezes. Gradients of these outputs are kept for all
    /// rows of a step, until the gradients of the weights are computed from them.
    fn trained_outputs(&self, stage: &StagePlan, tree: &Tree) -> usize {
        let is_trained = |path: &String| {
            let mut deltas = self.deltas.iter();
            deltas.any(|delta| stage.train.contains(&delta.name) && delta.unfrozen().contains(path))
        };
        tree.parameters()
            .filter(|parameter| parameter.shape.len() == 2)
            .filter(|parameter| self.backbone.config.block_of(&parameter.path).is_some())
            .filter(|parameter| is_trained(&parameter.path))
            .map(|parameter| parameter.shape[0])
            .sum()
    }

    /// The first block with something trained in or below it, in stage number `index`. The number of blocks if there
    /// is none.
    pub fn first_trained_block(&self, index: usize) -> usize {
        self.lowest_trained_block(&self.stages[index])
    }

    fn head_count(&self, stage: &StagePlan) -> usize {
        let Some(task) = self.tasks.get(&stage.task) else {
            return 0;
        };
        let config = &self.backbone.config;
        let head = config.family().heads.of(task.kind.head());
        let parameters = head.map(|head| head_parameters(config, head, task.kind.outputs()));
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
        let Some(method) = delta.method() else {
            let head = language_model_parameters(&self.backbone.config);
            let all = tree.parameters().chain(&head);
            let unfrozen = all.filter(|parameter| delta.unfrozen().contains(&parameter.path));
            return unfrozen.map(|parameter| parameter.count()).sum();
        };
        let sites = delta.sites().iter();
        let modules: Vec<_> = sites.filter_map(|site| tree.module(site)).collect();
        let own = modules.iter().flat_map(|module| delta.parameters(module));
        own.chain(method.shared(&modules))
            .filter(|parameter| !parameter.is_frozen)
            .map(|parameter| parameter.count())
            .sum()
    }

    fn lowest_trained_block(&self, stage: &StagePlan) -> usize {
        let config = &self.backbone.config;
        let deltas = self
            .deltas
            .iter()
            .filter(|delta| stage.train.contains(&delta.name));
        deltas
            .flat_map(DeltaPlan::places)
            .map(|path| config.reader_of(path))
            .min()
            .unwrap_or(config.block_count())
    }
}
