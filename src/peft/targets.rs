//! Finds the modules that an adapter names.

use std::path::Path;

use serde_json::Value;

use super::import::problem;
use super::layers::Layers;
use super::module_name;
use crate::backbone::{Module, Site, Tree};
use crate::delta::PeftConfig;
use crate::diagnostic::Problem;
use crate::pattern::Pattern;

/// Whether an expression matches a whole name (`re.fullmatch`).
pub(super) fn is_whole(expression: &str, name: &str) -> bool {
    Pattern::new(expression).is_ok_and(|pattern| pattern.matches_whole(name))
}

/// The modules that `target_modules` names, with their full names.
pub(super) fn target_sites<'t>(
    directory: &Path,
    adapter: &PeftConfig,
    tree: &'t Tree,
    prefix: &str,
    is_wanted: impl Fn(&Module) -> bool,
) -> Result<Vec<(&'t Module, String)>, Problem> {
    check_expressions(directory, adapter)?;
    let layers = Layers::of(directory, adapter)?;
    let saved = saved_modules(adapter);
    let targets = adapter.get("target_modules").unwrap_or(&Value::Null);
    let excluded = adapter.get("exclude_modules").unwrap_or(&Value::Null);
    let sites: Vec<_> = tree
        .modules()
        .iter()
        .filter(|module| is_wanted(module) && !module.is_part())
        .filter(|module| targets != "all-linear" || module.site != Site::Embedding)
        .map(|module| (module, module_name(prefix, &module.checkpoint_name)))
        .filter(|(_, name)| names(targets, name) && layers.have(name, targets))
        .filter(|(_, name)| !names(excluded, name) && !is_saved(&saved, name))
        .collect();
    if sites.is_empty() {
        let message = format!(
            "the `target_modules` {} match no module of the backbone",
            targets
        );
        return Err(problem(directory, message)
            .help("name the backbone that the adapter was trained on with `--backbone DIR`"));
    }
    Ok(sites)
}

/// Refuses what is to be a regular expression and is none: a text that names targets, and every name in the other lists.
fn check_expressions(directory: &Path, adapter: &PeftConfig) -> Result<(), Problem> {
    for (key, is_list) in [
        ("target_modules", false),
        ("exclude_modules", false),
        ("layers_pattern", true),
        ("modules_to_save", true),
    ] {
        let value = adapter.get(key).unwrap_or(&Value::Null);
        let items = value.as_array().filter(|_| is_list);
        let texts = items.into_iter().flatten().chain([value]);
        for text in texts.filter_map(Value::as_str) {
            if let Err(reason) = Pattern::new(text) {
                let message =
                    format!("`{key}` has `{text}`, which is no regular expression: {reason}");
                return Err(problem(directory, message)
                    .help("correct it: PEFT reads it with Python's `re`"));
            }
        }
    }
    Ok(())
}

/// Whether `modules_to_save` keeps a module from being adapted.
fn is_saved(saved: &[String], name: &str) -> bool {
    saved
        .iter()
        .any(|saved| is_whole(&format!(r"(.*\.)?(?:{saved})($|\..*)"), name))
}

/// Whether `target_modules` or `exclude_modules` names a module. A text is a regular expression for the whole
/// name. A list has full names or their endings.
pub(super) fn names(targets: &Value, name: &str) -> bool {
    match targets {
        Value::String(text) if text.eq_ignore_ascii_case("all-linear") => true,
        Value::String(text) => is_whole(text, name),
        Value::Array(items) => items.iter().filter_map(Value::as_str).any(|item| {
            name == item
                || name
                    .strip_suffix(item)
                    .is_some_and(|rest| rest.ends_with('.'))
        }),
        _ => false,
    }
}

/// The names in `modules_to_save`.
pub(super) fn saved_modules(adapter: &PeftConfig) -> Vec<String> {
    let saved = adapter.get("modules_to_save").and_then(Value::as_array);
    let names = saved.into_iter().flatten().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}
