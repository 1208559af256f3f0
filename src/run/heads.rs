//! Checks and describes a plan's backbone by the names and shapes in its checkpoint.

use crate::backbone::{read_text, Checkpoint, Config, Tree};
use crate::diagnostic::Problem;
use crate::graph::{check_trained, HeadOrigin};
use crate::plan::{Change, DeltaPlan, Plan, TaskPlan};
use crate::text::{counted, quoted_list};

/// The origin of each task's head, in one sentence each. Empty if the checkpoint cannot be opened.
pub fn head_origins(plan: &Plan) -> Vec<String> {
    let file = match plan.backbone.random {
        true => None,
        false => match Checkpoint::open_directory(&plan.backbone.directory) {
            Ok(file) => Some(file),
            Err(_) => return Vec::new(),
        },
    };
    let sentence = |(name, task): (&String, _)| match HeadOrigin::of(
        &plan.backbone.config,
        task,
        file.as_ref(),
    ) {
        HeadOrigin::Checkpoint(_, how) => {
            format!("head of `{name}`: from the checkpoint, {how}")
        }
        HeadOrigin::Tied => format!("head of `{name}`: tied to the word embeddings"),
        HeadOrigin::Drawn(why) => format!("head of `{name}`: newly initialized ({why})"),
    };
    plan.tasks.iter().map(sentence).collect()
}

/// The labels that were found in the training file, in one sentence for each task that has such.
pub fn found_labels(plan: &Plan) -> Vec<String> {
    let tasks = plan.tasks.iter().filter(|(_, task)| task.has_found_labels);
    let sentence = |(name, task): (&String, &TaskPlan)| {
        let names = task.kind.labels().iter().map(|label| label.name.as_str());
        let count = counted(task.kind.labels().len(), "label");
        format!(
            "labels of `{name}`: {count} of the training file, {}",
            quoted_list(names)
        )
    };
    tasks.map(sentence).collect()
}

/// Checks the names and shapes of a backbone's tensors, and that heads which they lack are trained. Reads no weights,
/// except to compare copies. Weights of the hub that have not been fetched yet are not checked.
pub fn check_backbone(plan: &Plan) -> Vec<Problem> {
    let backbone = &plan.backbone;
    let mut problems = Vec::new();
    if backbone.random {
        problems.extend(check_poolers(plan, None));
        problems.extend(untrained_head(plan, None));
        return problems;
    }
    let at_backbone = |problem: Problem| problem.or_at(backbone.span);
    match Checkpoint::open_directory(&backbone.directory) {
        Ok(file) => {
            problems.extend(check_shapes(&backbone.config, &file).map(at_backbone));
            problems.extend(check_poolers(plan, Some(&file)));
            problems.extend(untrained_head(plan, Some(&file)));
        }
        Err(_) if backbone.location.starts_with("hf:") => {}
        Err(problem) => problems.push(at_backbone(problem)),
    }
    problems
}

/// The first stage that needs a head which is drawn and which none has trained so far.
fn untrained_head(plan: &Plan, file: Option<&Checkpoint>) -> Option<Problem> {
    let config = &plan.backbone.config;
    let of_stage = |index: usize| {
        let (name, task) = match plan.stages.get(index) {
            Some(stage) => (stage.task.as_str(), plan.tasks.get(&stage.task)?),
            None => plan.final_task()?,
        };
        match HeadOrigin::of(config, task, file) {
            HeadOrigin::Drawn(reason) => check_trained(plan, index, name, &reason).err(),
            HeadOrigin::Checkpoint(..) | HeadOrigin::Tied => None,
        }
    };
    (0..=plan.stages.len()).find_map(of_stage)
}

/// The problem of the first missing or misshapen tensor. One is enough, because usually most of them are then wrong.
fn check_shapes(config: &Config, file: &Checkpoint) -> Option<Problem> {
    let family = config.family();
    let tree = Tree::new(config);
    let mut parameters = tree.parameters();
    parameters.find_map(|parameter| {
        let is_missing = file.find(parameter, &family.base_model_prefix).is_none();
        match is_missing && is_of_head(config, &parameter.path) {
            true => None,
            false => file.checked(parameter, &family.base_model_prefix).err(),
        }
    })
}

/// Whether a path of the module tree is a part of a classifier's head as well: a pooler that a checkpoint lacks is drawn
/// with the head.
fn is_of_head(config: &Config, path: &str) -> bool {
    let mut steps = config.family().heads.classify.steps.iter();
    steps.any(|step| path.starts_with(&format!("{}.", step.module)))
}

