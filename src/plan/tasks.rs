//! Reads `data` and `task` blocks.

use std::path::Path;

use super::cloze::{cloze, Cloze};
use super::{DataPlan, Few, FileFormat, FilePlan, Label, Metric, TaskKind, TaskPlan};
use crate::diagnostic::Problem;
use crate::settings::synonyms;
use crate::settings::Fields;
use crate::syntax::ast::{Argument, Name, Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// Reads a `data` block; paths are relative to `base`.
pub(super) fn data(fields: &Fields, base: &Path, seed: u64) -> DataPlan {
    let mut plan = DataPlan {
        train: file(fields, "train", base, seed),
        dev: file(fields, "dev", base, seed),
        test: file(fields, "test", base, seed),
    };
    fields.finish();
    // If `train` and `dev` take a few examples of the same file, they must not share any, so `dev` skips `train`'s.
    let train = plan
        .train
        .as_ref()
        .map(|file| (file.path.clone(), file.few));
    if let (Some((path, Some(train))), Some(dev)) = (train, &mut plan.dev) {
        match &mut dev.few {
            Some(few) if dev.path == path && few.seed == train.seed => {
                few.skipped = train.per_class;
            }
            _ => {}
        }
    }
    plan
}

const READERS: [(&str, FileFormat); 4] = [
    ("tsv", FileFormat::Tsv),
    ("csv", FileFormat::Csv),
    ("jsonl", FileFormat::Jsonl),
    ("text", FileFormat::Text),
];

fn file(fields: &Fields, key: &'static str, base: &Path, seed: u64) -> Option<FilePlan> {
    let value = fields.value(key)?;
    match &value.node {
        Value::Call { name, arguments } if name.node == "few" => {
            few(fields, &value, arguments, base, seed)
        }
        _ => whole_file(fields, key, &value, base),
    }
}

/// Reads `few(tsv("train.tsv"), 16)`: 16 examples of each label. `seed = N` draws other examples.
fn few(
    fields: &Fields,
    value: &Spanned<Value>,
    arguments: &[Argument],
    base: &Path,
    seed: u64,
) -> Option<FilePlan> {
    let number = |argument: &Argument| match fields.scope.resolve(&argument.value).node {
        Value::Number(number) if number >= 1.0 && number.fract() == 0.0 => Some(number as u64),
        _ => None,
    };
    let is_plain = |argument: &&Argument| argument.key.is_none();
    let plain: Vec<&Argument> = arguments.iter().filter(is_plain).collect();
    let named: Vec<&Argument> = arguments.iter().filter(|a| a.key.is_some()).collect();
    let seed = match named.as_slice() {
        [] => Some(seed),
        [one] if one.key.as_ref().is_some_and(|key| key.node == "seed") => number(one),
        _ => None,
    };
    let (file, per_class) = match plain.as_slice() {
        [file, count] => (Some(&file.value), number(count)),
        _ => (None, None),
    };
    let (Some(file), Some(per_class), Some(seed)) = (file, per_class, seed) else {
        let wanted = "a few examples of each label, such as `few(tsv(\"train.tsv\"), 16)`";
        fields.wrong("few", value, wanted);
        return None;
    };
    let mut plan = whole_file(fields, "few", file, base)?;
    plan.few = Some(Few {
        per_class: per_class as usize,
        skipped: 0,
        seed,
    });
    Some(plan)
}

fn whole_file(fields: &Fields, key: &str, value: &Spanned<Value>, base: &Path) -> Option<FilePlan> {
    let Value::Call { name, arguments } = &value.node else {
        fields.wrong(key, value, "a file such as `tsv(\"train.tsv\")`");
        return None;
    };
    let Some((_, format)) = READERS.iter().find(|(reader, _)| *reader == name.node) else {
        let known = || READERS.iter().map(|(reader, _)| *reader);
        let problem = Problem::new(
            "delta::plan::unknown_reader",
            format!("there is no reader `{}`", name.node),
        )
        .at(name.span, "here");
        fields.report(match did_you_mean(&name.node, known()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("use one of {}", quoted_list(known()))),
        });
        return None;
    };
    let mut path = None;
    let mut columns = None;
    let mut separator = None;
    for argument in arguments {
        match &argument.key {
            None if path.is_none() => path = path_of(fields, name, argument),
            Some(key) if key.node == "columns" && *format != FileFormat::Jsonl => {
                columns = Some(column_names(fields, argument));
            }
            Some(key) if key.node == "separator" && *format == FileFormat::Csv => {
                separator = symbol(fields, argument);
            }
            _ => fields.report(
                Problem::new(
                    "delta::plan::argument",
                    format!("`{}` takes {}", name.node, arguments_of(*format)),
                )
                .at(argument.value.span, "not this")
                .help("remove the argument"),
            ),
        }
    }
    if path.is_none() && arguments.is_empty() {
        fields.report(
            Problem::new(
                "delta::plan::argument",
                format!("`{}` needs a path", name.node),
            )
            .at(value.span, "here")
            .help(format!("write `{}(\"file\")`", name.node)),
        );
    }
    let (path, span) = path?;
    Some(FilePlan {
        format: *format,
        path: base.join(path),
        columns,
        separator,
        few: None,
        span,
    })
}

