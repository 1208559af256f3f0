//! From pest's pairs to the syntax tree. The grammar guarantees which pairs there are; where one
//! is missing all the same, that is a bug of ours and is reported as one.

use pest::iterators::{Pair, Pairs};

use super::ast::*;
use super::Rule;
use crate::diagnostic::{Problem, Span};

type Outcome<T> = Result<T, Problem>;

/// The place of a pair. pest lets a rule whose last part is optional run on over the white space
/// behind it; such a rule ends where its last child does.
fn span(pair: &Pair<Rule>) -> Span {
    Span {
        start: pair.as_span().start(),
        end: end(pair),
    }
}

fn end(pair: &Pair<Rule>) -> usize {
    let closes_itself = matches!(
        pair.as_rule(),
        Rule::block | Rule::list | Rule::call | Rule::names
    );
    match pair.clone().into_inner().last() {
        Some(last) if !closes_itself && pair.as_rule() != Rule::path => end(&last),
        _ => pair.as_span().end(),
    }
}

/// The children of a pair, without the keywords.
struct Children<'a> {
    pairs: std::iter::Peekable<Pairs<'a, Rule>>,
    parent: Span,
}

impl<'a> Children<'a> {
    fn of(pair: Pair<'a, Rule>) -> Self {
        Children {
            parent: span(&pair),
            pairs: pair.into_inner().peekable(),
        }
    }

    /// The next child, keywords skipped.
    fn next(&mut self) -> Outcome<Pair<'a, Rule>> {
        self.skip_keywords();
        self.pairs.next().ok_or_else(|| {
            Problem::internal("a part of this statement was lost").at(self.parent, "")
        })
    }

    /// The next child, if it is of this rule.
    fn next_if(&mut self, rule: Rule) -> Option<Pair<'a, Rule>> {
        self.skip_keywords();
        self.pairs.next_if(|pair| pair.as_rule() == rule)
    }

    fn skip_keywords(&mut self) {
        while self
            .pairs
            .next_if(|pair| is_keyword(pair.as_rule()))
            .is_some()
        {}
    }

    fn name(&mut self) -> Outcome<Name> {
        self.next().map(name)
    }

    fn block_if(&mut self) -> Outcome<Option<Block>> {
        self.next_if(Rule::block).map(block).transpose()
    }

    fn origin_if(&mut self) -> Outcome<Option<Spanned<Value>>> {
        let origin = self.next_if(Rule::origin);
        let run = |pair| value(Children::of(pair).next()?);
        origin.map(run).transpose()
    }
}

fn is_keyword(rule: Rule) -> bool {
    matches!(
        rule,
        Rule::kw_pipeline
            | Rule::kw_param
            | Rule::kw_backbone
            | Rule::kw_data
            | Rule::kw_task
            | Rule::kw_freeze
            | Rule::kw_unfreeze
            | Rule::kw_insert
            | Rule::kw_reparam
            | Rule::kw_stage
            | Rule::kw_every
            | Rule::kw_except
            | Rule::kw_expect
            | Rule::kw_random
            | Rule::kw_of
            | Rule::kw_from
    )
}

pub(super) fn pipeline<'a>(
    pairs: impl Iterator<Item = Pair<'a, Rule>>,
) -> Result<Pipeline, Vec<Problem>> {
    let mut statements = Vec::new();
    let mut problems = Vec::new();
    for pair in pairs.filter(|pair| pair.as_rule() != Rule::EOI) {
        let span = span(&pair);
        match statement(pair) {
            Ok(statement) => statements.push(Spanned::new(statement, span)),
            Err(problem) => problems.push(problem),
        }
    }
    match problems.is_empty() {
        true => Ok(Pipeline { statements }),
        false => Err(problems),
    }
}

