//! The directory of an unfinished run.
//!
//! `OUT.partial` is consistent at every moment. Files are replaced as a whole, never changed in place, and a
//! file that describes others is written after them. A run has begun once its manifest exists. It is finished
//! once `OUT.partial` is renamed to `OUT`. Only then the checkpoint is removed.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::manifest::{Manifest, VERSION};
use super::{Integrity, Log, Summary};
use crate::backbone::write_tensors;
use crate::diagnostic::Problem;
use crate::disk::{self, failed};
use crate::graph::Graph;
use crate::peft;
use crate::plan::{Plan, TaskPlan};
use crate::terminal::note;
use crate::train::{load, save, Snapshot, State};

const CHECKPOINT: &str = "checkpoint.safetensors";
const LOCK: &str = "lock";
/// Files that the record of a finished run does not list.
const NOT_RESULTS: [&str; 3] = [CHECKPOINT, LOCK, Manifest::FILE];

/// The directory of an unfinished run, locked by this process.
pub struct Directory {
    out: PathBuf,
    partial: PathBuf,
    /// Holds the lock while it is open.
    _lock: File,
}

impl Directory {
    /// The code of the problem that another process writes the run.
    pub const LOCKED: &'static str = "delta::run::locked";
    /// The code of the problem that the run is there already.
    pub const EXISTS: &'static str = "delta::run::exists";

    /// Checks that `out` does not exist yet.
    ///
    /// # Errors
    /// It exists.
    pub fn check(out: &Path) -> Result<(), Problem> {
        if out.symlink_metadata().is_err() {
            return Ok(());
        }
        if out.join(Manifest::FILE).exists() && !is_partial(out) {
            tidy(out);
        }
        let message = format!("the output directory `{}` already exists", out.display());
        Err(Problem::new(Directory::EXISTS, message)
            .help("choose another directory with `--out DIR`, or remove this one"))
    }

    /// Creates `OUT.partial` if it does not exist, and locks it.
    ///
    /// # Errors
    /// `OUT` exists; another process has locked `OUT.partial`; `OUT.partial` is not a run's directory.
    pub fn claim(out: &Path) -> Result<Self, Problem> {
        let partial = partial(out);
        let claimed = || {
            Directory::check(out)?;
            std::fs::create_dir_all(&partial).map_err(|e| failed("made", &partial, &e))?;
            // Refuse a foreign directory before touching anything in it.
            check_own(&partial)?;
            lock(&partial)
        };
        // Another process that finishes the run, or has not begun it, may take the directory away meanwhile.
        let lock = match claimed() {
            Err(_) if !partial.exists() => claimed()?,
            claimed => claimed?,
        };
        let directory = Directory {
            out: out.to_path_buf(),
            partial,
            _lock: lock,
        };
        // Another process may have finished the run between our first check of `OUT` and the lock.
        Directory::check(out)?;
        disk::remove_temporary(&directory.partial);
        Ok(directory)
    }

    /// Begins the run, or continues the unfinished one.
    ///
    /// # Errors
    /// `OUT.partial` belongs to another plan, other input or another version of the program.
    pub fn begin(
        &self,
        manifest: &Manifest,
        plan: &Plan,
        source: &str,
        integrity: Integrity,
    ) -> Result<(), Problem> {
        if self.has_begun() {
            return self.check_same(manifest, plan, integrity);
        }
        self.write_plan(plan, source)?;
        manifest.write(&self.partial)?;
        disk::sync_directory(disk::parent(&self.partial))
            .map_err(|e| failed("made", &self.partial, &e))
    }

    /// Whether a run has begun here. If not, the directory has at most the remains of an interrupted start.
    fn has_begun(&self) -> bool {
        self.partial.join(Manifest::FILE).exists()
    }

