//! The driver of planning. It goes through the file statement by statement and continues after every mistake.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use super::stages::{stage, Known};
use super::surroundings::Surroundings;
use super::{data, tasks, BackbonePlan, DataPlan, DeltaPlan, Origin, Plan, TaskPlan, SHORTEST};
use crate::backbone::family::{families, Family};
use crate::backbone::Config;
use crate::diagnostic::{Problem, Span};
use crate::engine::{Precision, Storage};
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
    problems: &'a Problems,
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
    fn once<T>(&self, what: &str, find: impl Fn(&'a Statement) -> Option<T>) -> Option<(T, Span)> {
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

    fn backbone(
        &self,
        tasks: &BTreeMap<String, TaskPlan>,
        surroundings: &dyn Surroundings,
    ) -> Option<BackbonePlan> {
        let found = self.once("backbone", |statement| match statement {
            Statement::Backbone { location, block } => Some((location, block.as_ref())),
            _ => None,
        });
        let Some(((location, block), span)) = found else {
            self.report(
                Problem::new("delta::plan::missing", "the file has no `backbone`").help(
                    "add `backbone \"DIRECTORY\"` with the directory of a Hugging Face model",
                ),
            );
            return None;
        };
        let fields = Fields::new("backbone", span, block, self.scope, self.problems);
        let place = self.scope.resolve(location);
        let Value::Text(text) = &place.node else {
            fields.wrong("backbone", &place, "a string in quotes");
            return None;
        };
        let found = surroundings.backbone(text);
        let found = found.map_err(|problem| self.report(problem.or_at(location.span)));
        let (directory, mut config) = found.ok()?;
        match fields.value("dropout").map(|value| value.node) {
            None => {}
            Some(Value::Word(word)) if word == "off" => set_dropout(&mut config, 0.0),
            Some(_) => {
                if let Some(probability) = fields.optional_number("dropout", 0.0..=0.99) {
                    set_dropout(&mut config, probability as f32);
                }
            }
        }
        let longest = config.longest();
        let max_length = fields
            .count("max_length", SHORTEST..=config.limit())
            .unwrap_or(longest.min(512));
        let weights = [("pretrained", false), ("random", true)];
        let random = fields.choice("weights", &weights).unwrap_or(false);
        let precisions = [("f32", Precision::F32), ("bf16", Precision::Bf16)];
        let precision = fields.choice("precision", &precisions).unwrap_or_default();
        let storages = [
            ("f32", Storage::F32),
            ("bf16", Storage::Bf16),
            ("int8", Storage::Int8),
            ("nf4", Storage::Nf4),
        ];
        let own = surroundings.storage(&directory);
        let own = own.map_err(|problem| self.report(problem.or_at(location.span)));
        let storage = fields.choice("storage", &storages);
        if let (Some(value), Some(_), Ok(Storage::File { .. })) =
            (fields.raw("storage"), storage, &own)
        {
            let message = "the weights of a GGUF file stay as they are in it";
            let problem = Problem::new("delta::plan::storage", message).at(value.span, "here");
            self.report(
                problem.help("remove `storage`, or use the model's Hugging Face directory"),
            );
        }
        let storage = match random {
            true => storage.unwrap_or_default(),
            false => storage.or(own.ok()).unwrap_or_default(),
        };
        let tokenizer = fields
            .text("tokenizer")
            .map(|text| self.base.join(text.node));
        if let Some(value) = fields.raw("storage").filter(|_| storage != Storage::F32) {
            let report = |message: &str, help: &str| {
                let problem = Problem::new("delta::plan::storage", message);
                self.report(problem.at(value.span, "here").help(help));
            };
            if random {
                let message =
                    "weights that are drawn at random are there to be trained, and are kept in f32";
                report(message, "remove `storage`, or `weights = random`");
            }
        }
        if let (Some(value), true) = (fields.raw("precision"), storage != Storage::F32) {
            if precision != Precision::F32 {
                let message =
                    "products decode these weights to f32, so `precision` changes nothing";
                let problem = Problem::new("delta::plan::storage", message);
                self.report(
                    problem
                        .at(value.span, "here")
                        .help("remove `precision`, or keep the weights in f32"),
                );
            }
        }
        fields.finish();
        let mut backbone = BackbonePlan {
            location: text.clone(),
            directory,
            tokenizer,
            config,
            max_length,
            random,
            precision,
            storage,
            span,
        };
        if !random && tasks.values().any(|task| task.kind.uses_language_model()) {
            match surroundings.has_head_weight(&backbone) {
                Ok(Some(is_there)) => backbone.config.has_head_weight = is_there,
                Ok(None) => self.knows_head.set(false),
                Err(problem) => self.report(problem.or_at(span)),
            }
        }
        Some(backbone)
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

fn set_dropout(config: &mut Config, probability: f32) {
    config.dropout = probability;
    config.embedding_dropout = Some(probability);
    config.attention_dropout = probability;
    config.classifier_dropout = probability;
    let stated = &config.family().config;
    if stated.inner_dropout.is_some() {
        config.inner_dropout = probability;
    }
    if stated.last_dropout.is_some() {
        config.last_dropout = probability;
    }
}
