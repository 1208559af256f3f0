//! Frozen weights in fewer bits. Products decode them panel by panel, so that a weight takes no more memory than its
//! codes.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::LazyLock;

use half::bf16;
use rayon::prelude::*;

use super::WeightSource;

/// How the elements of a frozen weight are kept in memory. They are decoded to f32 for everything that is computed.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Storage {
    /// As they are in f32.
    #[default]
    F32,
    /// Rounded to bfloat16.
    Bf16,
    /// In 8 bits, with a scale for each row: `w ≈ s q`, `q` from −127 to 127.
    Int8,
    /// As the file has them, in blocks of few bits: GGUF.
    File {
        /// The bytes of all weights.
        bytes: usize,
    },
    /// In 4 bits, with a scale for each 64 elements, by the code NF4, whose scales are in 8 bits themselves (Dettmers et
    /// al., arXiv 2305.14314, sections 3 and 3.1), as bitsandbytes has it.
    Nf4,
}

impl Storage {
    /// Its name in the language.
    pub fn name(self) -> &'static str {
        match self {
            Storage::F32 => "f32",
            Storage::Bf16 => "bf16",
            Storage::Int8 => "int8",
            Storage::Nf4 => "nf4",
            Storage::File { .. } => "of the file",
        }
    }

    /// The bytes that a weight `(out, in)` takes; 0 in a file, which knows only the bytes of all.
    pub fn bytes(self, (out, input): (usize, usize)) -> usize {
        let count = out * input;
        match self {
            Storage::F32 => 4 * count,
            Storage::Bf16 => 2 * count,
            Storage::Int8 => count + 4 * out,
            Storage::File { .. } => 0,
            Storage::Nf4 => {
                let blocks = count.div_ceil(BLOCK);
                count.div_ceil(2) + blocks + 4 * (blocks.div_ceil(SCALES) + 1)
            }
        }
    }
}

/// Elements that share a scale in NF4.
const BLOCK: usize = 64;
/// Scales that share a scale of their own.
const SCALES: usize = 256;
/// Elements that are encoded at a time: whole blocks whose scales share one.
const PIECE: usize = BLOCK * SCALES;

/// The values of NF4: quantiles of the normal distribution, with an exact 0 (QLoRA's appendix E).
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Both values of a byte; the first is in its upper half.
static PAIRS: LazyLock<[[f32; 2]; 256]> =
    LazyLock::new(|| std::array::from_fn(|byte| [NF4[byte >> 4], NF4[byte & 15]]));

/// The values of bitsandbytes' dynamic code of 8 bits: seven powers of 10, each with twice as many values as the one
/// below it (Dettmers, arXiv 1511.04561).
static DYNAMIC: LazyLock<[f32; 256]> = LazyLock::new(|| {
    let mut values = vec![0.0, 1.0];
    for power in 0..7 {
        let count = 1 << power;
        let boundary = |place: usize| 0.1 + 0.9 * place as f64 / f64::from(count);
        for place in 0..count as usize {
            let mean = (boundary(place) + boundary(place + 1)) / 2.0;
            let value = (mean * 10f64.powi(power - 6)) as f32;
            values.extend([value, -value]);
        }
    }
    values.sort_by(f32::total_cmp);
    std::array::from_fn(|place| values[place])
});

/// A weight in codes.
pub struct Coded {
    columns: usize,
    count: usize,
    codes: Codes,
}

enum Codes {
    Bf16(Vec<u16>),
    Int8 { codes: Vec<i8>, scales: Vec<f32> },
    Nf4(Nf4Codes),
}

struct Nf4Codes {
    pairs: Vec<u8>,
    /// A number of [`DYNAMIC`] for each block.
    scales: Vec<u8>,
    /// For each [`SCALES`] blocks.
    scales_of_scales: Vec<f32>,
    /// The mean of all scales.
    offset: f32,
}

impl Coded {
    /// Encodes a weight `(out, in)` piece by piece; `None` if it is to be kept in f32.
    pub fn new(
        storage: Storage,
        source: &dyn WeightSource,
        (out, input): (usize, usize),
    ) -> Option<Self> {
        let count = out * input;
        let whole = match source.has_rows() {
            true => None,
            false => Some(source.elements()),
        };
        let read = |range: Range<usize>| match &whole {
            Some(whole) => Cow::Borrowed(&whole[range]),
            None => {
                let mut values = vec![0.0; range.len()];
                source.read(range, &mut values);
                Cow::Owned(values)
            }
        };
        let codes = match storage {
            Storage::F32 | Storage::File { .. } => return None,
            Storage::Bf16 => Codes::Bf16(encoded(count, PIECE, |range, codes: &mut Vec<u16>| {
                codes.extend(
                    read(range)
                        .iter()
                        .map(|value| bf16::from_f32(*value).to_bits()),
                );
            })),
            Storage::Int8 => int8(out, input, read),
            Storage::Nf4 => Codes::Nf4(nf4(count, read)),
        };
        source.release();
        Some(Coded {
            columns: input,
            count,
            codes,
        })
    }
}

/// Encodes pieces of a weight on all threads, and joins their codes in order.
fn encoded<T: Send>(
    count: usize,
    piece: usize,
    encode: impl Fn(Range<usize>, &mut Vec<T>) + Sync,
) -> Vec<T> {
    let pieces = count.div_ceil(piece.max(1));
    let mut all = Vec::new();
    for wave in (0..pieces).step_by(64) {
        let parts: Vec<Vec<T>> = (wave..pieces.min(wave + 64))
            .into_par_iter()
            .map(|number| {
                let mut codes = Vec::new();
                encode(number * piece..count.min((number + 1) * piece), &mut codes);
                codes
            })
            .collect();
        parts.into_iter().for_each(|part| all.extend(part));
    }
    all.shrink_to_fit();
    all
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, value| most.max(value.abs()))
}

