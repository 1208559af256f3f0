//! Which rows of an activation make up which sequence.

/// Activations are `(rows, hidden)`, with the sequences of a batch one after the other and no padding. Operations on
/// single rows need no layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// `starts[i]..starts[i + 1]` are the rows of sequence `i`.
    starts: Vec<usize>,
    /// One random key per sequence, so that noise does not depend on how a batch is divided.
    keys: Vec<u64>,
    /// How many positions of each sequence come before its first row.
    firsts: Vec<usize>,
}

impl Layout {
    /// The layout of sequences of these lengths, with a random key for each.
    pub fn new(lengths: impl IntoIterator<Item = usize>, keys: Vec<u64>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            starts.push(end);
        }
        debug_assert_eq!(starts.len(), keys.len() + 1);
        let firsts = vec![0; keys.len()];
        Layout {
            starts,
            keys,
            firsts,
        }
    }

    /// The layout of one new row for each sequence, behind this many positions.
    pub fn of_next(firsts: Vec<usize>) -> Self {
        let count = firsts.len();
        Layout {
            firsts,
            ..Layout::new(vec![1; count], vec![0; count])
        }
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        let ranges = self.ranges().zip(&self.firsts);
        ranges.flat_map(|(range, first)| *first..first + range.len())
    }

    /// The number of positions of the sequence that has the most.
    pub fn end(&self) -> usize {
        let ends = self.ranges().zip(&self.firsts);
        ends.map(|(range, first)| first + range.len())
            .max()
            .unwrap_or(0)
    }

    /// The number of rows of all sequences together.
    pub fn rows(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.keys.len()
    }

    /// The rows of each sequence.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.starts.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The random key of sequence `index`.
    pub fn key(&self, index: usize) -> u64 {
        self.keys[index]
    }

    /// The length of the longest sequence.
    pub fn longest(&self) -> usize {
        self.ranges().map(|range| range.len()).max().unwrap_or(0)
    }

    /// The layout with `more` rows before each sequence's own.
    pub fn extended(&self, more: usize) -> Layout {
        let lengths = self.ranges().map(|range| range.len() + more);
        Layout::new(lengths, self.keys.clone())
    }

    /// The rows to gather into the layout `extended(more)` from a matrix that has `more` shared rows, followed by this
    /// layout's rows. In sequence `i`, the shared rows stand behind the first `offsets[i]` of its own rows, or before
    /// all of them if `offsets` is empty.
    pub fn extended_rows(&self, more: usize, offsets: &[usize]) -> Vec<usize> {
        let rows = self.ranges().enumerate().flat_map(|(sequence, range)| {
            let middle = range.start + offsets.get(sequence).copied().unwrap_or(0) + more;
            let (start, end) = (range.start + more, range.end + more);
            (start..middle).chain(0..more).chain(middle..end)
        });
        rows.collect()
    }
}
