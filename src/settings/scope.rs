//! Params: declared once, overridden from outside, used anywhere a value can stand.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use crate::diagnostic::{Problem, Span};
use crate::syntax::ast::{Amount, Name, Pipeline, Spanned, Statement, Value};
use crate::syntax::parse_value;
use crate::text::{did_you_mean, percent, quoted_list};

/// Values given from outside: `--set name=value`, `--params FILE.yaml`, a script's `set`.
/// They are texts; the param's default says what they are to be read as. `seed` is known to every
/// file.
pub type Overrides = BTreeMap<String, String>;

/// The params of a file, and which of them were used.
#[derive(Default)]
pub struct Scope {
    params: BTreeMap<String, Spanned<Value>>,
    declared: Vec<Name>,
    used: RefCell<BTreeSet<String>>,
}

impl Scope {
    /// Collects the params of a file and applies the overrides.
    pub fn new(pipeline: &Pipeline, overrides: &Overrides, problems: &mut Vec<Problem>) -> Self {
        let mut scope = Scope {
            params: BTreeMap::new(),
            declared: Vec::new(),
            used: RefCell::default(),
        };
        for statement in &pipeline.statements {
            let Statement::Param { name, value } = &statement.node else {
                continue;
            };
            if let Some(first) = scope.declared.iter().find(|first| first.node == name.node) {
                let message = format!("param `{}` is declared twice", name.node);
                problems.push(
                    Problem::new("delta::plan::duplicate", message)
                        .at(name.span, "again here")
                        .at(first.span, "first here")
                        .help("give one of them another name, or remove it"),
                );
                continue;
            }
            let value = match overrides.get(&name.node) {
                Some(text) => read_override(name, value, text, problems),
                None => value.clone(),
            };
            scope.params.insert(name.node.clone(), value);
            scope.declared.push(name.clone());
        }
        if let (Some(seed), None) = (overrides.get("seed"), scope.params.get("seed")) {
            let undeclared = Spanned::new("seed".to_owned(), Span::default());
            let default = Spanned::new(Value::Number(0.0), Span::default());
            let value = read_override(&undeclared, &default, seed, problems);
            scope.params.insert("seed".to_owned(), value);
        }
        for name in overrides
            .keys()
            .filter(|name| !scope.params.contains_key(*name))
        {
            let known = || scope.params.keys().map(String::as_str);
            let help = match did_you_mean(name, known()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let others = match scope.params.is_empty() {
                        true => String::new(),
                        false => format!("; it declares {}", quoted_list(known())),
                    };
                    format!("declare it in the file, as in `param {name} = 8`, and write `{name}` where the value is used{others}")
                }
            };
            let message =
                format!("the file does not declare param `{name}`, which was set from outside");
            problems.push(Problem::new("delta::plan::unknown_param", message).help(help));
        }
        scope
    }

    /// A value with a param's name replaced by the param's value. The place stays the one of use.
    pub fn resolve(&self, value: &Spanned<Value>) -> Spanned<Value> {
        let mut node = value.node.clone();
        // A param may name another one; a chain longer than the number of params is a cycle.
        for _ in 0..=self.params.len() {
            let Value::Word(word) = &node else { break };
            let Some(param) = self.params.get(word) else {
                break;
            };
            self.used.borrow_mut().insert(word.clone());
            node = param.node.clone();
        }
        Spanned::new(node, value.span)
    }

    /// The number of an amount in a selector.
    pub fn amount(&self, amount: &Spanned<Amount>) -> Result<usize, Problem> {
        let name = match &amount.node {
            Amount::Number(number) => return Ok(*number),
            Amount::Param(name) => name,
        };
        let word = Spanned::new(Value::Word(name.clone()), amount.span);
        match self.resolve(&word).node {
            Value::Number(number) if (0.0..=1e6).contains(&number) && number.fract() == 0.0 => {
                Ok(number as usize)
            }
            Value::Word(_) => Err(Problem::new(
                "delta::plan::unknown_param",
                format!("`{name}` is not a param of this file"),
            )
            .at(amount.span, "here")
            .help(match name.as_str() {
                "last" => "write `[last 1]` for the last block",
                _ => "write a whole number, or declare the name with `param`",
            })),
            other => Err(Problem::new(
                "delta::plan::wrong_type",
                format!(
                    "this place needs a whole number, but `{name}` is {}",
                    other.describe()
                ),
            )
            .at(amount.span, "here")
            .help("set the param to a whole number")),
        }
    }

    /// A problem for every param that nothing used.
    pub fn unused(&self) -> impl Iterator<Item = Problem> + '_ {
        let used = self.used.borrow().clone();
        self.declared
            .iter()
            .filter(move |name| !used.contains(&name.node))
            .map(|name| {
                Problem::new(
                    "delta::plan::unused_param",
                    format!("param `{}` is never used", name.node),
                )
                .at(name.span, "declared here")
                .help("use it as a value, or remove it")
            })
    }

    /// Every param's value as written, for the record of a run.
    pub fn values(&self) -> BTreeMap<String, String> {
        let show = |value: &Value| match value {
            Value::Number(number) => number.to_string(),
            Value::Percent(fraction) => percent(*fraction),
            Value::Text(text) | Value::Word(text) => text.clone(),
            other => other.describe().to_owned(),
        };
        self.params
            .iter()
            .map(|(name, value)| (name.clone(), show(&value.node)))
            .collect()
    }

    /// The place of a param's declaration.
    pub fn declaration(&self, name: &str) -> Option<Span> {
        self.declared
            .iter()
            .find(|param| param.node == name)
            .map(|param| param.span)
    }
}

/// Reads a value that was given from outside. Where the default is a text, quotes are not needed.
fn read_override(
    name: &Name,
    default: &Spanned<Value>,
    text: &str,
    problems: &mut Vec<Problem>,
) -> Spanned<Value> {
    let value = match (&default.node, parse_value(text)) {
        (
            _,
            Ok(Spanned {
                node: Value::Text(text),
                ..
            }),
        ) => Value::Text(text),
        (Value::Text(_), _) => Value::Text(text.to_owned()),
        (_, Ok(value)) => value.node,
        (_, Err(_)) => Value::Text(text.to_owned()),
    };
    if std::mem::discriminant(&value) != std::mem::discriminant(&default.node) {
        let wanted = default.node.describe();
        let message = format!(
            "param `{}` takes {wanted}, but was set to {}, `{text}`",
            name.node,
            value.describe()
        );
        let problem =
            Problem::new("delta::plan::param_type", message).help(format!("set it to {wanted}"));
        problems.push(match default.span.end {
            0 => problem,
            _ => problem.at(default.span, format!("the default is {wanted}")),
        });
        return default.clone();
    }
    Spanned::new(value, default.span)
}
