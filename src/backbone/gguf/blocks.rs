//! The types of GGUF's tensors: blocks of elements in few bits with scales of their own (ggml's `ggml-quants.c`).

use half::{bf16, f16};
use multiversion::multiversion;

/// A type of tensor. Each is decoded in parts of 32 elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backbone) enum Blocks {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    Iq4Nl,
}

/// Elements of a part.
pub(in crate::backbone) const PART: usize = 32;

/// Type, name, number in files, elements of a block, bytes of a block.
const ALL: [(Blocks, &str, u32, usize, usize); 12] = [
    (Blocks::F32, "F32", 0, 1, 4),
    (Blocks::F16, "F16", 1, 1, 2),
    (Blocks::Bf16, "BF16", 30, 1, 2),
    (Blocks::Q4_0, "Q4_0", 2, 32, 18),
    (Blocks::Q4_1, "Q4_1", 3, 32, 20),
    (Blocks::Q5_0, "Q5_0", 6, 32, 22),
    (Blocks::Q5_1, "Q5_1", 7, 32, 24),
    (Blocks::Q8_0, "Q8_0", 8, 32, 34),
    (Blocks::Q4K, "Q4_K", 12, 256, 144),
    (Blocks::Q5K, "Q5_K", 13, 256, 176),
    (Blocks::Q6K, "Q6_K", 14, 256, 210),
    (Blocks::Iq4Nl, "IQ4_NL", 20, 32, 18),
];

/// The name of a type that is not read.
pub(super) fn type_name(number: u32) -> String {
    let known = [
        (9, "Q8_1"),
        (10, "Q2_K"),
        (11, "Q3_K"),
        (15, "Q8_K"),
        (16, "IQ2_XXS"),
        (17, "IQ2_XS"),
        (18, "IQ3_XXS"),
        (19, "IQ1_S"),
        (21, "IQ3_S"),
        (22, "IQ2_S"),
        (23, "IQ4_XS"),
        (29, "IQ1_M"),
        (34, "TQ1_0"),
        (35, "TQ2_0"),
        (39, "MXFP4"),
    ];
    let known = known.into_iter().find(|(own, _)| *own == number);
    known.map_or_else(|| number.to_string(), |(_, name)| name.to_owned())
}

/// The values of IQ4_NL's codes.
const IQ4_NL: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

impl Blocks {
    pub(super) fn of(number: u32) -> Option<Self> {
        let found = ALL.iter().find(|(_, _, own, ..)| *own == number);
        found.map(|(kind, ..)| *kind)
    }

    /// The names of all types that are read.
    pub(super) fn names() -> String {
        crate::text::list(&ALL.map(|(_, name, ..)| name.to_owned()))
    }

    fn layout(self) -> (usize, usize) {
        let found = ALL.iter().find(|(kind, ..)| *kind == self);
        found.map_or((1, 1), |(.., elements, bytes)| (*elements, *bytes))
    }

    /// The elements of a block.
    pub(in crate::backbone) fn elements(self) -> usize {
        self.layout().0
    }

    /// The bytes of a block.
    pub(in crate::backbone) fn bytes(self) -> usize {
        self.layout().1
    }

    /// Decodes elements from `start` on into `values`. `bytes` are those of the whole tensor.
    pub(in crate::backbone) fn read(self, bytes: &[u8], start: usize, values: &mut [f32]) {
        let width = |bytes: usize| start * bytes..(start + values.len()) * bytes;
        match self {
            Blocks::F32 => fill(&bytes[width(4)], values, f32::from_le_bytes),
            Blocks::F16 => fill(&bytes[width(2)], values, |b| f16::from_le_bytes(b).to_f32()),
            Blocks::Bf16 => fill(&bytes[width(2)], values, |b| {
                bf16::from_le_bytes(b).to_f32()
            }),
            _ => read_parts(self, self.layout(), bytes, start, values),
        }
    }