    /// Checks that the unfinished run has the same plan and input, and was begun by the same version.
    fn check_same(
        &self,
        manifest: &Manifest,
        plan: &Plan,
        integrity: Integrity,
    ) -> Result<(), Problem> {
        let shown = self.partial.display();
        let out = "or choose another output directory with `--out DIR`";
        let found = Manifest::read(&self.partial)
            .map_err(|problem| problem.help(format!("remove the directory, {out}")))?;
        if found.deltarun != manifest.deltarun {
            let message = format!(
                "`{shown}` was started by deltarun {}, but this is deltarun {VERSION}",
                found.deltarun
            );
            return Err(
                Problem::new("delta::run::other_version", message).help(format!(
                    "finish it with that version, remove it to start over, {out}"
                )),
            );
        }
        if found.plan_hash != manifest.plan_hash {
            let text = std::fs::read_to_string(self.partial.join("plan.yaml"));
            let differences = text.map_or(Vec::new(), |text| plan.differences(&text));
            let message = match differences.is_empty() {
                true => format!("`{shown}` is an unfinished run of another plan"),
                false => format!(
                    "`{shown}` is an unfinished run of another plan: {}",
                    differences.join("; ")
                ),
            };
            return Err(
                Problem::new("delta::run::other_plan", message).help(format!("remove it, {out}"))
            );
        }
        let changed = found.changed_input(manifest);
        if changed.is_empty() {
            return Ok(());
        }
        let message = format!(
            "`{shown}` is an unfinished run on other inputs: since it started, {} changed",
            crate::text::list(&changed)
        );
        // What the first model made of the old rows is in the checkpoint, and cannot be had for others.
        let has_reference = |task: &TaskPlan| {
            let comparison = task.kind.comparison();
            comparison.is_some_and(|comparison| comparison.has_reference())
        };
        let integrity = match found.data_hashes != manifest.data_hashes
            && plan.tasks.values().any(has_reference)
        {
            true => Integrity::Checked,
            false => integrity,
        };
        match integrity {
            Integrity::Unchecked => note(&message),
            Integrity::Checked => {
                return Err(
                    Problem::new("delta::run::other_input", message).help(format!(
                        "restore the original inputs, remove the directory to start over, {out}"
                    )),
                )
            }
        }
        Ok(())
    }

    /// The directory while the run is unfinished: `OUT.partial`.
    pub fn partial_of(out: &Path) -> PathBuf {
        partial(out)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Problem> {
        let path = self.partial.join(name);
        disk::replace(&path, text.as_bytes()).map_err(|e| failed("written", &path, &e))
    }

    fn write_plan(&self, plan: &Plan, source: &str) -> Result<(), Problem> {
        self.write("pipeline.delta", source)?;
        self.write("plan.yaml", &plan.to_yaml().map_err(Problem::internal)?)
    }

    /// The state that an interrupted run saved, if it saved one.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn resume(&self) -> Result<Option<State>, Problem> {
        let path = self.partial.join(CHECKPOINT);
        path.exists().then(|| load(&path)).transpose()
    }

    /// The bytes of the state that an interrupted run saved; none if it saved none.
    ///
    /// # Errors
    /// The state cannot be read.
    pub fn saved(&self) -> Result<Vec<u8>, Problem> {
        let path = self.partial.join(CHECKPOINT);
        match path.exists() {
            true => std::fs::read(&path).map_err(|e| failed("read", &path, &e)),
            false => Ok(Vec::new()),
        }
    }

    /// Replaces the saved state.
    ///
    /// # Errors
    /// The state cannot be written. The previous one is then intact.
    pub fn save(&self, state: &Snapshot) -> Result<(), Problem> {
        save(state, &self.partial.join(CHECKPOINT))
    }

    /// Opens the log, cut to its length in bytes when the state was saved.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_log(&self, length: u64) -> Result<Log, Problem> {
        Log::open(&self.partial.join(Log::FILE), length)
    }

    /// Writes the results and renames the directory to `OUT`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(
        self,
        plan: &Plan,
        source: &str,
        graph: &Graph,
        summary: Option<&Summary>,
        manifest: &Manifest,
    ) -> Result<(), Problem> {
        // Write the plan again, because somebody may have changed the files since the run began.
        self.write_plan(plan, source)?;
        self.write_delta(plan, graph)?;
        if let Some(summary) = summary {
            let metrics = serde_json::to_string_pretty(summary).map_err(Problem::internal)?;
            self.write("metrics.json", &(metrics + "\n"))?;
        }
        let mut files = std::collections::BTreeMap::new();
        hash_files(&self.partial, "", &mut files)?;
        let manifest = Manifest {
            files,
            ..manifest.clone()
        };
        manifest.write(&self.partial)?;
        std::fs::rename(&self.partial, &self.out)
            .map_err(|e| failed("renamed", &self.partial, &e))?;
        for name in [CHECKPOINT, LOCK] {
            // The run is complete without them.
            let _ = std::fs::remove_file(self.out.join(name));
        }
        if let Err(e) = disk::sync_directory(disk::parent(&self.out)) {
            note(&format!(
                "`{}` is complete, but may not survive a power cut: {e}",
                self.out.display()
            ));
        }
        Ok(())
    }

    /// Writes deltas and heads in our format, and in PEFT's if PEFT has a form for them.
    fn write_delta(&self, plan: &Plan, graph: &Graph) -> Result<(), Problem> {
        let path = self.partial.join("delta.safetensors");
        write_tensors(&path, &graph.views(), None)?;
        if peft::why_not(plan).is_none() {
            peft::export(plan, graph, &self.partial.join("peft"))?;
        }
        Ok(())
    }
}

