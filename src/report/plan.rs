//! A plan as a person reads it: the module tree with what sits where, costs, optimizations.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::sites::selector;
use super::Table;
use crate::backbone::{language_model_parameters, Parameter, Tree};
use crate::data::DataSummary;
use crate::engine::{Precision, Storage};
use crate::graph::{optimizations, this_machine};
use crate::plan::{Cost, Plan, BETWEEN_PROCESSES};
use crate::text::{bytes, counted, quoted_list, thousands, wrapped};

/// Sequences of this many tokens are assumed for estimates, or `max_length` where that is less.
const TYPICAL_TOKENS: usize = 64;

/// Stages that are described one by one.
const MOST_STAGES: usize = 40;

/// A precision is called slower below this share of f32's rate: what is less may be noise.
const CLEARLY_SLOWER: f64 = 0.9;

/// Twice as many processes are worth their cost if a step takes less than this share of the time.
const WORTH_DOUBLING: f64 = 0.8;

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
            "this processor multiplies more slowly in bfloat16 than in f32 ({:.0} against {:.0} GFLOP/s): \
             remove `precision = bf16`",
            1e-9 * asked,
            1e-9 * exact
        )
    })
}

/// What estimates assume.
pub struct Assumptions<'a> {
    /// What is known of the data.
    pub data: &'a DataSummary,
    /// Threads of a process.
    pub threads: usize,
    /// The most processes to estimate for.
    pub processes: usize,
}

/// The description that `deltarun plan` prints, 80 columns wide. `heads` says where each task's head comes from. `rate` is
/// as in [`against_precision`].
pub fn describe(
    plan: &Plan,
    heads: &[String],
    assumptions: &Assumptions,
    rate: impl Fn(Precision) -> f64,
) -> String {
    let mut text = String::new();
    let config = &plan.backbone.config;
    let tree = Tree::new(config);
    let _ = writeln!(text, "{}\n{}", plan.name, backbone(plan, &tree));
    let _ = writeln!(text, "  seed {}\n", plan.seed);
    for delta in &plan.deltas {
        if let Some(method) = delta.method() {
            let at = selector(delta.sites(), config);
            let what = format!("{} ({}) at {at}", method.name(), method.paper());
            let _ = writeln!(text, "{}", wrapped(&format!("  {}: ", delta.name), &what));
        }
    }
    for head in heads {
        let _ = writeln!(text, "{}", wrapped("  ", head));
    }
    let _ = writeln!(text, "\n{}", modules(plan, &tree));
    text += &sets(assumptions);
    let asked = rate(plan.backbone.precision);
    let shown = plan.stages.len().min(MOST_STAGES);
    for index in 0..shown {
        stage(plan, index, assumptions, asked, &mut text);
    }
    if shown < plan.stages.len() {
        let more = counted(plan.stages.len() - shown, "more stage");
        let _ = writeln!(text, "and {more}: `plan.yaml` of the run has them\n");
    }
    // Measured once: the plan is to be there at once.
    let measured = |precision| match precision == plan.backbone.precision {
        true => asked,
        false => rate(precision),
    };
    if let Some(note) = against_precision(plan, measured) {
        let _ = writeln!(text, "{}", wrapped("note: ", &note));
    }
    text
}

/// The backbone and how its weights are kept.
fn backbone(plan: &Plan, tree: &Tree) -> String {
    let config = &plan.backbone.config;
    let count: usize = tree.parameters().map(|parameter| parameter.count()).sum();
    let blocks = match config.decoder_layers {
        None => counted(config.layers, "block"),
        Some(layers) => format!(
            "{} encoder blocks and {layers} decoder blocks",
            config.layers
        ),
    };
    let described = format!(
        "{} ({}, {blocks} of width {}, {}, {} parameters)",
        plan.backbone.location,
        config.family,
        config.hidden,
        counted(config.heads, "head"),
        thousands(count),
    );
    let mut text = wrapped("  backbone ", &described);
    if plan.backbone.storage != Storage::F32 {
        let (own, whole) = (plan.backbone.weight_bytes(), 4 * count);
        let line = format!(
            "{}: {} of weights in memory, {} in f32",
            plan.backbone.storage.name(),
            bytes(own),
            bytes(whole)
        );
        let _ = write!(text, "\n{}", wrapped("  storage ", &line));
    }
    text
}

