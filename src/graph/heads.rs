//! Finds where a task's head comes from: the checkpoint, if it fits the task's labels, or the seed.

use crate::backbone::{head_parameters, Checkpoint, Config};
use crate::plan::{Label, Task, TaskPlan};
use crate::text::list;

/// Where a head comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum HeadOrigin {
    /// The checkpoint's head. For each label of the task, the list has the output of the head that stands for it
    /// (empty for a language model's head). The text says how we matched them.
    Checkpoint(Vec<usize>, String),
    /// The word embeddings. The head has no parameters of its own.
    Tied,
    /// Drawn from the seed, for this reason.
    Drawn(String),
}

impl HeadOrigin {
    /// Finds the origin of a task's head from the names and shapes in the checkpoint. Without a checkpoint, the
    /// backbone's weights are random.
    pub fn of(config: &Config, task: &TaskPlan, file: Option<&Checkpoint>) -> Self {
        let family = config.family();
        let Some(file) = file else {
            let head = family.heads.of(task.kind.head());
            let own = head.map_or(Vec::new(), |head| {
                head_parameters(config, head, task.kind.outputs())
            });
            return match own.is_empty() {
                true => HeadOrigin::Tied,
                false => HeadOrigin::Drawn("like the backbone's weights".to_owned()),
            };
        };
        let head = family.heads.of(task.kind.head());
        let outputs = task.kind.outputs();
        let last = head
            .and_then(|head| head.steps.last())
            .map(|step| format!("{}.weight", step.module));
        let parameters = head.map_or(Vec::new(), |head| head_parameters(config, head, outputs));
        let Some(weight) = parameters.iter().find(|p| Some(&p.path) == last.as_ref()) else {
            // This language model's head has no output weight of its own. It uses the word embeddings.
            let is_whole = parameters
                .iter()
                .all(|p| p.is_bias() || file.find(p, &family.base_model_prefix).is_some());
            return match is_whole {
                true => HeadOrigin::Checkpoint(Vec::new(), "its language-model head".to_owned()),
                false => HeadOrigin::Drawn("the checkpoint has no language-model head".to_owned()),
            };
        };
        let found = file.find(weight, &family.base_model_prefix);
        let rows = found.and_then(|name| file.shape(&name)?.first().copied());
        match rows {
            None => HeadOrigin::Drawn("the checkpoint has no head for this task".to_owned()),
            Some(_) if task.kind.uses_language_model() => {
                HeadOrigin::Checkpoint(Vec::new(), "its language-model head".to_owned())
            }
            Some(rows) if rows != outputs => HeadOrigin::Drawn(format!(
                "the checkpoint's head has {rows} outputs, but the task needs {outputs}"
            )),
            Some(_) if task.kind.labels().is_empty() => {
                HeadOrigin::Checkpoint(vec![0], "its single output".to_owned())
            }
            Some(_) => by_labels(config, task.kind.labels()),
        }
    }
}

fn by_labels(config: &Config, labels: &[Label]) -> HeadOrigin {
    if let Some(stored) = &config.labels {
        let quoted: Vec<String> = stored.iter().map(|name| format!("`{name}`")).collect();
        let by = |value: fn(&Label) -> &String| order(stored, labels.iter().map(value));
        return match by(|label| &label.name).or_else(|| by(|label| &label.value)) {
            Some(order) => HeadOrigin::Checkpoint(order, "matched by label name".to_owned()),
            None => HeadOrigin::Drawn(format!("the checkpoint's head is for {}", list(&quoted))),
        };
    }
    let numbers: Vec<String> = (0..labels.len()).map(|number| number.to_string()).collect();
    let generic: Vec<String> = numbers
        .iter()
        .map(|number| format!("LABEL_{number}"))
        .collect();
    let values = || labels.iter().map(|label| &label.value);
    let names = || labels.iter().map(|label| &label.name);
    let numbered = order(&numbers, values()).or_else(|| order(&generic, names()));
    match numbered {
        Some(order) => HeadOrigin::Checkpoint(order, "matched by output number".to_owned()),
        None => HeadOrigin::Checkpoint(
            (0..labels.len()).collect(),
            "matched by position because `config.json` names no labels".to_owned(),
        ),
    }
}

/// For each label, the index of the stored label with the same name, ignoring case; `None` if the two sets differ.
fn order<'a>(stored: &[String], labels: impl Iterator<Item = &'a String>) -> Option<Vec<usize>> {
    let same = |a: &String, b: &String| a.to_lowercase() == b.to_lowercase();
    let place = |label: &String| stored.iter().position(|stored| same(stored, label));
    let order: Vec<usize> = labels.map(place).collect::<Option<_>>()?;
    let mut sorted = order.clone();
    sorted.sort_unstable();
    sorted.into_iter().eq(0..stored.len()).then_some(order)
}

/// Reorders the rows of an output weight `(labels, width)` or bias `(labels)`: row `i` becomes row `order[i]`.
pub fn reordered(values: &[f32], order: &[usize]) -> Vec<f32> {
    let width = values.len() / order.len().max(1);
    let row = |from: &usize| &values[from * width..(from + 1) * width];
    order.iter().flat_map(row).copied().collect()
}

/// For each label of `task`, the index of the label with the same name in `other`; `None` if the two are of different
/// kinds, are answered by different heads, or have different labels.
pub fn label_order(task: &Task, other: &Task) -> Option<Vec<usize>> {
    let is_same = task.name() == other.name() && task.head() == other.head();
    let stored: Vec<String> = other
        .labels()
        .iter()
        .map(|label| label.name.clone())
        .collect();
    is_same.then(|| order(&stored, task.labels().iter().map(|label| &label.name)))?
}
