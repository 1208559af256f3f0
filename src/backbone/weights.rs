//! Reading of safetensors: one file or an index of shards, in f32, f16 or bf16.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::tensor::TensorInfo;
use safetensors::{Dtype, SafeTensors};

use super::mapped::{Mapped, MappedFile};
use super::tree::Parameter;
use crate::diagnostic::Problem;
use crate::text::quoted_list;

/// Tensors on disk, mapped into memory: nothing is read before it is asked for.
pub struct Checkpoint {
    files: Vec<Arc<MappedFile>>,
    /// Name → file, start of that file's data, description.
    tensors: HashMap<String, (usize, usize, TensorInfo)>,
}

fn problem(path: &Path, message: impl std::fmt::Display) -> Problem {
    Problem::new(
        "delta::weights::unreadable",
        format!("`{}`: {message}", path.display()),
    )
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Neither is there, or a file is truncated or corrupt.
    pub fn open_directory(directory: &Path) -> Result<Self, Problem> {
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        if single.exists() {
            return Checkpoint::open(&[single]);
        }
        if !index.exists() {
            let has_bin = directory.join("pytorch_model.bin").exists();
            let missing = format!("`{}` has no `model.safetensors`", directory.display());
            let problem = Problem::new("delta::weights::missing", missing);
            return Err(problem.help(if has_bin {
                "convert `pytorch_model.bin`: `AutoModel.from_pretrained(d).save_pretrained(d)` writes safetensors"
            } else {
                "give the directory of a Hugging Face model: `config.json`, `model.safetensors`, `tokenizer.json`"
            }));
        }
        let text = std::fs::read_to_string(&index).map_err(|e| problem(&index, e))?;
        let json: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| problem(&index, format!("it is not JSON: {e}")))?;
        let map = json["weight_map"]
            .as_object()
            .ok_or_else(|| problem(&index, "it has no `weight_map`"))?;
        let mut shards: Vec<PathBuf> = Vec::new();
        for shard in map.values().filter_map(|value| value.as_str()) {
            let shard = directory.join(shard);
            if !shards.contains(&shard) {
                shards.push(shard);
            }
        }
        Checkpoint::open(&shards)
    }

    /// Opens safetensors files.
    ///
    /// # Errors
    /// A file is missing, truncated or corrupt.
    pub fn open(paths: &[PathBuf]) -> Result<Self, Problem> {
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        for path in paths {
            let file = MappedFile::open(path).map_err(|e| problem(path, e))?;
            let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| {
                let message = format!("the file is truncated or corrupt ({e})");
                problem(path, message)
                    .help("download the file again, and compare its size and hash")
            })?;
            let number = checkpoint.files.len();
            for (name, info) in metadata.tensors() {
                let place = (number, header + 8, info.clone());
                checkpoint.tensors.insert(name, place);
            }
            checkpoint.files.push(Arc::new(file));
        }
        Ok(checkpoint)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A text that was stored beside the tensors of the first file.
    pub fn metadata(&self, key: &str) -> Option<String> {
        let file = self.files.first()?;
        let (_, metadata) = SafeTensors::read_metadata(file.bytes()).ok()?;
        metadata.metadata().as_ref()?.get(key).cloned()
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors
            .get(name)
            .map(|(_, _, info)| info.shape.as_slice())
    }

    /// A tensor's elements as f32, and its shape.
    ///
    /// # Errors
    /// No tensor of that name, or one of a type that is not f32, f16 or bf16.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), Problem> {
        let (number, start, info) = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let file = &self.files[*number];
        let bytes = &file.bytes()[start + info.data_offsets.0..start + info.data_offsets.1];
        let values = match info.dtype {
            Dtype::F32 => convert(bytes, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => convert(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F64 => convert(bytes, |b| f64::from_le_bytes(b) as f32),
            other => {
                let message =
                    format!("`{name}` has the type {other:?}; f32, f16 or bf16 is needed");
                return Err(problem(&file.path, message));
            }
        };
        Ok((values, info.shape.clone()))
    }

    fn missing(&self, name: &str) -> Problem {
        let names = self.names();
        let hint = crate::text::did_you_mean(name, names.iter().copied());
        let place = self
            .files
            .first()
            .map(|file| file.path.display().to_string());
        let missing = format!("`{}` has no tensor `{name}`", place.unwrap_or_default());
        let help = match hint {
            Some(hint) => format!("the nearest name in it is `{hint}`"),
            None => format!("it has {}", quoted_list(names.into_iter())),
        };
        Problem::new("delta::weights::missing_tensor", missing).help(help)
    }

    /// The name under which a parameter is stored here, with or without the family's prefix, and
    /// with the names that old BERT checkpoints use for norms.
    pub fn find(&self, parameter: &Parameter, prefix: &str) -> Option<String> {
        let name = &parameter.source.name;
        let old = name
            .strip_suffix(".weight")
            .map(|stem| format!("{stem}.gamma"));
        let old = old.or_else(|| {
            name.strip_suffix(".bias")
                .map(|stem| format!("{stem}.beta"))
        });
        let names = std::iter::once(name.clone()).chain(old);
        let prefixes: &[&str] = if parameter.source.prefixed {
            &[prefix, ""]
        } else {
            &[""]
        };
        let own =
            names.flat_map(|name| prefixes.iter().map(move |prefix| format!("{prefix}{name}")));
        let source = &parameter.source;
        let preferred = source.preferred.iter().cloned();
        preferred
            .chain(own)
            .chain(source.fallback.iter().cloned())
            .find(|name| self.has(name))
    }

    /// A parameter's elements in our orientation, its part of a fused tensor cut out.
    ///
    /// # Errors
    /// It is not there, or has another shape than the configuration says.
    pub fn load(&self, parameter: &Parameter, prefix: &str) -> Result<Vec<f32>, Problem> {
        let source = &parameter.source;
        let (values, _) = self.read(&self.checked(parameter, prefix)?)?;
        if source.parts == 1 && !source.transposed {
            return Ok(values);
        }
        let (out, input) = (
            parameter.shape[0],
            parameter.count() / parameter.shape[0].max(1),
        );
        let first = source.part * out;
        let total = source.parts * out;
        let at = |row: usize, column: usize| match source.transposed {
            true => values[column * total + first + row],
            false => values[(first + row) * input + column],
        };
        let rows = 0..out;
        Ok(rows
            .flat_map(|row| (0..input).map(move |column| (row, column)))
            .map(|(r, c)| at(r, c))
            .collect())
    }

    /// The name of a parameter's tensor, which has the shape that the parameter asks for.
    ///
    /// # Errors
    /// It is not there, or has another shape.
    pub fn checked(&self, parameter: &Parameter, prefix: &str) -> Result<String, Problem> {
        let source = &parameter.source;
        let name = self
            .find(parameter, prefix)
            .ok_or_else(|| self.missing(&source.full_name(prefix)))?;
        let mut expected = parameter.shape.clone();
        expected[0] *= source.parts;
        if source.transposed {
            expected.reverse();
        }
        let found = self.shape(&name).unwrap_or_default();
        if found == expected {
            return Ok(name);
        }
        let message = format!(
            "tensor `{name}` has the shape {found:?}, but `config.json` asks for {expected:?}"
        );
        let help = "give a `config.json` and weights that belong together";
        Err(Problem::new("delta::weights::wrong_shape", message).help(help))
    }

    /// A parameter's elements where they lie in the file, if they lie there as they are needed: in f32,
    /// in our orientation.
    ///
    /// # Errors
    /// See [`Checkpoint::load`].
    pub fn mapped(&self, parameter: &Parameter, prefix: &str) -> Result<Option<Mapped>, Problem> {
        let name = self.checked(parameter, prefix)?;
        let (number, start, info) = &self.tensors[&name];
        let length = parameter.count() * size_of::<f32>();
        let first = start + info.data_offsets.0 + parameter.source.part * length;
        let is_plain = info.dtype == Dtype::F32 && !parameter.source.transposed;
        Ok(match is_plain {
            true => Mapped::new(&self.files[*number], first..first + length),
            false => None,
        })
    }

    /// A hash of the files' names and contents, as hexadecimal text.
    pub fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        let mut hasher = Sha256::new();
        for file in &self.files {
            for (number, piece) in file.bytes().chunks(PIECE).enumerate() {
                hasher.update(piece);
                file.release(number * PIECE..number * PIECE + piece.len());
            }
        }
        crate::text::hexadecimal(&hasher.finalize())
    }
}