/// The rows of each set.
fn sets(assumptions: &Assumptions) -> String {
    let mut text = String::new();
    for (number, (name, summary)) in assumptions.data.sets.iter().enumerate() {
        let title = if number == 0 { "data" } else { "" };
        let begin = format!("{title:<6}{name:<6}");
        let _ = writeln!(text, "{}", wrapped(&begin, summary));
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// The module tree. Blocks that look the same are shown once.
fn modules(plan: &Plan, tree: &Tree) -> Table {
    let mut table = Table::new(["module", "parameters", "deltas"]);
    let config = &plan.backbone.config;
    let mut blocks: Vec<Vec<[String; 3]>> = vec![Vec::new(); config.block_count()];
    // What is no block, by the number of blocks before it.
    let mut others: BTreeMap<usize, Vec<[String; 3]>> = BTreeMap::new();
    let paths = config.block_paths();
    for module in tree.modules() {
        let deltas = deltas_at(plan, &module.path);
        if module.parameters.is_empty() && deltas.is_empty() {
            continue;
        }
        let count: usize = module.parameters.iter().map(Parameter::count).sum();
        let count = match count {
            0 => String::new(),
            _ => thousands(count),
        };
        match config.block_of(&module.path) {
            Some(block) => {
                let rest = module.path.strip_prefix(&paths[block]).unwrap_or_default();
                blocks[block].push([rest.to_owned(), count, deltas]);
            }
            None => {
                let before = config.reader_of(&module.path);
                let row = [module.path.clone(), count, deltas];
                others.entry(before).or_default().push(row);
            }
        }
    }
    for stack in config.stacks() {
        let mut numbers = stack.blocks.clone();
        while let Some(first) = numbers.next() {
            others
                .remove(&first)
                .into_iter()
                .flatten()
                .for_each(|row| table.row(row));
            let alike = |number: &usize| blocks[*number] == blocks[first];
            let alike = numbers.clone().take_while(alike).count();
            let start = first - stack.blocks.start;
            let name = match alike {
                0 => paths[first].clone(),
                more => format!("{}block[{start}..{}]", stack.path, start + more + 1),
            };
            numbers.start += alike;
            for [path, count, deltas] in &blocks[first] {
                table.row([format!("{name}{path}"), count.clone(), deltas.clone()]);
            }
        }
    }
    let behind = others.into_values().flatten();
    behind.chain(head_rows(plan)).for_each(|row| table.row(row));
    table
}

/// The modules of the language-model head, where a task reads it.
fn head_rows(plan: &Plan) -> Vec<[String; 3]> {
    if !plan
        .tasks
        .values()
        .any(|task| task.kind.uses_language_model())
    {
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
        if delta.sites().iter().any(|site| site == path) {
            names.push(delta.name.clone());
        }
        let unfrozen = delta.unfrozen().iter();
        let leaves: Vec<&str> = unfrozen
            .filter_map(|parameter| parameter.strip_prefix(path)?.strip_prefix('.'))
            .filter(|leaf| !leaf.contains('.'))
            .collect();
        if !leaves.is_empty() {
            names.push(format!("{} ({})", delta.name, leaves.join(", ")));
        }
    }
    shortened(names)
}

/// As many names as fit a column, and how many more there are.
fn shortened(names: Vec<String>) -> String {
    const COLUMNS: usize = 36;
    let mut text = String::new();
    for (place, name) in names.iter().enumerate() {
        if place > 0 && text.chars().count() + name.chars().count() > COLUMNS {
            return format!("{text} and {} more", names.len() - place);
        }
        let comma = if place > 0 { ", " } else { "" };
        text.push_str(&format!("{comma}{name}"));
    }
    text
}

/// The time of a step by the number of processes, up to `most`, and where more of them stop to pay.
fn on_processes(cost: &Cost, most: usize, rate: f64) -> String {
    let all = cost.by_processes(most, rate);
    let each = |(number, seconds): &(usize, f64)| format!("{number}: {:.1} ms", 1000.0 * seconds);
    let times: Vec<String> = all.iter().skip(1).map(each).collect();
    let pays = |pair: &&[(usize, f64)]| pair[1].1 < WORTH_DOUBLING * pair[0].1;
    let end = match all.windows(2).find(|pair| !pays(pair)) {
        None => String::new(),
        Some(pair) => format!("; more than {} gain little", pair[0].0),
    };
    format!(
        "{} per step{end}. A step has {}, and each process receives {} at {:.2} GB/s (assumed)",
        times.join(", "),
        counted(cost.groups, "group"),
        bytes(cost.received),
        1e-9 * BETWEEN_PROCESSES
    )
}

fn stage(plan: &Plan, index: usize, assumptions: &Assumptions, rate: f64, text: &mut String) {
    let stage = &plan.stages[index];
    let length = assumptions.data.lengths.get(index).copied().flatten();
    let assumed = TYPICAL_TOKENS.min(plan.backbone.max_length);
    let tokens = length.unwrap_or(assumed);
    let cost = plan.cost(index, tokens, &this_machine(assumptions.threads));
    let head = stage.train_head.then_some("head");
    let trained = stage.train.iter().map(String::as_str).chain(head);
    let frozen: Vec<&str> = plan
        .active(index)
        .iter()
        .map(|delta| delta.name.as_str())
        .filter(|name| !stage.train.iter().any(|t| t == name))
        .collect();
    let _ = writeln!(text, "stage {}", stage.name);
    let mut line = |first: &str, rest: String| {
        let _ = writeln!(text, "{}", wrapped(first, &rest));
    };
    let share = 100.0 * cost.trained as f64 / cost.total as f64;
    let (all, of_all) = (thousands(cost.total), thousands(cost.trained));
    line(
        "  trains      ",
        format!(
            "{}: {of_all} of {all} parameters ({share:.2} %)",
            quoted_list(trained)
        ),
    );
    if !frozen.is_empty() {
        line("  frozen      ", quoted_list(frozen));
    }
    let from = match length {
        Some(_) => "the mean of `train`",
        None => "assumed",
    };
    line(
        "  estimate    ",
        format!(
            "{} and {:.1} ms per step on {}, with {} of {tokens} tokens ({from})",
            bytes(cost.memory),
            1000.0 * cost.seconds(1, rate),
            counted(assumptions.threads, "thread"),
            counted(stage.batch * stage.accumulate, "sequence"),
        ),
    );
    if assumptions.processes > 1 {
        line(
            "  processes   ",
            on_processes(&cost, assumptions.processes, rate),
        );
    }
    let all = optimizations::ALL.iter();
    let checked = all.map(|optimization| (optimization.name, (optimization.check)(plan, index)));
    let (saved, not_saved): (Vec<_>, Vec<_>) = checked.partition(|(_, check)| check.is_ok());
    for (title, group) in [("  saves       ", saved), ("  not saved   ", not_saved)] {
        for (place, (name, check)) in group.into_iter().enumerate() {
            let (Ok(reason) | Err(reason)) = check;
            let blank = " ".repeat(title.len());
            let first = if place == 0 { title } else { &blank };
            line(first, format!("{name}: {reason}"));
        }
    }
    let _ = writeln!(text);
}
