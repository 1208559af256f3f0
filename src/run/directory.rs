//! What a run leaves on disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Summary;
use crate::backbone::Checkpoint;
use crate::diagnostic::Problem;
use crate::engine::Backend;
use crate::graph::Graph;
use crate::peft;
use crate::plan::Plan;
use crate::text::hexadecimal;
use crate::train::{load, save, Event, Snapshot, State};

/// The record of a run: its plan, and hashes of everything that it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version that wrote it.
    pub deltarun: String,
    /// SHA-256 of the `.delta` file.
    pub file_hash: String,
    /// SHA-256 of the backbone's weights; empty where they are drawn from the seed.
    pub backbone_hash: String,
    /// SHA-256 of each data file.
    pub data_hashes: BTreeMap<String, String>,
    /// SHA-256 of the plan.
    pub plan_hash: String,
}

impl Manifest {
    /// Hashes everything.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(plan: &Plan, source: &str) -> Result<Self, Problem> {
        let backbone_hash = match plan.backbone.random {
            true => String::new(),
            false => Checkpoint::open_directory(&plan.backbone.directory)?.hash(),
        };
        let mut data_hashes = BTreeMap::new();
        for data in plan.data.values() {
            for file in [&data.train, &data.dev, &data.test].into_iter().flatten() {
                let bytes =
                    std::fs::read(&file.path).map_err(|e| failed("read", &file.path, &e))?;
                data_hashes.insert(
                    file.path.display().to_string(),
                    hexadecimal(&Sha256::digest(bytes)),
                );
            }
        }
        Ok(Manifest {
            deltarun: env!("CARGO_PKG_VERSION").to_owned(),
            file_hash: hexadecimal(&Sha256::digest(source)),
            backbone_hash,
            data_hashes,
            plan_hash: plan.hash(),
        })
    }
}

fn failed(verb: &str, path: &Path, error: &std::io::Error) -> Problem {
    Problem::failure(
        "delta::run::io",
        format!("`{}` could not be {verb}: {error}", path.display()),
    )
    .help("check the path, the permissions and the space on the disk")
}

/// The directory of a run that is under way.
pub struct Directory {
    out: PathBuf,
    partial: PathBuf,
}

const CHECKPOINT: &str = "checkpoint.safetensors";
const MANIFEST: &str = "manifest.yaml";

impl Directory {
    /// Makes sure that there is no `out` yet.
    ///
    /// # Errors
    /// There is.
    pub fn check(out: &Path) -> Result<(), Problem> {
        if !out.exists() {
            return Ok(());
        }
        let message = format!("the output directory `{}` exists", out.display());
        Err(Problem::new("delta::run::exists", message)
            .help("give another one with `--out DIR`, or remove it"))
    }

    /// Makes `OUT.partial`, or takes up one that the same plan left unfinished.
    ///
    /// # Errors
    /// `OUT.partial` belongs to another plan.
    pub fn prepare(out: &Path, manifest: &Manifest, source: &str) -> Result<Self, Problem> {
        let mut name = out.file_name().unwrap_or_default().to_os_string();
        name.push(".partial");
        let directory = Directory {
            out: out.to_path_buf(),
            partial: out.with_file_name(name),
        };
        let text = serde_yaml::to_string(manifest).map_err(Problem::internal)?;
        if directory.partial.exists() {
            let found =
                std::fs::read_to_string(directory.partial.join(MANIFEST)).unwrap_or_default();
            if found != text {
                let message = format!(
                    "`{}` is an unfinished run of another plan or other data",
                    directory.partial.display()
                );
                return Err(Problem::new("delta::run::other_plan", message)
                    .help("remove it, or give another output directory with `--out DIR`"));
            }
            return Ok(directory);
        }
        std::fs::create_dir_all(&directory.partial)
            .map_err(|e| failed("made", &directory.partial, &e))?;
        directory.write("pipeline.delta", source)?;
        directory.write(MANIFEST, &text)?;
        Ok(directory)
    }

