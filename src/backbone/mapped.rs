//! A file in memory as far as it is read: mapped, or by pieces.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::engine::WeightSource;

/// A mapped file, which also gives pieces of it without mapping them.
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

    /// All of it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Reads the bytes from `start` on into `buffer`. What lies around them stays where it is: touching one byte
    /// of the map would bring in up to 2 MB (a page of Linux's page cache).
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

    /// Lets the system take back the memory of what was read. It would sooner or later, but what is
    /// mapped counts as this process's memory until then.
    pub(super) fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and of a file, so pages that are given up are read again from
            // that file when they are next touched. A refusal changes nothing.
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(advice, range.start, range.len())
            };
        }
    }
}

/// Elements of a mapped file.
pub struct Mapped {
    file: Arc<MappedFile>,
    /// In bytes.
    range: Range<usize>,
}

impl Mapped {
    /// The elements at these bytes, if they lie there as they are needed in memory.
    pub(super) fn new(file: &Arc<MappedFile>, range: Range<usize>) -> Option<Self> {
        let file = file.clone();
        let mapped = Mapped { file, range };
        let fits = cfg!(target_endian = "little") && mapped.cast().is_some();
        fits.then_some(mapped)
    }

    fn cast(&self) -> Option<&[f32]> {
        bytemuck::try_cast_slice(&self.file.bytes()[self.range.clone()]).ok()
    }
}

impl WeightSource for Mapped {
    fn elements(&self) -> &[f32] {
        self.cast().unwrap_or_default()
    }

    fn append(&self, range: Range<usize>, values: &mut Vec<f32>) {
        assert!(
            range.end * size_of::<f32>() <= self.range.len(),
            "mapped: no such element"
        );
        let start = self.range.start + range.start * size_of::<f32>();
        let place = values.len();
        values.resize(place + range.len(), 0.0);
        let bytes = bytemuck::cast_slice_mut(&mut values[place..]);
        self.file.read(start, bytes);
    }

    fn release(&self) {
        self.file.release(self.range.clone());
    }
}
