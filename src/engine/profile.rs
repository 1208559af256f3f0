//! Measures where the CPU kernels spend their time, by class of operation, for `deltarun profile`.
//!
//! While off, it costs one relaxed load per operation. While on, every operation on every thread adds to one table.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// A class of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Op {
    /// Linear layers, frozen and trained.
    Linear,
    /// Low-rank changes, such as LoRA's: two small products.
    LowRank,
    /// Attention with its softmax.
    Attention,
    /// Norms.
    Norm,
    /// Rotary position embeddings.
    Rotary,
    /// Non-linearities.
    Activation,
    /// Dropout.
    Dropout,
    /// Sums of activations.
    Add,
    /// Products of activations, element by element.
    Multiply,
    /// Products of two trained matrices.
    Matmul,
    /// Selecting and joining rows and columns.
    Rows,
    /// Losses.
    Loss,
    /// Projections of intrinsic dimension.
    Projection,
}

impl Op {
    /// All classes, in the order in which a table lists them.
    pub const ALL: [Op; 13] = [
        Op::Linear,
        Op::LowRank,
        Op::Attention,
        Op::Norm,
        Op::Rotary,
        Op::Activation,
        Op::Dropout,
        Op::Add,
        Op::Multiply,
        Op::Matmul,
        Op::Rows,
        Op::Loss,
        Op::Projection,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Op::Linear => "linear",
            Op::LowRank => "low rank",
            Op::Attention => "attention",
            Op::Norm => "norm",
            Op::Rotary => "rotary",
            Op::Activation => "activation",
            Op::Dropout => "dropout",
            Op::Add => "add",
            Op::Multiply => "multiply",
            Op::Matmul => "matmul",
            Op::Rows => "rows",
            Op::Loss => "loss",
            Op::Projection => "projection",
        }
    }
}

/// The cost of one class of operations, summed over threads.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// Calls in the forward pass.
    pub calls: u64,
    /// Seconds in the forward pass.
    pub forward: f64,
    /// Seconds in the backward pass.
    pub backward: f64,
    /// Floating-point operations of matrix products, forward and backward.
    pub operations: u64,
    /// Bytes of activations that were read and written, forward and backward.
    pub moved: u64,
    /// Bytes kept for the backward pass. A buffer that two operations keep counts twice.
    pub kept: u64,
}

#[derive(Default)]
struct Row {
    calls: AtomicU64,
    forward: AtomicU64,
    backward: AtomicU64,
    operations: AtomicU64,
    moved: AtomicU64,
    kept: AtomicU64,
}

static IS_ON: AtomicBool = AtomicBool::new(false);
static TABLE: [Row; Op::ALL.len()] = [const {
    Row {
        calls: AtomicU64::new(0),
        forward: AtomicU64::new(0),
        backward: AtomicU64::new(0),
        operations: AtomicU64::new(0),
        moved: AtomicU64::new(0),
        kept: AtomicU64::new(0),
    }
}; Op::ALL.len()];

/// A forward or a backward pass of an operation.
#[derive(Clone, Copy)]
pub(super) struct TimedPass {
    op: Op,
    time: fn(&Row) -> &AtomicU64,
}

thread_local! {
    static CURRENT: Cell<Option<TimedPass>> = const { Cell::new(None) };
}

/// Begins a profile with an empty table.
pub fn start() {
    for row in &TABLE {
        for cell in [
            &row.calls,
            &row.forward,
            &row.backward,
            &row.operations,
            &row.moved,
            &row.kept,
        ] {
            cell.store(0, Relaxed);
        }
    }
    IS_ON.store(true, Relaxed);
}

/// Ends the profile and returns the cost of each class of operations.
pub fn stop() -> Vec<(Op, Spent)> {
    IS_ON.store(false, Relaxed);
    let seconds = |cell: &AtomicU64| cell.load(Relaxed) as f64 * 1e-9;
    let spent = |row: &Row| Spent {
        calls: row.calls.load(Relaxed),
        forward: seconds(&row.forward),
        backward: seconds(&row.backward),
        operations: row.operations.load(Relaxed),
        moved: row.moved.load(Relaxed),
        kept: row.kept.load(Relaxed),
    };
    Op::ALL
        .iter()
        .map(|op| (*op, spent(&TABLE[*op as usize])))
        .collect()
}

/// Runs an operation's forward pass, which reads `elements` of activations.
pub(super) fn forward<T>(op: Op, elements: usize, run: impl FnOnce() -> T) -> T {
    let counted = || {
        if let Some(op) = current() {
            TABLE[op as usize].calls.fetch_add(1, Relaxed);
            moved(elements);
        }
        run()
    };
    let time: fn(&Row) -> &AtomicU64 = |row| &row.forward;
    timed(TimedPass { op, time }, counted)
}

/// Runs the backward pass of an operation that [`current`] named in its forward pass.
pub(super) fn backward<T>(op: Option<Op>, run: impl FnOnce() -> T) -> T {
    let time: fn(&Row) -> &AtomicU64 = |row| &row.backward;
    help(op.map(|op| TimedPass { op, time }), run)
}

/// Runs a part of `pass`, which was begun on another thread. Without a pass, runs it unmeasured.
pub(super) fn help<T>(pass: Option<TimedPass>, run: impl FnOnce() -> T) -> T {
    match pass {
        Some(pass) => timed(pass, run),
        None => run(),
    }
}

fn timed<T>(pass: TimedPass, run: impl FnOnce() -> T) -> T {
    if !IS_ON.load(Relaxed) {
        return run();
    }
    // A thread that waits for a helper may run a part of another pass and then return to its own.
    let outer = CURRENT.replace(Some(pass));
    let started = Instant::now();
    let result = run();
    let nanoseconds = started.elapsed().as_nanos() as u64;
    (pass.time)(&TABLE[pass.op as usize]).fetch_add(nanoseconds, Relaxed);
    CURRENT.set(outer);
    result
}

/// The pass that runs on this thread, if a profile is on.
pub(super) fn pass() -> Option<TimedPass> {
    CURRENT.get()
}

/// The operation that runs on this thread, if a profile is on.
pub(super) fn current() -> Option<Op> {
    pass().map(|pass| pass.op)
}

/// Counts floating-point operations of a matrix product.
pub(super) fn product(rows: usize, depth: usize, columns: usize) {
    if let Some(op) = current() {
        let count = 2 * rows as u64 * depth as u64 * columns as u64;
        TABLE[op as usize].operations.fetch_add(count, Relaxed);
    }
}

/// Counts elements of activations that are read or written.
pub(super) fn moved(elements: usize) {
    if let Some(op) = current() {
        TABLE[op as usize]
            .moved
            .fetch_add(4 * elements as u64, Relaxed);
    }
}

/// Counts elements that an operation keeps for its backward pass.
pub(super) fn kept(elements: usize) {
    if let Some(op) = current() {
        TABLE[op as usize]
            .kept
            .fetch_add(4 * elements as u64, Relaxed);
    }
}
