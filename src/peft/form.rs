//! Which of PEFT's kinds of adapter holds the deltas of a plan.

use crate::backbone::{Site, Tree};
use crate::delta::Method;
use crate::plan::{Change, DeltaPlan, Plan};

/// A kind of adapter.
pub(super) enum Form<'p> {
    /// Any number of LoRAs.
    LowRank,
    /// Deltas of one other method with one choice of settings, at whole linear layers.
    Tuner(Vec<&'p DeltaPlan>),
    /// Prefixes at all attentions.
    Prefix,
    /// Prompts before the embeddings.
    Prompt,
}

/// Why what a plan leaves has no form in PEFT, if it has none.
pub fn why_not(plan: &Plan) -> Option<String> {
    form(plan).err()
}

/// The kind of adapter that holds what a plan leaves.
///
/// # Errors
/// Why there is none.
pub(super) fn form(plan: &Plan) -> Result<Form<'_>, String> {
    let active = plan.active(plan.stages.len());
    let Some(first) = active.first() else {
        return Err("only the head was trained".to_owned());
    };
    if plan
        .final_task()
        .is_some_and(|(_, task)| task.uses_language_model())
    {
        return Err("the head is a language model's".to_owned());
    }
    let mut methods = Vec::new();
    for delta in &active {
        match &delta.change {
            Change::Unfreeze { .. } => {
                let name = &delta.name;
                return Err(format!("`{name}` changes weights of the backbone itself"));
            }
            Change::Method { method, sites } => methods.push((method, sites)),
        }
    }
    for (method, _) in &methods {
        let is_known = is_prompt(method) || is_prefix(method) || method.peft().is_some();
        if !is_known {
            return Err(format!("PEFT has no `{}`", method.name()));
        }
    }
    let all = |test: fn(&Method) -> bool| methods.iter().all(|(method, _)| test(method));
    if all(|method| matches!(method, Method::Lora(_))) {
        return Ok(Form::LowRank);
    }
    if all(is_prompt) {
        return Ok(Form::Prompt);
    }
    if all(is_prefix) {
        let layers = plan.backbone.config.layers;
        return match methods.iter().all(|(_, sites)| sites.len() == layers) {
            true => Ok(Form::Prefix),
            false => Err("PEFT has prefixes at all attentions or at none".to_owned()),
        };
    }
    // (IA)³ on inputs and on outputs is one method to PEFT: what counts is what PEFT is told.
    let told = |method: &Method| method.peft().map(|form| (form.kind, form.settings));
    if methods
        .iter()
        .any(|(method, _)| told(method) != told(methods[0].0))
    {
        return Err(format!(
            "an adapter of PEFT holds one method with one choice of settings, and there is more than `{}`",
            first.name
        ));
    }
    check_sites(plan, &active)?;
    Ok(Form::Tuner(active))
}

fn is_prompt(method: &Method) -> bool {
    matches!(method, Method::Prompt(_) | Method::PTuning(_))
}

fn is_prefix(method: &Method) -> bool {
    matches!(method, Method::Prefix(_))
}

/// PEFT has one of these at a module, and at whole modules of the checkpoint only.
fn check_sites(plan: &Plan, deltas: &[&DeltaPlan]) -> Result<(), String> {
    let tree = Tree::new(&plan.backbone.config);
    let mut seen: Vec<&str> = Vec::new();
    for delta in deltas {
        let Change::Method { sites, .. } = &delta.change else {
            continue;
        };
        for site in sites {
            if seen.contains(&site.as_str()) {
                return Err(format!(
                    "`{site}` has two deltas, and PEFT has one at a module"
                ));
            }
            seen.push(site);
            let module = tree
                .module(site)
                .filter(|module| module.site == Site::Linear);
            let is_part = module.is_some_and(|m| m.parameters.iter().any(|p| p.source.parts > 1));
            if is_part {
                return Err(format!(
                    "`{site}` is a part of a fused layer, which PEFT sees as a whole"
                ));
            }
        }
    }
    Ok(())
}