    /// Where the run is while it is under way.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Problem> {
        let path = self.partial.join(name);
        std::fs::write(&path, text).map_err(|e| failed("written", &path, &e))
    }

    /// The state that an interrupted run saved.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn resume(&self) -> Result<Option<State>, Problem> {
        let path = self.partial.join(CHECKPOINT);
        path.exists().then(|| load(&path)).transpose()
    }

    /// Saves a state in place of the last one.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, state: &Snapshot) -> Result<(), Problem> {
        save(state, &self.partial.join(CHECKPOINT))
    }

    /// The log, cut to what it held when the state was saved.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_log(&self, length: u64) -> Result<Log, Problem> {
        let path = self.partial.join("log.jsonl");
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            file.set_len(length)?;
            Ok(file)
        };
        let file = open().map_err(|e| failed("opened", &path, &e))?;
        Ok(Log {
            file: BufWriter::new(file),
            path,
        })
    }

    /// Writes the results and gives the directory its name.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish<D: Backend>(
        &self,
        plan: &Plan,
        graph: &Graph<D>,
        summary: &Summary,
    ) -> Result<(), Problem> {
        self.write_delta(plan, graph)?;
        let metrics = serde_json::to_string_pretty(summary).map_err(Problem::internal)?;
        self.write("metrics.json", &(metrics + "\n"))?;
        let checkpoint = self.partial.join(CHECKPOINT);
        if checkpoint.exists() {
            std::fs::remove_file(&checkpoint).map_err(|e| failed("removed", &checkpoint, &e))?;
        }
        self.rename()
    }

    /// Writes the plan and what was trained, ours and PEFT's.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write_delta<D: Backend>(&self, plan: &Plan, graph: &Graph<D>) -> Result<(), Problem> {
        self.write("plan.yaml", &plan.to_yaml().map_err(Problem::internal)?)?;
        peft::write_tensors(
            &self.partial.join("delta.safetensors"),
            &graph.views(),
            None,
        )?;
        if peft::why_not(plan).is_none() {
            peft::export(plan, graph, &self.partial.join("peft"))?;
        }
        Ok(())
    }

    /// Gives the directory its name.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn rename(&self) -> Result<(), Problem> {
        std::fs::rename(&self.partial, &self.out).map_err(|e| failed("renamed", &self.partial, &e))
    }
}

/// The log of a run: a JSON object to a line.
pub struct Log {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Log {
    /// Writes an event down.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, event: &Event) -> Result<(), Problem> {
        let line = match event {
            Event::Begin { .. } => return Ok(()),
            Event::Step {
                stage,
                step,
                epoch,
                loss,
                lr,
                norm,
                seconds,
            } => json!({
                "stage": stage.name, "step": step, "epoch": epoch, "loss": loss, "lr": lr, "gradient_norm": norm, "seconds": seconds,
            }),
            Event::Evaluated {
                stage,
                step,
                evaluation,
                is_best,
            } => json!({
                "stage": stage.name, "step": step, "dev": evaluation.metrics, "best": is_best,
            }),
            Event::End { stage, result } => json!({
                "stage": stage.name, "steps": result.steps, "kept_step": result.kept_step, "seconds": result.seconds,
            }),
        };
        writeln!(self.file, "{line}").map_err(|e| failed("written", &self.path, &e))
    }

    /// The length so far, in bytes, on the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn length(&mut self) -> Result<u64, Problem> {
        self.file
            .flush()
            .map_err(|e| failed("written", &self.path, &e))?;
        let metadata = self
            .file
            .get_ref()
            .metadata()
            .map_err(|e| failed("read", &self.path, &e))?;
        Ok(metadata.len())
    }
}

/// Reads the manifest of a finished run.
///
/// # Errors
/// It is missing or cannot be read.
pub fn read_manifest(run: &Path) -> Result<Manifest, Problem> {
    let path = run.join(MANIFEST);
    let text = std::fs::read_to_string(&path).map_err(|e| failed("read", &path, &e))?;
    serde_yaml::from_str(&text).map_err(|e| {
        Problem::new(
            "delta::run::manifest",
            format!("`{}` cannot be read: {e}", path.display()),
        )
        .help("give the directory that a run left")
    })
}
