//! Reads tensors from an adapter's file and accounts for every one of them.

use std::path::Path;

use crate::backbone::Checkpoint;
use crate::diagnostic::Problem;
use crate::graph::Tensors;
use crate::text::quoted_list;

/// A way out for adapters with a LoRA on a head.
const ON_HEAD: &str = "train the head whole (`modules_to_save`); a head that is not tied to the word embeddings can also be merged in Python";

/// Reads tensors from an adapter's file and records which were expected.
pub(super) struct Reader<'a> {
    directory: &'a Path,
    pub(super) file: &'a Checkpoint,
    expected: Vec<String>,
    pub(super) tensors: Tensors,
}

impl<'a> Reader<'a> {
    pub(super) fn new(directory: &'a Path, file: &'a Checkpoint) -> Self {
        Reader {
            directory,
            file,
            expected: Vec::new(),
            tensors: Tensors::new(),
        }
    }

    pub(super) fn problem(&self, message: impl std::fmt::Display) -> Problem {
        let place = self.directory.join("adapter_model.safetensors");
        Problem::new(
            "delta::peft::tensors",
            format!("`{}`: {message}", place.display()),
        )
        .help("use the `adapter_config.json` and the backbone that belong to these tensors")
    }

    /// Reads the tensor `stored` as our tensor `key`. Its elements must be in our order already, even if its shape is
    /// another.
    pub(super) fn take(
        &mut self,
        stored: &str,
        shape: &[usize],
        key: String,
        ours: &[usize],
    ) -> Result<(), Problem> {
        let values = self.take_values(stored, shape)?;
        self.tensors.insert(key, (values, ours.to_vec()));
        Ok(())
    }

    /// The elements of the tensor `stored`, which must have this shape.
    pub(super) fn take_values(
        &mut self,
        stored: &str,
        shape: &[usize],
    ) -> Result<Vec<f32>, Problem> {
        let named = self.name_of(stored);
        self.expected.push(named.clone());
        let stored = named.as_str();
        let Some(found) = self.file.shape(stored) else {
            return Err(self.problem(format!("the tensor `{stored}` is missing")));
        };
        if found != shape {
            return Err(self.problem(format!(
                "`{stored}` has the shape {found:?}, but must have {shape:?}"
            )));
        }
        Ok(self.file.read(stored)?.0)
    }

    /// The name of a tensor in the file, which may contain PEFT's name of the adapter: `lora_A.default.weight`.
    fn name_of(&self, stored: &str) -> String {
        let (module, leaf) = stored.rsplit_once('.').unwrap_or((stored, ""));
        let others = [
            format!("{module}.default.{leaf}"),
            format!("{stored}.default"),
            // As early versions wrote modules that are trained whole.
            format!("{module}.modules_to_save.{leaf}"),
            format!("{module}.modules_to_save.default.{leaf}"),
        ];
        let found = others.into_iter().find(|name| self.file.has(name));
        found
            .filter(|_| !self.file.has(stored))
            .unwrap_or(stored.to_owned())
    }

    /// Whether the file has such a tensor.
    pub(super) fn has(&self, stored: &str) -> bool {
        self.file.has(&self.name_of(stored))
    }

    /// The shape of such a tensor.
    pub(super) fn shape(&self, stored: &str) -> Option<&[usize]> {
        self.file.shape(&self.name_of(stored))
    }

    /// Whether a tensor was taken.
    pub(super) fn is_taken(&self, stored: &str) -> bool {
        self.expected.contains(&self.name_of(stored))
    }

    /// Accepts redundant tensors without reading them.
    pub(super) fn pass_over(&mut self, is_known: impl Fn(&str) -> bool) {
        let names = self.file.names().into_iter();
        let known = names.filter(|name| is_known(name)).map(str::to_owned);
        self.expected.extend(known.collect::<Vec<_>>());
    }

    /// Accepts a tensor that repeats another, which was taken for our `key`.
    pub(super) fn pass_over_equal(&mut self, stored: &str, key: &str) {
        let named = self.name_of(stored);
        let Some((taken, _)) = self.tensors.get(key).filter(|_| self.file.has(&named)) else {
            return;
        };
        let repeats = self
            .file
            .read(&named)
            .is_ok_and(|(values, _)| values == *taken);
        self.expected.extend(repeats.then_some(named));
    }

    /// Checks that the file has no unexpected tensor. `heads` are the names of modules of the task's head.
    pub(super) fn check_extra(&self, heads: &[&str]) -> Result<(), Problem> {
        let names = self.file.names();
        let extra: Vec<&str> = names
            .into_iter()
            .filter(|name| !self.expected.iter().any(|known| known == name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let list = quoted_list(extra.iter().copied());
        let of_head = |name: &&&str| {
            let parts: Vec<&str> = name.split('.').collect();
            heads.iter().any(|head| name.contains(&format!(".{head}.")))
                && parts.iter().any(|part| part.starts_with("lora_"))
        };
        if let Some(name) = extra.iter().find(of_head) {
            let message = format!(
                "`{name}` is a LoRA on the task's head, and deltarun reads only a head's full weights"
            );
            return Err(self.problem(message).help(ON_HEAD));
        }
        Err(self.problem(format!("the configuration does not account for {list}")))
    }
}
