//! Writes GGUF files: LoRA adapters, and models with the metadata of the file that they were made from.

use std::collections::BTreeMap;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};

use super::names::Names;
use super::{wrong, Gguf, ROPE_FACTORS};
use crate::diagnostic::Problem;
use crate::disk::{self, Pending};

/// The type in which the matrices of a model are written; vectors are in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixType {
    /// 32 bits.
    F32,
    /// IEEE's 16 bits.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 elements in 8 bits, with a scale in 16 bits.
    Q8_0,
}

impl MatrixType {
    /// All types, by their names.
    pub const ALL: [(&'static str, MatrixType); 4] = [
        ("f32", MatrixType::F32),
        ("f16", MatrixType::F16),
        ("bf16", MatrixType::Bf16),
        ("q8_0", MatrixType::Q8_0),
    ];

    /// Its number as a tensor's type, and as a file's.
    fn numbers(self) -> (u32, u32) {
        match self {
            MatrixType::F32 => (0, 0),
            MatrixType::F16 => (1, 1),
            MatrixType::Bf16 => (30, 32),
            MatrixType::Q8_0 => (8, 7),
        }
    }

    /// The type for a tensor of this shape.
    fn of(self, shape: &[usize]) -> Self {
        let is_in_blocks = shape.last().is_some_and(|row| row.is_multiple_of(32));
        match (shape.len(), self) {
            (2.., MatrixType::Q8_0) if !is_in_blocks => MatrixType::F16,
            (2.., own) => own,
            _ => MatrixType::F32,
        }
    }

    fn bytes(self, count: usize) -> usize {
        match self {
            MatrixType::F32 => 4 * count,
            MatrixType::F16 | MatrixType::Bf16 => 2 * count,
            MatrixType::Q8_0 => count / 32 * 34,
        }
    }

    fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            MatrixType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            MatrixType::F16 => values
                .iter()
                .flat_map(|v| f16::from_f32(*v).to_le_bytes())
                .collect(),
            MatrixType::Bf16 => values
                .iter()
                .flat_map(|v| bf16::from_f32(*v).to_le_bytes())
                .collect(),
            MatrixType::Q8_0 => values.chunks(32).flat_map(q8_0).collect(),
        }
    }
}

/// A block of Q8_0, as ggml's `quantize_row_q8_0_ref` has it.
fn q8_0(values: &[f32]) -> Vec<u8> {
    let largest = values
        .iter()
        .fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let codes = values
        .iter()
        .map(|value| (value * inverse).round() as i8 as u8);
    f16::from_f32(scale)
        .to_le_bytes()
        .into_iter()
        .chain(codes)
        .collect()
}

/// Elements and shape by name.
type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// The parts of a file before its tensors.
struct FileHead {
    /// Keys and values as they are written.
    keys: Vec<u8>,
    count: u64,
}

impl FileHead {
    fn text(&mut self, key: &str, value: &str) {
        self.key(key, 8);
        put_text(&mut self.keys, value);
    }

    fn float(&mut self, key: &str, value: f32) {
        self.key(key, 6);
        self.keys.extend(value.to_le_bytes());
    }