impl Drop for Directory {
    /// Removes the directory again if no run has begun in it.
    fn drop(&mut self) {
        if self.partial.exists() && !self.has_begun() {
            for name in [LOCK, "pipeline.delta", "plan.yaml"] {
                let _ = std::fs::remove_file(self.partial.join(name));
            }
            let _ = std::fs::remove_dir(&self.partial);
        }
    }
}

/// Checks that a directory without a run has nothing but the remains of an interrupted start.
fn check_own(partial: &Path) -> Result<(), Problem> {
    if partial.join(Manifest::FILE).exists() {
        return Ok(());
    }
    let entries = std::fs::read_dir(partial).map_err(|e| failed("read", partial, &e))?;
    let is_foreign = |path: &PathBuf| {
        let own = [LOCK, "pipeline.delta", "plan.yaml"].map(|name| partial.join(name));
        !own.contains(path) && !disk::is_temporary(path)
    };
    let mut foreign = entries.flatten().map(|entry| entry.path());
    let Some(found) = foreign.find(is_foreign) else {
        return Ok(());
    };
    let message = format!(
        "`{}` is not an unfinished run, but contains `{}`",
        partial.display(),
        found.file_name().unwrap_or_default().to_string_lossy()
    );
    Err(Problem::new("delta::run::foreign", message)
        .help("choose another output directory with `--out DIR`"))
}

/// Whether a directory has the name of an unfinished run, by whatever path it is called.
pub fn is_partial(directory: &Path) -> bool {
    let whole = directory.canonicalize();
    let whole = whole.as_deref().unwrap_or(directory);
    whole.extension().is_some_and(|ending| ending == "partial")
}

/// `OUT.partial`
fn partial(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    out.with_file_name(name)
}

/// Removes what a process leaves in a finished run that is killed right after the rename: its lock and its checkpoint.
pub(super) fn tidy(run: &Path) {
    let lock = run.join(LOCK);
    let Ok(file) = File::open(&lock) else { return };
    if file.try_lock().is_ok() {
        let _ = std::fs::remove_file(run.join(CHECKPOINT));
        let _ = std::fs::remove_file(lock);
    }
}

/// Locks a directory. The lock holds as long as the returned file is open.
fn lock(partial: &Path) -> Result<File, Problem> {
    let path = partial.join(LOCK);
    let unlocked = |e: &std::io::Error| failed("locked", &path, e);
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    let mut file = options.open(&path).map_err(|e| unlocked(&e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder);
            let message = format!(
                "`{}` is in use: another process ({}) writes its run there",
                partial.display(),
                holder.trim()
            );
            return Err(Problem::new(Directory::LOCKED, message).help(
                "wait until that process ends, or choose another output directory with `--out DIR`",
            ));
        }
        Err(TryLockError::Error(e)) if e.kind() == std::io::ErrorKind::Unsupported => {
            note(&format!(
                "the file system of `{}` does not support locks: do not start a second run there",
                partial.display()
            ));
        }
        Err(TryLockError::Error(e)) => return Err(unlocked(&e)),
    }
    let named = file
        .set_len(0)
        .and_then(|()| file.write_all(owner().as_bytes()));
    named.map_err(|e| unlocked(&e))?;
    Ok(file)
}

/// This process, as others name it: its number, its machine, and its job if Slurm runs it.
fn owner() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let mut text = format!("process {}", std::process::id());
    if !host.trim().is_empty() {
        text += &format!(" on {}", host.trim());
    }
    if let Ok(job) = std::env::var("SLURM_JOB_ID") {
        text += &format!(", Slurm job {job}");
    }
    text
}

/// Adds the SHA-256 hashes of all files below a directory, by their paths in it.
fn hash_files(
    directory: &Path,
    within: &str,
    hashes: &mut std::collections::BTreeMap<String, String>,
) -> Result<(), Problem> {
    let unreadable = |e: &std::io::Error| failed("read", directory, e);
    for entry in std::fs::read_dir(directory).map_err(|e| unreadable(&e))? {
        let path = entry.map_err(|e| unreadable(&e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_result = !(within.is_empty() && NOT_RESULTS.contains(&&*name));
        if path.is_dir() {
            hash_files(&path, &format!("{within}{name}/"), hashes)?;
        } else if is_result && !disk::is_temporary(&path) {
            let hash = disk::hash(&path).map_err(|e| failed("read", &path, &e))?;
            hashes.insert(format!("{within}{name}"), hash);
        }
    }
    Ok(())
}
