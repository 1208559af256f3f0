//! Reads the examples of a plan's stages, and each file only once.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::data::{warn_of_overlap, Examples, Masking, Rows, TextEncoder};
use crate::diagnostic::{Problem, Span};
use crate::plan::{DataPlan, Few, FilePlan, Keep, Plan, StagePlan, TaskKind, TaskPlan};
use crate::train::Data;

/// Reads files of examples for the tasks of a plan.
pub struct Loader {
    encoder: TextEncoder,
    vocabulary: usize,
    /// Examples by file and task. The task is identified by its place in the pipeline's text.
    read: BTreeMap<(PathBuf, Option<Few>, Span), Arc<Examples>>,
}

impl Loader {
    /// A loader with the backbone's tokenizer.
    ///
    /// # Errors
    /// The tokenizer cannot be read.
    pub fn new(plan: &Plan) -> Result<Self, Problem> {
        let backbone = &plan.backbone;
        let vocabulary = backbone.config.vocabulary;
        let encoder = TextEncoder::open(&backbone.directory, backbone.max_length, &backbone.config)
            .map_err(|problem| problem.or_at(backbone.span))?;
        Ok(Loader {
            encoder,
            vocabulary,
            read: BTreeMap::new(),
        })
    }

    /// The tokenizer.
    pub fn encoder(&self) -> &TextEncoder {
        &self.encoder
    }

    /// The examples of every stage.
    ///
    /// # Errors
    /// What [`Examples::read`] reports.
    pub fn stages(&mut self, plan: &Plan) -> Result<Vec<Data>, Problem> {
        let mut all = Vec::new();
        for stage in &plan.stages {
            let (Some(task), Some(data)) =
                (plan.tasks.get(&stage.task), plan.data.get(&stage.data))
            else {
                return Err(Problem::internal("a stage without its task or data"));
            };
            let train = match &data.train {
                Some(file) => self.file(file, task)?,
                None => Arc::default(),
            };
            let dev = match &data.dev {
                Some(file) => Some(self.file(file, task)?),
                None => None,
            };
            all.push(Data {
                train,
                dev,
                masking: self.masking(task)?,
            });
        }
        Ok(all)
    }

    /// The examples of one file.
    ///
    /// # Errors
    /// What [`Examples::read`] reports.
    pub fn file(&mut self, file: &FilePlan, task: &TaskPlan) -> Result<Arc<Examples>, Problem> {
        let key = (file.path.clone(), file.few, task.span);
        if let Some(examples) = self.read.get(&key) {
            return Ok(examples.clone());
        }
        let mut examples = Examples::read(file, task, &self.encoder)?;
        if let Some(few) = &file.few {
            examples = examples
                .few(few, task)
                .map_err(|problem| problem.or_at(file.span))?;
        }
        let examples = Arc::new(examples);
        self.read.insert(key, examples.clone());
        Ok(examples)
    }

    /// How tokens are masked for a task; `None` unless the task is masked language modelling.
    ///
    /// # Errors
    /// The tokenizer has no mask.
    pub fn masking(&self, task: &TaskPlan) -> Result<Option<Masking>, Problem> {
        if task.kind != TaskKind::MaskedLm {
            return Ok(None);
        }
        let mask_token = self.encoder.mask_token().ok_or_else(|| {
            Problem::new("delta::data::no_mask", "the tokenizer has no mask token")
                .at(task.span, "needed by this task")
                .help("use a backbone whose tokenizer has `[MASK]` or `<mask>`")
        })?;
        Ok(Some(Masking {
            share: task.mask,
            mask_token,
            vocabulary: self.vocabulary,
        }))
    }
}

/// The findings of a check of a plan's data.
#[derive(Default)]
pub struct DataCheck {
    /// The number of rows that were checked.
    pub rows: usize,
    /// Mistakes in the data.
    pub problems: Vec<Problem>,
    /// Warnings about the data.
    pub warnings: Vec<Problem>,
}

/// Checks the first and last `most` rows of every file that a plan reads: encoding, width, labels, numbers and texts.
pub fn check_data(plan: &Plan, most: usize) -> DataCheck {
    let mut check = DataCheck::default();
    let mut seen: BTreeMap<(PathBuf, Span), Rows> = BTreeMap::new();
    for (task, data, stage) in uses(plan) {
        for (file, trains) in [(&data.train, true), (&data.dev, false), (&data.test, false)] {
            let Some(file) = file else { continue };
            let key = (file.path.clone(), task.span);
            let rows = seen.entry(key).or_insert_with(|| {
                let mut rows = Rows::check(file, task, most);
                check.rows += rows.count;
                check.problems.append(&mut rows.problems);
                rows
            });
            if trains {
                rows.warn_of_training(file, task);
            }
            check.warnings.append(&mut rows.warnings);
        }
        let rows = |file: &FilePlan| seen.get(&(file.path.clone(), task.span));
        if let (Some(train), Some(dev)) = (&data.train, &data.dev) {
            if let (Some(of_train), Some(of_dev)) = (rows(train), rows(dev)) {
                check
                    .warnings
                    .extend(warn_of_overlap(dev, of_dev, train, of_train));
            }
        }
        if let (Some(stage), None) = (stage, &data.dev) {
            let kept = match stage.keep {
                Keep::Best => ", and `keep = best` keeps the last step",
                Keep::Last => "",
            };
            let name = &stage.name;
            let message =
                format!("stage `{name}` has no `dev` set: nothing says how good it is{kept}");
            let problem = Problem::warning("delta::data::no_dev", message).at(stage.span, "here");
            check
                .warnings
                .push(problem.help("add `dev = tsv(\"dev.tsv\")` to the data set"));
        }
    }
    check.warnings.dedup();
    check
}

/// The task and the data of each stage. Without stages, the final task and data.
fn uses(plan: &Plan) -> Vec<(&TaskPlan, &DataPlan, Option<&StagePlan>)> {
    let of_stage = |stage: &'_ StagePlan| {
        let (task, data) = (plan.tasks.get(&stage.task)?, plan.data.get(&stage.data)?);
        Some((task, data))
    };
    match plan.stages.is_empty() {
        false => plan
            .stages
            .iter()
            .filter_map(|stage| of_stage(stage).map(|(task, data)| (task, data, Some(stage))))
            .collect(),
        true => {
            let task = plan.final_task().map(|(_, task)| task);
            let found = task.zip(plan.final_data());
            found
                .into_iter()
                .map(|(task, data)| (task, data, None))
                .collect()
        }
    }
}
