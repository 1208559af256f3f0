//! A block's settings, read one by one with their types. Mistakes are collected, not thrown,
//! so that all mistakes of a file are shown at once. A key that no task or method read is unknown.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::scope::Scope;
use super::synonyms;
use crate::diagnostic::{Problem, Span};
use crate::syntax::ast::{Block, Setting, Spanned, Value};
use crate::text::{did_you_mean, percent, quoted_list};

/// Where problems are collected.
pub type Problems = RefCell<Vec<Problem>>;

/// The settings of one block.
pub struct Fields<'a> {
    /// What the block belongs to: "stage `tune`".
    owner: String,
    span: Span,
    settings: Vec<&'a Setting>,
    asked: RefCell<BTreeSet<&'static str>>,
    /// The params of the file.
    pub scope: &'a Scope,
    /// Where problems go.
    pub problems: &'a Problems,
}

impl<'a> Fields<'a> {
    /// The settings of a block; `span` is the place of the owner, for what is missing.
    pub fn new(
        owner: impl Into<String>,
        span: Span,
        block: Option<&'a Block>,
        scope: &'a Scope,
        problems: &'a Problems,
    ) -> Self {
        let mut settings: Vec<&Setting> = Vec::new();
        let owner = owner.into();
        for setting in block.iter().flat_map(|block| &block.settings) {
            match settings
                .iter()
                .find(|first| first.key.node == setting.key.node)
            {
                Some(first) => problems.borrow_mut().push(
                    Problem::new(
                        "delta::plan::duplicate",
                        format!("`{}` is set twice in {owner}", setting.key.node),
                    )
                    .at(setting.key.span, "again here")
                    .at(first.key.span, "first here")
                    .help("remove one of them"),
                ),
                None => settings.push(setting),
            }
        }
        Fields {
            owner,
            span,
            settings,
            asked: RefCell::default(),
            scope,
            problems,
        }
    }

    /// The settings of a nested block.
    pub fn nested(&self, owner: impl Into<String>, span: Span, block: &'a Block) -> Fields<'a> {
        Fields::new(owner, span, Some(block), self.scope, self.problems)
    }

    /// The place of the owner.
    pub fn span(&self) -> Span {
        self.span
    }

    /// What the block belongs to.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Notes a problem.
    pub fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// The value of a key as it was written.
    pub fn raw(&self, key: &'static str) -> Option<&'a Spanned<Value>> {
        self.asked.borrow_mut().insert(key);
        self.settings
            .iter()
            .find(|setting| setting.key.node == key)
            .map(|setting| &setting.value)
    }

    /// The value of a key, params replaced.
    pub fn value(&self, key: &'static str) -> Option<Spanned<Value>> {
        self.raw(key).map(|value| self.scope.resolve(value))
    }

    /// Every setting: for blocks whose keys are the user's own.
    pub fn all(&self) -> &[&'a Setting] {
        &self.settings
    }

    /// Notes that the key is needed and missing.
    pub fn missing(&self, key: &str, example: &str) {
        let message = format!("{} has no `{key}`", self.owner);
        let problem = Problem::new("delta::plan::missing", message).at(self.span, "here");
        self.report(problem.help(format!("add `{key} = {example}`")));
    }

    /// Notes that a value has the wrong type or is out of range.
    pub fn wrong(&self, key: &str, value: &Spanned<Value>, wanted: &str) {
        let found = match &value.node {
            Value::Number(number) => number.to_string(),
            Value::Percent(fraction) => percent(*fraction),
            Value::Word(word) => format!("`{word}`"),
            Value::Text(text) => format!("the string {text:?}"),
            other => other.describe().to_owned(),
        };
        let message = format!("`{key}` must be {wanted}, found {found}");
        let problem = Problem::new("delta::plan::wrong_type", message).at(value.span, "here");
        let is_number = wanted.contains("number") && !wanted.contains("percentage");
        self.report(problem.help(match &value.node {
            Value::Percent(fraction) if is_number && !wanted.contains("whole") => {
                format!("write `{fraction}`")
            }
            Value::Text(text) if is_number && text.trim().parse::<f64>().is_ok() => {
                format!("write `{}`, without quotes", text.trim())
            }
            Value::Number(share) if wanted.contains("percentage") && (0.0..1.0).contains(share) => {
                format!("write `{}`", percent(*share))
            }
            _ => format!("write {wanted}"),
        }));
    }

    /// A number in a range.
    pub fn number(&self, key: &'static str, default: f64, range: RangeInclusive<f64>) -> f64 {
        self.optional_number(key, range).unwrap_or(default)
    }

    /// A number in a range, if the key is there.
    pub fn optional_number(&self, key: &'static str, range: RangeInclusive<f64>) -> Option<f64> {
        let value = self.value(key)?;
        match value.node {
            Value::Number(number) if range.contains(&number) => Some(number),
            _ => {
                self.wrong(key, &value, &describe_range("a number", &range));
                None
            }
        }
    }

    /// A whole number in a range, if the key is there.
    pub fn count(&self, key: &'static str, range: RangeInclusive<usize>) -> Option<usize> {
        let value = self.value(key)?;
        let limits = *range.start() as f64..=*range.end() as f64;
        match value.node {
            Value::Number(number) if number.fract() == 0.0 && limits.contains(&number) => {
                Some(number as usize)
            }
            _ => {
                self.wrong(key, &value, &describe_range("a whole number", &limits));
                None
            }
        }
    }

    /// A list of whole numbers, if the key is there.
    pub fn counts(&self, key: &'static str) -> Option<Vec<usize>> {
        let value = self.value(key)?;
        let number = |value: &Spanned<Value>| match self.scope.resolve(value).node {
            Value::Number(number) if number >= 0.0 && number.fract() == 0.0 && number < 1e9 => {
                Some(number as usize)
            }
            _ => None,
        };
        let numbers = match &value.node {
            Value::List(values) => values.iter().map(number).collect(),
            _ => number(&value).map(|number| vec![number]),
        };
        if numbers.is_none() {
            self.wrong(key, &value, "a list of whole numbers");
        }
        numbers
    }

    /// A text, if the key is there.
    pub fn text(&self, key: &'static str) -> Option<Spanned<String>> {
        let value = self.value(key)?;
        match value.node {
            Value::Text(text) => Some(Spanned::new(text, value.span)),
            _ => {
                self.wrong(key, &value, "a string in quotes");
                None
            }
        }
    }

    /// A list of texts, or one text, if the key is there.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let text = |value: &Spanned<Value>| match self.scope.resolve(value).node {
            Value::Text(text) => Some(text),
            _ => None,
        };
        let texts = match &value.node {
            Value::List(values) => values.iter().map(text).collect(),
            _ => text(&value).map(|text| vec![text]),
        };
        if texts.is_none() {
            self.wrong(key, &value, "a string in quotes, or a list of them");
        }
        texts
    }

