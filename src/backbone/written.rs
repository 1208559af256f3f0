//! Writes tensors as safetensors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use safetensors::SafeTensorError;

use crate::diagnostic::Problem;
use crate::disk::{self, Pending};

/// Writes tensors in the safetensors format, with text metadata.
///
/// # Errors
/// A tensor has a number that is not finite, or the file cannot be written.
pub fn write_tensors<V: AsRef<[f32]>>(
    path: &Path,
    tensors: &BTreeMap<String, (V, Vec<usize>)>,
    metadata: Option<std::collections::HashMap<String, String>>,
) -> Result<(), Problem> {
    let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    if let Some(key) = tensors
        .iter()
        .find(|(_, (values, _))| !is_finite(values.as_ref()))
    {
        let message = format!("`{}` contains NaN or infinity and was not written", key.0);
        return Err(Problem::failure("delta::run::not_finite", message)
            .help("look for NaN or infinity in the loss and in the weights it was made from"));
    }
    let views = tensors.iter().map(|(key, (values, shape))| {
        let values = values.as_ref();
        (key, Unwritten { values, shape })
    });
    let metadata = metadata.or_else(|| Some([("format".to_owned(), "pt".to_owned())].into()));
    let failed = |e: &std::io::Error| disk::failed("written", path, e);
    let file = Pending::new(path).map_err(|e| failed(&e))?;
    safetensors::serialize_to_file(views, metadata, file.temporary()).map_err(|e| match e {
        SafeTensorError::IoError(e) => failed(&e),
        other => Problem::internal(other),
    })?;
    file.complete().map_err(|e| failed(&e))
}

/// A tensor that is converted to bytes only when it is written, to save memory.
struct Unwritten<'a> {
    values: &'a [f32],
    shape: &'a [usize],
}

impl View for Unwritten<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = self.values.iter().flat_map(|value| value.to_le_bytes());
        Cow::Owned(bytes.collect())
    }

    fn data_len(&self) -> usize {
        4 * self.values.len()
    }
}
