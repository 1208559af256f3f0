//! `deltarun sweep`: writes the script that runs a pipeline at the points of a grid, and runs it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;

use super::arguments::threads;
use super::commands::{interruption, script_out};
use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, failed};
use crate::run::Integrity;
use crate::script;
use crate::settings::Overrides;
use crate::terminal::say;

#[derive(Args)]
pub struct SweepOptions {
    /// A `.delta` file
    #[arg(value_name = "FILE.delta")]
    pub file: PathBuf,
    /// Values of a param: a list, or a range and how many of it, at equal ratios: `rank=4,16` `lr=1e-4..1e-2,5`
    #[arg(long, value_name = "NAME=VALUES", num_args = 1.., required = true, value_parser = axis)]
    pub over: Vec<Axis>,
    /// The directory of the runs, instead of `runs/FILE_sweep`
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The number of threads; each runs a pipeline of its own if there is memory for it
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Show no progress
    #[arg(long)]
    pub quiet: bool,
}

/// A param and its values, as a script writes them.
#[derive(Clone, Debug)]
pub struct Axis {
    name: String,
    values: Vec<String>,
}

/// Reads `lr=1e-4..1e-2,5` or `rank=4,16`.
fn axis(text: &str) -> Result<Axis, String> {
    let wrong = || "write `NAME=A,B,C` or `NAME=FROM..TO,COUNT`".to_owned();
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let is_name = |name: &str| {
        let mut letters = name.chars();
        letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if !is_name(name) {
        return Err(wrong());
    }
    let values = match values.split_once("..") {
        Some((from, rest)) => {
            let (to, count) = rest.split_once(',').ok_or_else(wrong)?;
            range(from, to, count)
                .ok_or("a range needs two numbers above 0 and a count from 2 to 1000")?
        }
        None => values.split(',').map(literal).collect(),
    };
    Ok(Axis {
        name: name.to_owned(),
        values,
    })
}

/// Numbers at equal ratios; whole ones if both ends are.
fn range(from: &str, to: &str, count: &str) -> Option<Vec<String>> {
    let are_whole = from.parse::<u32>().is_ok() && to.parse::<u32>().is_ok();
    let ends: [f64; 2] = [from.parse().ok()?, to.parse().ok()?];
    let count: usize = count.parse().ok()?;
    let are_usable =
        ends.iter().all(|end| end.is_finite() && *end > 0.0) && (2..=1000).contains(&count);
    if !are_usable {
        return None;
    }
    let value = |number: usize| {
        let part = number as f64 / (count - 1) as f64;
        let value = ends[0] * (ends[1] / ends[0]).powf(part);
        match are_whole {
            true => format!("{}", value.round()),
            // Three digits are enough to try.
            false => literal(&format!(
                "{:e}",
                format!("{value:.2e}").parse().unwrap_or(value)
            )),
        }
    };
    let mut values: Vec<String> = (0..count).map(value).collect();
    values.dedup();
    Some(values)
}

/// A number as it is, and anything else in quotes. A script's numbers have a digit before an exponent's letter.
fn literal(text: &str) -> String {
    let text = text.trim();
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() => {
            match text.contains(['e', 'E']) && !text.contains('.') {
                true => text.replacen(['e', 'E'], ".0e", 1),
                false => text.to_owned(),
            }
        }
        _ => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
    }
}

/// `deltarun sweep`
pub(super) fn sweep(options: &SweepOptions) -> Result<Ended, Problems> {
    let file = &options.file;
    if !file.is_file() {
        let message = format!("there is no file `{}`", file.display());
        let problem = Problem::new("delta::cli::unreadable", message);
        return Err(problem.help("name a `.delta` file").into());
    }
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let script = file.with_file_name(format!("{stem}_sweep.rhai"));
    write(&script, &script_of(file, &stem, &options.over))?;
    let settings = script::Options {
        set: Overrides::new(),
        preset: None,
        out: script_out(&script, options.out.as_deref()),
        allowed: Vec::new(),
        integrity: Integrity::Checked,
        is_quiet: options.quiet,
        interrupted: interruption(),
    };
    match script::run(&script, &settings)? {
        script::ScriptEnd::Complete => Ok(Ended::Done),
        script::ScriptEnd::Interrupted => {
            say("interrupted; run the same command again to continue");
            Ok(Ended::Interrupted)
        }
    }
}

/// Writes the script, unless it is there already.
fn write(script: &Path, text: &str) -> Result<(), Problem> {
    match std::fs::read_to_string(script) {
        Ok(own) if own == text => return Ok(()),
        Ok(_) => {
            let message = format!("`{}` is another sweep, or was changed", script.display());
            return Err(Problem::new("delta::cli::exists", message).help(format!(
                "run it as it is with `deltarun {}`, or rename it",
                script.display()
            )));
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(failed("read", script, &e)),
    }
    disk::replace(script, text.as_bytes()).map_err(|e| failed("written", script, &e))?;
    say(&format!("wrote {}", script.display()));
    Ok(())
}

/// The script of a sweep. Runs that differ in their seed alone are a row.
fn script_of(file: &Path, stem: &str, over: &[Axis]) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let quoted = |name: &str| format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    let axes: Vec<String> = over
        .iter()
        .map(|axis| format!("{}: [{}]", axis.name, axis.values.join(", ")))
        .collect();
    let keys = over.iter().map(|axis| axis.name.as_str());
    let keys: Vec<&str> = keys.filter(|name| *name != "seed").collect();
    let list: Vec<String> = keys.iter().map(|key| quoted(key)).collect();
    let cells: Vec<String> = keys
        .iter()
        .map(|key| format!("{key}: run.params[{}], ", quoted(key)))
        .collect();
    let settings: Vec<String> = keys
        .iter()
        .map(|key| format!(" --set {key}=${{best.{key}}}"))
        .collect();
    format!(
        "// Written by `deltarun sweep`. Change it as you like: `deltarun {stem}_sweep.rhai` runs it.\n\
         let runs = [];\n\
         for point in grid(#{{ {axes} }}) {{ runs.push(pipeline({name}).set(point)); }}\n\
         let rows = [];\n\
         let metric = \"\";\n\
         let less_is_better = false;\n\
         for run in run_all(runs) {{\n    metric = run.metric;\n    less_is_better = run.less_is_better;\n    rows.push(#{{ {cells}value: run.value }});\n}}\n\
         let table = group(rows, [{keys}], \"value\");\n\
         // The best first.\n\
         let sign = if less_is_better {{ 1.0 }} else {{ -1.0 }};\n\
         table.sort(|a, b| if sign * a.mean < sign * b.mean {{ -1 }} else if sign * a.mean > sign * b.mean {{ 1 }} else {{ 0 }});\n\
         let columns = [{keys}] + [\"mean\", \"deviation\", \"n\"];\n\
         print(`${{metric}} on dev`);\n\
         print(table(columns, table));\n\
         let best = table[0];\n\
         print(`the best: deltarun {file}{settings}`);\n\
         let page = page(\"Sweep of {stem}\");\n\
         page.text(`${{metric}} on dev, the best first.`);\n\
         page.table(columns, table);\n\
         page.save(\"{stem}_sweep.html\");\n",
        axes = axes.join(", "),
        name = quoted(&name),
        cells = cells.concat(),
        keys = list.join(", "),
        file = file.display(),
        settings = settings.concat(),
    )
}