    /// A word or a text, such as the name of a field, if the key is there.
    pub fn name(&self, key: &'static str) -> Option<Spanned<String>> {
        let value = self.raw(key)?;
        self.as_name(key, value)
    }

    /// A list of names, or one name, if the key is there.
    pub fn names(&self, key: &'static str) -> Option<Vec<Spanned<String>>> {
        let value = self.raw(key)?;
        Some(match &value.node {
            Value::List(values) => values
                .iter()
                .filter_map(|value| self.as_name(key, value))
                .collect(),
            _ => self.as_name(key, value).into_iter().collect(),
        })
    }

    fn as_name(&self, key: &str, value: &Spanned<Value>) -> Option<Spanned<String>> {
        let resolved = self.scope.resolve(value);
        match resolved.node {
            Value::Word(name) | Value::Text(name) => Some(Spanned::new(name, value.span)),
            _ => {
                self.wrong(key, &resolved, "a name");
                None
            }
        }
    }

    /// One of several words, if the key is there.
    pub fn choice<T: Copy>(&self, key: &'static str, options: &[(&str, T)]) -> Option<T> {
        let value = self.value(key)?;
        let words = || options.iter().map(|(word, _)| *word);
        if let Value::Word(word) = &value.node {
            if let Some((_, choice)) = options.iter().find(|(option, _)| option == word) {
                return Some(*choice);
            }
            let message = format!(
                "`{key}` must be one of {}, found `{word}`",
                quoted_list(words())
            );
            let problem = Problem::new("delta::plan::unknown_word", message).at(value.span, "here");
            if let Some(help) = synonyms::for_word(word, words()) {
                self.report(problem.help(help));
                return None;
            }
            self.report(match did_you_mean(word, words()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None => problem.help(format!("write one of {}", quoted_list(words()))),
            });
            return None;
        }
        self.wrong(key, &value, &format!("one of {}", quoted_list(words())));
        None
    }

    /// Every key that was read, sorted.
    pub fn known(&self) -> Vec<&'static str> {
        self.asked.borrow().iter().copied().collect()
    }

    /// Notes every key that nobody read.
    pub fn finish(&self) {
        let asked = self.asked.borrow();
        for setting in &self.settings {
            let key = setting.key.node.as_str();
            if asked.contains(key) {
                continue;
            }
            let message = format!("{} has no setting `{key}`", self.owner);
            let problem =
                Problem::new("delta::plan::unknown_key", message).at(setting.key.span, "here");
            let known = || asked.iter().copied();
            if let Some(help) = synonyms::for_key(key, known()) {
                self.report(problem.help(help));
                continue;
            }
            self.report(match did_you_mean(key, known()) {
                Some(near) => problem.help(format!("did you mean `{near}`?")),
                None if asked.is_empty() => problem.help("remove it: nothing can be set here"),
                None => problem.help(format!("it has {}", quoted_list(known()))),
            });
        }
    }
}

fn describe_range(what: &str, range: &RangeInclusive<f64>) -> String {
    if *range.end() >= 1e9 {
        format!("{what} of at least {}", range.start())
    } else {
        format!("{what} from {} to {}", range.start(), range.end())
    }
}
