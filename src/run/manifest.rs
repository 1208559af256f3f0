//! The record of a run: hashes of its input and of its results.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::backbone::{Checkpoint, FILES_BESIDE_WEIGHTS};
use crate::data::files_of;
use crate::diagnostic::Problem;
use crate::disk::{self, failed};
use crate::hub::local;
use crate::plan::{BackbonePlan, Plan};
use crate::text::hexadecimal;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// SHA-256 hashes of everything that a run read and of everything that it left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version that wrote it.
    pub deltarun: String,
    /// The `.delta` file.
    pub file_hash: String,
    /// The backbone's weights; empty if they are drawn from the seed.
    pub backbone_hash: String,
    /// The backbone's configuration and tokenizer, by name.
    #[serde(default)]
    pub backbone_files: BTreeMap<String, String>,
    /// Each data file, by path.
    pub data_hashes: BTreeMap<String, String>,
    /// The meaning of the plan: see [`Plan::hash`].
    pub plan_hash: String,
    /// The files of a finished run, by name. Empty for an unfinished run, and for runs of version 0.1.0.
    #[serde(default)]
    pub files: BTreeMap<String, String>,
}

/// Whether two plans have the same backbone.
///
/// # Errors
/// The weights cannot be read.
pub fn has_same_backbone(first: &Plan, second: &Plan) -> Result<bool, Problem> {
    let weights = |plan: &Plan| match plan.backbone.random {
        true => Ok((Some(plan.seed), String::new())),
        false => hash_of_weights(&plan.backbone.directory).map(|hash| (None, hash)),
    };
    Ok(weights(first)? == weights(second)?)
}

impl Manifest {
    /// Its name in a run's directory.
    pub const FILE: &'static str = "manifest.yaml";

    /// Hashes the input of a plan.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn new(plan: &Plan, source: &str) -> Result<Self, Problem> {
        let backbone_hash = match plan.backbone.random {
            true => String::new(),
            false => hash_of_weights(&plan.backbone.directory)?,
        };
        let mut data_hashes = BTreeMap::new();
        for data in plan.data.values() {
            for file in [&data.train, &data.dev, &data.test].into_iter().flatten() {
                for file in files_of(file)? {
                    let path = local(&file)?;
                    let hash = disk::hash(&path).map_err(|e| failed("read", &path, &e))?;
                    data_hashes.insert(file.display().to_string(), hash);
                }
            }
        }
        Ok(Manifest {
            deltarun: VERSION.to_owned(),
            file_hash: hexadecimal(&Sha256::digest(source)),
            backbone_hash,
            backbone_files: backbone_files(&plan.backbone)?,
            data_hashes,
            plan_hash: plan.hash()?,
            files: BTreeMap::new(),
        })
    }

    /// The same record of a plan whose files and backbone are known by their roles instead of their paths.
    ///
    /// # Errors
    /// The plan cannot be written.
    pub fn without_paths(&self, plan: &Plan) -> Result<Self, Problem> {
        let mut plan = plan.clone();
        plan.backbone.directory = PathBuf::new();
        let mut data_hashes = BTreeMap::new();
        for (name, data) in &mut plan.data {
            let sets = [
                ("train", &mut data.train),
                ("dev", &mut data.dev),
                ("test", &mut data.test),
            ];
            for (set, file) in sets {
                let Some(file) = file else { continue };
                let paths = files_of(file).unwrap_or_else(|_| file.paths());
                let hash = |path: &PathBuf| self.data_hashes.get(&path.display().to_string());
                let hashes: Vec<String> = paths.iter().filter_map(hash).cloned().collect();
                let role = match name.as_str() {
                    "data" => set.to_owned(),
                    name => format!("{set} of {name}"),
                };
                data_hashes.insert(role, hashes.join(" "));
                file.path = PathBuf::new();
                file.more = Vec::new();
            }
        }
        Ok(Manifest {
            data_hashes,
            plan_hash: plan.hash()?,
            ..self.clone()
        })
    }

    /// Reads the record in a run's directory.
    ///
    /// # Errors
    /// It is missing or cannot be read.
    pub fn read(run: &Path) -> Result<Self, Problem> {
        let path = run.join(Manifest::FILE);
        let unreadable = |e: &dyn std::fmt::Display| {
            let message = format!("`{}` cannot be read: {e}", path.display());
            Problem::new("delta::run::manifest", message).help("name the directory of a run")
        };
        let text = std::fs::read_to_string(&path).map_err(|e| unreadable(&e))?;
        serde_yaml::from_str(&text).map_err(|e| unreadable(&e))
    }

    /// Writes it into a run's directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, run: &Path) -> Result<(), Problem> {
        let path = run.join(Manifest::FILE);
        let text = serde_yaml::to_string(self).map_err(Problem::internal)?;
        disk::replace(&path, text.as_bytes()).map_err(|e| failed("written", &path, &e))
    }

    /// What differs between the records of two processes, in words.
    pub fn differences(&self, other: &Manifest) -> Vec<String> {
        let of_program = (self.deltarun != other.deltarun).then_some("the version of deltarun");
        let of_plan = (self.plan_hash != other.plan_hash).then_some("the plan");
        let differences = of_program.into_iter().chain(of_plan).map(str::to_owned);
        differences.chain(self.changed_input(other)).collect()
    }

    /// The parts of the input that have changed since `self` was written, in words.
    pub fn changed_input(&self, now: &Manifest) -> Vec<String> {
        let mut changed = Vec::new();
        if self.backbone_hash != now.backbone_hash {
            changed.push("the backbone's weights".to_owned());
        }
        let of_backbone = changed_files(&self.backbone_files, &now.backbone_files);
        changed.extend(of_backbone.map(|name| format!("the backbone's `{name}`")));
        let of_data = changed_files(&self.data_hashes, &now.data_hashes);
        changed.extend(of_data.map(|path| format!("`{path}`")));
        changed
    }
}