/// Bytes of a file that are in memory at once while it is read from one end to the other.
const PIECE: usize = 8 << 20;

fn convert<const N: usize>(bytes: &[u8], from: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes
        .chunks_exact(N)
        .map(|chunk| from(chunk.try_into().expect("chunks_exact gives N bytes")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{read_config, Tree};
    use crate::engine::WeightSource;

    /// What is mapped is what is read, also after its pages were given back, and what is given of a part; what is
    /// stored transposed is not mapped.
    #[test]
    fn mapped_elements_are_those_of_the_file() {
        for fixture in ["bert_a", "gpt2"] {
            let directory = Path::new("tests/fixtures").join(fixture);
            let config = read_config(&directory).unwrap();
            let file = Checkpoint::open_directory(&directory).unwrap();
            let prefix = &config.family().prefix;
            let tree = Tree::new(&config);
            let in_file = |p: &&Parameter| file.find(p, prefix).is_some();
            for parameter in tree.parameters().filter(in_file) {
                let mapped = file.mapped(parameter, prefix).unwrap();
                assert_eq!(mapped.is_none(), parameter.source.transposed);
                let Some(mapped) = mapped else { continue };
                let values = file.load(parameter, prefix).unwrap();
                assert_eq!(mapped.elements(), values, "{}", parameter.path);
                mapped.release();
                assert_eq!(mapped.elements(), values, "{}", parameter.path);
                let (mut part, middle) = (vec![7.0], values.len() / 3..values.len());
                mapped.append(middle.clone(), &mut part);
                assert_eq!((part[0], &part[1..]), (7.0, &values[middle]));
            }
        }
    }
}
