//! A cache for the frozen blocks. If nothing below the lowest trained site is random, an example gives the same
//! activations there in every epoch, so they are computed once.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::Mmap;

use crate::diagnostic::Problem;
use crate::engine::{Precision, Storage};
use crate::graph::optimizations::frozen_blocks;
use crate::graph::{device_problem, Batch, CachedActivations, Graph};
use crate::plan::Plan;

/// The number of bytes of activations that are kept in memory. Further activations are kept in a mapped temporary file.
pub const KEPT_IN_MEMORY: usize = 1 << 30;

/// Caches that runs share if their plans agree on what is kept.
#[derive(Default)]
pub struct ActivationCaches(Mutex<BTreeMap<StoreKey, Arc<ActivationCache>>>);

/// Everything that the kept activations depend on, if no delta has a part in them.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct StoreKey {
    directory: PathBuf,
    storage: Storage,
    /// Whether products are in 16 bits.
    is_half: bool,
    /// The block that reads the activations.
    block: usize,
    /// The places of the position table that deltas take.
    places: usize,
}

impl ActivationCaches {
    /// The cache for the blocks below the lowest trained site of a stage. It is shared with earlier runs if they
    /// compute the same activations.
    pub fn get(&self, plan: &Plan, stage: usize) -> Arc<ActivationCache> {
        let block = plan.first_trained_block(stage);
        if !frozen_blocks::are_shared(plan, stage) {
            return Arc::new(ActivationCache::new(block));
        }
        let key = StoreKey {
            directory: plan.backbone.directory.clone(),
            storage: plan.backbone.storage,
            is_half: plan.backbone.precision == Precision::Bf16,
            block,
            places: plan.tokens(stage),
        };
        let mut stores = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let store = stores.entry(key);
        store
            .or_insert_with(|| Arc::new(ActivationCache::new(block)))
            .clone()
    }
}

/// Activations of examples, kept as they are computed. The tokens of an example identify it.
pub struct ActivationCache {
    block: usize,
    kept: Mutex<Entries>,
}

struct Entries {
    places: HashMap<Text, Entry>,
    /// The number of prompt rows that each example has in addition to its own.
    more: usize,
    elements: Spillable,
}

/// Everything of an example that a pass without targets reads; the key of its entry.
#[derive(PartialEq, Eq, Hash)]
struct Text {
    tokens: Vec<usize>,
    types: Vec<usize>,
    /// The tokens whose rows the head reads.
    reads: Vec<usize>,
    /// The number of its own rows that stand before the prompt.
    soft: usize,
}

fn texts(batch: &Batch) -> Vec<Text> {
    let text = |(sequence, range): (usize, Range<usize>)| Text {
        tokens: batch.tokens[range.clone()].to_vec(),
        types: batch.types[range.clone()].to_vec(),
        reads: batch
            .reads
            .iter()
            .filter(|row| range.contains(row))
            .map(|row| row - range.start)
            .collect(),
        soft: batch.soft.get(sequence).copied().unwrap_or(0),
    };
    batch.layout.ranges().enumerate().map(text).collect()
}

impl ActivationCache {
    /// A cache of the activations that `block` reads.
    pub fn new(block: usize) -> Self {
        ActivationCache::with_room(block, KEPT_IN_MEMORY)
    }

    /// [`ActivationCache::new`] with another number of bytes in memory.
    pub fn with_room(block: usize, bytes: usize) -> Self {
        let elements = Spillable {
            room: bytes / 4,
            memory: Vec::new(),
            file: None,
            is_full: false,
        };
        ActivationCache {
            block,
            kept: Mutex::new(Entries {
                places: HashMap::new(),
                more: 0,
                elements,
            }),
        }
    }

