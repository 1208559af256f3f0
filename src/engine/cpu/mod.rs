//! CPU kernels behind the engine's operations. Each is held to its definition, value and gradient,
//! by a property test (`tests/kernels`).
//!
//! A batch is divided into groups of sequences, and the groups run in parallel (`graph::Executor`), which
//! needs no synchronization inside a step and keeps a group's activations in the caches. Threads without a group
//! take parts of the others' kernels ([`helpers`]).

mod activation;
#[cfg_attr(not(target_arch = "x86_64"), path = "amx/absent.rs")]
mod amx;
mod attention;
mod bridge;
mod deferred;
mod gradient;
mod half;
mod helpers;
mod linear;
mod loss;
mod low_rank;
mod math;
mod norm;
mod operand;
mod packed;
mod product;
mod rotary;
mod rows;
mod tile;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use dfdx::prelude::{Cpu, Gradients, HasErr, HasShape, Shape, Tensor};
use rayon::prelude::*;

use super::profile::{self, Op};
use super::{
    definition, Activation, Angles, Attending, AttentionShape, Backend, Dropout, Fastfood, Layout,
    Matrix, Precision, Scalar, Vector, Weight,
};

pub use amx::pays as uses_amx;
pub use deferred::Deferred;
pub(super) use gradient::Buffer;
pub(crate) use helpers::{map_groups, Semaphore};
pub use linear::copies_of_a_weight;

type Outcome<T> = Result<T, <Cpu as HasErr>::Err>;

/// Whether a model of such a width takes so much memory that it is worth some time: what its weights take grows with
/// the square of the width.
pub fn is_wide(width: usize) -> bool {
    width >= 512
}

fn elements(x: &Matrix<Cpu>) -> usize {
    x.shape().num_elements()
}

/// An operation by its kernel, or by its definition where those are asked for.
macro_rules! run {
    ($op:expr, $count:expr, $kernel:expr, $definition:expr) => {
        match runs_definitions() {
            true => $definition,
            false => profile::forward($op, $count, || $kernel),
        }
    };
}

static DEFINITIONS: AtomicBool = AtomicBool::new(false);

/// Runs the definitions of all operations in dfdx instead of kernels from now on, in the whole process: the oracle of
/// whole steps.
pub fn run_definitions(on: bool) {
    DEFINITIONS.store(on, Ordering::Relaxed);
}

fn runs_definitions() -> bool {
    DEFINITIONS.load(Ordering::Relaxed)
}

impl Backend for Cpu {
    type Prepared = linear::Prepared;

    fn has(precision: Precision) -> bool {
        match runs_definitions() {
            true => precision == Precision::F32,
            false => linear::has(precision),
        }
    }

