//! The keys of a configuration. A key counts as read only once its value was understood: every other one is reported.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::Value;

/// A configuration, with the keys that were read. `data.path` is the key `path` in the block `data`, and `sets.0` the first
/// of a list.
pub(super) struct Keys<'a> {
    all: &'a Value,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(all: &'a Value) -> Self {
        Keys {
            all,
            read: RefCell::default(),
        }
    }

    /// The value of a key, which is not read by this; none if it is null.
    pub(super) fn peek(&self, key: &str) -> Option<&'a Value> {
        let inner = |value: &'a Value, name: &str| match value {
            Value::Array(all) => all.get(name.parse::<usize>().ok()?),
            other => other.get(name),
        };
        let found = key.split('.').try_fold(self.all, inner);
        found.filter(|value| !value.is_null())
    }

    /// What `of` makes of a key's value. The key is read if it makes anything.
    pub(super) fn read<T>(&self, key: &str, of: impl FnOnce(&'a Value) -> Option<T>) -> Option<T> {
        let value = of(self.peek(key)?)?;
        self.read.borrow_mut().insert(key.to_owned());
        Some(value)
    }

    /// A text or a number as a text.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        self.read(key, |value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        })
    }

    /// Whether a key has a text that begins like this. It is not read otherwise.
    pub(super) fn begins(&self, key: &str, begin: &str) -> bool {
        let begins = |value: &Value| value.as_str()?.starts_with(begin).then_some(());
        self.read(key, begins).is_some()
    }

    /// A number. YAML reads `2e-4` as a text.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        let number = |value: &Value| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_f64(),
        };
        self.read(key, |value| {
            number(value).filter(|number| number.is_finite())
        })
    }

    /// A whole number.
    pub(super) fn whole(&self, key: &str) -> Option<usize> {
        let number = |value: &Value| match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_f64(),
        };
        let whole = |number: &f64| *number >= 0.0 && number.fract() == 0.0;
        let found = self.read(key, |value| number(value).filter(whole));
        found.map(|number| number as usize)
    }

    /// A whole number above 0. These tools write 0 or -1 for none.
    pub(super) fn count(&self, key: &str) -> Option<usize> {
        let none = |value: &Value| value.as_i64().filter(|number| *number < 0);
        self.read(key, none);
        self.whole(key).filter(|count| *count > 0)
    }

    /// A switch; off if it is not there.
    pub(super) fn is_on(&self, key: &str) -> bool {
        self.read(key, Value::as_bool).unwrap_or(false)
    }

    /// Names: a list, or a text with commas; none if there is no name.
    pub(super) fn names(&self, key: &str) -> Option<Vec<String>> {
        let names: Vec<String> = self.read(key, |value| match value {
            Value::Array(all) => {
                let names = all.iter().map(|name| name.as_str().map(str::to_owned));
                names.collect()
            }
            Value::String(text) => {
                Some(text.split(',').map(|name| name.trim().to_owned()).collect())
            }
            _ => None,
        })?;
        Some(names).filter(|names| names.iter().any(|name| !name.is_empty()))
    }

    /// The keys that nobody read and that say something, but for the neutral ones: those that change nothing here, and
    /// those with a value that does not. A `*` at the end of a name stands for any end.
    pub(super) fn unread(
        &self,
        neutral: &[&str],
        neutral_values: &[(&str, &str)],
    ) -> Vec<(String, String)> {
        let is_neutral = |key: &str, value: &Value| {
            let is_named = |name: &&str| match name.strip_suffix('*') {
                Some(begin) => key.starts_with(begin),
                None => key == *name,
            };
            let is_usual = |(name, usual): &(&str, &str)| {
                let usual: Option<Value> = serde_json::from_str(usual).ok();
                key == *name && usual.is_some_and(|usual| is_equal(&usual, value))
            };
            neutral.iter().any(is_named) || neutral_values.iter().any(is_usual)
        };
        let mut unread = Vec::new();
        self.collect("", self.all, &is_neutral, &mut unread);
        unread
    }

    fn collect(
        &self,
        key: &str,
        value: &Value,
        is_neutral: &dyn Fn(&str, &Value) -> bool,
        unread: &mut Vec<(String, String)>,
    ) {
        let below = match key {
            "" => String::new(),
            key => format!("{key}."),
        };
        let read = self.read.borrow();
        if read.contains(key) || is_neutral(key, value) || says_nothing(value) {
            return;
        }
        let is_partly_read = key.is_empty() || read.iter().any(|read| read.starts_with(&below));
        match value {
            Value::Object(all) if is_partly_read => {
                for (name, value) in all {
                    self.collect(&format!("{below}{name}"), value, is_neutral, unread);
                }
            }
            Value::Array(all) if is_partly_read => {
                for (number, value) in all.iter().enumerate() {
                    self.collect(&format!("{below}{number}"), value, is_neutral, unread);
                }
            }
            value => unread.push((key.to_owned(), value.to_string())),
        }
    }
}

/// Whether two values are one: 0 and 0.0 are.
fn is_equal(first: &Value, second: &Value) -> bool {
    match (first.as_f64(), second.as_f64()) {
        (Some(first), Some(second)) => first == second,
        _ => first == second,
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.values().all(says_nothing),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