    /// Attaches to each group the activations that the block reads, and computes those that are not kept yet.
    ///
    /// # Errors
    /// The device fails, for example for want of memory.
    pub fn attach<'b>(
        &self,
        graph: &Graph,
        groups: impl IntoIterator<Item = &'b mut Batch>,
    ) -> Result<(), Problem> {
        let groups: Vec<&mut Batch> = groups.into_iter().collect();
        let new: Vec<Batch> = {
            let kept = self.kept();
            groups
                .iter()
                .filter(|batch| kept.lacks(batch))
                .map(|batch| (**batch).clone())
                .collect()
        };
        // The lock is not held meanwhile, so that other runs need not wait. If two runs compute the same activations,
        // they get the same bits.
        let at_once = rayon::current_num_threads();
        let computed = graph.device().map_groups(&new, at_once, |batch, _| {
            let below = graph.inference().below(batch, self.block);
            below.map_err(device_problem)
        });
        let mut kept = self.kept();
        for (batch, below) in new.iter().zip(computed) {
            kept.keep(batch, &below?);
        }
        for batch in groups {
            batch.cached = kept.find(self.block, batch);
        }
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Entries> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Whether an example of the group is not kept yet, and there may be room for it.
    fn lacks(&self, batch: &Batch) -> bool {
        let mut texts = texts(batch).into_iter();
        !self.elements.is_full && texts.any(|text| !self.places.contains_key(&text))
    }

    /// Keeps the activations of a group's examples, while there is room for them.
    fn keep(&mut self, batch: &Batch, below: &CachedActivations) {
        let sequences = batch.layout.sequences().max(1);
        self.more = (below.layout.rows() - batch.layout.rows()) / sequences;
        let width = below.rows.len() / below.counts.iter().sum::<usize>().max(1);
        let mut start = 0;
        for (text, &count) in texts(batch).into_iter().zip(&below.counts) {
            let own = &below.rows[start..start + count * width];
            start += own.len();
            if self.places.contains_key(&text) {
                continue;
            }
            if let Some(elements) = self.elements.write(own) {
                self.places.insert(text, Entry { elements, count });
            }
        }
    }

    /// The kept activations of a group, if all its examples have them and they can be read.
    fn find(&mut self, block: usize, batch: &Batch) -> Option<CachedActivations> {
        let places = texts(batch).into_iter();
        let places: Vec<Entry> = places
            .map(|text| self.places.get(&text).cloned())
            .collect::<Option<_>>()?;
        let all = places.iter().map(|place| place.elements.len()).sum();
        let mut rows = Vec::with_capacity(all);
        let mut read = places.iter().map(|place| &place.elements);
        let is_read = read.all(|range| self.elements.read(range, &mut rows));
        is_read.then(|| CachedActivations {
            block,
            rows,
            counts: places.iter().map(|place| place.count).collect(),
            layout: batch.layout.extended(self.more),
        })
    }
}

/// Where the activations of an example lie.
#[derive(Clone)]
struct Entry {
    elements: Range<usize>,
    /// The number of its rows.
    count: usize,
}

/// At most `room` elements in memory, and further ones in a file.
struct Spillable {
    room: usize,
    memory: Vec<f32>,
    file: Option<Spilled>,
    /// Whether writing the file failed. Nothing more is then written to it, and what is not kept is computed again.
    is_full: bool,
}

/// A temporary file that only grows, mapped up to the end of what has been read.
struct Spilled {
    file: File,
    length: usize,
    map: Option<Mmap>,
}

impl Spillable {
    /// Keeps `values` if there is room, and returns the range at which they are from now on.
    fn write(&mut self, values: &[f32]) -> Option<Range<usize>> {
        let start = self.memory.len();
        if start + values.len() <= self.room {
            self.memory.extend_from_slice(values);
            return Some(start..self.memory.len());
        }
        if self.is_full {
            return None;
        }
        let written = self.spill(values);
        self.is_full = written.is_err();
        written.ok()
    }

    fn spill(&mut self, values: &[f32]) -> std::io::Result<Range<usize>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(Spilled {
                file: tempfile::tempfile()?,
                length: 0,
                map: None,
            }),
        };
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.file.write_all(&bytes)?;
        let start = self.room + file.length;
        file.length += values.len();
        Ok(start..start + values.len())
    }

    /// Appends the elements of `range` to `rows`. Returns whether they could be read.
    fn read(&mut self, range: &Range<usize>, rows: &mut Vec<f32>) -> bool {
        if range.end <= self.room {
            rows.extend_from_slice(&self.memory[range.clone()]);
            return true;
        }
        let bytes = 4 * (range.start - self.room)..4 * (range.end - self.room);
        let map = self.file.as_mut().and_then(|file| file.map_to(bytes.end));
        let Some(map) = map else { return false };
        let elements = map[bytes].chunks_exact(4);
        rows.extend(elements.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        true
    }
}

impl Spilled {
    /// The file's map, at least `length` bytes long.
    fn map_to(&mut self, length: usize) -> Option<&Mmap> {
        if self.map.as_ref().is_none_or(|map| map.len() < length) {
            // SAFETY: the file has no name, nobody else has it, and it is only ever added to.
            self.map = unsafe { Mmap::map(&self.file) }.ok();
        }
        self.map.as_ref().filter(|map| map.len() >= length)
    }
}
