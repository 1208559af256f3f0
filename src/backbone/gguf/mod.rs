//! Reads GGUF, llama.cpp's format of a model in one file: its metadata, where its tensors are, and the files of a Hugging
//! Face directory that say the same (`gguf/files.rs`).

mod blocks;
mod files;
mod names;
mod tokenizer;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::mapped::MappedFile;
use crate::diagnostic::Problem;
use crate::engine::Storage;

pub(super) use blocks::Blocks;
pub use files::{exists, read_text, text_in_gguf};
pub use names::architecture_of_family;
pub(super) use names::{Names, Rearranged};
pub use write::{write_adapter, write_model, LowRank, MatrixType};

/// The tensor with the divisors of the rotary frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Whether a path is that of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    let is_named = path
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    is_named && path.is_file()
}

/// How the weights of a backbone are stored where the pipeline does not say it: those of a GGUF file as they are in it.
///
/// # Errors
/// The file cannot be read.
pub fn own_storage(path: &Path) -> Result<Storage, Problem> {
    if !is_gguf(path) {
        return Ok(Storage::F32);
    }
    let file = Gguf::open(path)?;
    let matrices = || {
        file.tensors
            .values()
            .filter(|tensor| tensor.shape.len() > 1)
    };
    let bytes = file.tensors.values().map(|tensor| tensor.range.len()).sum();
    Ok(match matrices().all(|tensor| tensor.kind == Blocks::F32) {
        true => Storage::F32,
        false => Storage::File { bytes },
    })
}

/// A GGUF file.
pub(super) struct Gguf {
    pub(super) file: Arc<MappedFile>,
    /// The metadata by key.
    pub(super) metadata: Map<String, Value>,
    /// The tensors by their names in the file.
    pub(super) tensors: BTreeMap<String, GgufTensor>,
    /// The bytes of the metadata, and where in the file the value of `general.file_type` is.
    keys: Range<usize>,
    file_type: Option<usize>,
    /// Data begins at multiples of this.
    alignment: usize,
}

/// A tensor of a GGUF file.
pub(super) struct GgufTensor {
    pub(super) kind: Blocks,
    /// The outermost dimension first, as elsewhere; GGUF has it last.
    pub(super) shape: Vec<usize>,
    /// Its bytes in the file.
    pub(super) range: Range<usize>,
}

fn wrong(path: &Path, message: impl std::fmt::Display) -> Problem {
    let message = format!("`{}`: {message}", path.display());
    Problem::new("delta::weights::gguf", message)
        .help("download the file again, or convert the model anew with llama.cpp's `convert_hf_to_gguf.py`")
}

impl Gguf {
    /// The elements of a small tensor.
    fn values(&self, tensor: &GgufTensor) -> Vec<f32> {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        let bytes = &self.file.bytes()[tensor.range.clone()];
        tensor.kind.read(bytes, 0, &mut values);
        values
    }

    /// Opens a file and reads all but its tensors' elements.
    ///
    /// # Errors
    /// The file is cut or corrupt, or has a tensor of a type that is not read.
    pub(super) fn open(path: &Path) -> Result<Self, Problem> {
        let file = MappedFile::open(path).map_err(|e| wrong(path, e))?;
        let Parts {
            metadata,
            tensors,
            keys,
            file_type,
            alignment,
        } = Header::read(file.bytes()).map_err(|e| wrong(path, e))?;
        Ok(Gguf {
            file: Arc::new(file),
            metadata,
            tensors,
            keys,
            file_type,
            alignment,
        })
    }

    /// The bytes of the metadata for a file of another type, and how many keys they have.
    fn keys_of_type(&self, file_type: u32) -> (Vec<u8>, u64) {
        let mut keys = self.file.bytes()[self.keys.clone()].to_vec();
        if let Some(place) = self.file_type {
            let place = place - self.keys.start;
            keys[place..place + 4].copy_from_slice(&file_type.to_le_bytes());
        }
        (keys, self.metadata.len() as u64)
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }
}

/// The part of a file that describes the rest.
struct Header<'b> {
    bytes: &'b [u8],
    place: usize,
}

type Read<T> = Result<T, String>;

/// What a file's header says.
struct Parts {
    metadata: Map<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
    keys: Range<usize>,
    file_type: Option<usize>,
    alignment: usize,
}

