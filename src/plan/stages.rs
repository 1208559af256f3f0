//! Reads `stage` blocks: what to train, on which data, for how long, and how.

use std::collections::BTreeMap;

use super::{Interval, Keep, Length, Optimizer, Schedule, ScheduleShape, StagePlan, Unit, Warmup};
use crate::diagnostic::Problem;
use crate::settings::synonyms;
use crate::settings::Fields;
use crate::syntax::ast::{Block, Name, Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// The names that a stage may use.
pub(super) struct Known<'a> {
    /// All deltas of the file.
    pub deltas: &'a [String],
    /// All data sets.
    pub data: &'a [String],
    /// All tasks.
    pub tasks: &'a [String],
}

/// Reads a `stage` block.
pub(super) fn stage(name: &Name, fields: &Fields, known: &Known) -> StagePlan {
    let trained = match fields.names("train") {
        Some(names) => names,
        None => {
            fields.missing("train", "[head]");
            Vec::new()
        }
    };
    let head = |name: &Spanned<String>| name.node == "head";
    let train_head = trained.iter().any(head);
    let deltas: Vec<_> = trained.into_iter().filter(|name| !head(name)).collect();
    if deltas.is_empty() && !train_head {
        if let Some(value) = fields.raw("train") {
            let message = format!("stage `{}` trains nothing", name.node);
            let problem =
                Problem::new("delta::plan::trains_nothing", message).at(value.span, "here");
            fields.report(problem.help("add at least one delta, or `head`"));
        }
    }
    let without = fields.names("without").unwrap_or_default();
    check_deltas(fields, &deltas, known);
    check_deltas(fields, &without, known);
    let plan = StagePlan {
        rates: rates(fields, &deltas, train_head),
        lora_plus: fields
            .optional_number("lora_plus", 1.0..=1e4)
            .map(|factor| factor as f32),
        name: name.node.clone(),
        train: deltas.into_iter().map(|name| name.node).collect(),
        train_head,
        without: without.into_iter().map(|name| name.node).collect(),
        data: named(fields, "data", known.data),
        task: named(fields, "task", known.tasks),
        length: length(fields),
        batch: fields.count("batch", 1..=1_000_000).unwrap_or(32),
        accumulate: fields.count("accumulate", 1..=1_000_000).unwrap_or(1),
        recompute: fields
            .choice("recompute", &[("blocks", true), ("off", false)])
            .unwrap_or(false),
        optimizer: optimizer(fields),
        schedule: schedule(fields),
        clip: clip(fields),
        evaluate: interval(fields),
        keep: fields
            .choice("keep", &[("best", Keep::Best), ("last", Keep::Last)])
            .unwrap_or(Keep::Best),
        patience: fields.count("patience", 1..=1_000_000),
        span: fields.span(),
    };
    fields.finish();
    plan
}

/// Reads `rates = { low = 1e-4, head = 1e-3 }`.
fn rates(fields: &Fields, deltas: &[Spanned<String>], head: bool) -> BTreeMap<String, f32> {
    let mut rates = BTreeMap::new();
    let Some(value) = fields.raw("rates") else {
        return rates;
    };
    let Value::Block(block) = &value.node else {
        fields.wrong(
            "rates",
            value,
            "a block such as `{ low = 1e-4, head = 1e-3 }`",
        );
        return rates;
    };
    let own = fields.nested("`rates`", value.span, block);
    for setting in own.all() {
        let name = &setting.key.node;
        let names = deltas.iter().map(|delta| delta.node.as_str());
        let names = || names.clone().chain(head.then_some("head"));
        if !names().any(|trained| trained == name) {
            let message = format!("{} does not train `{name}`", fields.owner());
            let problem = Problem::new("delta::plan::unknown_delta", message);
            fields.report(problem.at(setting.key.span, "here").help(
                match did_you_mean(name, names()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("it trains {}", quoted_list(names())),
                },
            ));
            continue;
        }
        match fields.scope.resolve(&setting.value) {
            Spanned {
                node: Value::Number(rate),
                ..
            } if (1e-12..=1e3).contains(&rate) => {
                rates.insert(name.clone(), rate as f32);
            }
            wrong => fields.wrong(name, &wrong, "a number from 1e-12 to 1000"),
        }
    }
    rates
}

