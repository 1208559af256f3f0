//! Opens a finished run, an adapter that PEFT saved, or a model with a head, for prediction.

use std::path::{Path, PathBuf};

use super::models::{open_adapter, open_model};
use super::{FinishedRun, Integrity};
use crate::backbone::{exists, fetch_weights, locate, locate_saved, read_config};
use crate::diagnostic::Problem;
use crate::engine::{Device, Precision};
use crate::graph::{Graph, Tensors};
use crate::plan::{Plan, TaskPlan};

/// A model that is ready to predict.
pub struct Loaded {
    /// Its plan.
    pub plan: Plan,
    /// Its graph, with all deltas and the head in place and nothing trained.
    pub graph: Graph,
    /// The run; `None` for an adapter or a model.
    pub run: Option<FinishedRun>,
}

/// Settings of the input of an adapter or a model, which store none.
#[derive(Clone, Copy, Default)]
pub struct InputSettings<'a> {
    /// The columns of texts.
    pub columns: Option<&'a [String]>,
    /// The column of labels, or of the texts to write.
    pub label: Option<&'a str>,
    /// The text before every source.
    pub source_prefix: Option<&'a str>,
}

impl Loaded {
    /// Its task: the last stage's.
    ///
    /// # Errors
    /// The plan has none, which planning does not allow.
    pub fn task(&self) -> Result<&TaskPlan, Problem> {
        let task = self.plan.final_task().map(|(_, task)| task);
        task.ok_or_else(|| Problem::internal("a run without a task"))
    }
}

impl InputSettings<'_> {
    /// The command-line options that gave these settings.
    fn options(&self) -> impl Iterator<Item = &'static str> {
        let columns = self.columns.map(|_| "--text");
        let label = self.label.map(|_| "--label");
        let prefix = self.source_prefix.map(|_| "--source-prefix");
        columns.into_iter().chain(label).chain(prefix)
    }
}

/// Opens the directory of a run, of an adapter that PEFT saved, or of a model with a head; `hf:organisation/name` is such an
/// adapter or model on the hub.
///
/// `backbone` overrides the location of the backbone. `reads` has the settings that adapters and models do not store.
///
/// # Errors
/// The directory has none of them; the backbone is not the one that was trained on; tensors do
/// not fit.
pub fn open_run(
    directory: &Path,
    backbone: Option<&str>,
    reads: InputSettings,
    integrity: Integrity,
    device: Device,
) -> Result<Loaded, Problem> {
    let location = directory.to_string_lossy();
    let directory = &locate_saved(&location, directory)?;
    let is_partial = directory
        .extension()
        .is_some_and(|ending| ending == "partial");
    if directory.join("plan.yaml").exists() && !is_partial {
        if let Some(option) = reads.options().next() {
            let message = format!(
                "`{option}` applies only to adapters and models: a run records what it reads"
            );
            return Err(Problem::new("delta::run::reads", message).help("remove the option"));
        }
        open_own(directory, backbone, integrity, device)
    } else if directory.join("adapter_config.json").exists() {
        open_adapter(directory, backbone, reads, device)
    } else if exists(&directory.join("config.json")) {
        if backbone.is_some() {
            let message = format!(
                "`{}` is a model itself, and has no backbone",
                directory.display()
            );
            return Err(Problem::new("delta::run::reads", message).help("leave out `--backbone`"));
        }
        open_model(&location, directory, reads, device)
    } else {
        if let Some(partial) = unfinished(directory) {
            let message = format!("the run `{}` is unfinished", partial.display());
            return Err(Problem::new("delta::run::not_a_run", message).help(
                "run its `.delta` file again with the same `--out`: it goes on where it stopped",
            ));
        }
        let message = match directory.exists() {
            true => format!(
                "`{}` is neither a run nor an adapter nor a model",
                directory.display()
            ),
            false => format!("there is no `{}`", directory.display()),
        };
        let problem = Problem::new("delta::run::not_a_run", message);
        let below = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut adapters = below
            .map(|entry| entry.path())
            .filter(|path| path.join("adapter_config.json").exists());
        Err(match adapters.next() {
            Some(adapter) => problem.help(format!(
                "name the folder in which PEFT saved the named adapter: `{}`",
                adapter.display()
            )),
            None => problem.help("name a directory with `plan.yaml` (written by a run), `adapter_config.json` (saved by PEFT), or a model's `config.json`"),
        })
    }
}

/// The directory of a run that has not ended, if this is its name.
fn unfinished(directory: &Path) -> Option<PathBuf> {
    let name = directory.file_name()?.to_str()?;
    let partial = directory.with_file_name(format!("{name}.partial"));
    let has_plan =
        |place: &PathBuf| place.join("plan.yaml").exists() || place.join("manifest.yaml").exists();
    [partial, directory.to_owned()].into_iter().find(|place| {
        place.extension().is_some_and(|ending| ending == "partial") && has_plan(place)
    })
}

fn open_own(
    directory: &Path,
    backbone: Option<&str>,
    integrity: Integrity,
    device: Device,
) -> Result<Loaded, Problem> {
    let run = FinishedRun::open(directory, integrity)?;
    run.check_files()?;
    let mut plan = run.plan()?;
    // Predict in f32, so that results do not depend on the processor.
    plan.backbone.precision = Precision::F32;
    if let Some(name) = backbone {
        plan.backbone.directory = locate(name, Path::new(""))?;
    }
    fetch_weights(backbone.unwrap_or(&plan.backbone.location))?;
    read_config(&plan.backbone.directory).map_err(|problem| match backbone {
        None => problem
            .help("name the place that it has moved to: `--backbone DIRECTORY`, or a GGUF file"),
        Some(_) => problem,
    })?;
    run.check_backbone(&plan.backbone)?;
    let stored = run.tensors()?;
    let mut tensors = Tensors::new();
    for name in stored.names() {
        tensors.insert(name.to_owned(), stored.read(name)?);
    }
    let mut graph = Graph::load(&plan, device)?;
    graph.set(tensors)?;
    graph.adopt_heads();
    graph.activate(&plan, plan.stages.len())?;
    let run = Some(run);
    Ok(Loaded { plan, graph, run })
}
