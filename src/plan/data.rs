//! Reads `data` blocks.

use std::path::{Path, PathBuf};

use super::{DataPlan, Few, FileFormat, FilePlan, Part, TextEncoding};
use crate::diagnostic::{Problem, Span};
use crate::hub::in_hub;
use crate::settings::Fields;
use crate::syntax::ast::{Argument, Name, Spanned, Value};
use crate::text::{did_you_mean, percent, quoted_list};

/// Reads a `data` block; paths are relative to `base`.
pub(super) fn data(fields: &Fields, base: &Path, seed: u64) -> DataPlan {
    let undrawn = |key: &'static str| match is_drawn(fields, key) {
        true => None,
        false => file(fields, key, base, seed),
    };
    let mut plan = DataPlan {
        train: file(fields, "train", base, seed),
        dev: undrawn("dev"),
        test: undrawn("test"),
    };
    let mut end = 0;
    plan.dev = split(fields, "dev", &plan, &mut end, seed).or(plan.dev);
    plan.test = split(fields, "test", &plan, &mut end, seed).or(plan.test);
    if let Some(train) = plan.train.as_mut().filter(|_| end > 0) {
        train.part = Some(Part {
            from: end,
            to: Part::WHOLE,
            seed,
            is_fold: false,
        });
    }
    if let Some((dev, rest)) = fold(fields, &plan, end > 0, seed) {
        plan.dev = Some(dev);
        if let Some(train) = &mut plan.train {
            train.part = Some(rest);
        }
    }
    fields.finish();
    separate(&mut plan);
    plan
}

/// Lets sets that take a few examples of the same file share none: each skips those of the sets before it.
fn separate(plan: &mut DataPlan) {
    let mut taken: Vec<(Vec<PathBuf>, Few)> = Vec::new();
    let sets = [&mut plan.train, &mut plan.dev, &mut plan.test];
    for set in sets.into_iter().flatten() {
        let paths: Vec<PathBuf> = set.paths();
        if let Some(few) = &mut set.few {
            let before = taken
                .iter()
                .filter(|(other, own)| *other == paths && own.seed == few.seed);
            few.skipped = before.map(|(_, own)| own.per_class).sum();
            taken.push((paths, *few));
        }
    }
}

fn file(fields: &Fields, key: &'static str, base: &Path, seed: u64) -> Option<FilePlan> {
    let value = fields.value(key)?;
    let read = match &value.node {
        Value::Call { name, arguments } if name.node == "few" => {
            few(fields, &value, arguments, base, seed)
        }
        Value::Call { name, arguments } if name.node == "head" => {
            head(fields, &value, arguments, base)
        }
        _ => whole_file(fields, key, &value, base),
    };
    // Its mistake is reported. A file in its place keeps it from being called missing as well.
    Some(read.unwrap_or_else(|| FilePlan::whole(FileFormat::Text, base.to_owned(), value.span)))
}

/// Whether a set is drawn from `train`, by `split` or `fold`.
fn is_drawn(fields: &Fields, key: &'static str) -> bool {
    match fields.value(key).map(|value| value.node) {
        Some(Value::Call { name, .. }) => {
            name.node == "split" || name.node == "fold" && key == "dev"
        }
        _ => false,
    }
}