fn check_deltas(fields: &Fields, names: &[Spanned<String>], known: &Known) {
    for (i, name) in names.iter().enumerate() {
        if names[..i].iter().any(|other| other.node == name.node) {
            let message = format!("`{}` appears twice in this list", name.node);
            fields.report(
                Problem::new("delta::plan::duplicate", message)
                    .at(name.span, "again here")
                    .help("remove it"),
            );
        }
        if known.deltas.contains(&name.node) {
            continue;
        }
        let all = || known.deltas.iter().map(String::as_str).chain(["head"]);
        let message = format!(
            "{} names `{}`, which is not a delta of this file",
            fields.owner(),
            name.node
        );
        let problem = Problem::new("delta::plan::unknown_delta", message).at(name.span, "here");
        fields.report(match did_you_mean(&name.node, all()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("the file has {}", quoted_list(all()))),
        });
    }
}

/// The data set or task that a stage names, or else the unnamed one.
fn named(fields: &Fields, key: &'static str, known: &[String]) -> String {
    match fields.name(key) {
        Some(name) => {
            if !known.contains(&name.node) {
                let all = || known.iter().map(String::as_str);
                let message = format!(
                    "{} names the {key} `{}`, which the file does not declare",
                    fields.owner(),
                    name.node
                );
                let problem =
                    Problem::new("delta::plan::unknown_name", message).at(name.span, "here");
                fields.report(match did_you_mean(&name.node, all()) {
                    Some(near) => problem.help(format!("did you mean `{near}`?")),
                    None => problem.help(format!("the file has {}", quoted_list(all()))),
                });
            }
            name.node
        }
        None => {
            if !known.iter().any(|name| name == key) {
                let message = format!(
                    "{} names no {key}, and the file has no `{key}` block without a name",
                    fields.owner()
                );
                let problem =
                    Problem::new("delta::plan::missing", message).at(fields.span(), "here");
                fields.report(problem.help(match known.first() {
                    Some(first) => format!("add `{key} = {first}` to the stage"),
                    None => format!("add a `{key}` block to the file"),
                }));
            }
            key.to_owned()
        }
    }
}

fn length(fields: &Fields) -> Length {
    let steps = fields.count("steps", 1..=1_000_000_000);
    let epochs = fields.optional_number("epochs", 1e-6..=1e6);
    match (steps, epochs, fields.raw("steps"), fields.raw("epochs")) {
        (_, _, Some(steps), Some(epochs)) => {
            fields.report(
                Problem::new(
                    "delta::plan::length",
                    format!("{} has both `steps` and `epochs`", fields.owner()),
                )
                .at(epochs.span, "or this")
                .at(steps.span, "either this")
                .help("keep one of them"),
            );
        }
        (_, _, None, None) => fields.missing("epochs", "3"),
        _ => {}
    }
    match (steps, epochs) {
        (Some(steps), _) => Length::Steps(steps),
        (None, epochs) => Length::Epochs(epochs.unwrap_or(1.0)),
    }
}

/// Reads a word with an optional block, and returns the word and the block's settings.
fn record<'a>(
    fields: &Fields<'a>,
    key: &'static str,
    known: &[&str],
) -> Option<(String, Fields<'a>)> {
    let value = fields.raw(key)?;
    let owner = |name: &str| format!("{key} `{name}`");
    let (name, nested) = match &value.node {
        Value::Record { name, block } => (
            name.node.clone(),
            fields.nested(owner(&name.node), value.span, block),
        ),
        Value::Word(name) => {
            let empty: Option<&Block> = None;
            let nested = Fields::new(
                owner(name),
                value.span,
                empty,
                fields.scope,
                fields.problems,
            );
            (name.clone(), nested)
        }
        _ => {
            fields.wrong(
                key,
                value,
                &format!("one of {}", quoted_list(known.iter().copied())),
            );
            return None;
        }
    };
    if known.contains(&name.as_str()) {
        return Some((name, nested));
    }
    let problem = Problem::new(
        "delta::plan::unknown_word",
        format!("there is no {key} `{name}`"),
    )
    .at(value.span, "here");
    if let Some(help) = synonyms::for_word(&name, known.iter().copied()) {
        fields.report(problem.help(help));
        return None;
    }
    fields.report(match did_you_mean(&name, known.iter().copied()) {
        Some(near) => problem.help(format!("did you mean `{near}`?")),
        None => problem.help(format!("use one of {}", quoted_list(known.iter().copied()))),
    });
    None
}

