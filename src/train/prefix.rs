//! The frozen prefix computed once: what the blocks below the lowest trained site make of an example is
//! the same in every epoch, when nothing random lies among them.

use std::fs::File;
use std::io::Write;
use std::ops::Range;

use memmap2::Mmap;

use crate::diagnostic::Problem;
use crate::graph::{device_problem, Batch, Executor, Graph, Prefix};

/// Bytes of activations that are kept in memory; more of them are kept in a mapped temporary file.
pub const KEPT_IN_MEMORY: usize = 1 << 30;

/// Activations of a set of examples, kept as they are computed.
pub struct PrefixStore {
    block: usize,
    /// By example.
    places: Vec<Option<Place>>,
    /// Rows of a prompt before those of each example.
    more: usize,
    elements: Elements,
}

impl PrefixStore {
    /// A store for `examples` of them, of what `block` reads.
    pub fn new(block: usize, examples: usize) -> Self {
        PrefixStore::with_room(block, examples, KEPT_IN_MEMORY)
    }

    /// The same with another number of bytes in memory.
    pub fn with_room(block: usize, examples: usize, bytes: usize) -> Self {
        PrefixStore {
            block,
            places: vec![None; examples],
            more: 0,
            elements: Elements {
                room: bytes / 4,
                memory: Vec::new(),
                file: None,
                is_full: false,
            },
        }
    }

    /// Gives each group its prefix, computing those that are not there yet; `number` is that of the
    /// example at a place of the batch.
    ///
    /// # Errors
    /// What the device reports.
    pub fn attach<D: Executor>(
        &mut self,
        graph: &Graph<D>,
        groups: &mut [Batch],
        number: impl Fn(usize) -> usize,
    ) -> Result<(), Problem> {
        let numbers =
            |batch: &Batch| -> Vec<usize> { batch.places.iter().map(|p| number(*p)).collect() };
        let is_new = |batch: &&Batch| {
            let mut numbers = numbers(batch).into_iter();
            !self.elements.is_full && numbers.any(|number| self.places[number].is_none())
        };
        let new: Vec<Batch> = groups.iter().filter(is_new).cloned().collect();
        let block = self.block;
        let computed = D::map_groups(graph, &new, |graph, batch| {
            let prefix = graph.inference().prefix(batch, block);
            prefix.map_err(device_problem)
        });
        for (batch, prefix) in new.iter().zip(computed) {
            self.keep(&numbers(batch), batch, &prefix?);
        }
        for batch in groups {
            let numbers = numbers(batch);
            let places = numbers.iter().map(|number| self.places[*number].clone());
            let Some(places) = places.collect::<Option<Vec<Place>>>() else {
                continue;
            };
            let all = places.iter().map(|place| place.elements.len()).sum();
            let mut rows = Vec::with_capacity(all);
            let mut read = places.iter().map(|place| &place.elements);
            if read.all(|range| self.elements.read(range, &mut rows)) {
                batch.prefix = Some(Prefix {
                    block,
                    rows,
                    counts: places.iter().map(|place| place.count).collect(),
                    layout: batch.layout.extended(self.more),
                });
            }
        }
        Ok(())
    }

    /// Keeps what was computed of a group's examples, as far as there is room for it.
    fn keep(&mut self, numbers: &[usize], batch: &Batch, prefix: &Prefix) {
        let sequences = batch.layout.sequences().max(1);
        self.more = (prefix.layout.rows() - batch.layout.rows()) / sequences;
        let width = prefix.rows.len() / prefix.counts.iter().sum::<usize>().max(1);
        let mut start = 0;
        for (number, &count) in numbers.iter().zip(&prefix.counts) {
            let own = &prefix.rows[start..start + count * width];
            start += own.len();
            if self.places[*number].is_none() {
                let elements = self.elements.write(own);
                self.places[*number] = elements.map(|elements| Place { elements, count });
            }
        }
    }
}

/// Where the activations of an example lie.
#[derive(Clone)]
struct Place {
    elements: Range<usize>,
    /// Its rows.
    count: usize,
}

/// Elements in memory, and those behind the first `room` of them in a file.
struct Elements {
    room: usize,
    memory: Vec<f32>,
    file: Option<Spilled>,
    /// Whether the file could not be written: nothing more is then kept, and the rest computed again.
    is_full: bool,
}

/// A temporary file that is only added to, mapped as far as it has been read.
struct Spilled {
    file: File,
    length: usize,
    map: Option<Mmap>,
}

impl Elements {
    /// Keeps `values`, if there is a place for them: where they are from now on.
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

    /// Adds the elements of `range` to `rows`; whether they could be read.
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
