//! The conductor of planning: statement by statement, going on past every mistake.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::fields::{Fields, Problems};
use super::scope::{Overrides, Scope};
use super::selection::Modules;
use super::stages::{stage, Known};
use super::{tasks, BackbonePlan, Change, DataPlan, DeltaPlan, Plan, TaskPlan};
use crate::backbone::{Config, Module, Tree};
use crate::delta::{Method, Placement};
use crate::diagnostic::{Problem, Span};
use crate::syntax::ast::{Block, Name, Pipeline, Place, Selection, Spanned, Statement, Value};
use crate::text::{did_you_mean, quoted_list};

/// Finds a backbone by what the file calls it: its directory and its dimensions.
pub type FindBackbone<'a> = dyn Fn(&str) -> Result<(PathBuf, Config), Problem> + 'a;

/// Checks a file against its backbone.
///
/// `base` is the directory that paths in the file are relative to.
///
/// # Errors
/// All mistakes of the file, each with its places and a way out.
pub fn plan(
    pipeline: &Pipeline,
    overrides: &Overrides,
    base: &Path,
    find_backbone: &FindBackbone,
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
    };
    let plan = builder.build(find_backbone);
    let mut found = problems.take();
    if found.is_empty() || plan.is_some() {
        found.extend(scope.unused());
    }
    match plan {
        Some(plan) if found.is_empty() => Ok(plan),
        _ => Err(found),
    }
}

/// What the file calls its backbone, params replaced.
pub fn backbone_location(pipeline: &Pipeline, overrides: &Overrides) -> Option<String> {
    let scope = Scope::new(pipeline, overrides, &mut Vec::new());
    pipeline
        .statements
        .iter()
        .find_map(|statement| match &statement.node {
            Statement::Backbone { location, .. } => match scope.resolve(location).node {
                Value::Text(text) => Some(text),
                _ => None,
            },
            _ => None,
        })
}

/// The seed: the param of that name, or 42 as in Hugging Face's Trainer.
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

struct Builder<'a> {
    pipeline: &'a Pipeline,
    base: &'a Path,
    scope: &'a Scope,
    problems: &'a Problems,
    seed: u64,
}

/// Names that a delta cannot have, because paths of the backbone begin with them.
const RESERVED: [&str; 7] = [
    "head",
    "lm_head",
    "block",
    "embeddings",
    "pooler",
    "norm",
    "task",
];

