//! What a kernel and its definition are compared by.

use deltarun::engine::{backward, with_trace, Backend, Matrix, Recorder, Scalar, Vector};
use dfdx::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub type Op<'a> = dyn Fn(&[Matrix<Cpu>], &[Vector<Cpu>]) -> Matrix<Cpu> + 'a;

/// What an op is called with: matrices with their shapes, and vectors.
pub struct Inputs {
    pub matrices: Vec<(Vec<f32>, (usize, usize))>,
    pub vectors: Vec<Vec<f32>>,
}

pub struct Random(ChaCha8Rng);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn values(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count)
            .map(|_| scale * self.0.random_range(-1.0..1.0f32))
            .collect()
    }

    pub fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    pub fn matrix(
        &mut self,
        rows: usize,
        columns: usize,
        scale: f32,
    ) -> (Vec<f32>, (usize, usize)) {
        (self.values(rows * columns, scale), (rows, columns))
    }
}

/// The same elements in a tensor that nothing else holds: what is changed in place.
pub fn own(x: &Matrix<Cpu>) -> Matrix<Cpu> {
    Cpu::scale(x, 1.0).unwrap()
}

/// What the elements of an op's value count in the sum whose gradients are compared.
pub fn factors(count: usize) -> Vec<f32> {
    Random::new(99).values(count, 1.0)
}

/// The value of an op, and the gradients of all inputs of `Σ factors ⊙ value`.
pub fn value_and_gradients(inputs: &Inputs, op: &Op) -> (Vec<f32>, Vec<Vec<f32>>) {
    value_and_gradients_with(inputs, op, &factors)
}

/// The same with other factors, for so many elements.
pub fn value_and_gradients_with(
    inputs: &Inputs,
    op: &Op,
    factors: &dyn Fn(usize) -> Vec<f32>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let device = Cpu::default();
    let recorder = Recorder::new();
    let matrices: Vec<_> = inputs
        .matrices
        .iter()
        .map(|(values, shape)| device.tensor_from_vec(values.clone(), *shape))
        .collect();
    let vectors: Vec<_> = inputs
        .vectors
        .iter()
        .map(|v| device.tensor_from_vec(v.clone(), (v.len(),)))
        .collect();
    let traced_matrices: Vec<_> = matrices.iter().map(|m| with_trace(m, &recorder)).collect();
    let traced_vectors: Vec<_> = vectors.iter().map(|v| with_trace(v, &recorder)).collect();
    let out = op(&traced_matrices, &traced_vectors);
    let shape = *out.shape();
    let value = out.as_vec();
    let factors: Tensor<(usize, usize), f32, Cpu> =
        device.tensor_from_vec(factors(value.len()), shape);
    let loss: Scalar<Cpu> = (out * factors).sum();
    let mut gradients = backward(loss).unwrap();
    let mut all = Vec::new();
    for matrix in &matrices {
        all.push(Cpu::read_gradient(&mut gradients, matrix).unwrap());
    }
    for vector in &vectors {
        all.push(Cpu::read_gradient(&mut gradients, vector).unwrap());
    }
    (value, all)
}

/// Within `tolerance` of the largest element, or of 1.
pub fn close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0f32, |a, b| a.max(b.abs()));
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let is_close = (f - e).abs() <= tolerance * largest;
        assert!(
            is_close,
            "{what}, element {i}: {f} is not {e} (largest {largest})"
        );
    }
}

/// Value and gradients of a kernel beside its definition's.
pub fn compare(inputs: &Inputs, kernel: &Op, definition: &Op, tolerance: f32) {
    let (value, gradients) = value_and_gradients(inputs, kernel);
    let (expected, expected_gradients) = value_and_gradients(inputs, definition);
    close("value", &value, &expected, tolerance);
    for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        close(&format!("gradient {i}"), found, expected, tolerance);
    }
}
