//! Reads deltas: methods with their settings, placed on modules, and unfrozen parameters.

use std::collections::{BTreeMap, BTreeSet};

use super::build::Builder;
use super::selection::Modules;
use super::{BackbonePlan, Change, DeltaPlan, Origin, TaskPlan};
use crate::backbone::{language_model_parameters, Config, Module, Tree};
use crate::delta::{gate, Method, Preposition};
use crate::diagnostic::Problem;
use crate::settings::synonyms;
use crate::syntax::ast::{Name, Place, Selection, Spanned, Statement, Value};
use crate::text::{did_you_mean, quoted_list};

impl<'a> Builder<'a> {
    /// All deltas of the file, in its order.
    pub(super) fn deltas(
        &self,
        backbone: &BackbonePlan,
        tasks: &BTreeMap<String, TaskPlan>,
    ) -> Vec<DeltaPlan> {
        let tree = Tree::new(&backbone.config);
        let head = match tasks.values().any(|task| task.kind.uses_language_model()) {
            true => {
                // Without the checkpoint we cannot tell whether the head is untied, so allow selectors to name
                // its possible weight.
                let may_have = !self.knows_head.get();
                let config = &backbone.config;
                language_model_parameters(&Config {
                    has_head_weight: config.has_head_weight || may_have,
                    ..config.clone()
                })
            }
            false => Vec::new(),
        };
        let modules = Modules {
            tree: &tree,
            head: &head,
            config: &backbone.config,
            location: &backbone.location,
            scope: self.scope,
            seed: self.seed,
        };
        let mut deltas: Vec<DeltaPlan> = Vec::new();
        for statement in self.statements() {
            match &statement.node {
                Statement::Freeze { selection } => self.freeze(selection, &modules, &mut deltas),
                Statement::Unfreeze {
                    name,
                    selection,
                    origin,
                } => {
                    self.unfreeze(name, selection, &modules, &mut deltas);
                    if let Some(delta) = deltas.last_mut().filter(|d| d.name == name.node) {
                        delta.origin = self.origin(origin.as_ref());
                    }
                }
                Statement::Place(place) => deltas.extend(self.method(place, &modules)),
                _ => {}
            }
        }
        deltas
    }

    /// Removes the selected parameters from every earlier `unfreeze` of the file.
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
                let message = format!("this `freeze` leaves nothing of `{}` to train", delta.name);
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
            let others = other.unfrozen();
            if let Some(shared) = parameters.iter().find(|path| others.contains(path)) {
                let message = format!(
                    "`{}` and `{}` both unfreeze `{shared}`",
                    other.name, name.node
                );
                self.report(
                    Problem::new("delta::plan::overlap", message)
                        .at(selection.span, "here")
                        .at(other.span, "and here")
                        .help("exclude it from one of them with `except`"),
                );
            }
        }
        deltas.push(DeltaPlan {
            name: name.node.clone(),
            change: Change::Unfreeze { parameters },
            is_gated: false,
            origin: None,
            span: name.span,
        });
    }

    fn method(&self, place: &'a Place, modules: &Modules) -> Option<DeltaPlan> {
        let method_name = &place.method;
        let owner = format!("{} `{}`", method_name.node, place.name.node);
        let fields = self.fields(&owner, method_name.span, place.block.as_ref());
        let known = Method::ALL
            .iter()
            .find(|(name, _)| *name == method_name.node);
        match known {
            Some((_, right)) if *right == place.preposition => {}
            wrong => {
                // Mark the params in its settings as used, so that we do not report them as well.
                fields.all().iter().for_each(|setting| {
                    self.scope.resolve(&setting.value);
                });
                self.wrong_method(
                    method_name,
                    place.preposition,
                    wrong.map(|(_, right)| *right),
                );
                return None;
            }
        }
        let method = Method::read(&method_name.node, &fields, modules.config)?;
        let switch = [("on", true), ("off", false)];
        let is_gated = fields.choice("gate", &switch).unwrap_or_default();
        fields.finish();
        let sites = match modules.modules(&place.selection) {
            Ok(sites) => sites,
            Err(problem) => {
                self.report(problem);
                return None;
            }
        };
        self.check_sites(place, &method, &sites);
        if is_gated && !(method.can_be_gated() && sites.iter().all(|site| gate::accepts(site))) {
            let message = format!("`{}` cannot be gated here", method.name());
            let problem = Problem::new("delta::plan::gate", message).at(fields.span(), "set here");
            self.report(problem.help(
                "remove `gate`: only prefixes, and deltas that add to a module's output inside a block, can be gated",
            ));
        }
        Some(DeltaPlan {
            name: place.name.node.clone(),
            change: Change::Method {
                method,
                sites: sites.into_iter().map(|site| site.path.clone()).collect(),
            },
            is_gated,
            origin: self.origin(place.origin.as_ref()),
            span: place.name.span,
        })
    }

    /// Reads `from "runs/x"`. `look_up_origins` looks at the run itself later.
    fn origin(&self, run: Option<&Spanned<Value>>) -> Option<Origin> {
        let value = self.scope.resolve(run?);
        let Value::Text(path) = &value.node else {
            let message = format!(
                "`from` takes the directory of a run, not {}",
                value.node.describe()
            );
            let problem = Problem::new("delta::plan::wrong_type", message).at(value.span, "here");
            self.report(problem.help("write it in quotes: `from \"runs/x\"`"));
            return None;
        };
        Some(Origin {
            run: self.base.join(path),
            hash: String::new(),
            span: value.span,
        })
    }

    fn wrong_method(&self, name: &Name, found: Preposition, right: Option<Preposition>) {
        let name_text = &name.node;
        let statement = |p: Preposition| format!("{} … {}", p.keyword(), p.word());
        let problem = match right {
            Some(right) => {
                let message = format!(
                    "`{name_text}` is placed with `{}`, not with `{}`",
                    statement(right),
                    statement(found)
                );
                Problem::new("delta::plan::statement", message).help(format!(
                    "write `{} … = {name_text} … {} …`",
                    right.keyword(),
                    right.word()
                ))
            }
            None => {
                let message = format!("there is no method `{name_text}`");
                let problem = Problem::new("delta::plan::unknown_method", message);
                let all = || Method::ALL.iter().map(|(name, _)| *name);
                let fitting = Method::ALL.iter().filter(|(_, p)| *p == found);
                match did_you_mean(name_text, all()) {
                    _ if synonyms::for_word(name_text, all()).is_some() => {
                        problem.help(synonyms::for_word(name_text, all()).unwrap_or_default())
                    }
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem.help(format!(
                        "`{}` takes {}",
                        statement(found),
                        quoted_list(fitting.map(|(name, _)| *name))
                    )),
                }
            }
        };
        self.report(problem.at(name.span, "here"));
    }

    fn check_sites(&self, place: &Place, method: &Method, sites: &[&Module]) {
        let span = place.selection.span;
        let mut wrong = sites.iter().filter(|site| !method.accepts(site.site));
        if let Some(first) = wrong.next() {
            let message = format!(
                "`{}` cannot be placed at `{}`, which is {}",
                method.name(),
                first.path,
                first.site.describe()
            );
            let others = match wrong.next() {
                Some(_) => String::new(),
                None => format!(", or add `except {}`", first.path),
            };
            let problem = Problem::new("delta::plan::wrong_site", message).at(span, "here");
            return self.report(problem.help(format!("{}{others}", method.sites())));
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
                    .help("choose another value"),
            );
        }
    }
}