/// Reports deltas on a pooler that the checkpoint lacks, or that no task reads which trains them.
fn check_poolers(plan: &Plan, file: Option<&Checkpoint>) -> Vec<Problem> {
    let config = &plan.backbone.config;
    let tree = Tree::new(config);
    let prefix = &config.family().base_model_prefix;
    let is_missing = |path: &str| {
        let mut own = tree.parameters().filter(|own| own.path == path);
        file.is_some_and(|file| own.any(|own| file.find(own, prefix).is_none()))
    };
    let problem = |delta: &DeltaPlan| {
        let why = |path: &str| match is_of_head(config, path) {
            true if !is_read(plan, delta, path) => Some("no task of its stages reads"),
            true if is_missing(path) => Some("the checkpoint lacks"),
            _ => None,
        };
        let (selected, found): (usize, Vec<(&str, &str)>) = match &delta.change {
            // A delta that also unfreezes other parameters, such as all of them, does not mean these.
            Change::Unfreeze { parameters } => {
                let found = parameters
                    .iter()
                    .map(|path| Some((path.as_str(), why(path)?)));
                (parameters.len(), found.collect::<Option<_>>()?)
            }
            Change::Method { sites, .. } => {
                let of_site = |site: &String| {
                    let mut own = tree.module(site)?.parameters.iter();
                    own.find_map(|own| why(&own.path))
                };
                let found = sites
                    .iter()
                    .filter_map(|site| Some((site.as_str(), of_site(site)?)));
                (sites.len(), found.collect())
            }
        };
        let (path, why) = *found.first()?;
        let name = &delta.name;
        let message = format!("`{name}` changes `{path}`, which {why}");
        let help = match found.len() == selected {
            true => format!("remove `{name}`"),
            false => format!("take it out of the selection (`except {path}`)"),
        };
        let help = match why.starts_with("the checkpoint") {
            true => format!("{help}: `train = [head]` trains it with the head"),
            false => help,
        };
        let problem = Problem::new("delta::weights::unfrozen", message).at(delta.span, "here");
        Some(problem.help(help))
    };
    plan.deltas.iter().filter_map(problem).collect()
}

/// Whether the head of a task whose stage trains a delta reads a module. A delta that no stage trains is reported
/// elsewhere.
fn is_read(plan: &Plan, delta: &DeltaPlan, path: &str) -> bool {
    let heads = &plan.backbone.config.family().heads;
    let mut stages = plan
        .stages
        .iter()
        .filter(|stage| stage.train.contains(&delta.name))
        .peekable();
    let is_of_task = |task: &TaskPlan| {
        let head = heads.of(task.kind.head());
        let mut steps = head.iter().flat_map(|head| &head.steps);
        steps.any(|step| path.starts_with(&format!("{}.", step.module)))
    };
    stages.peek().is_none()
        || stages.any(|stage| plan.tasks.get(&stage.task).is_some_and(is_of_task))
}

/// Warnings about a plan's backbone, which do not stop a run.
pub fn backbone_warnings(plan: &Plan) -> Vec<Problem> {
    unknown_keys(plan)
        .into_iter()
        .chain(beyond_pretraining(plan))
        .collect()
}

/// A warning about texts that may be longer than those of the pre-training.
fn beyond_pretraining(plan: &Plan) -> Option<Problem> {
    let (longest, asked) = (plan.backbone.config.longest(), plan.backbone.max_length);
    if asked <= longest {
        return None;
    }
    let message = format!(
        "`max_length` is {asked}, but the backbone was pre-trained on {longest} positions (`max_position_embeddings`)"
    );
    let problem = Problem::warning("delta::backbone::long", message).at(plan.backbone.span, "here");
    Some(problem.help(format!(
        "compare with `max_length = {longest}`; without a scaling in `rope_scaling`, quality falls beyond it"
    )))
}

/// A warning about the keys of `config.json` that the family's description does not cover.
fn unknown_keys(plan: &Plan) -> Option<Problem> {
    let path = plan.backbone.directory.join("config.json");
    let text = read_text(&path).ok()?;
    let unknown = Config::unknown_keys(&text);
    if unknown.is_empty() {
        return None;
    }
    let message = format!(
        "`{}` has {} that deltarun does not know: {}",
        path.display(),
        counted(unknown.len(), "key"),
        quoted_list(unknown.iter().map(String::as_str))
    );
    let help = "compare a prediction with transformers if one of these keys could change what the model computes";
    let problem = Problem::warning("delta::backbone::unknown_key", message);
    Some(problem.at(plan.backbone.span, "").help(help))
}