fn statement(pair: Pair<Rule>) -> Outcome<Statement> {
    let rule = pair.as_rule();
    let mut children = Children::of(pair);
    Ok(match rule {
        Rule::pipeline => Statement::Pipeline {
            name: children.name()?,
        },
        Rule::param => Statement::Param {
            name: children.name()?,
            value: value(children.next()?)?,
        },
        Rule::backbone => Statement::Backbone {
            location: value(children.next()?)?,
            block: children.block_if()?,
        },
        Rule::data => Statement::Data {
            name: children.next_if(Rule::name).map(name),
            block: block(children.next()?)?,
        },
        Rule::task => {
            let first = children.name()?;
            let second = children.next_if(Rule::name).map(name);
            let block = block(children.next()?)?;
            match second {
                Some(kind) => Statement::Task {
                    name: Some(first),
                    kind,
                    block,
                },
                None => Statement::Task {
                    name: None,
                    kind: first,
                    block,
                },
            }
        }
        Rule::freeze => Statement::Freeze {
            selection: selection(children.next()?)?,
        },
        Rule::unfreeze => Statement::Unfreeze {
            name: children.name()?,
            selection: selection(children.next()?)?,
            origin: children.origin_if()?,
        },
        Rule::insert | Rule::reparam => Statement::Place(place(children)?),
        Rule::stage => Statement::Stage {
            name: children.name()?,
            block: block(children.next()?)?,
        },
        other => {
            return Err(Problem::internal(format!(
                "a statement of the rule {other:?}"
            )))
        }
    })
}

fn place(mut children: Children) -> Outcome<Place> {
    Ok(Place {
        name: children.name()?,
        method: children.name()?,
        block: children.block_if()?,
        preposition: preposition(&children.next()?)?,
        selection: selection(children.next()?)?,
        origin: children.origin_if()?,
    })
}

fn preposition(pair: &Pair<Rule>) -> Outcome<Preposition> {
    Ok(match pair.as_rule() {
        Rule::after => Preposition::After,
        Rule::beside => Preposition::Beside,
        Rule::before => Preposition::Before,
        Rule::on => Preposition::On,
        other => {
            return Err(Problem::internal(format!(
                "a preposition of the rule {other:?}"
            )))
        }
    })
}

fn name(pair: Pair<Rule>) -> Name {
    Spanned::new(pair.as_str().to_owned(), span(&pair))
}

fn block(pair: Pair<Rule>) -> Outcome<Block> {
    let span = span(&pair);
    let settings = pair.into_inner().map(setting).collect::<Outcome<_>>()?;
    Ok(Block { settings, span })
}

fn setting(pair: Pair<Rule>) -> Outcome<Setting> {
    let mut children = Children::of(pair);
    let key = children.next()?;
    let key = match key.as_rule() {
        Rule::string => Spanned::new(unescape(&key)?, span(&key)),
        _ => name(key),
    };
    Ok(Setting {
        key,
        value: value(children.next()?)?,
    })
}

pub(super) fn value(pair: Pair<Rule>) -> Outcome<Spanned<Value>> {
    let span = span(&pair);
    let node = match pair.as_rule() {
        Rule::number => Value::Number(number(pair.as_str(), span)?),
        Rule::percent => Value::Percent(number(pair.as_str().trim_end_matches('%'), span)? / 100.0),
        Rule::string => Value::Text(unescape(&pair)?),
        Rule::word | Rule::word_not_unit => Value::Word(pair.as_str().to_owned()),
        Rule::list => Value::List(pair.into_inner().map(value).collect::<Outcome<_>>()?),
        Rule::block => Value::Block(block(pair)?),
        Rule::call => {
            let mut children = Children::of(pair);
            let name = children.name()?;
            let arguments = children.pairs.map(argument).collect::<Outcome<_>>()?;
            Value::Call { name, arguments }
        }
        Rule::record => {
            let mut children = Children::of(pair);
            Value::Record {
                name: children.name()?,
                block: block(children.next()?)?,
            }
        }
        Rule::every => every(Children::of(pair))?,
        other => return Err(Problem::internal(format!("a value of the rule {other:?}"))),
    };
    Ok(Spanned::new(node, span))
}

fn every(mut children: Children) -> Outcome<Value> {
    let first = children.next()?;
    let (count, unit) = match first.as_rule() {
        Rule::unit => (None, first),
        _ => (Some(Box::new(value(first)?)), children.next()?),
    };
    let unit = if unit.as_str().starts_with("step") {
        Unit::Steps
    } else {
        Unit::Epochs
    };
    Ok(Value::Every { count, unit })
}