fn int8<'r>(
    out: usize,
    input: usize,
    read: impl Fn(Range<usize>) -> Cow<'r, [f32]> + Sync,
) -> Codes {
    let rows: Vec<(f32, Vec<i8>)> = encoded(out * input, input, |range, rows| {
        let row = read(range);
        let scale = largest(&row) / 127.0;
        let code = |value: &f32| match scale > 0.0 {
            true => (value / scale).round() as i8,
            false => 0,
        };
        rows.push((scale, row.iter().map(code).collect()));
    });
    let mut codes = Vec::with_capacity(out * input);
    let mut scales = Vec::with_capacity(out);
    for (scale, row) in rows {
        scales.push(scale);
        codes.extend(row);
    }
    Codes::Int8 { codes, scales }
}

fn nf4<'r>(count: usize, read: impl Fn(Range<usize>) -> Cow<'r, [f32]> + Sync) -> Nf4Codes {
    let largest_of_blocks: Vec<f32> = encoded(count, PIECE, |range, largest_of_blocks| {
        largest_of_blocks.extend(read(range).chunks(BLOCK).map(largest));
    });
    let pairs = encoded(count, PIECE, |range, pairs| {
        let first = range.start / BLOCK;
        for (number, block) in read(range).chunks(BLOCK).enumerate() {
            let largest = largest_of_blocks[first + number];
            let code = |value: &f32| match largest > 0.0 {
                true => nearest(&NF4, value / largest) as u8,
                false => 7,
            };
            let of_pair = |pair: &[f32]| code(&pair[0]) << 4 | pair.get(1).map_or(7, code);
            pairs.extend(block.chunks(2).map(of_pair));
        }
    });
    let sum: f64 = largest_of_blocks
        .iter()
        .map(|scale| f64::from(*scale))
        .sum();
    let offset = (sum / largest_of_blocks.len().max(1) as f64) as f32;
    let (mut scales, mut scales_of_scales) = (Vec::new(), Vec::new());
    for blocks in largest_of_blocks.chunks(SCALES) {
        let moved: Vec<f32> = blocks.iter().map(|scale| scale - offset).collect();
        let largest = largest(&moved);
        scales_of_scales.push(largest);
        let code = |scale: &f32| match largest > 0.0 {
            true => nearest(&*DYNAMIC, scale / largest) as u8,
            false => nearest(&*DYNAMIC, 0.0) as u8,
        };
        scales.extend(moved.iter().map(code));
    }
    Nf4Codes {
        pairs,
        scales,
        scales_of_scales,
        offset,
    }
}

/// The place of the nearest of ascending values.
fn nearest(values: &[f32], value: f32) -> usize {
    let above = values.partition_point(|other| *other < value);
    match above {
        0 => 0,
        above if above == values.len() => above - 1,
        above if value - values[above - 1] < values[above] - value => above - 1,
        above => above,
    }
}

impl Nf4Codes {
    fn scale(&self, block: usize) -> f32 {
        DYNAMIC[usize::from(self.scales[block])] * self.scales_of_scales[block / SCALES]
            + self.offset
    }

    fn read(&self, range: Range<usize>, values: &mut [f32]) {
        let mut rest = values;
        let mut start = range.start;
        while start < range.end {
            let block = start / BLOCK;
            let end = ((block + 1) * BLOCK).min(range.end);
            let (own, after) = rest.split_at_mut(end - start);
            rest = after;
            let scale = self.scale(block);
            let value = |place: usize| {
                let pair = PAIRS[usize::from(self.pairs[place / 2])];
                pair[place % 2] * scale
            };
            let mut own = own;
            if start % 2 == 1 {
                own[0] = value(start);
                (start, own) = (start + 1, &mut own[1..]);
            }
            let (whole, last) = own.as_chunks_mut::<2>();
            let table = &*PAIRS;
            for (target, byte) in whole.iter_mut().zip(&self.pairs[start / 2..]) {
                *target = table[usize::from(*byte)].map(|value| value * scale);
            }
            if let [last] = last {
                *last = value(end - 1);
            }
            start = end;
        }
    }
}

impl WeightSource for Coded {
    fn count(&self) -> usize {
        self.count
    }

    fn elements(&self) -> Cow<'_, [f32]> {
        let mut values = vec![0.0; self.count];
        self.read(0..self.count, &mut values);
        Cow::Owned(values)
    }

    fn has_rows(&self) -> bool {
        true
    }

    fn is_coded(&self) -> bool {
        true
    }

    fn read(&self, range: Range<usize>, values: &mut [f32]) {
        assert!(
            range.end <= self.count && values.len() == range.len(),
            "coded: no such element"
        );
        match &self.codes {
            Codes::Bf16(codes) => {
                let codes = &codes[range];
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = f32::from_bits(u32::from(*code) << 16);
                }
            }
            Codes::Int8 { codes, scales } => {
                let mut rest = values;
                let mut start = range.start;
                while start < range.end {
                    let row = start / self.columns;
                    let end = ((row + 1) * self.columns).min(range.end);
                    let (own, after) = rest.split_at_mut(end - start);
                    let scale = scales[row];
                    for (value, code) in own.iter_mut().zip(&codes[start..end]) {
                        *value = f32::from(*code) * scale;
                    }
                    (rest, start) = (after, end);
                }
            }
            Codes::Nf4(codes) => codes.read(range, values),
        }
    }

    fn release(&self) {}
}