impl<'a> Builder<'a> {
    fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    fn statements(&self) -> impl Iterator<Item = &'a Spanned<Statement>> {
        self.pipeline.statements.iter()
    }

    fn build(&self, find_backbone: &FindBackbone) -> Option<Plan> {
        let name = self.name();
        let data = self.data();
        let tasks = self.tasks();
        let backbone = self.backbone(find_backbone);
        let names = self.delta_names();
        let known = Known {
            deltas: &names,
            data: &data.keys().cloned().collect::<Vec<_>>(),
            tasks: &self.task_names(),
        };
        let stages = self.stages(&known);
        let deltas = match &backbone {
            Some(backbone) => self.deltas(backbone),
            None => Vec::new(),
        };
        let plan = Plan {
            name: name.unwrap_or_else(|| "pipeline".to_owned()),
            seed: self.seed,
            params: self.scope.values(),
            backbone: backbone?,
            data,
            tasks,
            deltas,
            stages,
        };
        self.check_use(&plan);
        Some(plan)
    }

    /// The one statement of a kind that a file may have once.
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

    fn backbone(&self, find_backbone: &FindBackbone) -> Option<BackbonePlan> {
        let found = self.once("backbone", |statement| match statement {
            Statement::Backbone { location, block } => Some((location, block.as_ref())),
            _ => None,
        });
        let Some(((location, block), span)) = found else {
            self.report(
                Problem::new("delta::plan::missing", "the file has no `backbone`")
                    .help("add `backbone \"path/of/a/hugging/face/directory\"`"),
            );
            return None;
        };
        let fields = Fields::new("backbone", span, block, self.scope, self.problems);
        let place = self.scope.resolve(location);
        let Value::Text(text) = &place.node else {
            fields.wrong("backbone", &place, "a text in quotes");
            return None;
        };
        let found =
            find_backbone(text).map_err(|problem| self.report(problem.or_at(location.span)));
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
            .count("max_length", 3..=longest)
            .unwrap_or(longest.min(512));
        let weights = [("pretrained", false), ("random", true)];
        let random = fields.choice("weights", &weights).unwrap_or(false);
        fields.finish();
        Some(BackbonePlan {
            location: text.clone(),
            directory,
            config,
            max_length,
            random,
            span,
        })
    }

    fn data(&self) -> BTreeMap<String, DataPlan> {
        let mut all: BTreeMap<String, DataPlan> = BTreeMap::new();
        for statement in self.statements() {
            let Statement::Data { name, block } = &statement.node else {
                continue;
            };
            let key = name.as_ref().map_or("data", |name| name.node.as_str());
            let fields = self.fields(&format!("data `{key}`"), statement.span, Some(block));
            let plan = tasks::data(&fields, self.base);
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

    fn fields(&self, owner: &str, span: Span, block: Option<&'a Block>) -> Fields<'a> {
        Fields::new(owner, span, block, self.scope, self.problems)
    }

    fn delta_names(&self) -> Vec<String> {
        let mut names: Vec<&Name> = Vec::new();
        for statement in self.statements() {
            let name = match &statement.node {
                Statement::Unfreeze { name, .. } => name,
                Statement::Insert(place) | Statement::Reparam(place) => &place.name,
                _ => continue,
            };
            if RESERVED.contains(&name.node.as_str()) {
                let message = format!(
                    "a delta cannot be named `{}`: the backbone has that name",
                    name.node
                );
                self.report(
                    Problem::new("delta::plan::reserved", message)
                        .at(name.span, "here")
                        .help("choose another name"),
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

    fn deltas(&self, backbone: &BackbonePlan) -> Vec<DeltaPlan> {
        let tree = Tree::new(&backbone.config);
        let modules = Modules {
            tree: &tree,
            config: &backbone.config,
            location: &backbone.location,
            scope: self.scope,
            seed: self.seed,
        };
        let mut deltas: Vec<DeltaPlan> = Vec::new();
        for statement in self.statements() {
            match &statement.node {
                Statement::Freeze { selection } => self.freeze(selection, &modules, &mut deltas),
                Statement::Unfreeze { name, selection } => {
                    self.unfreeze(name, selection, &modules, &mut deltas);
                }
                Statement::Insert(place) => {
                    deltas.extend(self.method(place, Placement::Insert, &modules));
                }
                Statement::Reparam(place) => {
                    deltas.extend(self.method(place, Placement::Reparam, &modules));
                }
                _ => {}
            }
        }
        deltas
    }

    /// Takes parameters back from every `unfreeze` that stands earlier in the file.
    fn freeze(&self, selection: &Selection, modules: &Modules, deltas: &mut [DeltaPlan]) {
        let frozen: BTreeSet<String> = match modules.parameters(selection) {
            Ok(parameters) => parameters
                .into_iter()
                .map(|parameter| parameter.path.clone())
                .collect(),
            Err(problem) => return self.report(problem),
        };
        for delta in deltas {
            let Change::Unfreeze { parameters } = &mut delta.change else {
                continue;
            };
            parameters.retain(|path| !frozen.contains(path));
            if parameters.is_empty() {
                let message = format!("this leaves nothing of `{}`", delta.name);
                self.report(
                    Problem::new("delta::plan::frozen_again", message)
                        .at(selection.span, "frozen again here")
                        .at(delta.span, "unfrozen here")
                        .help("freeze less, or remove the `unfreeze`"),
                );
            }
        }
    }

    fn unfreeze(
        &self,
        name: &Name,
        selection: &Selection,
        modules: &Modules,
        deltas: &mut Vec<DeltaPlan>,
    ) {
        let parameters: Vec<String> = match modules.parameters(selection) {
            Ok(parameters) => parameters
                .into_iter()
                .map(|parameter| parameter.path.clone())
                .collect(),
            Err(problem) => return self.report(problem),
        };
        for other in deltas.iter() {
            let Change::Unfreeze { parameters: others } = &other.change else {
                continue;
            };
            if let Some(shared) = parameters.iter().find(|path| others.contains(path)) {
                let message = format!(
                    "`{}` and `{}` both unfreeze `{shared}`",
                    other.name, name.node
                );
                self.report(
                    Problem::new("delta::plan::overlap", message)
                        .at(selection.span, "here")
                        .at(other.span, "and here")
                        .help("take it out of one of them with `except`"),
                );
            }
        }
        deltas.push(DeltaPlan {
            name: name.node.clone(),
            change: Change::Unfreeze { parameters },
            span: name.span,
        });
    }

    fn method(
        &self,
        place: &'a Place,
        statement: Placement,
        modules: &Modules,
    ) -> Option<DeltaPlan> {
        let method_name = &place.method;
        let owner = format!("{} `{}`", method_name.node, place.name.node);
        let fields = self.fields(&owner, method_name.span, place.block.as_ref());
        match Method::placement(&method_name.node) {
            Some(right) if right == statement => {}
            wrong => {
                self.wrong_method(method_name, statement, wrong);
                return None;
            }
        }
        let method = Method::read(&method_name.node, &fields, modules.config)?;
        fields.finish();
        let sites = match modules.modules(&place.selection) {
            Ok(sites) => sites,
            Err(problem) => {
                self.report(problem);
                return None;
            }
        };
        self.check_sites(place, &method, &sites);
        Some(DeltaPlan {
            name: place.name.node.clone(),
            change: Change::Method {
                method,
                sites: sites.into_iter().map(|site| site.path.clone()).collect(),
            },
            span: place.name.span,
        })
    }

    fn wrong_method(&self, name: &Name, statement: Placement, right: Option<Placement>) {
        let (keyword, preposition) = statement.words();
        let problem = match right {
            Some(right) => {
                let (right, right_preposition) = right.words();
                Problem::new(
                    "delta::plan::statement",
                    format!(
                        "`{}` is placed with `{right}`, not with `{keyword}`",
                        name.node
                    ),
                )
                .help(format!(
                    "write `{right} … = {} … {right_preposition} …`",
                    name.node
                ))
            }
            None => {
                let known = Method::names(statement);
                let problem = Problem::new(
                    "delta::plan::unknown_method",
                    format!("there is no method `{}` for `{keyword}`", name.node),
                );
                match did_you_mean(&name.node, known.iter().copied()) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem.help(format!(
                        "`{keyword} … {preposition}` takes {}",
                        quoted_list(known.iter().copied())
                    )),
                }
            }
        };
        self.report(problem.at(name.span, "here"));
    }

    fn check_sites(&self, place: &Place, method: &Method, sites: &[&Module]) {
        let wrong: Vec<&str> = sites
            .iter()
            .filter(|site| !method.accepts(site.site))
            .map(|site| site.path.as_str())
            .collect();
        let span = place.selection.span;
        if let Some(first) = sites.iter().find(|site| !method.accepts(site.site)) {
            let message = format!(
                "`{}` cannot sit at `{}`, which is {}",
                method.name(),
                first.path,
                first.site.describe()
            );
            let help = match method.name() {
                "houlsby" => "choose sub-layers, such as `block.*.{attn,ff}`".to_owned(),
                _ => format!(
                    "choose linear layers, or add `except` for {}",
                    quoted_list(wrong)
                ),
            };
            return self.report(
                Problem::new("delta::plan::wrong_site", message)
                    .at(span, "here")
                    .help(help),
            );
        }
        if let Some(reason) = sites.iter().find_map(|site| method.check(site).err()) {
            let place = place
                .block
                .as_ref()
                .map_or(place.method.span, |block| block.span);
            self.report(
                Problem::new("delta::plan::dimension", reason)
                    .at(place, "set here")
                    .at(span, "placed here")
                    .help("choose a smaller one"),
            );
        }
    }

    /// What is declared must be used.
    fn check_use(&self, plan: &Plan) {
        for delta in &plan.deltas {
            if !plan
                .stages
                .iter()
                .any(|stage| stage.train.contains(&delta.name))
            {
                let message = format!("no stage trains `{}`", delta.name);
                let help = format!(
                    "add it to a stage: `train = [{}, head]`, or remove it",
                    delta.name
                );
                self.report(
                    Problem::new("delta::plan::untrained", message)
                        .at(delta.span, "declared here")
                        .help(help),
                );
            }
        }
        for (index, stage) in plan.stages.iter().enumerate() {
            for name in &stage.without {
                let earlier = plan.stages[..index]
                    .iter()
                    .any(|stage| stage.train.contains(name));
                if !earlier || stage.train.contains(name) {
                    let message = format!(
                        "stage `{}` is to do without `{name}`, which is not in place there",
                        stage.name
                    );
                    let help =
                        "remove it from `without`, which takes deltas of earlier stages away";
                    self.report(
                        Problem::new("delta::plan::without", message)
                            .at(stage.span, "here")
                            .help(help),
                    );
                }
            }
            if let Some(task) = plan.tasks.get(&stage.task) {
                self.check_head(plan, stage, task);
            }
            if plan
                .data
                .get(&stage.data)
                .is_some_and(|data| data.train.is_none())
            {
                let message = format!(
                    "stage `{}` trains on `{}`, which has no `train` file",
                    stage.name, stage.data
                );
                let help = "add `train = tsv(\"train.tsv\")` to the data set";
                self.report(
                    Problem::new("delta::plan::no_training_data", message)
                        .at(stage.span, "here")
                        .help(help),
                );
            }
        }
        self.check_named_use(plan);
    }

    fn check_head(&self, plan: &Plan, stage: &super::StagePlan, task: &TaskPlan) {
        let family = plan.backbone.config.family();
        if task.kind == super::TaskKind::MaskedLm && family.heads.masked_lm.is_none() {
            let message = format!("the family {} has no masked language model", family.name);
            let help = "use `classify` or `regress`, or a backbone of another family";
            self.report(
                Problem::new("delta::plan::no_head", message)
                    .at(task.span, "here")
                    .help(help),
            );
        }
        if let (None, true) = (
            plan.data
                .get(&stage.data)
                .and_then(|data| data.dev.as_ref()),
            stage.patience.is_some(),
        ) {
            let message = format!(
                "stage `{}` has `patience`, but its data set has no `dev` file",
                stage.name
            );
            let help = "add a `dev` file, or remove `patience`";
            self.report(
                Problem::new("delta::plan::no_dev_data", message)
                    .at(stage.span, "here")
                    .help(help),
            );
        }
    }

    /// Data sets and tasks with names of their own must be named by a stage.
    fn check_named_use(&self, plan: &Plan) {
        if plan.stages.is_empty() {
            return;
        }
        for statement in self.statements() {
            let (what, name) = match &statement.node {
                Statement::Data {
                    name: Some(name), ..
                } => ("data", name),
                Statement::Task {
                    name: Some(name), ..
                } => ("task", name),
                _ => continue,
            };
            let used = plan.stages.iter().any(|stage| match what {
                "data" => stage.data == name.node,
                _ => stage.task == name.node,
            });
            if !used {
                let message = format!("no stage uses the {what} `{}`", name.node);
                let help = format!("add `{what} = {}` to a stage, or remove it", name.node);
                self.report(
                    Problem::new("delta::plan::unused", message)
                        .at(name.span, "declared here")
                        .help(help),
                );
            }
        }
    }
}

fn set_dropout(config: &mut Config, probability: f32) {
    config.dropout = probability;
    config.attention_dropout = probability;
    config.classifier_dropout = probability;
}
