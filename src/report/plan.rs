//! A plan as a person reads it: the module tree with what sits where, costs, gains.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Table;
use crate::backbone::{language_model_parameters, Tree};
use crate::engine::{Backend, Precision};
use crate::plan::{Change, Plan, TaskPlan};
use crate::text::{bytes, quoted_list, thousands};

/// Sequences of this many tokens are assumed for estimates, or `max_length` where that is less.
const TYPICAL_TOKENS: usize = 64;

/// A precision is called slower below this share of f32's rate: what is less may be noise.
const CLEARLY_SLOWER: f64 = 0.9;

/// What speaks against the precision that a plan asks for: that this processor multiplies faster in f32, as
/// those do that have the instructions for bfloat16 but run them at a fraction of the rate. `rate` measures
/// products of a precision, in operations per second on all threads.
pub fn against_precision(plan: &Plan, rate: impl Fn(Precision) -> f64) -> Option<String> {
    if plan.backbone.precision == Precision::F32 {
        return None;
    }
    let (asked, exact) = (rate(plan.backbone.precision), rate(Precision::F32));
    (asked < CLEARLY_SLOWER * exact).then(|| {
        format!(
            "products in bfloat16 are slower than in f32 on this processor ({:.0} and {:.0} GFLOP/s): \
             take `precision = bf16` out",
            1e-9 * asked,
            1e-9 * exact
        )
    })
}

