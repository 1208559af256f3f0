//! Runs the groups of a batch, one after the other or in parallel.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{device_problem, Batch, Graph, GroupGradients, Targets};
use crate::delta::ParameterId;
use crate::diagnostic::Problem;
use crate::engine::{self, Deferred, Device, Outcome, Semaphore};
use crate::plan::Machine;
use crate::ranks::{all_gathered, all_items, most_threads, own_of, world, Portable};
use crate::task::Compared;

/// Describes this machine, with `threads` threads, for cost estimates.
pub fn this_machine(threads: usize) -> Machine {
    Machine {
        threads,
        group_rows: Device::Cpu.group_rows(),
        most_sent_by_group: HELD_GRADIENTS,
        copies_of_a_weight: engine::copies_of_a_weight,
    }
}

/// The most gradient elements that we hold before we sum them.
const HELD_GRADIENTS: usize = 8 << 20;

/// What the groups of a batch have added up to.
#[derive(Default)]
struct Sums {
    loss: f32,
    compared: Compared,
    /// By the index of the parameter.
    gradients: BTreeMap<usize, Vec<f32>>,
}

/// The loss of a batch and the gradient of everything trained.
pub type LossAndGradients = (f32, BTreeMap<ParameterId, Vec<f32>>);

impl Graph {
    /// The mean loss of a batch, given as groups, and the gradients.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn gradients(&self, groups: &[Batch]) -> Result<LossAndGradients, Problem> {
        Ok(self.gradients_and_answers(groups)?.0)
    }

    /// The same, and how the answers to prompts compare, if the task compares some.
    ///
    /// # Errors
    /// See [`Graph::gradients`].
    pub fn gradients_and_answers(
        &self,
        groups: &[Batch],
    ) -> Result<(LossAndGradients, Compared), Problem> {
        let mut sums = Sums::default();
        // Hold few enough groups that their gradients take little memory, but enough to keep all threads of all
        // processes busy. Gradients are summed in the order of the groups, so this number does not change the result.
        let threads = most_threads() * world().size();
        let (most, at_once) = match self.active.deferred.is_empty() {
            true => (
                (HELD_GRADIENTS / self.trained_count().max(1)).max(threads),
                self.device.groups_at_once(self.config.hidden),
            ),
            // A group with deferred gradients holds its activations until we add its parts.
            false => (threads, rayon::current_num_threads()),
        };
        // Processes send each other the gradients of groups or, where these are large, the sums of their own groups.
        let sends_groups =
            self.active.deferred.is_empty() && self.trained_count() <= HELD_GRADIENTS;
        let layers = self.layers().blocks.len();
        let semaphore = Semaphore::new(at_once * layers + layers.div_ceil(4));
        for (number, wave) in groups.chunks(most).enumerate() {
            let first = number * most;
            let own: Vec<&Batch> = own_of(first, wave).collect();
            let results = self.device.map_groups(&own, at_once, |group, start_next| {
                let gradients = self.group_gradients(group, &semaphore, start_next);
                gradients.map_err(device_problem)
            });
            let mut results = results.into_iter().collect::<Result<Vec<_>, _>>()?;
            if sends_groups {
                results = all_items(first, results, wave.len());
            }
            self.add_groups(&mut sums, results);
        }
        if !sends_groups && world().size() > 1 {
            self.join_processes(&mut sums);
        }
        let Sums {
            loss,
            compared,
            gradients: sums,
        } = sums;
        let named = sums.into_iter().filter_map(|(index, sum)| {
            let (id, _) = self.values.get_index(index)?;
            Some((id.clone(), sum))
        });
        Ok(((loss, named.collect()), compared))
    }

    /// Adds what groups contribute, in their order.
    fn add_groups(&self, sums: &mut Sums, groups: Vec<GroupGradients>) {
        let mut parts: BTreeMap<usize, Vec<Deferred>> = BTreeMap::new();
        for group in groups {
            sums.loss += group.loss;
            sums.compared.join(group.compared);
            for (index, gradient) in group.whole {
                match sums.gradients.get_mut(&index) {
                    Some(sum) => sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g),
                    None => {
                        sums.gradients.insert(index, gradient);
                    }
                }
            }
            for (index, part) in group.parts {
                parts.entry(index).or_default().push(part);
            }
        }
        self.add_parts(&mut sums.gradients, parts);
    }

    /// Adds the sums of the other processes to those of this one.
    fn join_processes(&self, sums: &mut Sums) {
        for index in &self.active.trained {
            let count = self.values[*index].shape().iter().product();
            let sum = sums.gradients.entry(*index);
            world().all_reduce(sum.or_insert_with(|| vec![0.0; count]));
        }
        let own = GroupGradients {
            loss: sums.loss,
            compared: sums.compared,
            whole: Vec::new(),
            parts: Vec::new(),
        };
        (sums.loss, sums.compared) = (0.0, Compared::default());
        for other in all_gathered(own) {
            sums.loss += other.loss;
            sums.compared.join(other.compared);
        }
    }

    /// Computes the deferred parts of each gradient and adds them to `sums`, in the order of the groups. A
    /// parameter that no gradient reached gets zeros.
    fn add_parts(
        &self,
        sums: &mut BTreeMap<usize, Vec<f32>>,
        mut parts: BTreeMap<usize, Vec<Deferred>>,
    ) {
        let work: Vec<_> = self
            .active
            .deferred
            .iter()
            .map(|index| {
                let shape = self.values[*index].shape();
                let sum = sums
                    .remove(index)
                    .unwrap_or_else(|| vec![0.0; shape.iter().product()]);
                (
                    *index,
                    shape[1],
                    sum,
                    parts.remove(index).unwrap_or_default(),
                )
            })
            .collect();
        let add = |(index, columns, mut sum, parts): (usize, _, Vec<f32>, Vec<_>)| {
            Deferred::add_all(&parts, &mut sum, columns);
            (index, sum)
        };
        let done: Vec<_> = work.into_par_iter().map(add).collect();
        sums.extend(done);
    }

    /// The number of elements that get gradients.
    pub fn trained_count(&self) -> usize {
        let places = self.active.trained.iter();
        let counts = places.map(|index| self.values[*index].shape().iter().product::<usize>());
        counts.sum()
    }

    /// The logits of every group, `(sequences, labels)` each.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn logits(&self, groups: &[Batch]) -> Result<Vec<Vec<f32>>, Problem> {
        self.map_logits(groups, |_, logits| logits)
    }

    /// `−log` of the probability of each token of the answers of every group.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn token_losses(&self, groups: &[Batch]) -> Result<Vec<Vec<f32>>, Problem> {
        self.map_all(groups, |group| {
            let Targets::Answers(answers) = &group.targets else {
                return Ok(Vec::new());
            };
            let losses = self.inference().token_losses(group, &answers.tokens);
            losses.map(|losses| losses.read())
        })
    }

    /// Applies `map` to every group and its logits. Logits over a vocabulary are large, so only those of the groups
    /// in progress are in memory.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn map_logits<R: Portable + Send + Sync>(
        &self,
        groups: &[Batch],
        map: impl Fn(&Batch, Vec<f32>) -> R + Sync,
    ) -> Result<Vec<R>, Problem> {
        self.map_all(groups, |group| {
            let logits = self.inference().logits(group);
            logits.map(|logits| map(group, logits.read()))
        })
    }

    /// Applies `work` to this process's groups, and gathers the results of all groups.
    fn map_all<R: Portable + Send + Sync>(
        &self,
        groups: &[Batch],
        work: impl Fn(&Batch) -> Outcome<R> + Sync,
    ) -> Result<Vec<R>, Problem> {
        let at_once = rayon::current_num_threads();
        let own: Vec<&Batch> = own_of(0, groups).collect();
        let results = self.device.map_groups(&own, at_once, |group, _| {
            work(group).map_err(device_problem)
        });
        let results = results.into_iter().collect::<Result<_, _>>()?;
        Ok(all_items(0, results, groups.len()))
    }
}
