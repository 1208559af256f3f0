//! A table of the time and memory that each operation of a step takes.

use std::fmt::Write;

use super::Profile;
use crate::engine::profile::{Op, Spent};
use crate::engine::Limits;
use crate::report::Table;
use crate::text::{bytes, wrapped};

/// The table that `deltarun profile` prints. `limits` are those of all threads together.
pub fn profile_table(profile: &Profile, threads: usize, limits: &Limits) -> String {
    let mut sorted = profile.seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    let all: f64 = profile.seconds.iter().sum();
    let mut table = Table::new([
        "operation",
        "calls",
        "fwd ms",
        "bwd ms",
        "share",
        "GFLOP/s",
        "GB/s",
        "limit",
        "kept",
    ]);
    let per_step = |value: f64| value / profile.steps as f64;
    let mut noted = 0.0;
    for (op, spent) in &profile.spent {
        if spent.calls == 0 {
            continue;
        }
        let seconds = spent.forward + spent.backward;
        noted += seconds;
        table.row(row(
            *op,
            spent,
            per_step,
            seconds / (all * threads as f64),
            threads,
            limits,
        ));
    }
    let rest = 1.0 - noted / (all * threads as f64);
    table.row([
        "optimizer, waits".to_owned(),
        String::new(),
        String::new(),
        String::new(),
        format!("{:.1} %", 100.0 * rest),
    ]);
    let operations: u64 = profile
        .spent
        .iter()
        .map(|(_, spent)| spent.operations)
        .sum();
    let products = per_step(operations as f64) / limits.operations;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "stage {}: {:.1} ms per step (median of {}), {threads} threads\n",
        profile.stage,
        1e3 * median,
        profile.steps
    );
    let _ = writeln!(text, "{table}");
    let mut note = |note: String| {
        let _ = writeln!(text, "{}", wrapped("  ", &note));
    };
    note(
        "Milliseconds are per step and summed over threads. `limit` is the share of this machine's limit that an operation \
         reaches. `kept` is memory for the backward pass, over all groups."
            .to_owned(),
    );
    note(format!(
        "The limits, measured: {:.0} GFLOP/s for matrix products, {:.0} GB/s for memory.",
        1e-9 * limits.operations,
        1e-9 * limits.bytes
    ));
    note(format!(
        "The step's {:.1} GFLOP of matrix products alone would take {:.1} ms: the step takes {:.2} times as long.",
        1e-9 * per_step(operations as f64),
        1e3 * products,
        median / products
    ));
    if let Some(rate) = limits.sums_in_f32 {
        let products = per_step(operations as f64) / rate;
        note(format!(
            "With sums in f32, whose limit is {:.0} GFLOP/s, they would take {:.1} ms: the step takes {:.2} times as long.",
            1e-9 * rate,
            1e3 * products,
            median / products
        ));
    }
    text
}

fn row(
    op: Op,
    spent: &Spent,
    per_step: impl Fn(f64) -> f64,
    share: f64,
    threads: usize,
    limits: &Limits,
) -> [String; 9] {
    // Time is summed over threads, so rates are those of one thread, times the threads.
    let seconds = (spent.forward + spent.backward) / threads as f64;
    let (operations, moved) = (
        spent.operations as f64 / seconds,
        spent.moved as f64 / seconds,
    );
    // An operation may be bound by products or by memory, so show the limit that it comes closer to.
    let of_limit = f64::max(operations / limits.operations, moved / limits.bytes);
    [
        op.name().to_owned(),
        format!("{:.0}", per_step(spent.calls as f64)),
        format!("{:.1}", 1e3 * per_step(spent.forward)),
        format!("{:.1}", 1e3 * per_step(spent.backward)),
        format!("{:.1} %", 100.0 * share),
        match spent.operations {
            0 => String::new(),
            _ => format!("{:.0}", 1e-9 * operations),
        },
        format!("{:.0}", 1e-9 * moved),
        format!("{:.0} %", 100.0 * of_limit),
        bytes(per_step(spent.kept as f64) as usize),
    ]
}
