//! `deltarun methods`, `deltarun tasks` and `deltarun families`: what the language knows, from what reads it.

use std::fmt::Write;

use serde_json::Value;

use super::Ended;
use crate::backbone::family::{families, Family};
use crate::backbone::Config;
use crate::delta::Method;
use crate::diagnostic::{Problem, Problems, Span};
use crate::settings::{synonyms, Fields, Scope};
use crate::task::Task;
use crate::terminal::print;
use crate::text::{did_you_mean, quoted_list, wrapped};

/// `deltarun methods [NAME]`
pub(super) fn methods(name: Option<&str>) -> Result<Ended, Problems> {
    let names: Vec<&str> = Method::ALL.iter().map(|(name, _)| *name).collect();
    let (scope, problems) = (Scope::default(), Default::default());
    let read = |name: &str| {
        let fields = Fields::new(name, Span::default(), None, &scope, &problems);
        let method = Method::read(name, &fields, &any_config())?;
        Some((method, fields.known()))
    };
    let Some(name) = name else {
        let mut text = String::new();
        for (name, method) in names.iter().filter_map(|name| Some((name, read(name)?.0))) {
            let _ = writeln!(text, "{name:<22}{}", method.paper());
        }
        let _ = writeln!(text, "\n`deltarun methods NAME` shows the settings of one.");
        print(&text);
        return Ok(Ended::Done);
    };
    let (method, settings) = read(name).ok_or_else(|| unknown("method", name, &names))?;
    let preposition = method.preposition();
    let mut text = format!(
        "{name}: {}\n\n{} NAME = {name} {{ … }} {} SELECTOR   ({})\n\n",
        method.paper(),
        preposition.keyword(),
        preposition.word(),
        method.sites(),
    );
    text += &table(
        &settings,
        &serde_json::to_value(&method).unwrap_or_default(),
    );
    print(&text);
    Ok(Ended::Done)
}

/// `deltarun tasks [NAME]`
pub(super) fn tasks(name: Option<&str>) -> Result<Ended, Problems> {
    let (scope, problems) = (Scope::default(), Default::default());
    let read = |name: &str| {
        let fields = Fields::new(name, Span::default(), None, &scope, &problems);
        let task = Task::read(name, &fields)?;
        Some((task, fields.known()))
    };
    let Some(name) = name else {
        let mut text = String::new();
        for name in Task::NAMES {
            let metrics = read(name).map_or(Vec::new(), |(task, _)| metrics(&task));
            let _ = writeln!(text, "{name:<14}{}", metrics.join(", "));
        }
        let _ = writeln!(text, "\n`deltarun tasks NAME` shows the settings of one.");
        print(&text);
        return Ok(Ended::Done);
    };
    let (task, mut settings) = read(name).ok_or_else(|| unknown("task", name, Task::NAMES))?;
    settings.push("metric");
    let mut text = format!("task {name} {{ … }}\n\n");
    text += &wrapped("metrics   ", &metrics(&task).join(", "));
    text += "\n";
    text += &wrapped("settings  ", &settings.join(", "));
    let _ = writeln!(text, "\n\ndocs/language.md explains them.");
    print(&text);
    Ok(Ended::Done)
}

fn metrics(task: &Task) -> Vec<&'static str> {
    task.measures().iter().map(|metric| metric.name()).collect()
}

/// `deltarun families`
pub(super) fn list_families() -> Ended {
    let mut text = String::new();
    let _ = writeln!(text, "{:<13}{:<26}heads", "family", "`model_type`");
    for family in families() {
        let types = family.model_types.join(", ");
        let _ = writeln!(
            text,
            "{:<13}{types:<26}{}",
            family.name,
            heads(family).join(", ")
        );
    }
    print(&text);
    Ended::Done
}

/// transformers' classes of a family's heads.
fn heads(family: &Family) -> Vec<String> {
    let heads = &family.heads;
    let models = [&heads.masked_lm, &heads.causal_lm, &heads.seq2seq];
    let others = [Some(&heads.classify), heads.tag.as_ref()];
    let all = others
        .into_iter()
        .flatten()
        .chain(models.into_iter().flatten());
    all.map(|head| head.class.trim_start_matches("For").to_owned())
        .collect()
}

/// Settings, and the defaults of those that a method keeps under the setting's own name.
fn table(settings: &[&str], defaults: &Value) -> String {
    if settings.is_empty() {
        return "It has no settings.\n".to_owned();
    }
    let mut text = format!("{:<20}default\n", "setting");
    for name in settings {
        let default = match defaults.get(name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(word)) => word.clone(),
            Some(Value::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
            Some(other) => other.to_string(),
        };
        let _ = writeln!(text, "{}", format!("{name:<20}{default}").trim_end());
    }
    text
}

fn unknown(kind: &str, name: &str, known: &[&str]) -> Problem {
    let message = format!("there is no {kind} `{name}`");
    let problem = Problem::new("delta::cli::unknown_name", message);
    if let Some(help) = synonyms::for_word(name, known.iter().copied()) {
        return problem.help(help);
    }
    match did_you_mean(name, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help(format!(
            "the {kind}s are {}",
            quoted_list(known.iter().copied())
        )),
    }
}

/// A backbone for defaults that do not depend on it.
fn any_config() -> Config {
    Config::parse(r#"{ "model_type": "llama" }"#).expect("transformers' defaults are a Llama")
}
