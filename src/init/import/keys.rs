//! The keys of a configuration, each read at most once by the tool that knows it.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// A configuration's keys, with those that were read.
pub(super) struct Keys<'a> {
    all: &'a Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(all: &'a Map<String, Value>) -> Self {
        Keys {
            all,
            read: RefCell::default(),
        }
    }

    /// The value of a key; none if it is null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.all.get(key).filter(|value| !value.is_null())
    }

    /// A text or a number as a text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// A number. YAML reads `2e-4` as a text.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Value::String(text) => text.parse().ok(),
            value => value.as_f64(),
        }
    }

    /// A whole number above 0.
    pub(super) fn count(&self, key: &str) -> Option<usize> {
        let number = self.number(key)?;
        (number >= 1.0).then_some(number as usize)
    }

    /// A switch; off if it is not there.
    pub(super) fn is_on(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    /// Names: a list, or a text with commas.
    pub(super) fn names(&self, key: &str) -> Option<Vec<String>> {
        Some(match self.get(key)? {
            Value::Array(all) => {
                let names = all.iter().filter_map(Value::as_str);
                names.map(str::to_owned).collect()
            }
            Value::String(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
            _ => return None,
        })
    }

    /// The keys that nobody read and that say something, but for the neutral ones.
    pub(super) fn unread(&self, neutral: &[&str]) -> Vec<(String, String)> {
        let read = self.read.borrow();
        let is_neutral = |key: &str| {
            neutral.iter().any(|name| match name.strip_suffix('*') {
                Some(begin) => key.starts_with(begin),
                None => key == *name,
            })
        };
        let says_nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty(),
            _ => false,
        };
        let unread = self.all.iter().filter(|(key, value)| {
            !read.contains(*key) && !is_neutral(key) && !says_nothing(value)
        });
        unread
            .map(|(key, value)| (key.clone(), value.to_string()))
            .collect()
    }
}
