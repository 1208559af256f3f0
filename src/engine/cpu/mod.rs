//! CPU kernels behind the engine's operations. Each is held to its definition, value and gradient,
//! by a property test (`tests/kernels.rs`).
//!
//! Kernels are single-threaded: a batch is divided into groups of sequences, and the groups run in
//! parallel (`graph::Executor`), which needs no synchronization inside a step and keeps a
//! group's activations in the caches.

mod activation;
mod attention;
mod bridge;
mod deferred;
mod linear;
mod loss;
mod math;
mod norm;
mod packed;
mod product;
mod rows;

use std::borrow::Cow;

use dfdx::prelude::{Cpu, Gradients, HasErr, Shape, Tensor};
use rayon::prelude::*;

use super::{
    Activation, AttentionShape, Backend, Dropout, Fastfood, Layout, Matrix, Scalar, Vector, Weight,
};

pub use deferred::Deferred;

type Outcome<T> = Result<T, <Cpu as HasErr>::Err>;

impl Backend for Cpu {
    type Prepared = linear::Prepared;

    fn linear(
        x: &Matrix<Cpu>,
        weight: &Weight<Cpu>,
        bias: Option<&Vector<Cpu>>,
    ) -> Outcome<Matrix<Cpu>> {
        linear::linear(x, weight, bias)
    }

    fn layer_norm(
        x: &Matrix<Cpu>,
        gain: &Vector<Cpu>,
        bias: &Vector<Cpu>,
        epsilon: f32,
    ) -> Outcome<Matrix<Cpu>> {
        norm::layer_norm(x, gain, bias, epsilon)
    }

    fn activate(x: &Matrix<Cpu>, activation: Activation) -> Outcome<Matrix<Cpu>> {
        activation::activate(x, activation)
    }

    fn attention(
        q: &Matrix<Cpu>,
        k: &Matrix<Cpu>,
        v: &Matrix<Cpu>,
        layout: &Layout,
        shape: AttentionShape,
        dropout: Option<Dropout>,
    ) -> Outcome<Matrix<Cpu>> {
        attention::attention(q, k, v, layout, shape, dropout)
    }

    fn dropout(x: &Matrix<Cpu>, layout: &Layout, dropout: Dropout) -> Outcome<Matrix<Cpu>> {
        rows::dropout(x, layout, dropout)
    }

    fn select_rows(table: &Matrix<Cpu>, indices: &[usize]) -> Outcome<Matrix<Cpu>> {
        rows::select_rows(table, indices)
    }

    fn columns(x: &Matrix<Cpu>, range: std::ops::Range<usize>) -> Outcome<Matrix<Cpu>> {
        rows::columns(x, range)
    }

    fn join_columns(parts: &[Matrix<Cpu>]) -> Outcome<Matrix<Cpu>> {
        rows::join_columns(parts)
    }

    fn scale_columns(x: &Matrix<Cpu>, factors: &Vector<Cpu>) -> Outcome<Matrix<Cpu>> {
        rows::scale_columns(x, factors)
    }

    fn project(
        z: &Matrix<Cpu>,
        projection: Fastfood,
        shape: (usize, usize),
    ) -> Outcome<Matrix<Cpu>> {
        rows::project(z, projection, shape)
    }

    fn add(x: &Matrix<Cpu>, y: &Matrix<Cpu>) -> Outcome<Matrix<Cpu>> {
        rows::add(x, y)
    }

    fn scale(x: &Matrix<Cpu>, factor: f32) -> Outcome<Matrix<Cpu>> {
        rows::scale(x, factor)
    }

    fn cross_entropy(logits: &Matrix<Cpu>, labels: &[usize], total: usize) -> Outcome<Scalar<Cpu>> {
        loss::cross_entropy(logits, labels, total)
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
        Some(bridge::data(tensor).as_ptr() as usize)
    }

    const GROUP_ROWS: usize = 256;
}

/// Floating-point operations per second that the matrix products of this machine reach on all
/// threads, measured for about 30 milliseconds.
pub fn measure_rate() -> f64 {
    const SIZE: usize = 384;
    const ROWS: usize = 256;
    let work = |_: usize| {
        let (a, b) = (vec![0.5f32; ROWS * SIZE], vec![0.5f32; SIZE * SIZE]);
        let mut out = vec![0.0; ROWS * SIZE];
        let start = std::time::Instant::now();
        let mut count = 0;
        while start.elapsed().as_millis() < 30 {
            let (a, b) = (product::View::new(&a, SIZE), product::View::new(&b, SIZE));
            product::multiply(&mut out, SIZE, a, b, 1.0, false);
            count += 1;
        }
        (count * 2 * ROWS * SIZE * SIZE) as f64 / start.elapsed().as_secs_f64()
    };
    (0..rayon::current_num_threads())
        .into_par_iter()
        .map(work)
        .sum()
}