impl<'b> Header<'b> {
    fn read(bytes: &'b [u8]) -> Read<Parts> {
        let mut header = Header { bytes, place: 0 };
        if header.take(4)? != b"GGUF" {
            return Err("it does not begin with `GGUF`".to_owned());
        }
        let version = header.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(format!(
                "its version is {version}, and deltarun reads 2 and 3"
            ));
        }
        let (tensors, keys) = (header.count()?, header.count()?);
        let (mut metadata, mut file_type) = (Map::new(), None);
        let first = header.place;
        for _ in 0..keys {
            let key = header.text()?;
            let kind = header.u32()?;
            if (key.as_str(), kind) == ("general.file_type", 4) {
                file_type = Some(header.place);
            }
            let value = header.value(kind, 0)?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("it has the key `{key}` twice"));
            }
        }
        let keys = first..header.place;
        let mut described = Vec::new();
        for _ in 0..tensors {
            described.push(header.tensor()?);
        }
        let alignment = metadata
            .get("general.alignment")
            .map_or(Some(32), Value::as_u64);
        let alignment = alignment.and_then(|size| usize::try_from(size).ok());
        let alignment = alignment.filter(|size| size.is_power_of_two() && *size <= 1 << 20);
        let alignment = alignment.ok_or("its alignment is no power of two")?;
        let start = header.place.next_multiple_of(alignment);
        let tensors = placed(described, start, bytes.len())?;
        Ok(Parts {
            metadata,
            tensors,
            keys,
            file_type,
            alignment,
        })
    }

    fn take(&mut self, count: usize) -> Read<&'b [u8]> {
        let end = self
            .place
            .checked_add(count)
            .filter(|end| *end <= self.bytes.len());
        let end = end.ok_or("the file is cut")?;
        let taken = &self.bytes[self.place..end];
        self.place = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| "the file is cut".to_owned())
    }

    fn u32(&mut self) -> Read<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Read<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of entries. Each takes a byte or more, so a larger number than there are bytes is refused.
    fn count(&mut self) -> Read<usize> {
        let count = self.u64()?;
        let left = self.bytes.len() - self.place;
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= left)
            .ok_or_else(|| {
                format!("the file is cut, or states {count} entries that it does not have")
            })
    }

    fn text(&mut self) -> Read<String> {
        let length = self.count()?;
        let bytes = self.take(length)?.to_vec();
        String::from_utf8(bytes).map_err(|_| "a text in it is not UTF-8".to_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Read<Value> {
        Ok(match kind {
            0 => Value::from(self.array::<1>()?[0]),
            1 => Value::from(i8::from_le_bytes(self.array()?)),
            2 => Value::from(u16::from_le_bytes(self.array()?)),
            3 => Value::from(i16::from_le_bytes(self.array()?)),
            4 => Value::from(self.u32()?),
            5 => Value::from(i32::from_le_bytes(self.array()?)),
            6 => Value::from(f32::from_le_bytes(self.array()?)),
            7 => Value::from(self.array::<1>()?[0] != 0),
            8 => Value::from(self.text()?),
            9 if depth < 2 => {
                let kind = self.u32()?;
                let count = self.count()?;
                let values = (0..count).map(|_| self.value(kind, depth + 1));
                Value::Array(values.collect::<Read<_>>()?)
            }
            10 => Value::from(self.u64()?),
            11 => Value::from(i64::from_le_bytes(self.array()?)),
            12 => Value::from(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("its metadata has a value of the type {kind}")),
        })
    }

    /// A tensor's name, type, shape and offset.
    fn tensor(&mut self) -> Read<(String, Blocks, Vec<usize>, usize)> {
        let name = self.text()?;
        let dimensions = self.u32()?;
        if !(1..=4).contains(&dimensions) {
            return Err(format!("the tensor `{name}` has {dimensions} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            shape.push(usize::try_from(size).map_err(|e| e.to_string())?);
        }
        shape.reverse();
        let number = self.u32()?;
        let kind = Blocks::of(number).ok_or_else(|| {
            format!(
                "the tensor `{name}` has the type {}, and deltarun reads {}",
                blocks::type_name(number),
                Blocks::names()
            )
        })?;
        let offset = usize::try_from(self.u64()?).map_err(|e| e.to_string())?;
        Ok((name, kind, shape, offset))
    }
}

/// Finds the bytes of each tensor. Tensors that overlap are refused.
fn placed(
    described: Vec<(String, Blocks, Vec<usize>, usize)>,
    start: usize,
    length: usize,
) -> Read<BTreeMap<String, GgufTensor>> {
    let mut tensors = BTreeMap::new();
    let mut ranges: Vec<(Range<usize>, String)> = Vec::new();
    for (name, kind, shape, offset) in described {
        let count = shape
            .iter()
            .try_fold(1usize, |count, size| count.checked_mul(*size));
        let row = shape.last().copied().unwrap_or(1);
        let bytes = count.filter(|_| row.is_multiple_of(kind.elements()));
        let bytes = bytes.and_then(|count| (count / kind.elements()).checked_mul(kind.bytes()));
        let range = bytes.and_then(|bytes| {
            let first = start.checked_add(offset)?;
            Some(first..first.checked_add(bytes)?)
        });
        let range = range.filter(|range| range.end <= length);
        let range = range.ok_or_else(|| {
            format!("the tensor `{name}` of the shape {shape:?} does not lie in the file, which is cut or corrupt")
        })?;
        ranges.push((range.clone(), name.clone()));
        let tensor = GgufTensor { kind, shape, range };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("it has the tensor `{name}` twice"));
        }
    }
    ranges.sort_by_key(|(range, _)| range.start);
    for pair in ranges.windows(2) {
        let [(first, name), (second, other)] = pair else {
            continue;
        };
        if first.end > second.start {
            return Err(format!("the tensors `{name}` and `{other}` overlap"));
        }
    }
    Ok(tensors)
}
