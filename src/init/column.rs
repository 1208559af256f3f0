//! What the values of a column are like.

use std::collections::BTreeSet;

use serde_json::Value;

/// What a column holds.
pub(super) struct Column<'a> {
    pub name: &'a str,
    /// Values that are there.
    pub values: Vec<&'a Value>,
    /// Of all rows.
    pub rows: usize,
}

impl Column<'_> {
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.values.iter().filter_map(|value| value.as_str())
    }

    pub fn is_text(&self) -> bool {
        !self.values.is_empty() && self.values.iter().all(|value| value.is_string())
    }

    pub fn has_lists(&self) -> bool {
        !self.values.is_empty() && self.values.iter().all(|value| value.is_array())
    }

    /// Lists of texts or numbers.
    pub fn has_words(&self) -> bool {
        let is_word = |value: &Value| value.is_string() || value.is_number();
        let items = |value: &&Value| {
            value
                .as_array()
                .is_some_and(|list| list.iter().all(is_word))
        };
        self.has_lists() && self.values.iter().all(items)
    }

    /// Lists of objects with a role.
    pub fn has_messages(&self) -> bool {
        let has_role = |message: &Value| message["role"].is_string() || message["from"].is_string();
        let are_messages = |value: &&Value| {
            value
                .as_array()
                .is_some_and(|list| !list.is_empty() && list.iter().all(has_role))
        };
        self.has_lists() && self.values.iter().all(are_messages)
    }

    /// Objects with a list of answers and a list of their names, as ARC and CommonsenseQA have them.
    pub fn has_named_answers(&self) -> bool {
        let is_named = |value: &&Value| value["text"].is_array() && value["label"].is_array();
        !self.values.is_empty() && self.values.iter().all(is_named)
    }

    /// The length of its longest list.
    pub fn longest_list(&self) -> usize {
        let lists = self.values.iter().filter_map(|value| value.as_array());
        lists.map(Vec::len).max().unwrap_or(0)
    }

    /// The items of its lists.
    pub fn items(&self) -> impl Iterator<Item = &Value> {
        self.values
            .iter()
            .filter_map(|value| value.as_array())
            .flatten()
    }

    /// Whether its lists have the labels of spans, such as `B-person`.
    pub fn has_spans(&self) -> bool {
        let mut labels = self.items().filter_map(Value::as_str).peekable();
        let is_span =
            |label: &str| label == "O" || label.starts_with("B-") || label.starts_with("I-");
        labels.peek().is_some() && labels.all(is_span)
    }

    /// Whether it numbers or names the row, and says nothing of it.
    pub fn is_of_the_row(&self) -> bool {
        self.name.trim().is_empty()
            || self.is_named(&[
                "id",
                "idx",
                "index",
                "url",
                "date",
                "split",
                "guid",
                "unnamed: 0",
            ])
    }

    pub fn distinct(&self) -> usize {
        self.texts().collect::<BTreeSet<_>>().len()
    }

    /// The mean number of words.
    pub fn words(&self) -> f64 {
        let words: usize = self
            .texts()
            .map(|text| text.split_whitespace().count())
            .sum();
        words as f64 / self.values.len().max(1) as f64
    }

    pub fn has_numbers(&self) -> bool {
        self.is_text() && self.texts().all(|text| text.trim().parse::<f64>().is_ok())
    }

    pub fn has_fractions(&self) -> bool {
        let is_fraction = |text: &str| {
            text.trim()
                .parse::<f64>()
                .is_ok_and(|number| number.fract() != 0.0)
        };
        self.has_numbers() && self.texts().any(is_fraction)
    }

    pub fn is_named(&self, names: &[&str]) -> bool {
        let own = self.name.to_lowercase();
        names.iter().any(|name| *name == own)
    }

    /// Whether its values can be labels: few, short and repeated.
    pub fn can_be_label(&self) -> bool {
        let distinct = self.distinct();
        self.is_text()
            && distinct > 1
            && distinct <= 200
            && 2 * distinct <= self.rows
            && self.words() <= 4.0
    }
}