/// The arguments of a reader, in words.
fn arguments_of(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Jsonl => "a path",
        FileFormat::Csv => "a path, `columns = [...]` and `separator = \";\"`",
        FileFormat::Tsv | FileFormat::Text => "a path and `columns = [...]`",
    }
}

/// A single symbol that can separate values.
fn symbol(fields: &Fields, argument: &Argument) -> Option<char> {
    let value = fields.scope.resolve(&argument.value);
    let text = match &value.node {
        Value::Text(text) => text.as_str(),
        _ => "",
    };
    let mut symbols = text.chars();
    match (symbols.next(), symbols.next()) {
        (Some(symbol), None) if symbol.is_ascii() && !matches!(symbol, '"' | '\n' | '\r') => {
            Some(symbol)
        }
        _ => {
            fields.wrong("separator", &value, "one symbol in quotes, such as `\";\"`");
            None
        }
    }
}

fn path_of(
    fields: &Fields,
    reader: &Name,
    argument: &Argument,
) -> Option<(String, crate::diagnostic::Span)> {
    let value = fields.scope.resolve(&argument.value);
    match value.node {
        Value::Text(path) => Some((path, value.span)),
        _ => {
            fields.wrong(
                &format!("the path of {}", reader.node),
                &value,
                "a string in quotes",
            );
            None
        }
    }
}

fn column_names(fields: &Fields, argument: &Argument) -> Vec<String> {
    let Value::List(values) = &argument.value.node else {
        fields.wrong("columns", &argument.value, "a list of names");
        return Vec::new();
    };
    let mut names = Vec::new();
    for value in values {
        match &value.node {
            Value::Word(name) | Value::Text(name) => names.push(name.clone()),
            _ => fields.wrong("columns", value, "a name"),
        }
    }
    names
}

/// Reads a `task` block.
pub(super) fn task(kind: &Name, fields: &Fields) -> Option<TaskPlan> {
    let kinds = [
        ("classify", TaskKind::Classify),
        ("regress", TaskKind::Regress),
        ("masked_lm", TaskKind::MaskedLm),
        ("causal_lm", TaskKind::CausalLm),
        ("seq2seq", TaskKind::Seq2seq),
    ];
    let Some((_, found)) = kinds.iter().find(|(name, _)| *name == kind.node) else {
        let known = || kinds.iter().map(|(name, _)| *name);
        let problem = Problem::new(
            "delta::plan::unknown_task",
            format!("there is no task `{}`", kind.node),
        )
        .at(kind.span, "here");
        if let Some(help) = synonyms::for_word(&kind.node, known()) {
            fields.report(problem.help(help));
            return None;
        }
        fields.report(match did_you_mean(&kind.node, known()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("use one of {}", quoted_list(known()))),
        });
        return None;
    };
    let kind = *found;
    let mut plan = TaskPlan {
        kind,
        text: Vec::new(),
        label: String::new(),
        labels: Vec::new(),
        metric: metric(fields, kind),
        cloze: None,
        mask: 0.15,
        source_prefix: String::new(),
        span: fields.span(),
    };
    if kind == TaskKind::MaskedLm {
        plan.mask = masked_share(fields).unwrap_or(plan.mask);
    }
    if !kind.is_language_model() {
        match fields.name("label") {
            Some(label) => plan.label = label.node,
            None => fields.missing("label", "label"),
        }
        if kind == TaskKind::Classify {
            plan.labels = labels(fields);
            plan.cloze = cloze(fields, &plan.labels);
        } else {
            plan.cloze = interpolation(fields);
        }
    }
    if kind == TaskKind::Seq2seq {
        let column = |key, example| {
            let name = fields.name(key);
            if name.is_none() {
                fields.missing(key, example);
            }
            name.map_or(String::new(), |name| name.node)
        };
        plan.text = vec![column("source", "en")];
        plan.label = column("target", "de");
        plan.source_prefix = fields
            .text("prefix")
            .map_or(String::new(), |text| text.node);
        fields.finish();
        return Some(plan);
    }
    plan.text = match &plan.cloze {
        Some(cloze) => cloze.columns(),
        None if !kind.is_language_model() && fields.raw("template").is_some() => Vec::new(),
        None => text(fields, kind),
    };
    fields.finish();
    Some(plan)
}

fn masked_share(fields: &Fields) -> Option<f32> {
    let value = fields.value("mask")?;
    match value.node {
        Value::Percent(share) if share > 0.0 && share < 1.0 => Some(share as f32),
        _ => {
            fields.wrong("mask", &value, "a percentage above 0 and below 100");
            None
        }
    }
}

