//! Code that the CPU kernels share: products with packed matrices, loops, threads. Each kernel is in the folder of its
//! operation (`ops/*/cpu.rs`). Property tests (`tests/kernels`) compare its values and gradients with the operation's
//! definition.
//!
//! A batch is divided into groups of sequences, which run in parallel. Groups need no synchronization inside a step,
//! and the activations of a group stay in the caches. Threads without a group take parts of the others' kernels
//! ([`helpers`]).

pub(super) mod deferred;
pub(super) mod elementwise;
pub(super) mod helpers;
pub(super) mod lanes;
pub(super) mod math;
pub(super) mod products;

use std::sync::OnceLock;

use rayon::prelude::*;

use self::products::{Packed, View, WeightForm};
use super::Precision;

pub use deferred::Deferred;
pub(super) use helpers::map_groups;
pub use helpers::Semaphore;
pub use products::{copies_of_a_weight, uses_amx};

/// The number of rows that a group of sequences should have.
pub const GROUP_ROWS: usize = 256;

/// Whether a model of this width needs so much memory that saving memory is worth some time. The memory of its weights
/// grows with the square of the width.
pub fn is_wide(width: usize) -> bool {
    width >= 512
}

/// Whether this processor computes products in this precision.
pub fn has(precision: Precision) -> bool {
    products::has(precision)
}

/// The highest rates that this machine reaches on all threads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations per second in products with a frozen weight.
    pub operations: f64,
    /// The rate of plain f32 products, if `operations` was measured with another form of the weight.
    pub sums_in_f32: Option<f64>,
    /// Bytes per second read and written, for data that does not fit in the inner caches.
    pub bytes: f64,
}

/// Floating-point operations per second that products with frozen weights reach on all threads. Measures f32 if this
/// machine has no products in `precision`. Takes about 30 milliseconds the first time.
pub fn measure_rate(precision: Precision) -> f64 {
    static F32: OnceLock<f64> = OnceLock::new();
    static BF16: OnceLock<f64> = OnceLock::new();
    let measured = match precision {
        Precision::F32 => &F32,
        Precision::Bf16 => &BF16,
    };
    *measured.get_or_init(|| product_rate(&form_of(precision)))
}

/// A square weight of side [`SIZE`] in the form for `precision`, or for f32 if this machine has no products in it.
fn form_of(precision: Precision) -> WeightForm {
    let precision = match has(precision) {
        true => precision,
        false => Precision::F32,
    };
    WeightForm::new(precision, weight())
}

/// The number of rows and of columns of the weight that products are measured with.
const SIZE: usize = 384;

fn weight() -> Packed {
    Packed::rows(&vec![0.5; SIZE * SIZE], SIZE, SIZE, SIZE)
}

/// Floating-point operations per second in products with a square weight of side [`SIZE`].
fn product_rate(weight: &WeightForm) -> f64 {
    const ROWS: usize = 240;
    let x = vec![0.5f32; ROWS * SIZE];
    let view = View::new(&x, SIZE);
    on_all_threads(|| {
        let mut out = vec![0.0; ROWS * SIZE];
        move || {
            weight.operand().multiply_add(&mut out, view);
            2 * ROWS * SIZE * SIZE
        }
    })
}

/// Measures the limits of this machine for products in `precision`. Takes about 60 milliseconds, or 90 if plain f32
/// products are measured as well.
pub fn measure_limits(precision: Precision) -> Limits {
    const LENGTH: usize = 1 << 21; // 8 MiB
    let form = form_of(precision);
    let is_plain = matches!(form, WeightForm::Packed(_));
    let sums_in_f32 = || product_rate(&WeightForm::Packed(weight()));
    Limits {
        operations: product_rate(&form),
        sums_in_f32: (!is_plain).then(sums_in_f32),
        bytes: on_all_threads(|| {
            let (from, mut to) = (vec![1.0f32; LENGTH], vec![0.0f32; LENGTH]);
            move || {
                elementwise::add_to(&mut to, &from);
                3 * 4 * LENGTH
            }
        }),
    }
}

/// Runs `work` on all threads for 30 milliseconds. Returns the sum of the threads' best rates, in what `work` counts
/// per second.
fn on_all_threads<W: FnMut() -> usize>(prepare: impl Fn() -> W + Sync) -> f64 {
    let one = |_: usize| {
        let mut work = prepare();
        work();
        let begun = std::time::Instant::now();
        let mut best: f64 = 0.0;
        while begun.elapsed().as_millis() < 30 {
            let start = std::time::Instant::now();
            let count: usize = (0..4).map(|_| work()).sum();
            best = best.max(count as f64 / start.elapsed().as_secs_f64());
        }
        best
    };
    let threads = 0..rayon::current_num_threads();
    threads.into_par_iter().map(one).sum()
}
