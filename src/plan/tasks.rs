//! Data sets and tasks.

use std::path::Path;

use super::cloze::cloze;
use super::fields::Fields;
use super::{DataPlan, FileFormat, FilePlan, Label, Metric, TaskKind, TaskPlan};
use crate::diagnostic::Problem;
use crate::syntax::ast::{Argument, Name, Spanned, Value};
use crate::text::{did_you_mean, quoted_list};

/// Reads a `data` block; paths are relative to `base`.
pub(super) fn data(fields: &Fields, base: &Path) -> DataPlan {
    let plan = DataPlan {
        train: file(fields, "train", base),
        dev: file(fields, "dev", base),
        test: file(fields, "test", base),
    };
    fields.finish();
    plan
}

const READERS: [(&str, FileFormat); 4] = [
    ("tsv", FileFormat::Tsv),
    ("csv", FileFormat::Csv),
    ("jsonl", FileFormat::Jsonl),
    ("text", FileFormat::Text),
];

fn file(fields: &Fields, key: &'static str, base: &Path) -> Option<FilePlan> {
    let value = fields.value(key)?;
    let Value::Call { name, arguments } = &value.node else {
        fields.wrong(key, &value, "a file such as `tsv(\"train.tsv\")`");
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
    for argument in arguments {
        match &argument.key {
            None if path.is_none() => path = path_of(fields, name, argument),
            Some(key) if key.node == "columns" && *format != FileFormat::Jsonl => {
                columns = Some(column_names(fields, argument));
            }
            _ => fields.report(
                Problem::new(
                    "delta::plan::argument",
                    format!("`{}` takes a path and `columns = [...]`", name.node),
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
        span,
    })
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
                "a text in quotes",
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
    ];
    let Some((_, found)) = kinds.iter().find(|(name, _)| *name == kind.node) else {
        let known = || kinds.iter().map(|(name, _)| *name);
        let problem = Problem::new(
            "delta::plan::unknown_task",
            format!("there is no task `{}`", kind.node),
        )
        .at(kind.span, "here");
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
        span: fields.span(),
    };
    match kind {
        TaskKind::MaskedLm => {
            if let Some(value) = fields.value("mask") {
                match value.node {
                    Value::Percent(share) if share > 0.0 && share < 1.0 => plan.mask = share as f32,
                    _ => fields.wrong("mask", &value, "a percentage above 0 and below 100"),
                }
            }
        }
        _ => match fields.name("label") {
            Some(label) => plan.label = label.node,
            None => fields.missing("label", "label"),
        },
    }
    if kind == TaskKind::Classify {
        plan.labels = labels(fields);
        plan.cloze = cloze(fields, &plan.labels);
    }
    plan.text = match &plan.cloze {
        Some(cloze) => cloze.columns(),
        None if kind == TaskKind::Classify && fields.raw("template").is_some() => Vec::new(),
        None => text(fields, kind),
    };
    fields.finish();
    Some(plan)
}

fn text(fields: &Fields, kind: TaskKind) -> Vec<String> {
    let Some(names) = fields.names("text") else {
        fields.missing("text", "sentence");
        return Vec::new();
    };
    let most = if kind == TaskKind::MaskedLm { 1 } else { 2 };
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
        TaskKind::MaskedLm => (
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
                format!("the label `{}` stands twice", label.name),
            )
            .at(value.span, "in here")
            .help("give every label a value and a name of its own"),
        );
    } else if labels.len() < 2 {
        fields.report(
            Problem::new(
                "delta::plan::labels",
                "a classification needs at least two labels",
            )
            .at(value.span, "here")
            .help("name all labels of the data"),
        );
    }
}