    fn linear(
        x: &Matrix<Cpu>,
        weight: &Weight<Cpu>,
        bias: Option<&Vector<Cpu>>,
    ) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Linear,
            elements(x),
            linear::linear(x, weight, bias),
            definition::linear(x, &weight.matrix()?, bias)
        )
    }

    fn linear_transposed(x: &Matrix<Cpu>, weight: &Weight<Cpu>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Linear,
            elements(x),
            linear::linear_transposed(x, weight),
            definition::matmul(x, &weight.matrix()?)
        )
    }

    fn add_low_rank(
        y: Matrix<Cpu>,
        x: &Matrix<Cpu>,
        a: &Weight<Cpu>,
        b: &Weight<Cpu>,
        scale: f32,
    ) -> Outcome<Matrix<Cpu>> {
        let count = elements(x) + elements(&y);
        run!(
            Op::LowRank,
            count,
            low_rank::add_low_rank(y, x, a, b, scale),
            definition::add_low_rank(&y, x, a, b, scale)
        )
    }

    fn layer_norm(
        x: &Matrix<Cpu>,
        weight: &Vector<Cpu>,
        bias: &Vector<Cpu>,
        epsilon: f32,
    ) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Norm,
            elements(x),
            norm::layer_norm(x, weight, bias, epsilon),
            definition::layer_norm(x, weight, bias, epsilon)
        )
    }

    fn rms_norm(x: &Matrix<Cpu>, weight: &Vector<Cpu>, epsilon: f32) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Norm,
            elements(x),
            norm::rms_norm(x, weight, epsilon),
            definition::rms_norm(x, weight, epsilon)
        )
    }

    fn rotary(x: Matrix<Cpu>, positions: &[usize], angles: &Arc<Angles>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Rotary,
            elements(&x),
            rotary::rotary(x, positions, angles),
            definition::rotary(&x, positions, angles)
        )
    }

    fn activate(x: Matrix<Cpu>, activation: Activation) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Activation,
            elements(&x),
            activation::activate(x, activation),
            definition::activate(&x, activation)
        )
    }

    fn attention(
        q: &Matrix<Cpu>,
        k: &Matrix<Cpu>,
        v: &Matrix<Cpu>,
        attending: Attending,
        shape: AttentionShape,
        bias: Option<&Matrix<Cpu>>,
        dropout: Option<Dropout>,
    ) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Attention,
            elements(q) + elements(k) + elements(v),
            attention::attention(q, k, v, attending, shape, bias, dropout),
            definition::attention(q, k, v, attending, shape, bias, dropout)
        )
    }

    fn dropout(x: Matrix<Cpu>, layout: &Layout, dropout: Dropout) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Dropout,
            elements(&x),
            rows::dropout(x, layout, dropout),
            definition::dropout(&x, layout, dropout)
        )
    }

    fn select_rows(table: &Matrix<Cpu>, indices: &[usize]) -> Outcome<Matrix<Cpu>> {
        let count = indices.len() * table.shape().1;
        run!(
            Op::Rows,
            count,
            rows::select_rows(table, indices),
            definition::select_rows(table, indices)
        )
    }

    fn look_up(table: &Weight<Cpu>, indices: &[usize]) -> Outcome<Matrix<Cpu>> {
        let count = indices.len() * table.shape().1;
        run!(
            Op::Rows,
            count,
            rows::look_up(table, indices),
            definition::select_rows(&table.matrix()?, indices)
        )
    }

    fn columns(x: &Matrix<Cpu>, range: std::ops::Range<usize>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Rows,
            elements(x),
            rows::columns(x, range),
            definition::columns(x, range)
        )
    }

    fn join_columns(parts: &[Matrix<Cpu>]) -> Outcome<Matrix<Cpu>> {
        let count = parts.iter().map(elements).sum();
        run!(
            Op::Rows,
            count,
            rows::join_columns(parts),
            definition::join_columns(parts)
        )
    }

    fn multiply(x: &Matrix<Cpu>, y: &Matrix<Cpu>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Multiply,
            elements(x) + elements(y),
            rows::multiply(x, y),
            definition::multiply(x, y)
        )
    }

    fn scale_columns(x: &Matrix<Cpu>, factors: &Vector<Cpu>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Rows,
            elements(x),
            rows::scale_columns(x, factors),
            definition::scale_columns(x, factors)
        )
    }

    fn project(
        z: &Matrix<Cpu>,
        projection: Fastfood,
        shape: (usize, usize),
    ) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Projection,
            elements(z),
            rows::project(z, projection, shape),
            definition::project(z, projection, shape)
        )
    }

    fn add(x: Matrix<Cpu>, y: &Matrix<Cpu>) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Add,
            elements(&x) + elements(y),
            rows::add(x, y),
            definition::add(&x, y)
        )
    }

    fn scale(x: &Matrix<Cpu>, factor: f32) -> Outcome<Matrix<Cpu>> {
        run!(
            Op::Add,
            elements(x),
            rows::scale(x, factor),
            definition::scale(x, factor)
        )
    }

    fn cross_entropy(logits: &Matrix<Cpu>, labels: &[usize], total: usize) -> Outcome<Scalar<Cpu>> {
        run!(
            Op::Loss,
            elements(logits),
            loss::cross_entropy(logits, labels, total),
            definition::cross_entropy(logits, labels, total)
        )
    }

    fn read<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> Vec<f32> {
        bridge::data(tensor).to_vec()
    }

    fn view<S: Shape>(tensor: &Tensor<S, f32, Cpu>) -> Cow<'_, [f32]> {
        Cow::Borrowed(bridge::data(tensor))
    }

    fn read_gradient<S: Shape>(
        gradients: &mut Gradients<f32, Cpu>,
        parameter: &Tensor<S, f32, Cpu>,
    ) -> Outcome<Vec<f32>> {
        Ok(std::mem::take(
            &mut **gradients.get_or_alloc_mut(parameter)?,
        ))
    }

    fn update<S: Shape>(
        tensor: &mut Tensor<S, f32, Cpu>,
        change: impl FnOnce(&mut [f32]),
    ) -> Outcome<()> {
        change(bridge::data_mut(tensor));
        Ok(())
    }

    fn address<S: Shape>(tensor: &Tensor<S, f32, Cpu>) -> Option<usize> {
        (!runs_definitions()).then(|| bridge::data(tensor).as_ptr() as usize)
    }

    const GROUP_ROWS: usize = 256;

    fn absorbs_keys() -> bool {
        !runs_definitions()
    }
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
fn form_of(precision: Precision) -> linear::WeightForm {
    let precision = match linear::has(precision) {
        true => precision,
        false => Precision::F32,
    };
    linear::WeightForm::new(precision, weight())
}

/// Rows and columns of the weight by which products are measured.
const SIZE: usize = 384;

fn weight() -> packed::Packed {
    packed::Packed::rows(&vec![0.5; SIZE * SIZE], SIZE, SIZE, SIZE)
}

/// The rate of products with a weight of [`SIZE`].
fn product_rate(weight: &linear::WeightForm) -> f64 {
    const ROWS: usize = 240;
    let x = vec![0.5f32; ROWS * SIZE];
    let view = product::View::new(&x, SIZE);
    on_all_threads(|| {
        let mut out = vec![0.0; ROWS * SIZE];
        move || {
            weight.factor().multiply_add(&mut out, view);
            2 * ROWS * SIZE * SIZE
        }
    })
}

/// Measures the limits of this machine for products of a precision, for about 60 milliseconds, or 90.
pub fn measure_limits(precision: Precision) -> Limits {
    const LENGTH: usize = 1 << 21; // 8 MiB
    let form = form_of(precision);
    let is_plain = matches!(form, linear::WeightForm::Packed(_));
    let sums_in_f32 = || product_rate(&linear::WeightForm::Packed(weight()));
    Limits {
        operations: product_rate(&form),
        sums_in_f32: (!is_plain).then(sums_in_f32),
        bytes: on_all_threads(|| {
            let (from, mut to) = (vec![1.0f32; LENGTH], vec![0.0f32; LENGTH]);
            move || {
                rows::add_to(&mut to, &from);
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