/// The hash of a backbone's weights, which a process computes once as long as its files keep their lengths and times.
fn hash_of_weights(backbone: &Path) -> Result<String, Problem> {
    type Files = Vec<(PathBuf, u64, Option<SystemTime>)>;
    static HASHES: Mutex<BTreeMap<Files, String>> = Mutex::new(BTreeMap::new());
    let mut paths = vec![backbone.to_path_buf()];
    if let Ok(entries) = std::fs::read_dir(backbone) {
        paths.extend(entries.flatten().map(|entry| entry.path()));
        paths.sort();
    }
    let file = |path: PathBuf| {
        let metadata = path.metadata().ok()?;
        Some((path, metadata.len(), metadata.modified().ok()))
    };
    let files: Files = paths.into_iter().filter_map(file).collect();
    let mut hashes = HASHES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = hashes.get(&files) {
        return Ok(hash.clone());
    }
    let hash = Checkpoint::open_directory(backbone)?.hash();
    hashes.insert(files, hash.clone());
    Ok(hash)
}

/// The names whose hashes differ between two records.
fn changed_files<'a>(
    then: &'a BTreeMap<String, String>,
    now: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = &'a String> {
    let gone = then.keys().filter(|name| !now.contains_key(*name));
    let other = now
        .iter()
        .filter(|(name, hash)| then.get(*name) != Some(hash))
        .map(|(name, _)| name);
    gone.chain(other)
}

/// SHA-256 hashes of a backbone's configuration and tokenizer files, by name.
///
/// # Errors
/// A file cannot be read.
pub fn backbone_files(backbone: &BackbonePlan) -> Result<BTreeMap<String, String>, Problem> {
    let mut hashes = BTreeMap::new();
    let own = &backbone.directory;
    let tokenizer = backbone.tokenizer.as_ref().unwrap_or(own);
    for name in FILES_BESIDE_WEIGHTS {
        let directory = if name == "config.json" {
            own
        } else {
            tokenizer
        };
        let path = directory.join(name);
        if path.exists() {
            let hash = disk::hash(&path).map_err(|e| failed("read", &path, &e))?;
            hashes.insert((*name).to_owned(), hash);
        }
    }
    Ok(hashes)
}
