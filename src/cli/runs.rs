//! `deltarun runs` and `deltarun compare`: what finished runs are, and in what two of them differ.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::run::{is_partial, FinishedRun, Integrity, Summary};
use crate::terminal::print;
use crate::text::{bytes, counted};

/// How deep below a directory runs are looked for: those of experiments lie in a folder of their own.
const DEPTH: usize = 2;

/// `deltarun runs [DIR]`
pub(super) fn runs(directory: &Path) -> Result<Ended, Problems> {
    if directory.is_file() {
        let message = format!("`{}` is a file", directory.display());
        return Err(Problem::new("delta::cli::runs", message)
            .help("name the directory that holds runs")
            .into());
    }
    if !directory.is_dir() {
        let message = format!("there is no directory `{}`", directory.display());
        return Err(Problem::new("delta::cli::runs", message)
            .help("name the directory that holds runs; a run makes `runs` here")
            .into());
    }
    let mut found = Vec::new();
    collect(directory, DEPTH, &mut found).map_err(|e| disk::failed("read", directory, &e))?;
    found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    if found.is_empty() {
        print(&format!("no runs below `{}`\n", directory.display()));
        return Ok(Ended::Done);
    }
    let rows: Vec<[String; 5]> = found.iter().map(|(when, path)| row(*when, path)).collect();
    let header = ["run", "result", "trained", "size", "when"].map(str::to_owned);
    print(&aligned(&header, &rows));
    Ok(Ended::Done)
}

/// The directories of runs below one, with the time of their last change.
fn collect(
    directory: &Path,
    depth: usize,
    found: &mut Vec<(SystemTime, PathBuf)>,
) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)?.flatten() {
        let path = entry.path();
        let manifest = path.join("manifest.yaml");
        match manifest.metadata() {
            Ok(metadata) => {
                let log = path.join("log.jsonl").metadata().unwrap_or(metadata);
                found.push((log.modified().unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
            Err(_) if depth > 1 && path.is_dir() => collect(&path, depth - 1, found)?,
            Err(_) => {}
        }
    }
    Ok(())
}

fn row(when: SystemTime, path: &Path) -> [String; 5] {
    let ago = SystemTime::now()
        .duration_since(when)
        .unwrap_or_default()
        .as_secs();
    let ago = match ago {
        0..120 => "just now".to_owned(),
        120..7200 => format!("{} min ago", ago / 60),
        7200..172_800 => format!("{} h ago", ago / 3600),
        _ => format!("{} days ago", ago / 86_400),
    };
    let name = path.display().to_string();
    let size = path.join("delta.safetensors").metadata();
    let size = size.map_or(String::new(), |file| bytes(file.len() as usize));
    if is_partial(path) {
        return [name, "interrupted".to_owned(), String::new(), size, ago];
    }
    let summary = FinishedRun::open(path, Integrity::Unchecked).and_then(|run| run.summary());
    match summary {
        Err(_) => [name, "unreadable".to_owned(), String::new(), size, ago],
        Ok(summary) => {
            let trained = summary.stages.iter().map(|stage| stage.trained).max();
            let trained = trained.map_or(String::new(), |count| counted(count, "parameter"));
            [name, result(&summary), trained, size, ago]
        }
    }
}

/// The metric of a run on the test set, or else on the dev set.
fn result(summary: &Summary) -> String {
    let metric = summary.metric.name();
    let dev = summary
        .stages
        .iter()
        .rev()
        .find_map(|stage| stage.dev.as_ref());
    let dev = dev.or(summary.zero_shot.as_ref());
    let found = summary
        .test
        .as_ref()
        .map(|test| (test, "test"))
        .or(dev.map(|dev| (dev, "dev")));
    match found.and_then(|(found, set)| Some((found.metrics.get(metric)?, set))) {
        Some((value, set)) => format!("{metric} {value:.4} ({set})"),
        None => "not evaluated".to_owned(),
    }
}

/// `deltarun compare A B`
pub(super) fn compare(first: &Path, second: &Path) -> Result<Ended, Problems> {
    let open = |path: &Path| FinishedRun::open(path, Integrity::Unchecked);
    let (a, b) = (open(first)?, open(second)?);
    let (plans, summaries) = ([a.plan()?, b.plan()?], [a.summary()?, b.summary()?]);
    let names = [first, second].map(|path| path.display().to_string());
    let header = ["".to_owned(), names[0].clone(), names[1].clone()];
    let mut differences = plans[1].compared(&plans[0]);
    // Files of the same name whose content differs.
    let [hashes, others] = [&a, &b].map(|run| &run.manifest().data_hashes);
    for (path, hash) in hashes {
        if let Some(other) = others.get(path).filter(|other| *other != hash) {
            let short = |hash: &String| format!("SHA-256 {}…", &hash[..hash.len().min(8)]);
            differences.push([format!("content of {path}"), short(hash), short(other)]);
        }
    }
    let mut text = String::new();
    match differences.is_empty() {
        true => text.push_str("the plans and the data are the same\n\n"),
        false => {
            let _ = writeln!(
                text,
                "{} in plans and data\n",
                counted(differences.len(), "difference")
            );
            text += &aligned(&header, &differences);
            text.push('\n');
        }
    }
    text += &aligned(&header, &results(&summaries));
    print(&text);
    Ok(Ended::Done)
}

/// The metrics, parameters and time of two runs.
fn results(summaries: &[Summary; 2]) -> Vec<[String; 3]> {
    let both = |name: String, of: &dyn Fn(&Summary) -> Option<String>| {
        let [a, b] = summaries.each_ref().map(|own| of(own).unwrap_or_default());
        [name, a, b]
    };
    let dev = |summary: &Summary| {
        let last = summary
            .stages
            .iter()
            .rev()
            .find_map(|stage| stage.dev.clone());
        last.or(summary.zero_shot.clone())
    };
    let mut rows = Vec::new();
    for set in ["dev", "test"] {
        let of = |summary: &Summary| match set {
            "dev" => dev(summary),
            _ => summary.test.clone(),
        };
        let all = summaries.iter().filter_map(of);
        let names: BTreeSet<String> = all.flat_map(|found| found.metrics.into_keys()).collect();
        for name in names {
            let value = |summary: &Summary| {
                let value = *of(summary)?.metrics.get(&name)?;
                Some(format!("{value:.4}"))
            };
            rows.push(both(format!("{set} {name}"), &value));
        }
    }
    let trained = |summary: &Summary| {
        let most = summary.stages.iter().map(|stage| stage.trained).max()?;
        Some(counted(most, "parameter"))
    };
    let seconds = |summary: &Summary| {
        let all: f64 = summary.stages.iter().map(|stage| stage.seconds).sum();
        Some(format!("{all:.1} s"))
    };
    let memory = |summary: &Summary| Some(bytes(summary.peak_memory? as usize));
    rows.push(both("trained".to_owned(), &trained));
    rows.push(both("time".to_owned(), &seconds));
    rows.push(both("peak memory".to_owned(), &memory));
    rows
}

/// Columns side by side.
fn aligned<const N: usize>(header: &[String; N], rows: &[[String; N]]) -> String {
    let all = || std::iter::once(header).chain(rows);
    let widths: [usize; N] = std::array::from_fn(|place| {
        let widths = all().map(|row| row[place].chars().count());
        widths.max().unwrap_or(0)
    });
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        line.trim_end().to_owned() + "\n"
    };
    all().map(line).collect()
}
