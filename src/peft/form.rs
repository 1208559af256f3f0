//! Finds the kind of PEFT adapter that can hold the deltas of a plan.

use super::import::WORD_TABLE;
use super::prompts;
use crate::backbone::{Module, Site, Tree};
use crate::delta::{Method, PeftAdapter};
use crate::plan::{DeltaPlan, Plan};

/// A kind of adapter.
pub(super) enum Form<'p> {
    /// Any number of LoRAs, and trained rows of the word embeddings.
    LowRank,
    /// Deltas of one other method with one choice of settings, at whole linear layers.
    Tuner(Vec<&'p DeltaPlan>),
    /// Norms trained whole, by their paths.
    Norms(Vec<String>),
    /// Prefixes at all attentions.
    Prefix,
    /// Prompts before the embeddings.
    Prompt,
}

/// The reason why PEFT has no form for a plan's final deltas; `None` if it has one.
pub fn why_not(plan: &Plan) -> Option<String> {
    form(plan).err()
}

/// The kind of adapter that can hold a plan's final deltas.
///
/// # Errors
/// The reason why there is none.
pub(super) fn form(plan: &Plan) -> Result<Form<'_>, String> {
    let active = plan.active(plan.stages.len());
    let Some(first) = active.first() else {
        return Err(match plan.stages.is_empty() {
            true => "the run trained nothing".to_owned(),
            false => "the run trained only the head".to_owned(),
        });
    };
    let task = plan.final_task().map(|(_, task)| task);
    let is_language_model = task.is_some_and(|task| task.kind.uses_language_model());
    if is_language_model && plan.backbone.config.family().heads.masked_lm.is_some() {
        return Err("PEFT has no task type for a masked-language-model head".to_owned());
    }
    let mut methods = Vec::new();
    let mut unfrozen = Vec::new();
    for delta in &active {
        unfrozen.extend(delta.unfrozen());
        methods.extend(delta.method().map(|method| (method, delta.sites())));
    }
    if !unfrozen.is_empty() {
        let norms = whole_norms(plan, &unfrozen).filter(|_| methods.is_empty());
        return norms.map(Form::Norms).ok_or_else(|| {
            let mut names = active.iter().filter(|delta| delta.unfreezes());
            let name = names.next().map_or("", |delta| delta.name.as_str());
            format!("`{name}` unfreezes weights of the backbone, and PEFT stores only whole norms without other deltas")
        });
    }
    if let Some(gated) = active.iter().find(|delta| delta.is_gated) {
        return Err(format!("PEFT has no gates, but `{}` has one", gated.name));
    }
    for (method, _) in &methods {
        if method.peft_adapter() == PeftAdapter::None {
            return Err(format!("PEFT has no method `{}`", method.name()));
        }
    }
    check_stacks(plan, is_language_model, &methods)?;
    let trains_rows = |(method, _): &(&Method, _)| is_rows(method);
    let is_tied = is_language_model && !plan.backbone.config.is_head_own();
    if is_tied && methods.iter().any(trains_rows) {
        return Err("PEFT would train the rows of the tied head as well".to_owned());
    }
    let all = |test: fn(&Method) -> bool| methods.iter().all(|(method, _)| test(method));
    if all(is_low_rank) {
        return check_rows(&methods).map(|()| Form::LowRank);
    }
    if all(is_prompt) {
        return Ok(Form::Prompt);
    }
    if all(is_prefix) {
        return check_prefixes(plan, &methods).map(|()| Form::Prefix);
    }
    // Compare the settings as PEFT sees them: (IA)³ on inputs and on outputs is one method there.
    let told = |method: &Method| (method.peft_kind(), method.peft().map(|form| form.settings));
    if methods
        .iter()
        .any(|(method, _)| told(method) != told(methods[0].0))
    {
        return Err(format!(
            "a PEFT adapter holds one method with one configuration, and another delta differs from `{}`",
            first.name
        ));
    }
    check_sites(plan, &active)?;
    Ok(Form::Tuner(active))
}