/// Reads `dev = fold(train, 2, of = 5)`: the second of five parts of the training file, and the rest for the training.
fn fold(fields: &Fields, plan: &DataPlan, is_split: bool, seed: u64) -> Option<(FilePlan, Part)> {
    let value = fields.value("dev")?;
    let arguments = match &value.node {
        Value::Call { name, arguments } if name.node == "fold" => arguments,
        _ => return None,
    };
    let number = |argument: &Argument| match fields.scope.resolve(&argument.value).node {
        Value::Number(number) if number >= 1.0 && number.fract() == 0.0 => Some(number as u32),
        _ => None,
    };
    let is_train =
        |argument: &Argument| matches!(&argument.value.node, Value::Word(word) if word == "train");
    let numbers = match arguments.as_slice() {
        [set, one, of]
            if is_train(set)
                && one.key.is_none()
                && of.key.as_ref().is_some_and(|key| key.node == "of") =>
        {
            number(one).zip(number(of))
        }
        _ => None,
    };
    let numbers = numbers.filter(|(one, of)| (2..=1000).contains(of) && one <= of);
    let Some((one, of)) = numbers else {
        let wanted = "a fold of the training file, such as `fold(train, 1, of = 5)`";
        fields.wrong("dev", &value, wanted);
        return None;
    };
    let train = plan
        .train
        .clone()
        .filter(|train| train.few.is_none() && !is_split);
    let Some(train) = train else {
        let message =
            "`fold` needs a whole training file and cannot be combined with `split` or `few`";
        let problem = Problem::new("delta::plan::fold", message).at(value.span, "here");
        fields
            .report(problem.help("name a whole file as `train`, and a file of its own as `test`"));
        return None;
    };
    let bound = |number: u32| (u64::from(Part::WHOLE) * u64::from(number) / u64::from(of)) as u32;
    let (from, to) = (bound(one - 1), bound(one));
    let part = Part {
        from,
        to,
        seed,
        is_fold: true,
    };
    let dev = FilePlan {
        part: Some(part),
        span: value.span,
        ..train
    };
    let rest = Part {
        from: to,
        to: Part::WHOLE + from,
        seed,
        is_fold: true,
    };
    Some((dev, rest))
}

/// Reads `dev = split(train, 10%)`: a share of the training file, which the training then lacks. `end` is where the
/// shares so far end.
fn split(
    fields: &Fields,
    key: &'static str,
    plan: &DataPlan,
    end: &mut u32,
    seed: u64,
) -> Option<FilePlan> {
    let value = fields.value(key)?;
    let arguments = match &value.node {
        Value::Call { name, arguments } if name.node == "split" => arguments,
        _ => return None,
    };
    let resolved = |argument: &Argument| fields.scope.resolve(&argument.value).node;
    let share = match arguments.as_slice() {
        [set, share] if set.key.is_none() && share.key.is_none() => {
            match (&set.value.node, resolved(share)) {
                (Value::Word(word), Value::Percent(share)) if word == "train" => Some(share),
                _ => None,
            }
        }
        _ => None,
    };
    let share = share.filter(|share| *share > 0.0 && *share < 1.0);
    let share = share.map(|share| (share * f64::from(Part::WHOLE)).round() as u32);
    let refuse = |message: &str, help: &str| {
        let problem = Problem::new("delta::plan::split", message).at(value.span, "here");
        fields.report(problem.help(help));
    };
    let given = match arguments.as_slice() {
        [set, share] if matches!(&set.value.node, Value::Word(word) if word == "train") => {
            Some((share.value.span, resolved(share)))
        }
        _ => None,
    };
    let given = given.filter(|(_, share)| matches!(share, Value::Number(_) | Value::Percent(_)));
    // A mistake is reported once; a file in its place keeps it from being called missing as well.
    let from = *end;
    match (share, &plan.train) {
        (None, _) => match given {
            Some((span, share)) => wrong_share(fields, span, &share),
            None => fields.wrong(
                key,
                &value,
                "a share of the training file, such as `split(train, 10%)`",
            ),
        },
        (_, None) => refuse(
            "there is no `train` to split",
            "add `train = tsv(\"train.tsv\")` to the data set",
        ),
        (_, Some(train)) if train.few.is_some() => refuse(
            "`split` takes from a whole file, and `train` is a few examples of one",
            "write `few(...)` for this set as well: it takes others of the same file",
        ),
        (Some(share), Some(_)) if from + share >= Part::WHOLE => {
            refuse(
                "the shares leave nothing to train on",
                "take smaller shares",
            );
        }
        (Some(share), Some(_)) => *end = from + share,
    }
    let train = plan.train.clone()?;
    Some(FilePlan {
        part: Some(Part {
            from,
            to: *end,
            seed,
            is_fold: false,
        }),
        span: value.span,
        ..train
    })
}

