//! The text of a pipeline on its way to a plan.

use std::path::{Path, PathBuf};

use super::{
    check_backbone, check_files, resolve_origins, resolve_tying, resolve_words, unknown_keys,
    Integrity,
};
use crate::backbone::{locate, read_config};
use crate::diagnostic::{Problem, Problems};
use crate::plan::{plan, Overrides, Plan};
use crate::syntax::ast::Statement;
use crate::syntax::parse;

/// The text of a pipeline, what its paths are relative to, and the params that are set from outside.
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
    /// Whether runs that it begins from must be as they were left.
    pub integrity: Integrity,
}

impl Source {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or is not UTF-8.
    pub fn read(path: &Path) -> Result<Self, Problem> {
        let text = read_text(path)?;
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
        })
    }

    /// Problems in this text.
    pub fn locate(&self, problems: Vec<Problem>) -> Problems {
        Problems::in_source(&self.name, &self.text, problems)
    }

    /// Reads, resolves and checks everything but the data.
    ///
    /// # Errors
    /// All mistakes that there are.
    pub fn plan(&self) -> Result<Plan, Problems> {
        let located = |problems| self.locate(problems);
        let pipeline = parse(&self.text).map_err(|problem| located(vec![problem]))?;
        let find = |location: &str| {
            let directory = locate(location, &self.base)?;
            Ok((directory.clone(), read_config(&directory)?))
        };
        let mut plan = plan(&pipeline, &self.overrides, &self.base, &find).map_err(located)?;
        resolve_tying(&mut plan).map_err(located)?;
        resolve_words(&mut plan).map_err(located)?;
        resolve_origins(&mut plan, self.integrity).map_err(located)?;
        let is_name = |statement: &Statement| matches!(statement, Statement::Pipeline { .. });
        if !pipeline.statements.iter().any(|s| is_name(&s.node)) {
            let stem = Path::new(&self.name).file_stem().unwrap_or_default();
            plan.name = stem.to_string_lossy().into_owned();
        }
        Ok(plan)
    }

    /// What should be known of a plan, and stops nothing.
    pub fn warnings(&self, plan: &Plan) -> Problems {
        self.locate(unknown_keys(plan).into_iter().collect())
    }

    /// The plan, when its data files are there and have the columns that its tasks name, too.
    ///
    /// # Errors
    /// See [`Source::plan`] and [`check_files`].
    pub fn checked_plan(&self) -> Result<Plan, Problems> {
        let plan = self.plan()?;
        let mut problems = check_backbone(&plan);
        problems.extend(check_files(&plan));
        match problems.is_empty() {
            true => Ok(plan),
            false => Err(self.locate(problems)),
        }
    }
}

/// A text file.
///
/// # Errors
/// It cannot be read, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, Problem> {
    let bytes = std::fs::read(path).map_err(|e| {
        Problem::new(
            "delta::cli::unreadable",
            format!("`{}` cannot be read: {e}", path.display()),
        )
        .help("check the path")
    })?;
    String::from_utf8(bytes).map_err(|_| {
        Problem::new(
            "delta::cli::not_utf8",
            format!("`{}` is not UTF-8", path.display()),
        )
        .help("save the file as UTF-8")
    })
}
