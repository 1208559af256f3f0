//! Turns the text of a pipeline into a checked plan.

use std::path::{Component, Path, PathBuf};

use super::origin::{check_origins, origin_hash};
use super::{backbone_warnings, check_backbone, check_data, has_head_weight, Integrity, Loader};
use crate::backbone::{
    fetch_weights, locate, locate_config, own_storage, read_config, Checkpoint, Config,
};
use crate::data::{files_of, Extent, TextEncoder};
use crate::diagnostic::{Problem, Problems};
use crate::engine::Storage;
use crate::plan::{
    plan, BackbonePlan, DeltaPlan, FilePlan, Origin, Plan, Surroundings, TaskPlan, Words,
};
use crate::settings::Overrides;
use crate::syntax::parse;

/// The text of a pipeline, the directory of its relative paths, and the params set from outside.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file, for messages.
    pub name: String,
    /// The text.
    pub text: String,
    /// The directory of the file.
    pub base: PathBuf,
    /// Params by name.
    pub overrides: Overrides,
    /// Whether the runs from which its deltas start must be unchanged.
    pub integrity: Integrity,
    /// Limits on where it may read, if a script made it.
    pub confined: Option<Confined>,
    /// Whether to read only `config.json` of the backbone, and nothing of other runs.
    pub config_only: bool,
}

/// Limits on where a pipeline may read, if a script has added to it or set its params.
#[derive(Clone, Debug)]
pub struct Confined {
    /// The file's own text. It may read the paths in it, because its author wrote them.
    pub text: String,
    /// Folders in which it may read everything.
    pub folders: Vec<PathBuf>,
}

impl Confined {
    /// Checks that a path is in one of the folders or named in the file's own text.
    ///
    /// # Errors
    /// It is neither.
    fn allow(&self, path: &Path, base: &Path) -> Result<(), Problem> {
        let place = whole(path);
        // `whole` resolves `..` only in paths that exist. A remaining `..` could lead out of the folder.
        let leads_back = place.components().any(|part| part == Component::ParentDir);
        let is_in = |folder: &PathBuf| !leads_back && place.starts_with(folder);
        if self.names(path, base) || self.folders.iter().any(is_in) {
            return Ok(());
        }
        Err(outside(&format!("`{}`", path.display())))
    }

    /// Whether the file's own text names a path.
    fn names(&self, path: &Path, base: &Path) -> bool {
        let quoted = crate::syntax::quoted(&self.text);
        let place = whole(path);
        // A file of the hub has the same name everywhere.
        let mut own = quoted.iter();
        own.any(|own| Path::new(own) == path || whole(&base.join(own)) == place)
    }
}

fn outside(shown: &str) -> Problem {
    let message = format!("{shown} is outside the script's folder");
    let help = "name it in the pipeline's own file, or allow its folder with `--allow DIR`";
    Problem::new("delta::script::outside", message).help(help)
}

/// Resolves links and dots in the part of a path that exists.
pub fn whole(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (
        absolute.canonicalize(),
        absolute.parent(),
        absolute.file_name(),
    ) {
        (Ok(whole), ..) => whole,
        (Err(_), Some(parent), Some(name)) => whole(parent).join(name),
        _ => absolute,
    }
}