/// Reads `head(tsv("train.tsv"), 1000)`: the first rows of a file.
fn head(
    fields: &Fields,
    value: &Spanned<Value>,
    arguments: &[Argument],
    base: &Path,
) -> Option<FilePlan> {
    let count = |argument: &Argument| match fields.scope.resolve(&argument.value).node {
        Value::Number(count) if count >= 1.0 && count.fract() == 0.0 => Some(count as usize),
        _ => None,
    };
    let (file, count) = match arguments {
        [file, most] if file.key.is_none() && most.key.is_none() => (&file.value, count(most)),
        _ => (value, None),
    };
    let Some(count) = count else {
        if let [_, most] = arguments {
            report_count(fields, most);
            return None;
        }
        let wanted = "the first rows of a file, such as `head(tsv(\"train.tsv\"), 1000)`";
        fields.wrong("head", value, wanted);
        return None;
    };
    let mut plan = whole_file(fields, "head", file, base)?;
    plan.most = Some(count);
    Some(plan)
}

/// Reports a share outside 0 % to 100 %.
fn wrong_share(fields: &Fields, span: Span, given: &Value) {
    let message = "a share is a percentage between 0 % and 100 %";
    let problem = Problem::new("delta::plan::split", message).at(span, "not this");
    fields.report(problem.help(match given {
        Value::Number(share) if *share > 0.0 && *share < 1.0 => {
            format!("write `{}`", percent(*share))
        }
        Value::Number(share) if *share > 1.0 && *share < 100.0 => {
            format!("write `{}`", percent(share / 100.0))
        }
        _ => "write a share such as `10%`".to_owned(),
    }));
}

/// Reports a row count that is not a whole number from 1.
fn report_count(fields: &Fields, argument: &Argument) {
    let problem = Problem::new(
        "delta::plan::rows",
        "a number of rows is a whole number from 1",
    );
    fields.report(
        problem
            .at(argument.value.span, "not this")
            .help("write a number such as 1000"),
    );
}

