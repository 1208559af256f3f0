//! Reads safetensors: one file or an index of shards, in f64, f32, f16 or bf16.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;

use super::gguf::{is_gguf, Gguf, Names, Rearranged, ROPE_FACTORS};
use super::mapped::{ElementForm, Encoding, Mapped, MappedFile};
use super::tree::{CheckpointTensor, Parameter, Part};
use crate::diagnostic::Problem;
use crate::engine::WeightSource;
use crate::text::quoted_list;

/// Tensors on disk, mapped into memory. The system reads their bytes only when they are used.
pub struct Checkpoint {
    files: Vec<Arc<MappedFile>>,
    tensors: HashMap<String, Place>,
}

/// Where a tensor is, and how it is stored.
struct Place {
    /// The number of its file.
    file: usize,
    /// Its bytes in the file.
    range: Range<usize>,
    encoding: Encoding,
    shape: Vec<usize>,
    rearranged: Rearranged,
}

fn problem(path: &Path, message: impl std::fmt::Display) -> Problem {
    Problem::new(
        "delta::weights::unreadable",
        format!("`{}`: {message}", path.display()),
    )
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names, or a GGUF file.
    ///
    /// # Errors
    /// Neither is there, or a file is truncated or corrupt.
    pub fn open_directory(directory: &Path) -> Result<Self, Problem> {
        if is_gguf(directory) {
            return Checkpoint::open_gguf(directory);
        }
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
                "use the directory of a Hugging Face model with `config.json`, `model.safetensors` and `tokenizer.json`"
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
        let mut found_twice = Vec::new();
        for path in paths {
            let file = MappedFile::open(path).map_err(|e| problem(path, e))?;
            let (header, metadata) = SafeTensors::read_metadata(file.bytes()).map_err(|e| {
                let message = format!("the file is truncated or corrupt ({e})");
                problem(path, message)
                    .help("download the file again, and compare its size and hash")
            })?;
            let number = checkpoint.files.len();
            for (name, info) in metadata.tensors() {
                let start = header + 8;
                let place = Place {
                    file: number,
                    range: start + info.data_offsets.0..start + info.data_offsets.1,
                    encoding: Encoding::Plain(info.dtype),
                    shape: info.shape.clone(),
                    rearranged: Rearranged::default(),
                };
                let earlier = checkpoint.tensors.insert(name.clone(), place);
                found_twice.extend(earlier.map(|earlier| (name, earlier)));
            }
            checkpoint.files.push(Arc::new(file));
        }
        for (name, earlier) in found_twice {
            let later = &checkpoint.tensors[&name];
            let is_same = (earlier.encoding, &earlier.shape) == (later.encoding, &later.shape)
                && checkpoint.bytes(&earlier) == checkpoint.bytes(later);
            if !is_same {
                let other = checkpoint.files[earlier.file].path.display();
                let message = format!("`{name}` differs from the tensor of that name in `{other}`");
                return Err(problem(&checkpoint.files[later.file].path, message).help(
                    "download the model again, or remove the file that does not belong to it",
                ));
            }
        }
        Ok(checkpoint)
    }

    /// Opens a GGUF file, whose tensors get the names that they have in a Hugging Face checkpoint.
    fn open_gguf(path: &Path) -> Result<Self, Problem> {
        let file = Gguf::open(path)?;
        let names = Names::of(&file)?;
        let mut tensors = HashMap::new();
        for (name, tensor) in file.tensors {
            if name == ROPE_FACTORS {
                continue;
            }
            let (name, rearranged) = names.hugging_face(&name).ok_or_else(|| {
                problem(
                    path,
                    format!("the tensor `{name}` has no place in this architecture"),
                )
                .help("use the model's Hugging Face directory")
            })?;
            let place = Place {
                file: 0,
                range: tensor.range,
                encoding: Encoding::Blocks(tensor.kind),
                shape: tensor.shape,
                rearranged,
            };
            tensors.insert(name, place);
        }
        Ok(Checkpoint {
            files: vec![file.file],
            tensors,
        })
    }

    fn bytes(&self, place: &Place) -> &[u8] {
        &self.files[place.file].bytes()[place.range.clone()]
    }

    /// A tensor as a matrix: all of its outputs, or a part of them.
    fn mapped(&self, name: &str, place: &Place, stored: ElementForm) -> Result<Mapped, Problem> {
        Mapped::new(&self.files[place.file], place.range.clone(), stored)
            .ok_or_else(|| self.unreadable(name, place))
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// A text from the metadata of the first file.
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
        self.tensors.get(name).map(|place| place.shape.as_slice())
    }

    /// A tensor's elements as f32, and its shape.
    ///
    /// # Errors
    /// There is no tensor of that name, or its type is not f64, f32, f16 or bf16.
    pub fn read(&self, name: &str) -> Result<(Vec<f32>, Vec<usize>), Problem> {
        let place = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let count: usize = place.shape.iter().product();
        let out = place.shape.first().copied().unwrap_or(1);
        let stored = ElementForm {
            encoding: place.encoding,
            rearranged: place.rearranged,
            shape: (out, count / out.max(1)),
            transposed: false,
            part: Part {
                first: 0,
                outputs: out,
            },
        };
        let mapped = self.mapped(name, place, stored)?;
        Ok((mapped.elements().into_owned(), place.shape.clone()))
    }

    fn unreadable(&self, name: &str, place: &Place) -> Problem {
        let message = match place.encoding {
            Encoding::Plain(dtype) => format!(
                "`{name}` has the dtype {dtype:?}, but deltarun reads only f64, f32, f16 and bf16"
            ),
            Encoding::Blocks(_) => format!("`{name}` does not have the bytes that its shape needs"),
        };
        problem(&self.files[place.file].path, message)
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

    /// The name under which this checkpoint stores a parameter. Tries names with and without the family's
    /// prefix, and the names that old BERT checkpoints use for norms.
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

    /// A parameter's elements, row by row as `(out, in)`. Of a fused tensor, gives only the parameter's part.
    ///
    /// # Errors
    /// The tensor is missing, or its shape does not match the configuration.
    pub fn load(&self, parameter: &Parameter, prefix: &str) -> Result<Vec<f32>, Problem> {
        let stored = self.stored(parameter, prefix)?;
        Ok(stored.elements().into_owned())
    }

    /// The name of a parameter's tensor, after a check of the tensor's shape and copies.
    ///
    /// # Errors
    /// The tensor is missing, has another shape, or differs from one of its copies.
    pub fn checked(&self, parameter: &Parameter, prefix: &str) -> Result<String, Problem> {
        let source = &parameter.source;
        let name = self
            .find(parameter, prefix)
            .ok_or_else(|| self.missing(&source.full_name(prefix)))?;
        let mut expected = parameter.shape.clone();
        expected[0] = source.outputs(expected[0]).outputs;
        if source.transposed {
            expected.reverse();
        }
        let found = self.shape(&name).unwrap_or_default();
        if found == expected {
            self.check_copies(&name, source, prefix)?;
            return Ok(name);
        }
        let message = format!(
            "tensor `{name}` has the shape {found:?}, but `config.json` requires {expected:?}"
        );
        let help = "use the `config.json` that was saved with these weights";
        Err(Problem::new("delta::weights::wrong_shape", message).help(help))
    }

    /// Checks that the copies of a tensor are equal to it, because we read only the one tensor.
    fn check_copies(
        &self,
        name: &str,
        source: &CheckpointTensor,
        prefix: &str,
    ) -> Result<(), Problem> {
        let names = source.copies.iter();
        let names = names.flat_map(|copy| [format!("{prefix}{copy}"), copy.clone()]);
        for copy in names.filter(|copy| self.has(copy)) {
            if !self.are_equal(&copy, name)? {
                let message = format!("the checkpoint's `{copy}` differs from `{name}`, although both are the word embeddings");
                let help = "use a checkpoint whose encoder and decoder share their word embeddings";
                return Err(Problem::new("delta::weights::copies", message).help(help));
            }
        }
        Ok(())
    }

    /// Whether two tensors have the same elements.
    fn are_equal(&self, first: &str, second: &str) -> Result<bool, Problem> {
        let (one, other) = (&self.tensors[first], &self.tensors[second]);
        match one.encoding == other.encoding {
            true => Ok(self.bytes(one) == self.bytes(other)),
            false => Ok(self.read(first)? == self.read(second)?),
        }
    }

    /// A parameter whose elements are read on demand.
    ///
    /// # Errors
    /// See [`Checkpoint::load`].
    pub fn stored(&self, parameter: &Parameter, prefix: &str) -> Result<Mapped, Problem> {
        let name = self.checked(parameter, prefix)?;
        let place = &self.tensors[&name];
        let (out, source) = (parameter.shape[0], &parameter.source);
        let stored = ElementForm {
            encoding: place.encoding,
            rearranged: place.rearranged,
            shape: (out, parameter.count() / out.max(1)),
            transposed: source.transposed,
            part: source.outputs(out),
        };
        self.mapped(&name, place, stored)
    }

    /// The SHA-256 hash of the contents of all files, as hexadecimal text.
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

/// The most bytes of a file that are in memory at once while we hash it.
const PIECE: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::{read_config, Tree};

    /// A mapped parameter must have the elements of its part of the file, also after its pages were released. A range
    /// of it must have the matching elements.
    #[test]
    fn mapped_elements_are_those_of_the_file() {
        for fixture in ["bert_a", "gpt2"] {
            let directory = Path::new("tests/fixtures").join(fixture);
            let config = read_config(&directory).unwrap();
            let file = Checkpoint::open_directory(&directory).unwrap();
            let prefix = &config.family().base_model_prefix;
            let tree = Tree::new(&config);
            let in_file = |p: &&Parameter| file.find(p, prefix).is_some();
            for parameter in tree.parameters().filter(in_file) {
                let mapped = file.stored(parameter, prefix).unwrap();
                let name = file.checked(parameter, prefix).unwrap();
                let (whole, shape) = file.read(&name).unwrap();
                let source = &parameter.source;
                let (out, input) = mapped.shape();
                let first = source.outputs(out).first;
                let at = |row: usize, column: usize| match source.transposed {
                    true => whole[column * shape[1] + first + row],
                    false => whole[(first + row) * input + column],
                };
                let all = (0..out).flat_map(|row| (0..input).map(move |column| (row, column)));
                let values: Vec<f32> = all.map(|(row, column)| at(row, column)).collect();
                assert_eq!(*mapped.elements(), values, "{}", parameter.path);
                mapped.release();
                assert_eq!(*mapped.elements(), values, "{}", parameter.path);
                let middle = values.len() / 3..values.len();
                let mut part = vec![7.0; middle.len()];
                mapped.read(middle.clone(), &mut part);
                assert_eq!(part, values[middle]);
            }
        }
    }
}