/// The description that `deltarun plan` prints; `heads` says where each task's comes from, `rate` is as in
/// [`against_precision`].
pub fn describe(
    plan: &Plan,
    heads: &[String],
    threads: usize,
    rate: impl Fn(Precision) -> f64,
) -> String {
    let mut text = String::new();
    let config = &plan.backbone.config;
    let tree = Tree::new(config);
    let count: usize = tree.parameters().map(|parameter| parameter.count()).sum();
    let _ = writeln!(
        text,
        "{}\n  backbone {} ({}, {} blocks of width {}, {} heads, {} parameters)\n  seed {}\n",
        plan.name,
        plan.backbone.location,
        config.family,
        config.layers,
        config.hidden,
        config.heads,
        thousands(count),
        plan.seed,
    );
    for delta in &plan.deltas {
        if let Change::Method { method, sites } = &delta.change {
            let sites = quoted_list(sites.iter().map(String::as_str));
            let _ = writeln!(
                text,
                "  {}: {} ({}) at {sites}",
                delta.name,
                method.name(),
                method.paper()
            );
        }
    }
    for head in heads {
        let _ = writeln!(text, "  {head}");
    }
    let _ = writeln!(text, "\n{}", modules(plan, &tree));
    let asked = rate(plan.backbone.precision);
    for index in 0..plan.stages.len() {
        stage(plan, index, threads, asked, &mut text);
    }
    // Measured once: the plan is to be there at once.
    let measured = |precision| match precision == plan.backbone.precision {
        true => asked,
        false => rate(precision),
    };
    if let Some(note) = against_precision(plan, measured) {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// The module tree. Blocks that look the same are shown once.
fn modules(plan: &Plan, tree: &Tree) -> Table {
    let mut table = Table::new(["module", "parameters", "deltas"]);
    let mut last: Option<(usize, usize, Vec<[String; 3]>)> = None;
    let mut blocks: BTreeMap<usize, Vec<[String; 3]>> = BTreeMap::new();
    let mut others: Vec<[String; 3]> = Vec::new();
    let mut first_block_at = 0;
    for module in tree.modules() {
        let deltas = deltas_at(plan, &module.path);
        if module.parameters.is_empty() && deltas.is_empty() {
            continue;
        }
        let count: usize = module
            .parameters
            .iter()
            .map(|parameter| parameter.count())
            .sum();
        let count = if count == 0 {
            String::new()
        } else {
            thousands(count)
        };
        let mut parts = module.path.splitn(3, '.');
        match (
            parts.next(),
            parts.next().and_then(|n| n.parse::<usize>().ok()),
            parts.next(),
        ) {
            (Some("block"), Some(block), Some(rest)) => {
                blocks
                    .entry(block)
                    .or_default()
                    .push([rest.to_owned(), count, deltas]);
            }
            _ => {
                if blocks.is_empty() {
                    first_block_at = others.len() + 1;
                }
                others.push([module.path.clone(), count, deltas]);
            }
        }
    }
    let mut rows = others;
    let mut tail = rows.split_off(first_block_at.min(rows.len()));
    let mut shown: Vec<[String; 3]> = Vec::new();
    let mut flush = |last: &mut Option<(usize, usize, Vec<[String; 3]>)>| {
        if let Some((first, end, rows)) = last.take() {
            let name = if first == end {
                format!("block.{first}")
            } else {
                format!("block[{first}..{}]", end + 1)
            };
            shown.extend(
                rows.into_iter()
                    .map(|[path, count, deltas]| [format!("{name}.{path}"), count, deltas]),
            );
        }
    };
    for (block, rows) in blocks {
        match &mut last {
            Some((_, end, same)) if *same == rows => *end = block,
            _ => {
                flush(&mut last);
                last = Some((block, block, rows));
            }
        }
    }
    flush(&mut last);
    tail.extend(head_rows(plan));
    rows.into_iter()
        .chain(shown)
        .chain(tail)
        .for_each(|row| table.row(row));
    table
}

/// The modules of the language-model head, where a task reads it.
fn head_rows(plan: &Plan) -> Vec<[String; 3]> {
    if !plan.tasks.values().any(TaskPlan::uses_language_model) {
        return Vec::new();
    }
    let mut rows: Vec<(String, usize)> = Vec::new();
    for parameter in language_model_parameters(&plan.backbone.config) {
        let path = parameter.path.rsplit_once('.').map_or("", |(path, _)| path);
        match rows.iter_mut().find(|(known, _)| known == path) {
            Some((_, count)) => *count += parameter.count(),
            None => rows.push((path.to_owned(), parameter.count())),
        }
    }
    let row = |(path, count): (String, usize)| {
        let deltas = deltas_at(plan, &path);
        [path, thousands(count), deltas]
    };
    rows.into_iter().map(row).collect()
}

fn deltas_at(plan: &Plan, path: &str) -> String {
    let mut names = Vec::new();
    for delta in &plan.deltas {
        match &delta.change {
            Change::Unfreeze { parameters } => {
                let leaves: Vec<&str> = parameters
                    .iter()
                    .filter_map(|p| p.strip_prefix(path)?.strip_prefix('.'))
                    .filter(|leaf| !leaf.contains('.'))
                    .collect();
                if !leaves.is_empty() {
                    names.push(format!("{} ({})", delta.name, leaves.join(", ")));
                }
            }
            Change::Method { sites, .. } if sites.iter().any(|site| site == path) => {
                names.push(delta.name.clone());
            }
            Change::Method { .. } => {}
        }
    }
    names.join(", ")
}

fn stage(plan: &Plan, index: usize, threads: usize, rate: f64, text: &mut String) {
    let stage = &plan.stages[index];
    let tokens = TYPICAL_TOKENS.min(plan.backbone.max_length);
    let cost = plan.cost(index, tokens, threads, dfdx::prelude::Cpu::GROUP_ROWS);
    let mut trained: Vec<&str> = stage.train.iter().map(String::as_str).collect();
    if stage.train_head {
        trained.push("head");
    }
    let active = plan.active(index);
    let frozen: Vec<&str> = active
        .iter()
        .map(|delta| delta.name.as_str())
        .filter(|name| !stage.train.iter().any(|t| t == name))
        .collect();
    let _ = writeln!(text, "stage {}", stage.name);
    let _ = writeln!(text, "  trains {}", trained.join(", "));
    if !frozen.is_empty() {
        let _ = writeln!(text, "  in place, frozen: {}", frozen.join(", "));
    }
    let _ = writeln!(
        text,
        "  {} of {} parameters ({:.2} %)",
        thousands(cost.trained),
        thousands(cost.total),
        100.0 * cost.trained as f64 / cost.total as f64
    );
    let _ = writeln!(
        text,
        "  estimated at {} sequences of {tokens} tokens: {}, {:.0} ms a step on {threads} threads",
        stage.batch * stage.accumulate,
        bytes(cost.memory),
        1000.0 * cost.operations / rate
    );
    for gain in plan.gains(index) {
        let mark = if gain.applies { "yes" } else { "no " };
        let _ = writeln!(text, "  {mark}  {}: {}", gain.name, gain.reason);
    }
    let _ = writeln!(text);
}