fn argument(pair: Pair<Rule>) -> Outcome<Argument> {
    let mut children = Children::of(pair);
    let key = children.next_if(Rule::name).map(name);
    Ok(Argument {
        key,
        value: value(children.next()?)?,
    })
}

fn number(text: &str, span: Span) -> Outcome<f64> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(number),
        _ => Err(Problem::new(
            "delta::syntax::number",
            format!("the number `{text}` is too large"),
        )
        .at(span, "here")
        .help("write a number below 1.8e308")),
    }
}

fn unescape(pair: &Pair<Rule>) -> Outcome<String> {
    let text = pair.as_str();
    let mut result = String::new();
    let mut symbols = text[1..text.len() - 1].chars();
    while let Some(symbol) = symbols.next() {
        if symbol != '\\' {
            result.push(symbol);
            continue;
        }
        result.push(match symbols.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some(same @ ('"' | '\\')) => same,
            other => {
                let escape = other.map(String::from).unwrap_or_default();
                let message = format!("`\\{escape}` is not an escape");
                return Err(Problem::new("delta::syntax::escape", message)
                    .at(span(pair), "in this string")
                    .help("write one of `\\\"`, `\\\\`, `\\n`, `\\t`"));
            }
        });
    }
    Ok(result)
}

fn selection(pair: Pair<Rule>) -> Outcome<Selection> {
    let span = span(&pair);
    let mut children = Children::of(pair);
    let first = selector(children.next()?)?;
    let mut exceptions = Vec::new();
    while let Some(exception) = children.next_if(Rule::exception) {
        exceptions.push(selector(Children::of(exception).next()?)?);
    }
    let expected = match children.next_if(Rule::expectation) {
        Some(expectation) => Some(amount(Children::of(expectation).next()?)?),
        None => None,
    };
    Ok(Selection {
        selector: first,
        exceptions,
        expected,
        span,
    })
}

fn selector(pair: Pair<Rule>) -> Outcome<Selector> {
    let span = span(&pair);
    let mut children = Children::of(pair);
    let random = match children.next_if(Rule::random) {
        Some(random) => Some(amount(Children::of(random).next()?)?),
        None => None,
    };
    let pattern = children.next()?;
    let pattern = match pattern.as_rule() {
        Rule::string => Pattern::Checkpoint(vec![unescape(&pattern)?]),
        Rule::names => {
            let names = pattern.into_inner().map(|name| unescape(&name));
            Pattern::Checkpoint(names.collect::<Outcome<_>>()?)
        }
        _ => Pattern::Path(path(pattern)?),
    };
    Ok(Selector {
        random,
        pattern,
        span,
    })
}

fn path(pair: Pair<Rule>) -> Outcome<Vec<Segment>> {
    pair.into_inner()
        .map(|segment_pair| segment(Children::of(segment_pair).next()?))
        .collect()
}

fn segment(pair: Pair<Rule>) -> Outcome<Segment> {
    Ok(match pair.as_rule() {
        Rule::any_depth => Segment::AnyDepth,
        Rule::any_name => Segment::AnyName,
        Rule::choice => Segment::Choice(pair.into_inner().map(path).collect::<Outcome<_>>()?),
        Rule::indexed => {
            let mut children = Children::of(pair);
            let name = children.name()?.node;
            let index = children.next()?;
            let is_last = index.as_rule() == Rule::last;
            let mut children = Children::of(index);
            let first = amount(children.next()?)?;
            let end = children.next_if(Rule::amount).map(amount).transpose()?;
            if is_last {
                Segment::Last(name, first)
            } else {
                Segment::Range(name, first, end)
            }
        }
        _ => Segment::Name(pair.as_str().to_owned()),
    })
}

fn amount(pair: Pair<Rule>) -> Outcome<Spanned<Amount>> {
    let (text, span) = (pair.as_str(), span(&pair));
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Ok(Spanned::new(Amount::Param(text.to_owned()), span));
    }
    match text.parse::<u32>() {
        Ok(number) => Ok(Spanned::new(Amount::Number(number as usize), span)),
        Err(_) => Err(Problem::new(
            "delta::syntax::number",
            format!("the number `{text}` is too large"),
        )
        .at(span, "here")
        .help("write a smaller number of modules or blocks")),
    }
}