/// Refuses deltas that PEFT does not support on a backbone with an encoder and a decoder.
fn check_stacks(
    plan: &Plan,
    is_language_model: bool,
    methods: &[(&Method, &[String])],
) -> Result<(), String> {
    if plan.backbone.config.decoder_layers.is_none() {
        return Ok(());
    }
    let is_table = |site: &String| site == WORD_TABLE;
    if methods.iter().any(|(_, sites)| sites.iter().any(is_table)) {
        return Err(
            "in PEFT, the encoder and the decoder read separate copies of the word embeddings"
                .to_owned(),
        );
    }
    let adds_rows = |(method, _): &(&Method, _)| is_prompt(method) || is_prefix(method);
    match !is_language_model && methods.iter().any(adds_rows) {
        true => Err(
            "PEFT does not support prompts or prefixes for an encoder-decoder classifier"
                .to_owned(),
        ),
        false => Ok(()),
    }
}

/// Checks that prefixes are exactly where PEFT has them: at all attentions of the last stack.
fn check_prefixes(plan: &Plan, methods: &[(&Method, &[String])]) -> Result<(), String> {
    let config = &plan.backbone.config;
    if !config.family().takes_prefixes {
        return Err(format!(
            "transformers' {} takes no prefixes",
            config.family().architecture
        ));
    }
    if !prompts::has_own_prefixes(config) {
        return Err(
            "PEFT shares each prefix between two blocks of a decoder with an even number of blocks"
                .to_owned(),
        );
    }
    let all = prompts::prefix_sites(config);
    let is_all = |(_, sites): &(_, &[String])| {
        sites.len() == all.len() && sites.iter().all(|site| all.contains(site))
    };
    match (methods.iter().all(is_all), config.decoder_layers) {
        (true, _) => Ok(()),
        (false, None) => Err("PEFT places prefixes at every attention or at none".to_owned()),
        (false, Some(_)) => Err(
            "PEFT places prefixes at every `decoder.block.*.attn` or at none, and nowhere else"
                .to_owned(),
        ),
    }
}

/// The norms to which these parameters belong; `None` unless they are exactly all parameters of these norms.
fn whole_norms(plan: &Plan, parameters: &[&String]) -> Option<Vec<String>> {
    let tree = Tree::new(&plan.backbone.config);
    let norms = tree.modules().iter().filter(|module| {
        let mut own = module.parameters.iter();
        module.site == Site::Norm && own.all(|own| parameters.contains(&&own.path))
    });
    let norms: Vec<_> = norms.collect();
    let count: usize = norms.iter().map(|module| module.parameters.len()).sum();
    (count == parameters.len()).then(|| norms.iter().map(|norm| norm.path.clone()).collect())
}

fn is_rows(method: &Method) -> bool {
    matches!(method.peft_adapter(), PeftAdapter::Rows(_))
}

fn is_low_rank(method: &Method) -> bool {
    matches!(method.peft_adapter(), PeftAdapter::LowRank(_)) || is_rows(method)
}

/// Checks that a table with trained rows has no other delta, because PEFT supports only one.
fn check_rows(methods: &[(&Method, &[String])]) -> Result<(), String> {
    let rows = methods.iter().filter(|(method, _)| is_rows(method));
    for table in rows.flat_map(|(_, sites)| sites.iter()) {
        if methods
            .iter()
            .filter(|(_, sites)| sites.contains(table))
            .count()
            > 1
        {
            return Err(format!(
                "`{table}` has two deltas, but PEFT allows one per module"
            ));
        }
    }
    Ok(())
}

fn is_prompt(method: &Method) -> bool {
    method.peft_adapter() == PeftAdapter::Prompt
}

fn is_prefix(method: &Method) -> bool {
    method.peft_adapter() == PeftAdapter::Prefix
}

/// Checks that every module has only one delta and is a whole module of the checkpoint, as PEFT requires.
fn check_sites(plan: &Plan, deltas: &[&DeltaPlan]) -> Result<(), String> {
    let tree = Tree::new(&plan.backbone.config);
    let mut seen: Vec<&str> = Vec::new();
    for delta in deltas {
        for site in delta.sites() {
            if seen.contains(&site.as_str()) {
                return Err(format!(
                    "`{site}` has two deltas, but PEFT allows one per module"
                ));
            }
            seen.push(site);
            let module = tree
                .module(site)
                .filter(|module| module.site == Site::Linear);
            let is_part = module.is_some_and(Module::is_part);
            if is_part {
                return Err(format!(
                    "`{site}` is part of a fused layer, which PEFT adapts only as a whole"
                ));
            }
        }
    }
    Ok(())
}
