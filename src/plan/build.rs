//! The driver of planning. It goes through the file statement by statement and continues after every mistake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use super::stages::{stage, Known};
use super::surroundings::Surroundings;
use super::{data, tasks, BackbonePlan, DataPlan, DeltaPlan, Origin, Plan, TaskPlan};
use crate::backbone::family::{families, Family};
use crate::diagnostic::{Problem, Span};
use crate::settings::{Fields, Problems};
use crate::settings::{Overrides, Scope};
use crate::syntax::ast::{Block, Name, Pipeline, Spanned, Statement, Value};

/// Checks a file against its backbone, and looks up everything the plan needs in the surroundings. A plan does not
/// change afterwards.
///
/// Paths in the file are relative to the directory `base`.
///
/// # Errors
/// All mistakes of the file, each with its places and a suggestion.
pub fn plan(
    pipeline: &Pipeline,
    overrides: &Overrides,
    base: &Path,
    surroundings: &dyn Surroundings,
) -> Result<Plan, Vec<Problem>> {
    let mut early = Vec::new();
    let scope = Scope::new(pipeline, overrides, &mut early);
    let problems: Problems = RefCell::new(early);
    let builder = Builder {
        pipeline,
        base,
        scope: &scope,
        problems: &problems,
        seed: seed(&scope, &problems),
        knows_head: Cell::new(true),
    };
    let plan = builder.build(surroundings);
    let mut found = problems.take();
    if found.is_empty() || plan.is_some() {
        found.extend(scope.unused());
    }
    match plan {
        Some(plan) if found.is_empty() => Ok(plan),
        _ => Err(found),
    }
}

/// The param `seed`, or 42 as in Hugging Face's Trainer.
fn seed(scope: &Scope, problems: &Problems) -> u64 {
    let span = scope.declaration("seed").unwrap_or_default();
    let word = Spanned::new(Value::Word("seed".to_owned()), span);
    match scope.resolve(&word).node {
        Value::Number(seed) if seed >= 0.0 && seed.fract() == 0.0 && seed < 9e15 => seed as u64,
        Value::Word(_) => 42,
        _ => {
            problems.borrow_mut().push(
                Problem::new(
                    "delta::plan::wrong_type",
                    "param `seed` must be a whole number of at least 0",
                )
                .at(span, "declared here")
                .help("write a whole number"),
            );
            42
        }
    }
}

/// The state of planning one file.
pub(super) struct Builder<'a> {
    pipeline: &'a Pipeline,
    pub(super) base: &'a Path,
    pub(super) scope: &'a Scope,
    pub(super) problems: &'a Problems,
    pub(super) seed: u64,
    /// Whether we know which parameters the language-model head has.
    pub(super) knows_head: Cell<bool>,
}

/// Whether a name is reserved. Paths of a backbone or a head begin with it, so a delta cannot have it.
fn is_reserved(name: &str) -> bool {
    let first = |path: &str| path.split('.').next() == Some(name);
    let is_in = |family: &Family| {
        let heads = &family.heads;
        let heads = [Some(&heads.classify), heads.language_model()];
        let mut steps = heads.into_iter().flatten().flat_map(|head| &head.steps);
        family.modules.keys().any(|path| first(path)) || steps.any(|step| first(&step.module))
    };
    name == "task" || families().iter().any(is_in)
}

