//! What the kernels of the CPU share: products with packed matrices, loops, threads. A kernel stands with its operation
//! (`ops/*/cpu.rs`), and is held to its definition, value and gradient, by a property test (`tests/kernels`).
//!
//! A batch is divided into groups of sequences, and the groups run in parallel, which needs no synchronization inside
//! a step and keeps a group's activations in the caches. Threads without a group take parts of the others' kernels
//! ([`helpers`]).

pub(super) mod deferred;
pub(super) mod elementwise;
pub(super) mod helpers;
pub(super) mod lanes;
pub(super) mod math;
pub(super) mod products;

use rayon::prelude::*;

use self::products::{Packed, View, WeightForm};
use super::Precision;

pub use deferred::Deferred;
pub(super) use helpers::map_groups;
pub use helpers::Semaphore;
pub use products::{copies_of_a_weight, uses_amx};

/// Rows of a group of sequences.
pub const GROUP_ROWS: usize = 256;

/// Whether a model of such a width takes so much memory that it is worth some time: what its weights take grows with
/// the square of the width.
pub fn is_wide(width: usize) -> bool {
    width >= 512
}

/// Whether this processor has products of a precision.
pub fn has(precision: Precision) -> bool {
    products::has(precision)
}

/// What this machine reaches at best on all threads.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Floating-point operations per second in products with a frozen weight.
    pub operations: f64,
    /// The same by sums of products in f32, where the former are not computed so.
    pub sums_in_f32: Option<f64>,
    /// Bytes per second read and written where they do not fit in the inner caches.
    pub bytes: f64,
}

/// Floating-point operations per second that products with frozen weights reach on all threads, in f32
/// where this machine has none of the precision; measured for about 30 milliseconds.
pub fn measure_rate(precision: Precision) -> f64 {
    product_rate(&form_of(precision))
}

/// A weight of [`SIZE`] in the form for a precision, or for f32 where this machine has none of the precision.
fn form_of(precision: Precision) -> WeightForm {
    let precision = match has(precision) {
        true => precision,
        false => Precision::F32,
    };
    WeightForm::new(precision, weight())
}

/// Rows and columns of the weight by which products are measured.
const SIZE: usize = 384;

fn weight() -> Packed {
    Packed::rows(&vec![0.5; SIZE * SIZE], SIZE, SIZE, SIZE)
}

/// The rate of products with a weight of [`SIZE`].
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

/// Measures the limits of this machine for products of a precision, for about 60 milliseconds, or 90.
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

/// How much of what `work` counts all threads do in a second: the best of their tries.
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