/// Refuses a script where a command takes a pipeline.
///
/// # Errors
/// The file is a script.
pub fn check_pipeline(path: &Path) -> Result<(), Problem> {
    if path.extension().is_none_or(|ending| ending != "rhai") {
        return Ok(());
    }
    let name = path.display();
    let message = format!("`{name}` is a script, and this command takes a pipeline");
    let help = format!("run it with `deltarun {name}`, or name a `.delta` file");
    Err(Problem::new("delta::cli::script", message).help(help))
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        check_pipeline(path)?;
        let text = read_text(path)?;
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        if absolute.to_str().is_none() {
            let message = format!(
                "the path `{}` is not UTF-8, and a run's record is",
                absolute.display()
            );
            return Err(
                Problem::new("delta::cli::not_utf8", message).help("rename the folder or the file")
            );
        }
        let base = path.parent().unwrap_or(Path::new(""));
        let base = match base.as_os_str().is_empty() {
            true => Path::new("."),
            false => base,
        };
        Ok(Source {
            name: path.display().to_string(),
            text,
            base: base.canonicalize().unwrap_or_else(|_| base.to_path_buf()),
            overrides: Overrides::new(),
            integrity: Integrity::Checked,
            confined: None,
            config_only: false,
        })
    }

    /// Attaches this text to problems, so that they can be shown in it.
    pub fn locate(&self, problems: Vec<Problem>) -> Problems {
        Problems::in_source(&self.name, &self.text, problems)
    }

    /// Reads, resolves and checks everything but the data.
    ///
    /// # Errors
    /// All mistakes in the pipeline.
    pub fn plan(&self) -> Result<Plan, Problems> {
        let located = |problems| self.locate(problems);
        let pipeline = parse(&self.text).map_err(located)?;
        let plan = plan(&pipeline, &self.overrides, &self.base, self).map_err(located)?;
        let files = plan
            .data
            .values()
            .flat_map(|data| [&data.train, &data.dev, &data.test]);
        for file in files.flatten() {
            self.allow_data(file)
                .map_err(|problem| located(vec![problem]))?;
        }
        Ok(plan)
    }

    /// Checks that a file may be read.
    fn allow(&self, path: &Path) -> Result<(), Problem> {
        match &self.confined {
            Some(confined) => confined.allow(path, &self.base),
            None => Ok(()),
        }
    }

    /// Checks that the files of a set may be read. A pattern that matches nothing is left to the reading.
    fn allow_data(&self, file: &FilePlan) -> Result<(), Problem> {
        let Some(confined) = &self.confined else {
            return Ok(());
        };
        let paths = file.paths();
        paths.iter().try_for_each(|path| self.allow(path))?;
        if paths.iter().all(|path| confined.names(path, &self.base)) {
            return Ok(());
        }
        // A link in an allowed folder may lead out of it.
        let found = files_of(file).unwrap_or_default();
        match found.iter().all(|path| self.allow(path).is_ok()) {
            true => Ok(()),
            false => Err(outside(&file.shown())),
        }
    }

    /// Warnings about a plan's backbone. They do not prevent a run.
    pub fn warnings(&self, plan: &Plan) -> Problems {
        self.locate(backbone_warnings(plan))
    }

    /// The plan of a run, after a check of everything it reads. Fetches the weights of a backbone from the hub.
    ///
    /// # Errors
    /// See [`Source::checked_plan`] and [`fetch_weights`].
    pub fn runnable_plan(&self) -> Result<Checked, Problems> {
        let plan = self.plan()?;
        if !plan.backbone.random {
            let span = plan.backbone.span;
            fetch_weights(&plan.backbone.location)
                .map_err(|problem| self.locate(vec![problem.or_at(span)]))?;
        }
        /// Rows that are encoded beforehand: the run encodes all and refuses what is wrong before it trains.
        const ENCODED: usize = 256;
        self.checked(Extent {
            at_each_end: usize::MAX,
            encoded: ENCODED,
        })
    }

    /// The plan, after a check of its backbone's tokenizer and tensors, and of the first and last `most` rows of its
    /// data.
    ///
    /// # Errors
    /// See [`Source::plan`], [`check_backbone`] and [`check_data`].
    pub fn checked_plan(&self, most: usize) -> Result<Checked, Problems> {
        self.checked(Extent {
            at_each_end: most,
            encoded: usize::MAX,
        })
    }

    fn checked(&self, extent: Extent) -> Result<Checked, Problems> {
        let plan = self.plan()?;
        let loader = Loader::new(&plan);
        let mut problems = check_backbone(&plan);
        problems.extend(check_origins(&plan, self.integrity).err());
        let data = check_data(&plan, extent, loader.as_ref().ok());
        problems.extend(loader.err());
        problems.extend(data.problems);
        if !problems.is_empty() {
            return Err(self.locate(problems));
        }
        let mut warnings = data.warnings;
        warnings.extend(backbone_warnings(&plan));
        Ok(Checked {
            plan,
            warnings: self.locate(warnings),
            rows: data.rows,
            examples: data.examples,
        })
    }
}

