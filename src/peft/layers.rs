//! The blocks to which an adapter is restricted.

use std::path::Path;

use serde_json::Value;

use super::import::problem;
use crate::delta::PeftConfig;
use crate::diagnostic::Problem;
use crate::pattern::Pattern;

/// The blocks that `layers_to_transform` selects, as in PEFT (`tuners_utils.check_target_module_exists`).
pub(super) struct Layers {
    /// `None` for all blocks.
    numbers: Option<Vec<i64>>,
    /// Patterns of the name before a block's number. Without patterns, any name matches.
    patterns: Vec<String>,
}

impl Layers {
    pub(super) fn of(directory: &Path, adapter: &PeftConfig) -> Result<Self, Problem> {
        let texts = |value: Option<&Value>| -> Vec<String> {
            let items = match value {
                Some(Value::String(text)) => return vec![text.clone()],
                value => value.and_then(Value::as_array).into_iter().flatten(),
            };
            items.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let patterns = texts(adapter.get("layers_pattern"));
        let numbers = match adapter.get("layers_to_transform") {
            Some(Value::Number(one)) => one.as_i64().map(|one| vec![one]),
            Some(Value::Array(all)) if !all.is_empty() => {
                Some(all.iter().filter_map(Value::as_i64).collect())
            }
            _ => None,
        };
        let is_pattern = adapter.get("target_modules").is_some_and(Value::is_string);
        if numbers.is_some() && is_pattern {
            let message = "`layers_to_transform` cannot be combined with a regular expression as `target_modules`";
            return Err(problem(directory, message)
                .help("put the blocks into the expression, or list the modules"));
        }
        Ok(Layers { numbers, patterns })
    }

    /// Whether a module of `target_modules` is in one of the blocks. A module named in full is always included.
    pub(super) fn have(&self, name: &str, targets: &Value) -> bool {
        let Some(numbers) = &self.numbers else {
            return true;
        };
        let is_whole = targets
            .as_array()
            .is_some_and(|items| items.iter().any(|item| item == name));
        let number = match self.patterns.as_slice() {
            [] => block_number(r".*?\.[^.]*\.(\d+)\.", name),
            patterns => patterns.iter().find_map(|pattern| {
                block_number(&format!(r"(?:|.*?\.)(?:{pattern})\.(\d+)\."), name)
            }),
        };
        is_whole || number.is_some_and(|number| numbers.contains(&number))
    }
}

/// The number of a block in a module's name.
fn block_number(pattern: &str, name: &str) -> Option<i64> {
    let pattern = Pattern::new(pattern).ok()?;
    pattern.last_group(name)?.parse().ok()
}
