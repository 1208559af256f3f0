//! Files that are replaced as a whole. At every moment a reader finds the old content or the new one, even after a
//! kill, a full disk or a power cut.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::{Builder, NamedTempFile};

use crate::diagnostic::Problem;
use crate::text::hexadecimal;

/// The suffix of temporary names. No two of these names are the same, and none is one that a user would choose.
const TEMPORARY: &str = ".deltarun-tmp";

/// A file that gets its name when it is complete. Until then it has a temporary name in the same directory, and it is
/// removed if it is dropped.
pub struct Pending {
    file: NamedTempFile,
    path: PathBuf,
}

impl Pending {
    /// Begins a file that is to be `path`.
    ///
    /// # Errors
    /// What the system reports.
    pub fn new(path: &Path) -> io::Result<Self> {
        let mut builder = Builder::new();
        builder.prefix(".").suffix(TEMPORARY);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // The permissions of any new file: those that the process's umask leaves.
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let path = behind_links(path);
        Ok(Pending {
            file: builder.tempfile_in(parent(&path))?,
            path,
        })
    }

    /// The path until the file is complete, for code that writes to a path.
    pub fn temporary(&self) -> &Path {
        self.file.path()
    }

    /// Flushes the file to disk and gives it its name, in place of the file that had it.
    ///
    /// # Errors
    /// What the system reports; the old file is then as it was.
    pub fn complete(self) -> io::Result<()> {
        self.file.as_file().sync_all()?;
        let temporary = self.file.into_temp_path();
        std::fs::rename(&temporary, &self.path)?;
        // The file was renamed, so there is no temporary file left to remove.
        let _ = temporary.keep();
        sync_directory(parent(&self.path))
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A file that grows for long. Until it is complete it is named `PATH.partial`, and what is in it stays if the process ends.
/// A device or a pipe is written to as it is.
pub struct Growing {
    file: File,
    path: PathBuf,
    /// Whether it is a device or a pipe, which has its name from the beginning.
    is_stream: bool,
}

impl Growing {
    /// Begins a file that is to be `path`.
    ///
    /// # Errors
    /// What the system reports; [`ErrorKind::AlreadyExists`] if an earlier process left something in `PATH.partial`.
    pub fn new(path: &Path) -> io::Result<Self> {
        let path = behind_links(path);
        if is_stream(&path) {
            let file = File::options().write(true).open(&path)?;
            return Ok(Growing {
                file,
                path,
                is_stream: true,
            });
        }
        let partial = Self::partial(&path);
        if partial.metadata().is_ok_and(|found| found.len() > 0) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let file = File::create(partial)?;
        Ok(Growing {
            file,
            path,
            is_stream: false,
        })
    }

    /// The name of a file that is not complete.
    pub fn partial(path: &Path) -> PathBuf {
        let mut name = behind_links(path).into_os_string();
        name.push(".partial");
        name.into()
    }

    /// Flushes the file to disk and gives it its name, in place of the file that had it.
    ///
    /// # Errors
    /// What the system reports; the old file is then as it was.
    pub fn complete(self) -> io::Result<()> {
        if self.is_stream {
            return Ok(());
        }
        self.file.sync_all()?;
        std::fs::rename(Self::partial(&self.path), &self.path)?;
        sync_directory(parent(&self.path))
    }

    /// The path of the file at this moment.
    pub fn place(&self) -> PathBuf {
        match self.is_stream {
            true => self.path.clone(),
            false => Self::partial(&self.path),
        }
    }

    /// Removes what there is of the file.
    pub fn discard(self) {
        if !self.is_stream {
            // An incomplete file that stays does no harm.
            let _ = std::fs::remove_file(Self::partial(&self.path));
        }
    }
}

impl Write for Growing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Replaces `path` by a file with this content. A device or a pipe is written to as it is.
///
/// # Errors
/// What the system reports; the old file is then as it was.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    if is_stream(path) {
        return File::options().write(true).open(path)?.write_all(content);
    }
    let mut file = Pending::new(path)?;
    file.write_all(content)?;
    file.complete()
}

/// Flushes the entries of a directory to disk.
///
/// # Errors
/// What the system reports.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    #[cfg(unix)]
    File::open(directory)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = directory;
    Ok(())
}

/// Removes the incomplete files that a killed process left.
pub fn remove_temporary(directory: &Path) {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in names.filter(|entry| is_temporary(&entry.path())) {
        // Nothing reads these files, so a failure to remove one does no harm.
        let _ = std::fs::remove_file(entry.path());
    }
}

/// Whether a file has a temporary name, and so was never completed.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().ends_with(TEMPORARY)
}

/// SHA-256 of a file's content, as hexadecimal text.
///
/// # Errors
/// What the system reports.
pub fn hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hexadecimal(&hasher.finalize())),
            read => hasher.update(&piece[..read]),
        }
    }
}

/// The file that a path leads to, so that a link to it stays a link.
fn behind_links(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Whether a path leads to a device or a pipe, which is written to and never replaced.
fn is_stream(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// The directory that a file is in.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The problem that `path` could not be `verb`, such as "written".
pub fn failed(verb: &str, path: &Path, error: &io::Error) -> Problem {
    let message = format!("`{}` could not be {verb}: {error}", path.display());
    let is_full = matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    );
    let help = match is_full {
        true => "free space on the disk and run the same command again: it continues from the last complete state",
        false => "check the path, the permissions and the disk, then run the same command again to continue",
    };
    Problem::failure("delta::run::io", message).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_the_old_one_until_the_new_one_is_complete() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("file");
        replace(&path, b"old").unwrap();
        let mut pending = Pending::new(&path).unwrap();
        pending.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        drop(pending);
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1);
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        // SHA-256 of "new", from `printf new | sha256sum`.
        assert_eq!(
            hash(&path).unwrap(),
            "11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437"
        );
    }
}
