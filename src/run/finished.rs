//! A finished run. Opening a file of the run checks that the file is unchanged.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::directory::{is_partial, tidy};
use super::manifest::{backbone_files, Manifest, VERSION};
use super::Summary;
use crate::backbone::Checkpoint;
use crate::data::{belongs, files_of};
use crate::diagnostic::Problem;
use crate::disk;
use crate::hub::local;
use crate::plan::{BackbonePlan, FilePlan, Plan};
use crate::terminal::note;
use crate::text::{hexadecimal, list};

/// Whether files must match their recorded hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Integrity {
    /// A changed file is refused.
    #[default]
    Checked,
    /// The user insists, with `--allow-changed`. A changed file is reported and accepted.
    Unchecked,
}

/// The directory of a finished run.
#[derive(Clone, Debug)]
pub struct FinishedRun {
    directory: PathBuf,
    manifest: Manifest,
    integrity: Integrity,
}

/// Reports a file that differs from its record: as an error, or as a note if the user insists.
pub(super) fn refuse_change(
    integrity: Integrity,
    message: String,
    help: &str,
) -> Result<(), Problem> {
    match integrity {
        Integrity::Checked => Err(Problem::new("delta::run::changed", message).help(format!(
            "{help}, or accept the change with `--allow-changed`"
        ))),
        Integrity::Unchecked => {
            note(&message);
            Ok(())
        }
    }
}

impl FinishedRun {
    /// Opens a run's directory.
    ///
    /// # Errors
    /// The directory has no readable manifest, or its run has not ended.
    pub fn open(directory: &Path, integrity: Integrity) -> Result<Self, Problem> {
        if is_partial(directory) {
            let message = format!("the run in `{}` has not ended", directory.display());
            return Err(Problem::new("delta::run::unfinished", message)
                .help("run the same command again to continue it, or name a finished run"));
        }
        let manifest = Manifest::read(directory)?;
        let run = FinishedRun {
            directory: directory.to_owned(),
            manifest,
            integrity,
        };
        tidy(directory);
        if run.manifest.deltarun != VERSION {
            note(&run.other_version());
        }
        Ok(run)
    }

    fn other_version(&self) -> String {
        let unrecorded = match self.manifest.files.is_empty() {
            true => "; that version recorded no hashes, so the run's files are not checked",
            false => "",
        };
        format!(
            "`{}` was written by deltarun {}, but this is deltarun {VERSION}{unrecorded}",
            self.directory.display(),
            self.manifest.deltarun
        )
    }

    /// Its record.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The path of one of its files, after a check of the file's hash.
    ///
    /// # Errors
    /// The file is missing or has changed.
    pub fn path(&self, name: &str) -> Result<PathBuf, Problem> {
        self.hash(name)?;
        Ok(self.directory.join(name))
    }

    /// The hash of one of its files, after a check of it.
    ///
    /// # Errors
    /// The file is missing or has changed.
    pub fn hash(&self, name: &str) -> Result<String, Problem> {
        let hash = disk::hash(&self.directory.join(name));
        let hash = hash.map_err(|e| self.unreadable(name, &e))?;
        self.check(name, &hash)?;
        Ok(hash)
    }

    /// The text of one of its files.
    ///
    /// # Errors
    /// The file is missing, has changed, or is not UTF-8.
    pub fn text(&self, name: &str) -> Result<String, Problem> {
        let bytes =
            std::fs::read(self.directory.join(name)).map_err(|e| self.unreadable(name, &e))?;
        self.check(name, &hexadecimal(&Sha256::digest(&bytes)))?;
        String::from_utf8(bytes).map_err(|e| self.unreadable(name, &e))
    }

    fn unreadable(&self, name: &str, reason: &dyn std::fmt::Display) -> Problem {
        let path = self.directory.join(name);
        let message = format!("`{}` cannot be read: {reason}", path.display());
        Problem::new("delta::run::unreadable", message)
            .help("name the directory of a finished run with all of its files")
    }

    fn check(&self, name: &str, hash: &str) -> Result<(), Problem> {
        match self.manifest.files.get(name) {
            Some(recorded) if recorded != hash => {
                let path = self.directory.join(name);
                let message = format!("`{}` has changed since the run wrote it", path.display());
                refuse_change(self.integrity, message, "restore the run's own file")
            }
            None if !self.manifest.files.is_empty() => {
                let path = self.directory.join(name);
                let message = format!(
                    "`{}` is not one of the files that the run recorded",
                    path.display()
                );
                refuse_change(
                    self.integrity,
                    message,
                    "restore the run's own `manifest.yaml`",
                )
            }
            _ => Ok(()),
        }
    }

