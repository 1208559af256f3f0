//! Writes a plan as text for the record of a run, and reads it back. Anybody may have changed the text, so reading
//! checks it.

use serde_yaml::Value;
use sha2::{Digest, Sha256};

use super::{DeltaPlan, Plan};
use crate::backbone::{Module, Tree};
use crate::diagnostic::Problem;
use crate::text::{counted, hexadecimal};

/// The most elements that a parameter may have: more than any real one, but few enough that a product of two such
/// numbers does not overflow.
const MOST_ELEMENTS: usize = 1 << 32;

/// The most differences that a message names.
const MOST_DIFFERENCES: usize = 3;

impl Plan {
    /// The plan as YAML, without tags, so that any YAML reader can read it.
    ///
    /// # Errors
    /// Only a bug in deltarun: every part of a plan can be written.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let mut text = Vec::new();
        let mut serializer = serde_yaml::Serializer::new(&mut text);
        serde_yaml::with::singleton_map_recursive::serialize(self, &mut serializer)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Reads what [`Plan::to_yaml`] wrote.
    ///
    /// # Errors
    /// One sentence: the text is no plan, or it is a plan that no pipeline file can give.
    pub fn from_yaml(text: &str) -> Result<Self, String> {
        let value: Value = crate::text::yaml(text)?;
        if let Some(place) = not_finite(&value) {
            return Err(format!("`{place}` is NaN or infinite"));
        }
        let document = serde_yaml::Deserializer::from_str(text);
        let plan: Plan = serde_yaml::with::singleton_map_recursive::deserialize(document)
            .map_err(|e| e.to_string())?;
        plan.check_stored()?;
        Ok(plan)
    }

    /// Checks that a plan read from text is as consistent as one made from a pipeline file.
    fn check_stored(&self) -> Result<(), String> {
        self.backbone.config.check()?;
        let longest = self.backbone.config.limit();
        if !(1..=longest).contains(&self.backbone.max_length) {
            let found = self.backbone.max_length;
            return Err(format!(
                "`max_length` is {found}, but the backbone has {longest} positions"
            ));
        }
        if self.tasks.is_empty() {
            return Err("it has no task".to_owned());
        }
        for task in self
            .tasks
            .values()
            .filter(|task| task.kind.cloze().is_none())
        {
            if !task.kind.predicts_tokens() && task.kind.outputs() == 0 {
                return Err("a task has no labels".to_owned());
            }
        }
        let tree = Tree::new(&self.backbone.config);
        for delta in &self.deltas {
            check_delta(delta, &tree).map_err(|reason| format!("`{}`: {reason}", delta.name))?;
        }
        for stage in &self.stages {
            let names = stage.train.iter().chain(&stage.without);
            for name in names {
                if self.deltas.iter().all(|delta| delta.name != *name) {
                    return Err(format!(
                        "stage `{}` names `{name}`, which is not a delta of the plan",
                        stage.name
                    ));
                }
            }
            if !self.tasks.contains_key(&stage.task) || !self.data.contains_key(&stage.data) {
                return Err(format!("stage `{}` has no task or no data", stage.name));
            }
            if stage.batch == 0 || stage.accumulate == 0 || stage.evaluate.count == 0 {
                return Err(format!(
                    "stage `{}` has a `batch`, `accumulate` or `evaluate` of 0",
                    stage.name
                ));
            }
        }
        Ok(())
    }

    /// A hash of everything that determines the run's result. Two files with the same meaning have the same hash.
    ///
    /// # Errors
    /// The plan cannot be written.
    pub fn hash(&self) -> Result<String, Problem> {
        let text = self
            .meaning()
            .and_then(|value| serde_yaml::to_string(&value))
            .map_err(Problem::internal)?;
        Ok(hexadecimal(&Sha256::digest(text)))
    }

    /// The meaning of the plan: its YAML without places in the file, params and the backbone's location.
    fn meaning(&self) -> Result<Value, serde_yaml::Error> {
        let mut value = serde_yaml::from_str(&self.to_yaml()?)?;
        strip(&mut value);
        Ok(value)
    }

    /// The first few differences from another plan, as [`Plan::to_yaml`] wrote it, in words.
    pub fn differences(&self, other: &str) -> Vec<String> {
        let (Ok(own), Ok(mut other)) = (self.meaning(), crate::text::yaml(other)) else {
            return Vec::new();
        };
        strip(&mut other);
        let mut found = Vec::new();
        differ("", &other, &own, &mut found);
        let in_words =
            |[place, then, now]: [String; 3]| format!("`{place}` was {then} and is now {now}");
        let mut found: Vec<String> = found.into_iter().map(in_words).collect();
        let more = found.len().saturating_sub(MOST_DIFFERENCES);
        found.truncate(MOST_DIFFERENCES);
        if more > 0 {
            found.push(format!("and {} more", counted(more, "difference")));
        }
        found
    }
}

