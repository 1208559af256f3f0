//! Weights in files, read through a memory map or piece by piece.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use super::gguf::{Blocks, Rearranged};
use super::tree::Part;
use crate::engine::WeightSource;

/// A mapped file from which pieces can also be read without touching the map.
pub(super) struct MappedFile {
    pub(super) path: PathBuf,
    file: File,
    map: Mmap,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is read-only. Another process that truncates the file while it is
        // mapped could still crash this one; every program that maps files accepts that.
        let map = unsafe { Mmap::map(&file) }?;
        let path = path.to_owned();
        Ok(MappedFile { path, file, map })
    }

    /// All bytes of the file.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads the bytes from `start` on into `buffer`. Does so without the map, because touching one byte of the map
    /// would bring in up to 2 MB (a page of Linux's page cache).
    fn read(&self, start: usize, buffer: &mut [u8]) {
        #[cfg(unix)]
        {
            use std::os::unix::fs::FileExt;
            if self.file.read_exact_at(buffer, start as u64).is_ok() {
                return;
            }
        }
        buffer.copy_from_slice(&self.map[start..start + buffer.len()]);
    }

    /// Lets the system take back the memory of bytes that have been read. The system would do so sooner or later,
    /// but until then they count as this process's memory.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and backed by a file, so the system reads released pages from that
            // file again when they are next touched. If the call fails, nothing changes.
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(advice, range.start, range.len())
            };
        }
    }
}

/// How elements are encoded in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Encoding {
    /// safetensors': one by one.
    Plain(Dtype),
    /// GGUF's.
    Blocks(Blocks),
}

impl Encoding {
    /// The bytes of this many elements, which are whole blocks; `None` if the type is not supported.
    pub(super) fn bytes(self, count: usize) -> Option<usize> {
        match self {
            Encoding::Plain(dtype) => Some(width_of(dtype)? * count),
            Encoding::Blocks(kind) => Some(count / kind.elements() * kind.bytes()),
        }
    }
}

/// How a file stores the elements of a weight.
#[derive(Clone, Copy)]
pub(super) struct ElementForm {
    pub(super) encoding: Encoding,
    /// What llama.cpp did to it. Of a permuted head's rows, those of the first half stand at even places, and those of the
    /// second half at odd ones.
    pub(super) rearranged: Rearranged,
    /// `(out, in)`
    pub(super) shape: (usize, usize),
    /// Whether the file stores them as `(in, out)`.
    pub(super) transposed: bool,
    /// Which of the tensor's outputs they are.
    pub(super) part: Part,
}

/// A weight in a mapped file, or a part of one.
pub struct Mapped {
    file: Arc<MappedFile>,
    /// The byte range of the whole tensor.
    range: Range<usize>,
    stored: ElementForm,
}

impl Mapped {
    /// The weight whose tensor is at these bytes; `None` if the type is not supported or the length does not fit.
    pub(super) fn new(
        file: &Arc<MappedFile>,
        range: Range<usize>,
        stored: ElementForm,
    ) -> Option<Self> {
        let input = stored.shape.1;
        let is_whole = stored.encoding.bytes(stored.part.outputs * input)? == range.len();
        is_whole.then(|| Mapped {
            file: file.clone(),
            range,
            stored,
        })
    }

    /// `(out, in)`
    #[cfg(test)]
    pub(super) fn shape(&self) -> (usize, usize) {
        self.stored.shape
    }

    /// The type of the elements, if the file has them one by one.
    fn dtype(&self) -> Option<Dtype> {
        match self.stored.encoding {
            Encoding::Plain(dtype) => Some(dtype),
            Encoding::Blocks(_) => None,
        }
    }

    fn width(&self) -> usize {
        self.dtype().and_then(width_of).unwrap_or(1)
    }

    /// The bytes of the whole tensor.
    fn all_bytes(&self) -> &[u8] {
        &self.file.bytes()[self.range.clone()]
    }

    /// The bytes of a range of elements of the whole tensor, which has them one by one.
    fn bytes(&self, elements: Range<usize>) -> &[u8] {
        let width = self.width();
        &self.all_bytes()[elements.start * width..elements.end * width]
    }

    /// Decodes elements of this part, which the file has in blocks.
    fn decode(&self, kind: Blocks, range: Range<usize>, values: &mut [f32]) {
        let (first, bytes) = (self.own().start, self.all_bytes());
        let rearranged = self.stored.rearranged;
        assert!(
            !(rearranged.plus_one && rearranged.permuted.is_some()),
            "llama.cpp permutes weights, and adds 1 to norms alone"
        );
        let Some(heads) = rearranged.permuted else {
            kind.read(bytes, first + range.start, values);
            if rearranged.plus_one {
                values.iter_mut().for_each(|value| *value -= 1.0);
            }
            return;
        };
        let (out, input) = self.stored.shape;
        let half = (out / heads / 2).max(1);
        let mut rest = values;
        let mut start = range.start;
        while start < range.end {
            let (row, column) = (start / input, start % input);
            let (head, place) = (row / (2 * half), row % (2 * half));
            let stored = head * 2 * half + place % half * 2 + place / half;
            let count = (input - column).min(range.end - start);
            let (own, after) = rest.split_at_mut(count);
            kind.read(bytes, first + stored * input + column, own);
            (rest, start) = (after, start + count);
        }
    }