    fn key(&mut self, key: &str, kind: u32) {
        put_text(&mut self.keys, key);
        self.keys.extend(kind.to_le_bytes());
        self.count += 1;
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A LoRA at one linear layer.
pub struct LowRank {
    /// `(rank, in)`
    pub a: Vec<f32>,
    /// `(out, rank)`
    pub b: Vec<f32>,
    /// The rank.
    pub rank: usize,
    /// The factor of `B A`.
    pub scale: f32,
}

/// Writes LoRAs, by the Hugging Face names of their modules, for a model of this architecture and these heads. llama.cpp
/// multiplies `B A` by `alpha / rank`, with one alpha for all: it is 1 here, and B has the rest.
///
/// # Errors
/// A module has no name in a GGUF file; the file cannot be written.
pub fn write_adapter(
    path: &Path,
    architecture: &str,
    heads: (usize, usize),
    name: &str,
    adapters: BTreeMap<String, LowRank>,
) -> Result<(), Problem> {
    let names = Names::new(architecture, heads);
    let mut tensors = Tensors::new();
    for (module, adapter) in adapters {
        let found = names
            .as_ref()
            .and_then(|names| names.gguf(&format!("{module}.weight")));
        let (own, rearranged) = found.ok_or_else(|| {
            let message = format!("`{module}` has no name in a GGUF file");
            Problem::new("delta::run::gguf", message)
                .help("train the LoRA on linear layers of blocks alone")
        })?;
        let (rank, factor) = (adapter.rank, adapter.scale * adapter.rank as f32);
        let b: Vec<f32> = adapter.b.iter().map(|value| value * factor).collect();
        let b = match rearranged.permuted {
            Some(heads) => permuted_rows(&b, rank, heads),
            None => b,
        };
        let (input, output) = (adapter.a.len() / rank, b.len() / rank);
        tensors.insert(format!("{own}.lora_a"), (adapter.a, vec![rank, input]));
        tensors.insert(format!("{own}.lora_b"), (b, vec![output, rank]));
    }
    let mut head = FileHead {
        keys: Vec::new(),
        count: 0,
    };
    head.text("general.type", "adapter");
    head.text("general.architecture", architecture);
    head.text("general.name", name);
    head.text("adapter.type", "lora");
    head.float("adapter.lora.alpha", 1.0);
    write(path, &head, ALIGNMENT, tensors, MatrixType::F32)
}

/// Writes a model: tensors by their Hugging Face names, with the metadata of the GGUF file `source`.
///
/// # Errors
/// The source cannot be read; a tensor has no name in a GGUF file; the file cannot be written.
pub fn write_model(
    path: &Path,
    source: &Path,
    tensors: Tensors,
    kind: MatrixType,
) -> Result<(), Problem> {
    let file = Gguf::open(source)?;
    let names = Names::of(&file)?;
    let mut named = Tensors::new();
    for (name, (values, shape)) in tensors {
        let (own, rearranged) = names.gguf(&name).ok_or_else(|| {
            wrong(source, format!("the tensor `{name}` has no name in a GGUF file"))
                .help("merge into a directory instead, and convert that with llama.cpp's `convert_hf_to_gguf.py`")
        })?;
        let columns = values.len() / shape.first().copied().unwrap_or(1).max(1);
        let mut values = match rearranged.permuted {
            Some(heads) => permuted_rows(&values, columns, heads),
            None => values,
        };
        if rearranged.plus_one {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        named.insert(own, (values, shape));
    }
    if let Some(factors) = file.tensors.get(ROPE_FACTORS) {
        named.insert(
            ROPE_FACTORS.to_owned(),
            (file.values(factors), factors.shape.clone()),
        );
    }
    let (keys, count) = file.keys_of_type(kind.numbers().1);
    write(path, &FileHead { keys, count }, file.alignment, named, kind)
}

/// Rows in llama.cpp's order: those of the first half of a head at even places, and those of the second at odd ones.
fn permuted_rows(values: &[f32], columns: usize, heads: usize) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(columns.max(1)).collect();
    let width = rows.len() / heads.max(1);
    let row = |place: usize| {
        let (head, place) = (place / width, place % width);
        rows[head * width + place % 2 * (width / 2) + place / 2]
    };
    (0..rows.len())
        .flat_map(|place| row(place).iter().copied())
        .collect()
}

/// Where data begins if a file does not say it: at multiples of this.
const ALIGNMENT: usize = 32;

/// The largest number in IEEE's 16 bits, which scales of Q8_0 have as well.
const LARGEST_F16: f32 = 65504.0;

/// Checks that every element of tensors has a value in its type.
fn check_values(tensors: &Tensors, kind: MatrixType) -> Result<(), Problem> {
    for (name, (values, shape)) in tensors {
        let largest = values
            .iter()
            .fold(0.0f32, |most, value| match value.is_nan() {
                true => f32::INFINITY,
                false => most.max(value.abs()),
            });
        if !largest.is_finite() {
            let message = format!("`{name}` contains NaN or infinity and was not written");
            return Err(Problem::failure("delta::run::not_finite", message)
                .help("look for NaN or infinity in the loss and in the weights it was made from"));
        }
        let most = match kind.of(shape) {
            MatrixType::F16 => LARGEST_F16,
            MatrixType::Q8_0 => 127.0 * LARGEST_F16,
            MatrixType::F32 | MatrixType::Bf16 => f32::INFINITY,
        };
        if largest > most {
            let message = format!(
                "`{name}` has the value {largest}, which 16 bits of the type `f16` do not hold"
            );
            return Err(Problem::new("delta::run::gguf", message)
                .help("write `--type bf16` or `--type f32`"));
        }
    }
    Ok(())
}

fn write(
    path: &Path,
    head: &FileHead,
    alignment: usize,
    tensors: Tensors,
    kind: MatrixType,
) -> Result<(), Problem> {
    check_values(&tensors, kind)?;
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend(head.count.to_le_bytes());
    bytes.extend(&head.keys);
    let mut offset = 0usize;
    for (name, (values, shape)) in &tensors {
        let own = kind.of(shape);
        put_text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        for size in shape.iter().rev() {
            bytes.extend((*size as u64).to_le_bytes());
        }
        bytes.extend(own.numbers().0.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset = (offset + own.bytes(values.len())).next_multiple_of(alignment);
    }
    let failed = |e: &std::io::Error| disk::failed("written", path, e);
    let file = Pending::new(path).map_err(|e| failed(&e))?;
    let put = || -> std::io::Result<()> {
        let mut out = BufWriter::new(std::fs::File::create(file.temporary())?);
        let mut put = |bytes: &[u8]| -> std::io::Result<()> {
            out.write_all(bytes)?;
            let gap = bytes.len().next_multiple_of(alignment) - bytes.len();
            out.write_all(&vec![0; gap])
        };
        put(&bytes)?;
        for (values, shape) in tensors.values() {
            put(&kind.of(shape).encode(values))?;
        }
        out.flush()
    };
    put().map_err(|e| failed(&e))?;
    // What cannot be read back gets no name.
    Gguf::open(file.temporary())?;
    file.complete().map_err(|e| failed(&e))
}