/// Reads `few(tsv("train.tsv"), 16)`: 16 examples of each label. `seed = N` draws other examples.
fn few(
    fields: &Fields,
    value: &Spanned<Value>,
    arguments: &[Argument],
    base: &Path,
    seed: u64,
) -> Option<FilePlan> {
    let whole = |argument: &Argument| match fields.scope.resolve(&argument.value).node {
        Value::Number(number) if number >= 0.0 && number.fract() == 0.0 => Some(number as u64),
        _ => None,
    };
    let number = |argument: &Argument| whole(argument).filter(|number| *number > 0);
    let is_plain = |argument: &&Argument| argument.key.is_none();
    let plain: Vec<&Argument> = arguments.iter().filter(is_plain).collect();
    let named: Vec<&Argument> = arguments.iter().filter(|a| a.key.is_some()).collect();
    let seed = match named.as_slice() {
        [] => Some(seed),
        [one] if one.key.as_ref().is_some_and(|key| key.node == "seed") => whole(one),
        _ => None,
    };
    let (file, per_class) = match plain.as_slice() {
        [file, count] => (Some(&file.value), number(count)),
        _ => (None, None),
    };
    let (Some(file), Some(per_class), Some(seed)) = (file, per_class, seed) else {
        if let ([_, count], Some(_), None) = (plain.as_slice(), seed, per_class) {
            report_count(fields, count);
            return None;
        }
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
    let mut formats = FileFormat::ALL.iter();
    let Some(format) = formats.find(|format| format.reader() == name.node) else {
        let known = || FileFormat::ALL.iter().map(|format| format.reader());
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
    let mut paths = None;
    let mut columns = None;
    let mut separator = None;
    let mut encoding = None;
    let mut named: Vec<&str> = Vec::new();
    for argument in arguments {
        if let Some(key) = &argument.key {
            if named.contains(&key.node.as_str()) {
                let message = format!("`{}` is set twice", key.node);
                let problem = Problem::new("delta::plan::argument", message);
                fields.report(
                    problem
                        .at(key.span, "again here")
                        .help("remove one of the two"),
                );
            }
            named.push(&key.node);
        }
        match &argument.key {
            None if paths.is_none() => paths = Some(paths_of(fields, name, argument)?),
            Some(key) if key.node == "columns" && !has_names(*format) => {
                columns = Some(column_names(fields, argument));
            }
            Some(key) if key.node == "separator" && *format == FileFormat::Csv => {
                separator = symbol(fields, argument);
            }
            Some(key) if key.node == "encoding" && *format != FileFormat::Parquet => {
                encoding = encoding_of(fields, argument);
            }
            key => fields.report(
                Problem::new(
                    "delta::plan::argument",
                    format!("`{}` takes {}", name.node, arguments_of(*format)),
                )
                .at(argument.value.span, "not this")
                .help(instead_of(
                    key.as_ref().map(|key| key.node.as_str()),
                    *format,
                )),
            ),
        }
    }
    if paths.is_none() && arguments.is_empty() {
        fields.report(
            Problem::new(
                "delta::plan::argument",
                format!("`{}` needs a path", name.node),
            )
            .at(value.span, "here")
            .help(format!("write `{}(\"file\")`", name.node)),
        );
    }
    let (paths, span) = paths?;
    let mut paths = paths.into_iter().map(|path| place(base, path));
    let first = paths.next()?;
    Some(FilePlan {
        more: paths.collect(),
        columns,
        separator,
        encoding,
        ..FilePlan::whole(*format, first, span)
    })
}

/// A path of a file relative to `base`, or one in the hub.
fn place(base: &Path, path: String) -> PathBuf {
    match in_hub(&path) {
        Some(_) => PathBuf::from(path),
        None => base.join(path),
    }
}

/// Whether each row of a format has the names of its columns.
fn has_names(format: FileFormat) -> bool {
    matches!(
        format,
        FileFormat::Jsonl | FileFormat::Json | FileFormat::Parquet
    )
}

/// The arguments of a reader, in words.
fn arguments_of(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Parquet => "a path",
        FileFormat::Jsonl | FileFormat::Json => "a path and `encoding`",
        FileFormat::Csv => "a path, `columns = [...]`, `separator = \";\"` and `encoding`",
        FileFormat::Tsv | FileFormat::Text | FileFormat::Conll => {
            "a path, `columns = [...]` and `encoding`"
        }
    }
}

/// What to write instead of an argument that a reader does not take.
fn instead_of(key: Option<&str>, format: FileFormat) -> &'static str {
    match (key, format) {
        (Some("sep" | "delimiter"), FileFormat::Csv) => "write `separator = \";\"`",
        (Some("sep" | "delimiter" | "separator"), FileFormat::Tsv) => {
            "`tsv` has tabs; read a file with another symbol with `csv(\"...\", separator = \";\")`"
        }
        (Some("header" | "names"), FileFormat::Csv | FileFormat::Tsv) => {
            "name the columns of a file without a header: `columns = [first, second]`"
        }
        _ => "remove the argument",
    }
}

/// The encoding of a file. UTF-8 is the default and gives `None`.
fn encoding_of(fields: &Fields, argument: &Argument) -> Option<TextEncoding> {
    let value = fields.scope.resolve(&argument.value);
    if let Value::Text(text) = &value.node {
        match text.to_lowercase().as_str() {
            "latin-1" | "latin1" | "iso-8859-1" => return Some(TextEncoding::Latin1),
            "cp1252" | "windows-1252" => return Some(TextEncoding::Windows1252),
            "utf-16" | "utf16" => return Some(TextEncoding::Utf16),
            "utf-8" | "utf8" => return None,
            _ => {}
        }
    }
    let wanted = "`\"latin-1\"`, `\"cp1252\"`, `\"utf-16\"` or `\"utf-8\"`, which is the default";
    fields.wrong("encoding", &value, wanted);
    None
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

/// The path of a reader, or the paths of several files that are read as one.
fn paths_of(fields: &Fields, reader: &Name, argument: &Argument) -> Option<(Vec<String>, Span)> {
    let value = fields.scope.resolve(&argument.value);
    let text = |value: &Spanned<Value>| match fields.scope.resolve(value).node {
        Value::Text(path) => Some(path),
        _ => None,
    };
    let paths: Option<Vec<String>> = match &value.node {
        Value::List(values) if !values.is_empty() => values.iter().map(text).collect(),
        _ => text(&value).map(|path| vec![path]),
    };
    if paths.is_none() {
        let what = format!("the path of {}", reader.node);
        fields.wrong(&what, &value, "a string in quotes, or a list of them");
    }
    paths.map(|paths| (paths, value.span))
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