    /// The range of this part's elements in the whole tensor. Only in a tensor that is not transposed are they
    /// contiguous.
    fn own(&self) -> Range<usize> {
        let start = self.stored.part.first * self.stored.shape.1;
        start..start + self.count()
    }

    /// The elements of a part of a transposed tensor, row by row as `(out, in)`. Goes block by block, so that a block
    /// stays in the caches.
    fn transposed(&self) -> Vec<f32> {
        const BLOCK: usize = 32;
        let (out, input) = self.stored.shape;
        let Part { outputs, first } = self.stored.part;
        let mut values = vec![0.0; out * input];
        let mut row = Vec::with_capacity(out);
        for start in (0..input).step_by(BLOCK) {
            for column in start..(start + BLOCK).min(input) {
                row.clear();
                let place = column * outputs + first;
                if let Some(dtype) = self.dtype() {
                    convert(dtype, self.bytes(place..place + out), &mut row);
                }
                let targets = values[column..].iter_mut().step_by(input);
                targets
                    .zip(&row)
                    .for_each(|(target, value)| *target = *value);
            }
        }
        values
    }
}

impl WeightSource for Mapped {
    fn count(&self) -> usize {
        self.stored.shape.0 * self.stored.shape.1
    }

    fn elements(&self) -> Cow<'_, [f32]> {
        let dtype = match self.stored.encoding {
            Encoding::Plain(_) if self.stored.transposed => return Cow::Owned(self.transposed()),
            Encoding::Plain(dtype) => dtype,
            Encoding::Blocks(kind) => {
                let mut values = vec![0.0; self.count()];
                self.decode(kind, 0..self.count(), &mut values);
                return Cow::Owned(values);
            }
        };
        let bytes = self.bytes(self.own());
        let in_place = match cfg!(target_endian = "little") && dtype == Dtype::F32 {
            true => bytemuck::try_cast_slice(bytes).ok(),
            false => None,
        };
        in_place.map_or_else(
            || {
                let mut values = Vec::with_capacity(self.count());
                convert(dtype, bytes, &mut values);
                Cow::Owned(values)
            },
            Cow::Borrowed,
        )
    }

    fn has_rows(&self) -> bool {
        !self.stored.transposed
    }

    fn read(&self, range: Range<usize>, values: &mut [f32]) {
        assert!(range.end <= self.count(), "mapped: no such element");
        let dtype = match self.stored.encoding {
            Encoding::Blocks(kind) => return self.decode(kind, range, values),
            Encoding::Plain(dtype) => dtype,
        };
        if self.stored.transposed {
            values.copy_from_slice(&self.elements()[range]);
            return;
        }
        let (width, first) = (self.width(), self.own().start);
        let start = self.range.start + (first + range.start) * width;
        if cfg!(target_endian = "little") && dtype == Dtype::F32 {
            return self.file.read(start, bytemuck::cast_slice_mut(values));
        }
        let mut bytes = vec![0; range.len() * width];
        self.file.read(start, &mut bytes);
        let mut converted = Vec::with_capacity(values.len());
        convert(dtype, &bytes, &mut converted);
        values.copy_from_slice(&converted);
    }

    /// Blocks stay in the file, and f32 is faster in memory.
    fn is_coded(&self) -> bool {
        matches!(self.stored.encoding, Encoding::Blocks(kind) if kind != Blocks::F32)
    }

    fn release(&self) {
        self.file.release(self.range.clone());
    }
}

/// Bytes of an element; `None` if the type is not supported.
pub(super) fn width_of(dtype: Dtype) -> Option<usize> {
    match dtype {
        Dtype::F64 => Some(8),
        Dtype::F32 => Some(4),
        Dtype::F16 | Dtype::BF16 => Some(2),
        _ => None,
    }
}

/// Appends elements as f32. Appends nothing if the type is not supported.
pub(super) fn convert(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        Dtype::F32 => extend(bytes, values, f32::from_le_bytes),
        Dtype::F16 => extend(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
        Dtype::BF16 => extend(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
        Dtype::F64 => extend(bytes, values, |b| f64::from_le_bytes(b) as f32),
        _ => {}
    }
}

fn extend<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, from: impl Fn([u8; N]) -> f32) {
    let (chunks, _) = bytes.as_chunks::<N>();
    values.extend(chunks.iter().map(|chunk| from(*chunk)));
}