/// Reads the optimizer. Defaults are PyTorch's, except that weight decay is 0 as in Hugging Face's Trainer.
fn optimizer(fields: &Fields) -> Optimizer {
    let default = Optimizer::AdamW {
        lr: 1e-3,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        weight_decay: 0.0,
    };
    if fields.raw("optimizer").is_none() {
        fields.missing("optimizer", "adamw { lr = 1e-3 }");
    }
    let Some((name, settings)) =
        record(fields, "optimizer", &["adamw", "sgd", "lion", "adafactor"])
    else {
        return default;
    };
    let lr = settings.optional_number("lr", 1e-12..=1e3);
    if settings.raw("lr").is_none() {
        settings.missing("lr", "1e-3");
    }
    let lr = lr.unwrap_or(1e-3) as f32;
    let weight_decay = settings.number("weight_decay", 0.0, 0.0..=1.0) as f32;
    let betas = |second: f64| {
        (
            settings.number("beta1", 0.9, 0.0..=0.999_999) as f32,
            settings.number("beta2", second, 0.0..=0.999_999) as f32,
        )
    };
    let optimizer = match name.as_str() {
        "adamw" => Optimizer::AdamW {
            lr,
            betas: betas(0.999),
            epsilon: settings.number("epsilon", 1e-8, 0.0..=1.0) as f32,
            weight_decay,
        },
        "lion" => Optimizer::Lion {
            lr,
            betas: betas(0.99),
            weight_decay,
        },
        "adafactor" => Optimizer::Adafactor {
            lr,
            scale_parameter: settings
                .choice("scale_parameter", &[("on", true), ("off", false)])
                .unwrap_or(false),
            threshold: settings.number("threshold", 1.0, 1e-6..=1e6) as f32,
            decay: settings.number("decay", 0.8, 0.0..=1.0) as f32,
            weight_decay,
        },
        _ => Optimizer::Sgd {
            lr,
            momentum: settings.number("momentum", 0.0, 0.0..=0.999_999) as f32,
            weight_decay,
        },
    };
    settings.finish();
    optimizer
}

/// Reads the schedule. The default is linear without warm-up, as in Hugging Face's Trainer.
fn schedule(fields: &Fields) -> Schedule {
    let shapes = [
        ("linear", ScheduleShape::Linear),
        ("cosine", ScheduleShape::Cosine),
        ("constant", ScheduleShape::Constant),
        ("inverse_sqrt", ScheduleShape::InverseSqrt),
    ];
    let mut schedule = Schedule {
        shape: ScheduleShape::Linear,
        warmup: Warmup::Steps(0),
    };
    let names = shapes.map(|(name, _)| name);
    let Some((name, settings)) = record(fields, "schedule", &names) else {
        return schedule;
    };
    if let Some((_, shape)) = shapes.iter().find(|(shape, _)| *shape == name) {
        schedule.shape = *shape;
    }
    if let Some(value) = settings.value("warmup") {
        match value.node {
            Value::Percent(share) if (0.0..1.0).contains(&share) => {
                schedule.warmup = Warmup::Fraction(share);
            }
            Value::Number(steps) if steps >= 0.0 && steps.fract() == 0.0 && steps < 1e9 => {
                schedule.warmup = Warmup::Steps(steps as usize);
            }
            _ => settings.wrong(
                "warmup",
                &value,
                "a number of steps, or a percentage below 100",
            ),
        }
    }
    settings.finish();
    schedule
}

/// Reads the gradient's largest norm. The default is 1, as in Hugging Face's Trainer.
fn clip(fields: &Fields) -> Option<f32> {
    match fields.value("clip").map(|value| value.node) {
        None => Some(1.0),
        Some(Value::Word(word)) if word == "off" => None,
        Some(_) => fields
            .optional_number("clip", 1e-6..=1e6)
            .map(|norm| norm as f32),
    }
}

fn interval(fields: &Fields) -> Interval {
    let default = Interval {
        count: 1,
        unit: Unit::Epochs,
    };
    let Some(value) = fields.value("evaluate") else {
        return default;
    };
    let Value::Every { count, unit } = &value.node else {
        fields.wrong(
            "evaluate",
            &value,
            "an interval such as `every 200 steps` or `every epoch`",
        );
        return default;
    };
    let Some(count) = count else {
        return Interval {
            count: 1,
            unit: *unit,
        };
    };
    let count = fields.scope.resolve(count);
    match count.node {
        Value::Number(number) if number >= 1.0 && number.fract() == 0.0 && number < 1e9 => {
            Interval {
                count: number as usize,
                unit: *unit,
            }
        }
        _ => {
            fields.wrong("evaluate", &count, "a whole number of at least 1");
            default
        }
    }
}