impl Plan {
    /// Every difference from another plan: its place in the plan, what the other has there, and what this one has.
    pub fn compared(&self, other: &Plan) -> Vec<[String; 3]> {
        let mut found = Vec::new();
        if let (Ok(own), Ok(other)) = (self.meaning(), other.meaning()) {
            differ("", &other, &own, &mut found);
        }
        found
    }
}

fn check_delta(delta: &DeltaPlan, tree: &Tree) -> Result<(), String> {
    let Some(method) = delta.method() else {
        return Ok(());
    };
    let module = |site: &String| {
        tree.module(site)
            .ok_or_else(|| format!("the backbone has no module `{site}`"))
    };
    let modules: Vec<&Module> = delta.sites().iter().map(module).collect::<Result<_, _>>()?;
    for module in &modules {
        if !method.accepts(module.site) {
            return Err(format!("`{}` is {}", module.path, module.site.describe()));
        }
        method.check(module)?;
    }
    let of_sites = modules.iter().flat_map(|module| delta.parameters(module));
    for parameter in of_sites.chain(method.shared(&modules)) {
        let elements = parameter
            .shape
            .iter()
            .try_fold(1usize, |product, size| product.checked_mul(*size));
        if elements.is_none_or(|elements| elements == 0 || elements > MOST_ELEMENTS) {
            return Err(format!(
                "`{}` has the unusable shape {:?}",
                parameter.name, parameter.shape
            ));
        }
    }
    Ok(())
}

/// The key of the first number that is not finite.
fn not_finite(value: &Value) -> Option<String> {
    match value {
        Value::Mapping(map) => map.iter().find_map(|(key, value)| match value {
            Value::Number(number) if number.as_f64().is_some_and(|n| !n.is_finite()) => {
                Some(key.as_str().unwrap_or_default().to_owned())
            }
            value => not_finite(value),
        }),
        Value::Sequence(items) => items.iter().find_map(|item| match item {
            Value::Number(number) if number.as_f64().is_some_and(|n| !n.is_finite()) => {
                Some("an element of a list".to_owned())
            }
            item => not_finite(item),
        }),
        _ => None,
    }
}

/// Removes the parts that do not change what a run does: places in the file, params and the backbone's location.
fn strip(plan: &mut Value) {
    if let Some(plan) = plan.as_mapping_mut() {
        plan.remove("params");
        if let Some(backbone) = plan.get_mut("backbone").and_then(Value::as_mapping_mut) {
            backbone.remove("location");
        }
    }
    strip_spans(plan);
}

/// Removes all spans. A data set or a task may also have the name `span`, so we remove only a `span` that has exactly
/// a `start` and an `end`.
fn strip_spans(value: &mut Value) {
    match value {
        Value::Mapping(map) => {
            let is_span = |span: &Value| {
                let ends = span.as_mapping().filter(|span| span.len() == 2);
                ends.is_some_and(|span| span.contains_key("start") && span.contains_key("end"))
            };
            if map.get("span").is_some_and(is_span) {
                map.remove("span");
            }
            map.values_mut().for_each(strip_spans);
        }
        Value::Sequence(items) => items.iter_mut().for_each(strip_spans),
        _ => {}
    }
}

/// Collects where two values differ, each as `place: then, now`.
fn differ(place: &str, then: &Value, now: &Value, found: &mut Vec<[String; 3]>) {
    let within = |key: &str| match place {
        "" => key.to_owned(),
        _ => format!("{place}.{key}"),
    };
    match (then, now) {
        (then, now) if then == now => {}
        (Value::Mapping(then), Value::Mapping(now)) => {
            let only_now = now.keys().filter(|key| !then.contains_key(*key));
            for key in then.keys().chain(only_now) {
                let of = |map: &serde_yaml::Mapping| map.get(key).cloned().unwrap_or_default();
                let name = key.as_str().unwrap_or_default();
                differ(&within(name), &of(then), &of(now), found);
            }
        }
        (Value::Sequence(then), Value::Sequence(now)) if then.len() == now.len() => {
            for (index, (then, now)) in then.iter().zip(now).enumerate() {
                let name = now.get("name").and_then(Value::as_str).map(str::to_owned);
                differ(
                    &within(&name.unwrap_or(index.to_string())),
                    then,
                    now,
                    found,
                );
            }
        }
        _ => found.push([place.to_owned(), brief(then), brief(now)]),
    }
}

fn brief(value: &Value) -> String {
    match value {
        Value::Null => "absent".to_owned(),
        Value::Sequence(items) => counted(items.len(), "item"),
        Value::Mapping(_) => "a mapping".to_owned(),
        // The plan keeps fractions in 32 bits, so further digits would be noise.
        Value::Number(number) if number.is_f64() => {
            (number.as_f64().unwrap_or_default() as f32).to_string()
        }
        plain => serde_yaml::to_string(plain)
            .unwrap_or_default()
            .trim()
            .to_owned(),
    }
}
