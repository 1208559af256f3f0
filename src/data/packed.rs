//! Examples in little memory: some two bytes for each token.

use crate::task::Example;

/// Examples of a block. A block never moves: a single list of all bytes would be copied as it grows.
const OF_A_BLOCK: usize = 1024;

/// Examples, each in bytes of its own.
#[derive(Clone, Debug, Default)]
pub(super) struct Packed {
    /// All are full but the last.
    blocks: Vec<Block>,
}

#[derive(Clone, Debug, Default)]
struct Block {
    bytes: Vec<u8>,
    /// Where the bytes of each example end.
    ends: Vec<usize>,
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
        let has_room = |block: &&mut Block| block.ends.len() < OF_A_BLOCK;
        if self.blocks.last_mut().filter(has_room).is_none() {
            if let Some(full) = self.blocks.last_mut() {
                full.bytes.shrink_to_fit();
            }
            self.blocks.push(Block::default());
        }
        if let Some(block) = self.blocks.last_mut() {
            block.bytes = append(std::mem::take(&mut block.bytes));
            block.ends.push(block.bytes.len());
        }
    }

    /// Example number `place`.
    pub fn get(&self, place: usize) -> Example {
        let example = postcard::from_bytes(self.bytes_of(place));
        example.expect("an example is read as it was written")
    }

    /// The examples at these places.
    pub fn select(&self, places: &[usize]) -> Self {
        let mut selected = Packed::default();
        for place in places {
            selected.add(|mut bytes| {
                bytes.extend_from_slice(self.bytes_of(*place));
                bytes
            });
        }
        selected
    }

    pub fn len(&self) -> usize {
        let full = self.blocks.len().saturating_sub(1) * OF_A_BLOCK;
        self.blocks.last().map_or(0, |last| full + last.ends.len())
    }

    fn bytes_of(&self, place: usize) -> &[u8] {
        let (block, place) = (&self.blocks[place / OF_A_BLOCK], place % OF_A_BLOCK);
        let start = place.checked_sub(1).map_or(0, |before| block.ends[before]);
        &block.bytes[start..block.ends[place]]
    }
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
        compared.others = vec![example(0, Target::Answers(vec![0..0]))];
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
    }
}
