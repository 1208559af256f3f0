//! Reads the values of a `config.json` by the keys that a family's description names.

use serde_json::Value;

use super::config::LARGEST;
use super::family::Key;

/// A `config.json`, whose keys are looked up under all names that transformers accepts.
pub(super) struct Keys<'a>(pub(super) &'a Value);

impl Keys<'_> {
    /// The value of a key. `null` counts as absent.
    pub(super) fn find<'k>(&'k self, key: &'k Key) -> Result<Option<&'k Value>, String> {
        Ok(self.find_named(key)?.map(|(_, value)| value))
    }

    /// The value of a key, with the name under which the file has it.
    fn find_named<'k>(&'k self, key: &'k Key) -> Result<Option<(&'k str, &'k Value)>, String> {
        let mut found: Option<(&str, &Value)> = None;
        for name in std::iter::once(&key.key).chain(&key.also) {
            let Some(value) = self.0.get(name).filter(|value| !value.is_null()) else {
                continue;
            };
            match found {
                Some((other, first)) if first != value => {
                    return Err(format!("its `{other}` {first} and `{name}` {value} differ"));
                }
                _ => found = Some((name, value)),
            }
        }
        Ok(found)
    }

    /// The value of a key or else transformers' default, with the name under which the file has it.
    fn value<'k>(&'k self, key: &'k Key) -> Result<(&'k str, &'k Value), String> {
        let otherwise = || {
            let name = key.otherwise.as_ref()?;
            let value = self.0.get(name).filter(|value| !value.is_null());
            value.map(|value| (name.as_str(), value))
        };
        let default = || key.default.as_ref().map(|value| (key.key.as_str(), value));
        let found = self.find_named(key)?.or_else(otherwise).or_else(default);
        found.ok_or_else(|| format!("it has no `{}`", key.key))
    }

    pub(super) fn count(&self, key: &Key) -> Result<usize, String> {
        let (name, value) = self.value(key)?;
        match value.as_u64() {
            Some(count) if (1..=LARGEST as u64).contains(&count) => Ok(count as usize),
            _ => Err(format!(
                "its `{name}` must be a whole number of at least 1, found {value}",
            )),
        }
    }

    pub(super) fn fraction(&self, key: &Key) -> Result<f32, String> {
        let (name, value) = self.value(key)?;
        match value.as_f64() {
            Some(number) if (0.0..1.0).contains(&number) => Ok(number as f32),
            _ => Err(format!(
                "its `{name}` must be a number from 0 to 1, found {value}",
            )),
        }
    }

    pub(super) fn positive(&self, key: &Key) -> Result<f64, String> {
        let (name, value) = self.value(key)?;
        match value.as_f64() {
            Some(number) if number > 0.0 => Ok(number),
            _ => Err(format!(
                "its `{name}` must be a number above 0, found {value}",
            )),
        }
    }

    pub(super) fn switch(&self, key: &Key) -> Result<bool, String> {
        let (name, value) = self.value(key)?;
        let wanted = || format!("its `{name}` must be `true` or `false`, found {value}");
        value.as_bool().ok_or_else(wanted)
    }

    pub(super) fn text(&self, key: &Key) -> Result<String, String> {
        let (name, value) = self.value(key)?;
        let text = value.as_str().map(str::to_owned);
        text.ok_or_else(|| format!("its `{name}` must be a string, found {value}"))
    }

    /// One of two words.
    pub(super) fn word(&self, key: &Key, words: [&'static str; 2]) -> Result<&'static str, String> {
        let (name, value) = self.value(key)?;
        let wrong = || {
            let [one, other] = words;
            format!("its `{name}` must be `{one}` or `{other}`, found {value}")
        };
        words
            .into_iter()
            .find(|word| value == word)
            .ok_or_else(wrong)
    }

    pub(super) fn token(&self, key: &Key) -> Result<Option<u32>, String> {
        let default = key.default.as_ref().map(|value| (key.key.as_str(), value));
        let Some((name, value)) = self.find_named(key)?.or(default) else {
            return Ok(None);
        };
        // `eos_token_id` may be a list of all tokens that end texts.
        let one = match value.as_array().map(Vec::as_slice) {
            Some([one]) => one,
            _ => value,
        };
        // Llamas that were converted early have -1 for a token that they lack.
        if one.as_i64() == Some(-1) {
            return Ok(None);
        }
        match one.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(token) if (token as usize) < LARGEST => Ok(Some(token)),
            _ => Err(format!("its `{name}` must be a token id, found {value}",)),
        }
    }

    /// A number from 0 to 1, or `otherwise` if the key is absent.
    pub(super) fn fraction_or(&self, key: &Option<Key>, otherwise: f32) -> Result<f32, String> {
        match key {
            Some(key) if self.find(key)?.is_some() || key.default.is_some() => self.fraction(key),
            _ => Ok(otherwise),
        }
    }

    /// A count, if there is one. An explicit `null` means that the count follows from other dimensions, even if the key
    /// has a default.
    pub(super) fn some_count(&self, key: &Option<Key>) -> Result<Option<usize>, String> {
        match key {
            Some(key) if self.find(key)?.is_some() => self.count(key).map(Some),
            Some(key) if key.default.is_some() && self.0.get(&key.key).is_none() => {
                self.count(key).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// A count, if there is one; `null` means that there is none, even if the key has a default.
    pub(super) fn optional_count(&self, key: &Key) -> Result<Option<usize>, String> {
        match (self.find(key)?, self.0.get(&key.key)) {
            (None, Some(_)) => Ok(None),
            (None, None) if key.default.is_none() => Ok(None),
            _ => self.count(key).map(Some),
        }
    }

    /// A count that may be 0.
    pub(super) fn count_or_zero(&self, key: &Key) -> Result<usize, String> {
        match self.value(key)?.1.as_u64() {
            Some(0) => Ok(0),
            _ => self.count(key),
        }
    }

    /// A number above 0, if there is one; `null` means that there is none, even if the key has a default.
    pub(super) fn some_positive(&self, key: &Option<Key>) -> Result<Option<f32>, String> {
        let Some(key) = key else { return Ok(None) };
        match (self.find(key)?, self.0.get(&key.key)) {
            (None, Some(_)) => Ok(None),
            (None, None) if key.default.is_none() => Ok(None),
            _ => self.positive(key).map(|number| Some(number as f32)),
        }
    }

    /// A list with an entry for each block, which `read` takes if it is `wanted`.
    pub(super) fn list<T>(
        &self,
        key: &Key,
        blocks: usize,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, String> {
        let (name, value) = self.value(key)?;
        let entries = value.as_array().map_or(&[][..], Vec::as_slice);
        // transformers takes a list that is longer than the backbone.
        if entries.len() < blocks {
            let found = entries.len();
            return Err(format!(
                "its `{name}` must have an entry for each of its {blocks} blocks, found {found}"
            ));
        }
        let entry = |entry: &Value| {
            let wrong = || format!("an entry of its `{name}` must be {wanted}, found {entry}");
            read(entry).ok_or_else(wrong)
        };
        entries[..blocks].iter().map(entry).collect()
    }

    /// A token, if there is one.
    pub(super) fn some_token(&self, key: &Option<Key>) -> Result<Option<u32>, String> {
        key.as_ref().map_or(Ok(None), |key| self.token(key))
    }

    /// A switch, or `otherwise` if the key is absent.
    pub(super) fn switch_or(&self, key: &Option<Key>, otherwise: bool) -> Result<bool, String> {
        match key {
            Some(key) if self.value(key).is_ok() => self.switch(key),
            _ => Ok(otherwise),
        }
    }

    /// A text, if there is one.
    pub(super) fn some_text(&self, key: &Option<Key>) -> Result<Option<String>, String> {
        match key {
            Some(key) if self.find(key)?.is_some() => self.text(key).map(Some),
            _ => Ok(None),
        }
    }
}