impl<'a> Builder<'a> {
    pub(super) fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    pub(super) fn statements(&self) -> impl Iterator<Item = &'a Spanned<Statement>> {
        self.pipeline.statements.iter()
    }

    fn build(&self, surroundings: &dyn Surroundings) -> Option<Plan> {
        let name = self.name();
        let data = self.data();
        let mut tasks = self.tasks();
        let backbone = self.backbone(&tasks, surroundings);
        let names = self.delta_names();
        let known = Known {
            deltas: &names,
            data: &data.keys().cloned().collect::<Vec<_>>(),
            tasks: &self.task_names(),
        };
        let stages = self.stages(&known);
        let backbone = backbone?;
        if self.problems.borrow().is_empty() {
            self.find_labels(&data, &stages, &mut tasks, surroundings);
        }
        let mut deltas = self.deltas(&backbone, &tasks);
        // A file with mistakes may name the wrong files, so we read nothing for it.
        if self.problems.borrow().is_empty() {
            self.look_up_words(&backbone, &mut tasks, &mut deltas, surroundings);
            self.look_up_origins(&mut deltas, surroundings);
        }
        let plan = Plan {
            name: name.unwrap_or_else(|| surroundings.name().to_owned()),
            seed: self.seed,
            params: self.scope.values(),
            backbone,
            data,
            tasks,
            deltas,
            stages,
        };
        let backbone = BackbonePlan {
            max_length: self.room(&plan),
            ..plan.backbone
        };
        let plan = Plan { backbone, ..plan };
        self.check_use(&plan);
        Some(plan)
    }

    /// Looks up the hash of the finished run from which each delta with an origin starts.
    fn look_up_origins(&self, deltas: &mut [DeltaPlan], surroundings: &dyn Surroundings) {
        for delta in deltas {
            let Some(origin) = &delta.origin else {
                continue;
            };
            match surroundings.origin(delta, origin) {
                Ok(hash) => {
                    delta.origin = Some(Origin {
                        hash,
                        ..origin.clone()
                    })
                }
                Err(problem) => self.report(problem),
            }
        }
    }

    /// Finds the statement of a kind that a file may have once, and reports any further ones.
    pub(super) fn once<T>(
        &self,
        what: &str,
        find: impl Fn(&'a Statement) -> Option<T>,
    ) -> Option<(T, Span)> {
        let mut found: Option<(T, Span)> = None;
        for statement in self.statements() {
            let Some(value) = find(&statement.node) else {
                continue;
            };
            match &found {
                Some((_, first)) => self.report(
                    Problem::new(
                        "delta::plan::duplicate",
                        format!("the file has two `{what}` statements"),
                    )
                    .at(statement.span, "again here")
                    .at(*first, "first here")
                    .help("keep one of them"),
                ),
                None => found = Some((value, statement.span)),
            }
        }
        found
    }

    fn name(&self) -> Option<String> {
        let found = self.once("pipeline", |statement| match statement {
            Statement::Pipeline { name } => Some(name.node.clone()),
            _ => None,
        });
        found.map(|(name, _)| name)
    }

    fn data(&self) -> BTreeMap<String, DataPlan> {
        let mut all: BTreeMap<String, DataPlan> = BTreeMap::new();
        for statement in self.statements() {
            let Statement::Data { name, block } = &statement.node else {
                continue;
            };
            let key = name.as_ref().map_or("data", |name| name.node.as_str());
            let fields = self.fields(&format!("data `{key}`"), statement.span, Some(block));
            let plan = data::data(&fields, self.base, self.seed);
            if all.insert(key.to_owned(), plan).is_some() {
                self.twice("data set", key, statement.span);
            }
        }
        all
    }

    fn tasks(&self) -> BTreeMap<String, TaskPlan> {
        let mut all: BTreeMap<String, TaskPlan> = BTreeMap::new();
        for statement in self.statements() {
            let Statement::Task { name, kind, block } = &statement.node else {
                continue;
            };
            let key = name.as_ref().map_or("task", |name| name.node.as_str());
            let fields = self.fields(&format!("task `{}`", kind.node), kind.span, Some(block));
            let Some(plan) = tasks::task(kind, &fields) else {
                continue;
            };
            if all.insert(key.to_owned(), plan).is_some() {
                self.twice("task", key, statement.span);
            }
        }
        all
    }

    fn task_names(&self) -> Vec<String> {
        self.statements()
            .filter_map(|statement| match &statement.node {
                Statement::Task { name, .. } => Some(
                    name.as_ref()
                        .map_or("task".to_owned(), |name| name.node.clone()),
                ),
                _ => None,
            })
            .collect()
    }

    fn twice(&self, what: &str, name: &str, span: Span) {
        let message = format!("there are two {what}s named `{name}`");
        self.report(
            Problem::new("delta::plan::duplicate", message)
                .at(span, "again here")
                .help(format!("give one of the {what}s another name")),
        );
    }

    pub(super) fn fields(&self, owner: &str, span: Span, block: Option<&'a Block>) -> Fields<'a> {
        Fields::new(owner, span, block, self.scope, self.problems)
    }

    fn delta_names(&self) -> Vec<String> {
        let mut names: Vec<&Name> = Vec::new();
        for statement in self.statements() {
            let name = match &statement.node {
                Statement::Unfreeze { name, .. } => name,
                Statement::Place(place) => &place.name,
                _ => continue,
            };
            if is_reserved(&name.node) {
                let message = format!(
                    "a delta cannot be named `{}`: the backbone reserves that name",
                    name.node
                );
                self.report(
                    Problem::new("delta::plan::reserved", message)
                        .at(name.span, "here")
                        .help("choose another name"),
                );
            }
            if self.task_names().contains(&name.node) {
                let message = format!("a delta and a task are both named `{}`", name.node);
                self.report(
                    Problem::new("delta::plan::duplicate", message)
                        .at(name.span, "here")
                        .help("give one of them another name: both name parameters"),
                );
            }
            if let Some(first) = names.iter().find(|first| first.node == name.node) {
                let message = format!("there are two deltas named `{}`", name.node);
                self.report(
                    Problem::new("delta::plan::duplicate", message)
                        .at(name.span, "again here")
                        .at(first.span, "first here")
                        .help("give one of them another name"),
                );
            }
            names.push(name);
        }
        names.into_iter().map(|name| name.node.clone()).collect()
    }

    fn stages(&self, known: &Known) -> Vec<super::StagePlan> {
        let mut stages: Vec<super::StagePlan> = Vec::new();
        for statement in self.statements() {
            let Statement::Stage { name, block } = &statement.node else {
                continue;
            };
            if stages.iter().any(|stage| stage.name == name.node) {
                self.twice("stage", &name.node, name.span);
            }
            let fields = self.fields(&format!("stage `{}`", name.node), name.span, Some(block));
            stages.push(stage(name, &fields, known));
        }
        stages
    }
}
