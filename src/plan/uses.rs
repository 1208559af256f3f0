//! Checks that everything declared is used, and that every stage and task can work.

use super::build::Builder;
use super::{DataPlan, DeltaPlan, Plan, StagePlan, TaskPlan, SHORTEST};
use crate::backbone::{head_parameters, language_model_parameters, saved_head};
use crate::delta::Method;
use crate::diagnostic::Problem;
use crate::syntax::ast::Statement;

impl Builder<'_> {
    /// The number of tokens after which texts are cut. Prompts and prefixes take positions, so we cut texts earlier if
    /// the file does not set `max_length`. Reports positions that do not suffice.
    pub(super) fn room(&self, plan: &Plan) -> usize {
        let tokens = (0..=plan.stages.len())
            .map(|stage| plan.tokens(stage))
            .max();
        let tokens = tokens.unwrap_or(0);
        let backbone = &plan.backbone;
        let stated = self
            .statements()
            .find_map(|statement| match &statement.node {
                Statement::Backbone { block, .. } => block.as_ref()?.setting("max_length"),
                _ => None,
            });
        let longest = match stated {
            Some(_) => backbone.config.limit(),
            None => backbone.config.longest(),
        };
        if backbone.max_length + tokens <= longest {
            return backbone.max_length;
        }
        let room = longest.saturating_sub(tokens);
        if stated.is_none() && room >= SHORTEST {
            return room;
        }
        let message = format!(
            "prompts and prefixes of {tokens} tokens and texts of {} tokens exceed the backbone's {longest} positions",
            backbone.max_length
        );
        let mut problem = Problem::new("delta::plan::positions", message);
        if let Some(stated) = stated {
            problem = problem.at(stated.span(), "set here");
        }
        for delta in &plan.deltas {
            if delta.tokens() > 0 {
                problem = problem.at(delta.span, "takes positions");
            }
        }
        self.report(problem.help(match room >= SHORTEST {
            true => format!("write `max_length = {room}`, or lower `tokens`"),
            false => "lower `tokens`".to_owned(),
        }));
        backbone.max_length
    }

    /// Reports declarations that no stage uses, and stages that use what they cannot have.
    pub(super) fn check_use(&self, plan: &Plan) {
        self.check_untrained(plan);
        for (index, stage) in plan.stages.iter().enumerate() {
            self.check_without(plan, index);
            self.check_patience(plan, stage);
            self.check_lora_plus(plan, stage);
            self.check_unfrozen_head(plan, stage);
            self.check_trained(plan, stage);
            self.check_training_data(plan, stage);
        }
        if plan.stages.is_empty() {
            self.check_without_stages(plan);
        }
        if !plan.tasks.is_empty() {
            self.check_start(plan);
        }
        plan.tasks
            .values()
            .for_each(|task| self.check_task(plan, task));
        self.check_named_use(plan);
        self.check_storage(plan);
    }

    /// Reports deltas that no stage trains and no run has trained.
    fn check_untrained(&self, plan: &Plan) {
        for delta in &plan.deltas {
            let mut stages = plan.stages.iter();
            let is_trained = stages.any(|stage| stage.train.contains(&delta.name));
            if !is_trained && delta.origin.is_none() {
                let name = &delta.name;
                let problem = Problem::new(
                    "delta::plan::untrained",
                    format!("no stage trains `{name}`"),
                );
                self.report(problem.at(delta.span, "declared here").help(format!(
                    "add it to a stage: `train = [{name}, head]`, or remove it"
                )));
            }
        }
    }

    /// Reports deltas that a stage drops although no earlier one trains them.
    fn check_without(&self, plan: &Plan, index: usize) {
        let stage = &plan.stages[index];
        for name in &stage.without {
            let mut origins = plan.deltas.iter().filter(|delta| delta.name == *name);
            let earlier = origins.any(|delta| delta.origin.is_some())
                || plan.stages[..index]
                    .iter()
                    .any(|stage| stage.train.contains(name));
            if !earlier || stage.train.contains(name) {
                let message = format!(
                    "stage `{}` cannot drop `{name}`: no earlier stage trains it, or this stage trains it",
                    stage.name
                );
                let help = "remove it from `without`, which only drops deltas of earlier stages";
                let problem = Problem::new("delta::plan::without", message);
                self.report(problem.at(stage.span, "here").help(help));
            }
        }
    }

    fn check_training_data(&self, plan: &Plan, stage: &StagePlan) {
        let data = plan.data.get(&stage.data);
        if data.is_some_and(|data| data.train.is_none()) {
            let message = format!(
                "stage `{}` trains on `{}`, which has no `train` file",
                stage.name, stage.data
            );
            let problem = Problem::new("delta::plan::no_training_data", message);
            let help = "add `train = tsv(\"train.tsv\")` to the data set";
            self.report(problem.at(stage.span, "here").help(help));
        }
    }

    /// Reports a file without a stage that has nothing to evaluate, or nothing to evaluate on.
    fn check_without_stages(&self, plan: &Plan) {
        let report = |message: &str, help: &str| {
            self.report(Problem::new("delta::plan::no_stage", message).help(help));
        };
        let backbone = &plan.backbone;
        let own = saved_head(&backbone.directory, &backbone.config);
        let is_answered =
            |task: &TaskPlan| task.kind.uses_language_model() || own == Some(task.kind.head());
        if !plan.tasks.values().any(is_answered) {
            report(
                "the file has no `stage`, and none of its tasks works without training",
                "add a `stage`, or evaluate zero-shot by adding a `template` and `words` to the task",
            );
        }
        let has_set = |data: &DataPlan| data.dev.is_some() || data.test.is_some();
        if !plan.final_data().is_some_and(has_set) {
            report(
                "the file has no `stage` to train, and no `test` or `dev` set to measure",
                "add a `stage`, or `test = tsv(\"test.tsv\")` to the data set",
            );
        }
    }

    /// Reports a decoder without a start token, because its texts could not begin.
    fn check_start(&self, plan: &Plan) {
        if let Err(message) = plan.backbone.config.check_start() {
            let message = format!("`{}`: {message}", plan.backbone.location);
            let problem =
                Problem::new("delta::plan::start_token", message).at(plan.backbone.span, "here");
            self.report(
                problem
                    .help("add it to `config.json`; for T5 it is 0, the id of the padding token"),
            );
        }
    }

    /// Reports a task that the backbone's family cannot do.
    fn check_task(&self, plan: &Plan, task: &TaskPlan) {
        if let Err(problem) = task.kind.check(&plan.backbone.config) {
            self.report(problem.at(task.span, "in this task"));
        }
    }

    /// Reports a stage that trains nothing. A language-model head that is tied to the word embeddings has no
    /// parameter of its own, so `train = [head]` alone may train nothing.
    fn check_trained(&self, plan: &Plan, stage: &StagePlan) {
        let config = &plan.backbone.config;
        let task = plan.tasks.get(&stage.task);
        let head = task.and_then(|task| Some((task, config.family().heads.of(task.kind.head())?)));
        let Some((task, head)) = head else { return };
        let trains_head = stage.train_head && stage.train.is_empty() && self.knows_head.get();
        if trains_head && head_parameters(config, head, task.kind.outputs()).is_empty() {
            let message = format!(
                "stage `{}` trains nothing: its head is tied to the frozen word embeddings",
                stage.name
            );
            let problem = Problem::new("delta::plan::nothing_trained", message);
            self.report(problem.at(stage.span, "in this stage").help(
                "write `unfreeze words = embeddings.word` and train `words`, or train a delta",
            ));
        }
    }

    /// Reports `lora_plus` in a stage that trains no LoRA.
    fn check_lora_plus(&self, plan: &Plan, stage: &StagePlan) {
        let mut trained = plan.deltas.iter().filter(|d| stage.train.contains(&d.name));
        let has_factors =
            |delta: &DeltaPlan| delta.method().and_then(Method::second_factor).is_some();
        if stage.lora_plus.is_some() && !trained.any(has_factors) {
            let message = format!("stage `{}` has `lora_plus`, but trains no LoRA", stage.name);
            let problem = Problem::new("delta::plan::lora_plus", message);
            self.report(problem.at(stage.span, "here").help(
                "remove `lora_plus`, or train a `lora` or `dora`; `rates` gives any delta a rate of its own",
            ));
        }
    }

    fn check_patience(&self, plan: &Plan, stage: &StagePlan) {
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

    /// Reports a stage that trains the whole language-model head while a delta already unfreezes part of it.
    fn check_unfrozen_head(&self, plan: &Plan, stage: &StagePlan) {
        let is_model = |task: &TaskPlan| task.kind.uses_language_model();
        if !stage.train_head || !plan.tasks.get(&stage.task).is_some_and(is_model) {
            return;
        }
        let head = language_model_parameters(&plan.backbone.config);
        for delta in &plan.deltas {
            let Some(shared) = head.iter().find(|p| delta.unfrozen().contains(&p.path)) else {
                continue;
            };
            let message = format!(
                "`{}` unfreezes `{}`, but stage `{}` already trains the whole head",
                delta.name, shared.path, stage.name
            );
            let problem = Problem::new("delta::plan::overlap", message)
                .at(delta.span, "declared here")
                .at(stage.span, "here");
            self.report(
                problem.help("remove `head` from the stage, or `lm_head` from the selection"),
            );
        }
    }

    /// Reports named data sets and tasks that no stage names.
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