impl Surroundings for Source {
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem> {
        let directory = match self.config_only {
            true => locate_config(location, &self.base)?,
            false => locate(location, &self.base)?,
        };
        if !location.starts_with("hf:") {
            self.allow(&directory)?;
        }
        let config = read_config(&directory).map_err(|problem| {
            let parts: Vec<&str> = location.split('/').collect();
            let is_id = matches!(parts.as_slice(), [owner, name] if !owner.is_empty() && !name.is_empty() && !location.starts_with('.'));
            match is_id && !directory.exists() {
                true => problem.help(format!(
                    "write `hf:{location}` for the model of this name on the Hub, or the path of a directory relative to the `.delta` file"
                )),
                false => problem,
            }
        })?;
        Ok((directory, config))
    }

    fn labels(&self, task: &TaskPlan, files: &[&FilePlan]) -> Result<Option<Vec<String>>, Problem> {
        if self.config_only {
            return Ok(None);
        }
        files.iter().try_for_each(|file| self.allow_data(file))?;
        crate::data::labels_in(task, files).map(Some)
    }

    fn storage(&self, directory: &Path) -> Result<Storage, Problem> {
        own_storage(directory)
    }

    fn name(&self) -> &str {
        let stem = Path::new(&self.name).file_stem();
        stem.and_then(|stem| stem.to_str()).unwrap_or("pipeline")
    }

    fn has_head_weight(&self, backbone: &BackbonePlan) -> Result<Option<bool>, Problem> {
        if self.config_only {
            return Ok(None);
        }
        // We cannot tell before the weights are fetched. A run fetches them and plans again.
        let is_hub = backbone.location.starts_with("hf:");
        if is_hub && Checkpoint::open_directory(&backbone.directory).is_err() {
            return Ok(None);
        }
        has_head_weight(&backbone.config, &backbone.directory).map(Some)
    }

    fn tokenizer(&self, backbone: &BackbonePlan) -> Result<Option<Box<dyn Words>>, Problem> {
        if self.config_only {
            return Ok(None);
        }
        let encoder = TextEncoder::of(backbone).map_err(|problem| problem.or_at(backbone.span))?;
        Ok(Some(Box::new(encoder)))
    }

    fn origin(&self, delta: &DeltaPlan, origin: &Origin) -> Result<String, Problem> {
        if self.config_only {
            return Ok(String::new());
        }
        self.allow(&origin.run)?;
        origin_hash(delta, origin, self.integrity)
    }
}

/// The number of rows that `check` reads at each end of a file, unless it is told to read all.
pub const ROWS_AT_EACH_END: usize = 1000;

/// A plan that has passed all checks.
pub struct Checked {
    /// The plan.
    pub plan: Plan,
    /// Warnings, which do not prevent a run.
    pub warnings: Problems,
    /// The number of rows of data that were checked.
    pub rows: usize,
    /// The number of training examples of each stage.
    pub examples: Vec<usize>,
}

/// Reads a text file.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Problem> {
    let bytes = std::fs::read(path).map_err(|e| {
        let message = format!("`{}` cannot be read: {e}", path.display());
        Problem::new("delta::cli::unreadable", message).help("check the path")
    })?;
    String::from_utf8(bytes).map_err(|_| {
        Problem::new(
            "delta::cli::not_utf8",
            format!("`{}` is not UTF-8", path.display()),
        )
        .help("save the file as UTF-8")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Somebody may create the missing folder later, and then the path leads elsewhere.
    #[test]
    fn a_path_that_leads_back_is_in_no_folder() {
        let folder = std::env::temp_dir().canonicalize().unwrap();
        let confined = Confined {
            text: String::new(),
            folders: vec![folder.clone()],
        };
        let allow = |path: &str| confined.allow(&folder.join(path), &folder);
        assert!(allow("missing/file.tsv").is_ok());
        assert!(allow("missing/../../../etc/passwd").is_err());
    }
}