    /// Decodes a part of a block. Scales are read once: the conversion from 16 bits costs more than an element does.
    #[inline(always)]
    fn decode(self, block: &[u8], part: usize, values: &mut [f32; PART]) {
        let half = |place: usize| f16::from_le_bytes([block[place], block[place + 1]]).to_f32();
        match self {
            Blocks::Q4_0 => {
                let scale = half(0);
                nibbles(&block[2..], values, |q, _| (f32::from(q) - 8.0) * scale);
            }
            Blocks::Q4_1 => {
                let (scale, least) = (half(0), half(2));
                nibbles(&block[4..], values, |q, _| f32::from(q) * scale + least);
            }
            Blocks::Iq4Nl => {
                let scale = half(0);
                nibbles(&block[2..], values, |q, _| IQ4_NL[usize::from(q)] * scale);
            }
            Blocks::Q5_0 => {
                let (scale, high) = (half(0), high_bits(&block[2..6]));
                nibbles(&block[6..], values, |q, j| {
                    (f32::from(q | high(j)) - 16.0) * scale
                });
            }
            Blocks::Q5_1 => {
                let (scale, least, high) = (half(0), half(2), high_bits(&block[4..8]));
                nibbles(&block[8..], values, |q, j| {
                    f32::from(q | high(j)) * scale + least
                });
            }
            Blocks::Q8_0 => {
                let scale = half(0);
                for (value, code) in values.iter_mut().zip(&block[2..]) {
                    *value = f32::from(*code as i8) * scale;
                }
            }
            Blocks::Q4K => {
                let (scale, least) = scales(&block[4..16], part);
                let (scale, least) = (half(0) * scale, half(2) * least);
                let codes = &block[16 + part / 2 * PART..][..PART];
                let shift = part % 2 * 4;
                for (value, code) in values.iter_mut().zip(codes) {
                    *value = scale * f32::from(code >> shift & 15) - least;
                }
            }
            Blocks::Q5K => {
                let (scale, least) = scales(&block[4..16], part);
                let (scale, least) = (half(0) * scale, half(2) * least);
                let codes = &block[48 + part / 2 * PART..][..PART];
                let shift = part % 2 * 4;
                for (value, (code, high)) in values.iter_mut().zip(codes.iter().zip(&block[16..48]))
                {
                    let code = code >> shift & 15 | (high >> part & 1) << 4;
                    *value = scale * f32::from(code) - least;
                }
            }
            Blocks::Q6K => {
                let (half_of_block, quarter) = (part / 4, part % 4);
                let low = &block[half_of_block * 64 + quarter % 2 * PART..][..PART];
                let high = &block[128 + half_of_block * PART..][..PART];
                let own = &block[192 + half_of_block * 8 + quarter * 2..][..2];
                let whole = half(208);
                let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
                for (number, scale) in own.iter().enumerate() {
                    let scale = whole * f32::from(*scale as i8);
                    let places = number * 16..(number + 1) * 16;
                    let codes = low[places.clone()].iter().zip(&high[places.clone()]);
                    for (value, (low, high)) in values[places].iter_mut().zip(codes) {
                        let code = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
                        *value = scale * (f32::from(code) - 32.0);
                    }
                }
            }
            Blocks::F32 | Blocks::F16 | Blocks::Bf16 => {}
        }
    }
}

/// Decodes elements from `start` on, part by part.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512vl", "x86_64+avx2+fma"))]
fn read_parts(
    kind: Blocks,
    (elements, size): (usize, usize),
    bytes: &[u8],
    start: usize,
    values: &mut [f32],
) {
    let mut rest = values;
    let mut place = start;
    while !rest.is_empty() {
        let (block, inside) = (place / elements, place % elements);
        let block = &bytes[block * size..(block + 1) * size];
        let (part, skipped) = (inside / PART, inside % PART);
        let count = (PART - skipped).min(rest.len());
        let (own, after) = rest.split_at_mut(count);
        match <&mut [f32; PART]>::try_from(&mut *own) {
            Ok(whole) => kind.decode(block, part, whole),
            Err(_) => {
                let mut whole = [0.0; PART];
                kind.decode(block, part, &mut whole);
                own.copy_from_slice(&whole[skipped..skipped + count]);
            }
        }
        rest = after;
        place += count;
    }
}

fn fill<const N: usize>(bytes: &[u8], values: &mut [f32], from: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    for (value, chunk) in values.iter_mut().zip(chunks) {
        *value = from(*chunk);
    }
}

/// The lower halves of 16 bytes, and then their upper ones.
#[inline(always)]
fn nibbles(bytes: &[u8], values: &mut [f32; PART], value: impl Fn(u8, usize) -> f32) {
    let (lower, upper) = values.split_at_mut(PART / 2);
    let places = lower.iter_mut().zip(upper).zip(bytes);
    for (place, ((lower, upper), byte)) in places.enumerate() {
        *lower = value(byte & 15, place);
        *upper = value(byte >> 4, place + PART / 2);
    }
}

/// The fifth bit of each of 32 elements.
#[inline(always)]
fn high_bits(bytes: &[u8]) -> impl Fn(usize) -> u8 + '_ {
    |place| (bytes[place / 8] >> (place % 8) & 1) << 4
}

/// The scale and the offset of a part of a K block, in 6 bits each.
fn scales(bytes: &[u8], part: usize) -> (f32, f32) {
    let (scale, least) = match part {
        0..4 => (bytes[part] & 63, bytes[part + 4] & 63),
        _ => (
            bytes[part + 4] & 15 | bytes[part - 4] >> 6 << 4,
            bytes[part + 4] >> 4 | bytes[part] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(least))
}
