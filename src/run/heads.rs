//! Checks and describes a plan's backbone by the names and shapes in its checkpoint.

use super::Loader;
use crate::backbone::{Checkpoint, Config, Tree};
use crate::diagnostic::Problem;
use crate::graph::HeadOrigin;
use crate::plan::{Change, DeltaPlan, Plan};
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
        HeadOrigin::Tied => format!("head of `{name}`: the word embeddings'"),
        HeadOrigin::Drawn(why) => format!("head of `{name}`: drawn anew, {why}"),
    };
    plan.tasks.iter().map(sentence).collect()
}

/// Checks a backbone's tokenizer, and the names and shapes of its tensors. Reads no weights, except to compare copies.
/// If the weights of a backbone from the hub have not been fetched yet, checks only the tokenizer.
pub fn check_backbone(plan: &Plan) -> Vec<Problem> {
    let backbone = &plan.backbone;
    let mut problems: Vec<Problem> = Loader::new(plan).err().into_iter().collect();
    if backbone.random {
        return problems;
    }
    let at_backbone = |problem: Problem| problem.or_at(backbone.span);
    match Checkpoint::open_directory(&backbone.directory) {
        Ok(file) => {
            problems.extend(check_shapes(&backbone.config, &file).map(at_backbone));
            problems.extend(check_unfrozen(plan, &file));
        }
        Err(_) if backbone.location.starts_with("hf:") => {}
        Err(problem) => problems.push(at_backbone(problem)),
    }
    problems
}

/// The problem of the first missing or misshapen tensor. One is enough, because usually most of them are then wrong.
fn check_shapes(config: &Config, file: &Checkpoint) -> Option<Problem> {
    let family = config.family();
    let tree = Tree::new(config);
    let of_head = |path: &str| {
        let mut steps = family.heads.classify.steps.iter();
        steps.any(|step| path.starts_with(&format!("{}.", step.module)))
    };
    let mut parameters = tree.parameters();
    parameters.find_map(|parameter| {
        let is_missing = file.find(parameter, &family.base_model_prefix).is_none();
        match is_missing && of_head(&parameter.path) {
            true => None,
            false => file.checked(parameter, &family.base_model_prefix).err(),
        }
    })
}

/// Reports deltas that unfreeze only parameters which the checkpoint lacks. A missing pooler belongs to the head.
fn check_unfrozen(plan: &Plan, file: &Checkpoint) -> Vec<Problem> {
    let prefix = &plan.backbone.config.family().base_model_prefix;
    let tree = Tree::new(&plan.backbone.config);
    let is_missing = |path: &&String| {
        let mut own = tree
            .parameters()
            .filter(|parameter| parameter.path == **path);
        own.any(|parameter| file.find(parameter, prefix).is_none())
    };
    let problem = |delta: &DeltaPlan| {
        let Change::Unfreeze { parameters } = &delta.change else {
            return None;
        };
        // A delta that also unfreezes existing parameters, such as all of them, does not mean the missing ones.
        let missing: Vec<&String> = parameters.iter().filter(is_missing).collect();
        let path = missing
            .first()
            .filter(|_| missing.len() == parameters.len())?;
        let message = format!(
            "`{}` unfreezes `{path}`, which the checkpoint does not have",
            delta.name
        );
        let problem = Problem::new("delta::weights::unfrozen", message).at(delta.span, "here");
        Some(problem.help("train it with the head: `train = [head]`; or leave it out"))
    };
    plan.deltas.iter().filter_map(problem).collect()
}

/// A warning about the keys of `config.json` that the family's description does not cover.
pub fn unknown_keys(plan: &Plan) -> Option<Problem> {
    let path = plan.backbone.directory.join("config.json");
    let text = std::fs::read_to_string(&path).ok()?;
    let unknown = Config::unknown_keys(&text);
    if unknown.is_empty() {
        return None;
    }
    let message = format!(
        "`{}` has {} that this version does not know: {}",
        path.display(),
        counted(unknown.len(), "key"),
        quoted_list(unknown.iter().map(String::as_str))
    );
    let help = "compare a prediction with transformers' if one of them could change what the model computes";
    let problem = Problem::warning("delta::backbone::unknown_key", message);
    Some(problem.at(plan.backbone.span, "").help(help))
}