    /// Checks every file that the run left.
    ///
    /// # Errors
    /// One is missing, or has changed since the run wrote it.
    pub fn check_files(&self) -> Result<(), Problem> {
        let mut names = self.manifest.files.keys();
        names.try_for_each(|name| self.path(name).map(drop))
    }

    /// Checks that a file of examples is as it was when the run read it.
    ///
    /// # Errors
    /// It has changed since.
    pub fn check_data(&self, path: &Path) -> Result<(), Problem> {
        let recorded = self.manifest.data_hashes.get(&path.display().to_string());
        let Some(recorded) = recorded else {
            return Ok(());
        };
        let own = local(path)?;
        let hash = disk::hash(&own).map_err(|e| disk::failed("read", path, &e))?;
        match hash == *recorded {
            true => Ok(()),
            false => refuse_change(
                self.integrity,
                format!("`{}` has changed since the run read it", path.display()),
                "restore the file, name another one with `--data FILE`",
            ),
        }
    }

    /// Checks that the files of a set of the run's own are those that it read, and did not change.
    ///
    /// # Errors
    /// A file is new or missing; see [`FinishedRun::check_data`].
    pub fn check_set(&self, file: &FilePlan) -> Result<(), Problem> {
        let files = files_of(file)?;
        let is_new = |path: &&PathBuf| {
            let name = path.display().to_string();
            !self.manifest.data_hashes.contains_key(&name)
        };
        let is_missing = |path: &&PathBuf| belongs(path, file) && !files.contains(path);
        let recorded: Vec<PathBuf> = self
            .manifest
            .data_hashes
            .keys()
            .map(PathBuf::from)
            .collect();
        let other = files.iter().find(is_new).map(|path| (path, "is new"));
        let missing = recorded
            .iter()
            .find(is_missing)
            .map(|path| (path, "is missing"));
        if let Some((path, how)) = other.or(missing) {
            return refuse_change(
                self.integrity,
                format!("`{}` {how}: the run read other files", path.display()),
                "restore the files, name one with `--data FILE`",
            );
        }
        files.iter().try_for_each(|path| self.check_data(path))
    }

    /// Its plan.
    ///
    /// # Errors
    /// See [`FinishedRun::text`] and [`Plan::from_yaml`].
    pub fn plan(&self) -> Result<Plan, Problem> {
        let text = self.text("plan.yaml")?;
        Plan::from_yaml(&text).map_err(|reason| {
            let problem = self.unreadable("plan.yaml", &reason);
            match self.manifest.deltarun == VERSION {
                true => problem,
                false => problem.help(format!(
                    "open it with the version that wrote it: {}",
                    self.other_version()
                )),
            }
        })
    }

    /// Its results.
    ///
    /// # Errors
    /// See [`FinishedRun::text`].
    pub fn summary(&self) -> Result<Summary, Problem> {
        let text = self.text("metrics.json")?;
        serde_json::from_str(&text).map_err(|e| self.unreadable("metrics.json", &e))
    }

    /// Every parameter of its deltas and heads.
    ///
    /// # Errors
    /// See [`FinishedRun::path`] and [`Checkpoint::open`].
    pub fn tensors(&self) -> Result<Checkpoint, Problem> {
        Checkpoint::open(&[self.path("delta.safetensors")?])
    }

    /// Checks that a backbone is the one that the run was trained on.
    ///
    /// # Errors
    /// The backbone's weights or files differ, or cannot be read.
    pub fn check_backbone(&self, backbone: &BackbonePlan) -> Result<(), Problem> {
        let directory = &backbone.directory;
        let shown = directory.display();
        if !backbone.random {
            let hash = Checkpoint::open_directory(directory)?.hash();
            if hash != self.manifest.backbone_hash {
                let message = format!(
                    "`{shown}` is not the backbone that this run was trained on: its weights differ"
                );
                if self.integrity == Integrity::Checked {
                    return Err(Problem::new("delta::run::other_backbone", message).help(
                        "name the right backbone with `--backbone DIR`, or accept the change with `--allow-changed`",
                    ));
                }
                note(&message);
            }
        }
        if self.manifest.backbone_files.is_empty() {
            return Ok(());
        }
        let recorded = Manifest {
            data_hashes: Default::default(),
            ..self.manifest.clone()
        };
        let now = Manifest {
            backbone_files: backbone_files(backbone)?,
            backbone_hash: self.manifest.backbone_hash.clone(),
            ..Manifest::default()
        };
        let names = recorded.changed_input(&now);
        match names.is_empty() {
            true => Ok(()),
            false => refuse_change(
                self.integrity,
                format!(
                    "`{shown}` differs from when this run was trained: {} changed",
                    list(&names)
                ),
                "name the unchanged backbone with `--backbone DIR`",
            ),
        }
    }
}
