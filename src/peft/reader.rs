//! Reads tensors from an adapter's file and accounts for every one of them.

use std::path::Path;

use crate::backbone::Checkpoint;
use crate::diagnostic::Problem;
use crate::graph::Tensors;
use crate::text::quoted_list;

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

    /// Checks that the file has no unexpected tensor.
    pub(super) fn check_extra(&self) -> Result<(), Problem> {
        let names = self.file.names();
        let extra: Vec<&str> = names
            .into_iter()
            .filter(|name| !self.expected.iter().any(|known| known == name))
            .collect();
        if extra.is_empty() {
            return Ok(());
        }
        let list = quoted_list(extra.iter().copied());
        Err(self.problem(format!("the configuration does not account for {list}")))
    }
}