/// Reads a regression by cloze. It predicts `low + (high − low) · P(high)`, with the probability of the word for
/// `high` (Gao et al., LM-BFF, arXiv 2012.15723, section 3).
fn interpolation(fields: &Fields) -> Option<Cloze> {
    let ends = ["low", "high"].map(|name| Label {
        value: name.to_owned(),
        name: name.to_owned(),
    });
    let range = fields.value("range");
    let mut cloze = cloze(fields, &ends)?;
    let Some(range) = range else {
        fields.missing("range", "[0, 5]");
        return None;
    };
    let number = |value: &Spanned<Value>| match fields.scope.resolve(value).node {
        Value::Number(number) => Some(number as f32),
        _ => None,
    };
    let ends: Option<Vec<f32>> = match &range.node {
        Value::List(values) => values.iter().map(number).collect(),
        _ => None,
    };
    match ends.as_deref() {
        Some([low, high]) if low < high => cloze.range = Some((*low, *high)),
        _ => fields.wrong("range", &range, "two numbers, the lower first: `[0, 5]`"),
    }
    Some(cloze)
}

fn text(fields: &Fields, kind: TaskKind) -> Vec<String> {
    let Some(names) = fields.names("text") else {
        fields.missing("text", "sentence");
        return Vec::new();
    };
    let most = if kind.is_language_model() { 1 } else { 2 };
    if names.is_empty() || names.len() > most {
        let span = fields
            .raw("text")
            .map(|value| value.span)
            .unwrap_or_default();
        let message = format!("`text` names {} columns", names.len());
        fields.report(
            Problem::new("delta::plan::text", message)
                .at(span, "here")
                .help(if most == 1 {
                    "name one column"
                } else {
                    "name one column, or two for a pair"
                }),
        );
    }
    names.into_iter().map(|name| name.node).collect()
}

fn metric(fields: &Fields, kind: TaskKind) -> Metric {
    let (metrics, default): (&[(&str, Metric)], Metric) = match kind {
        TaskKind::Classify => (
            &[
                ("accuracy", Metric::Accuracy),
                ("f1", Metric::F1),
                ("matthews", Metric::Matthews),
                ("loss", Metric::Loss),
            ],
            Metric::Accuracy,
        ),
        TaskKind::Regress => (
            &[
                ("pearson", Metric::Pearson),
                ("spearman", Metric::Spearman),
                ("loss", Metric::Loss),
            ],
            Metric::Pearson,
        ),
        TaskKind::MaskedLm | TaskKind::CausalLm | TaskKind::Seq2seq => (
            &[("accuracy", Metric::Accuracy), ("loss", Metric::Loss)],
            Metric::Loss,
        ),
    };
    fields.choice("metric", metrics).unwrap_or(default)
}

fn labels(fields: &Fields) -> Vec<Label> {
    let Some(value) = fields.raw("labels") else {
        fields.missing("labels", "{ \"0\" = negative, \"1\" = positive }");
        return Vec::new();
    };
    let mut labels: Vec<Label> = Vec::new();
    match &value.node {
        Value::Block(block) => {
            let block = fields.nested("labels", value.span, block);
            for setting in block.all() {
                if let Value::Word(name) | Value::Text(name) = &setting.value.node {
                    labels.push(Label {
                        value: setting.key.node.clone(),
                        name: name.clone(),
                    });
                } else {
                    fields.wrong("labels", &setting.value, "a name");
                }
            }
        }
        Value::List(values) => {
            for value in values {
                match &value.node {
                    Value::Word(name) | Value::Text(name) => {
                        labels.push(Label {
                            value: name.clone(),
                            name: name.clone(),
                        });
                    }
                    _ => fields.wrong("labels", value, "a name"),
                }
            }
        }
        _ => fields.wrong(
            "labels",
            value,
            "a block such as `{ \"0\" = negative, \"1\" = positive }`",
        ),
    }
    check_labels(fields, value, &labels);
    labels
}

fn check_labels(fields: &Fields, value: &Spanned<Value>, labels: &[Label]) {
    let twice = labels.iter().enumerate().find(|(i, label)| {
        labels[..*i]
            .iter()
            .any(|other| other.name == label.name || other.value == label.value)
    });
    if let Some((_, label)) = twice {
        fields.report(
            Problem::new(
                "delta::plan::labels",
                format!("the label `{}` appears twice", label.name),
            )
            .at(value.span, "in here")
            .help("give every label its own value and its own name"),
        );
    } else if labels.len() < 2 {
        fields.report(
            Problem::new(
                "delta::plan::labels",
                "a `classify` task needs at least two labels",
            )
            .at(value.span, "here")
            .help("list every label of the data"),
        );
    }
}
