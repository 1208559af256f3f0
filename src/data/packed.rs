//! Examples in little memory: some two bytes for each token, and those of a large file in a temporary one.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::task::Example;

/// Examples of a block. A block never moves: a single list of all bytes would be copied as it grows.
const OF_A_BLOCK: usize = 1024;

/// Bytes of full blocks up to which all stay in memory: some 200,000 rows of 64 tokens.
const IN_MEMORY: usize = 32 << 20;

/// Examples, each in bytes of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    /// All are full but the last.
    blocks: Vec<Block>,
    /// The size of the full blocks that are in memory.
    in_memory: usize,
    spilled: Option<Spilled>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    bytes: Bytes,
    /// Where the bytes of each example end.
    ends: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Bytes {
    Memory(Vec<u8>),
    /// From this place on in the temporary file.
    File(u64),
}

impl Default for Bytes {
    fn default() -> Self {
        Bytes::Memory(Vec::new())
    }
}

/// A temporary file without a name, which only grows.
#[derive(Clone, Debug)]
struct Spilled {
    file: Arc<File>,
    length: u64,
}

impl Packed {
    /// Adds an example.
    pub fn push(&mut self, example: &Example) {
        self.add(|bytes| {
            postcard::to_extend(example, bytes).expect("a vector takes every example")
        });
    }

    /// Adds an example by what appends its bytes.
    fn add(&mut self, append: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let has_room = |block: &Block| block.ends.len() < OF_A_BLOCK;
        if !self.blocks.last().is_some_and(has_room) {
            self.close();
            self.blocks.push(Block::default());
        }
        if let Some(Block {
            bytes: Bytes::Memory(bytes),
            ends,
        }) = self.blocks.last_mut()
        {
            *bytes = append(std::mem::take(bytes));
            ends.push(bytes.len());
        }
    }

    /// Puts the last block, which is full, where it stays.
    fn close(&mut self) {
        let Some(Block { bytes, .. }) = self.blocks.last_mut() else {
            return;
        };
        let Bytes::Memory(own) = bytes else { return };
        if self.in_memory >= IN_MEMORY {
            // Where there is no such file, or no room for it, they stay in memory.
            if let Ok(place) = spill(&mut self.spilled, own) {
                *bytes = Bytes::File(place);
                return;
            }
        }
        own.shrink_to_fit();
        self.in_memory += own.len();
    }

    /// Example number `place`.
    pub fn get(&self, place: usize) -> Example {
        let example = postcard::from_bytes(&self.bytes_of(place));
        example.expect("an example is read as it was written")
    }

    /// The examples at these places.
    pub fn select(&self, places: &[usize]) -> Self {
        let mut selected = Packed::default();
        for place in places {
            selected.add(|mut bytes| {
                bytes.extend_from_slice(&self.bytes_of(*place));
                bytes
            });
        }
        selected
    }

    pub fn len(&self) -> usize {
        let full = self.blocks.len().saturating_sub(1) * OF_A_BLOCK;
        self.blocks.last().map_or(0, |last| full + last.ends.len())
    }

    fn bytes_of(&self, place: usize) -> Cow<'_, [u8]> {
        let (block, place) = (&self.blocks[place / OF_A_BLOCK], place % OF_A_BLOCK);
        let start = place.checked_sub(1).map_or(0, |before| block.ends[before]);
        let end = block.ends[place];
        match (&block.bytes, &self.spilled) {
            (Bytes::Memory(bytes), _) => Cow::Borrowed(&bytes[start..end]),
            (Bytes::File(first), Some(spilled)) => {
                let mut bytes = vec![0; end - start];
                read_at(&spilled.file, first + start as u64, &mut bytes)
                    .expect("the temporary file has what was written to it");
                Cow::Owned(bytes)
            }
            (Bytes::File(_), None) => unreachable!("a block in no file"),
        }
    }
}

/// Appends bytes to the temporary file, which is made for the first ones. Returns their place.
fn spill(spilled: &mut Option<Spilled>, bytes: &[u8]) -> io::Result<u64> {
    let spilled = match spilled {
        Some(spilled) => spilled,
        None => spilled.insert(Spilled {
            file: Arc::new(tempfile::tempfile()?),
            length: 0,
        }),
    };
    let place = spilled.length;
    write_at(&spilled.file, place, bytes)?;
    spilled.length += bytes.len() as u64;
    Ok(place)
}

#[cfg(unix)]
fn write_at(file: &File, place: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, place)
}

#[cfg(not(unix))]
fn write_at(_: &File, _: u64, _: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn read_at(file: &File, place: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, place)
}

#[cfg(not(unix))]
fn read_at(_: &File, _: u64, _: &mut [u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Encoded, Target};

    #[test]
    fn examples_are_read_as_they_were_written() {
        let example = |length: usize, target: Target| Example {
            text: Encoded {
                tokens: (0..length as u32).map(|token| token * 1000).collect(),
                types: (0..length).map(|place| u8::from(place > 3)).collect(),
                special: (0..length)
                    .map(|place| place == 0 || place + 1 == length)
                    .collect(),
                reads: vec![2, 70_000],
                soft: Some(3),
                words: vec![Some(1), None],
            },
            decoder: vec![0, 32_099, u32::MAX],
            target,
            cut: 7,
            others: Vec::new(),
        };
        let mut compared = example(
            3,
            Target::OneOf {
                answer: vec![1..2, 2..3],
                right: Some(1),
            },
        );
        compared.others = vec![example(0, Target::Answers(Vec::new()))];
        let all = [
            example(5, Target::Class(3)),
            example(400, Target::Number(-0.1)),
            example(1, Target::Set(vec![true, false, true])),
            compared,
            example(2, Target::None),
        ];
        let mut packed = Packed::default();
        all.iter().for_each(|example| packed.push(example));
        for (place, example) in all.iter().enumerate() {
            assert_eq!(packed.get(place), *example);
        }
        let places: Vec<usize> = (0..3000).map(|number| number % 5).collect();
        let many = packed.select(&places);
        assert_eq!(many.len(), 3000);
        for place in [0, 1023, 1024, 2047, 2048, 2999] {
            assert_eq!(many.get(place), all[place % 5]);
        }
        // The same with most of them in a file.
        let places: Vec<usize> = (0..300_000).map(|number| number % 5).collect();
        let spilled = packed.select(&places);
        assert!(spilled.spilled.is_some() || cfg!(not(unix)));
        for place in (0..300_000).step_by(997).chain([299_999]) {
            assert_eq!(spilled.get(place), all[place % 5]);
        }
    }
}
