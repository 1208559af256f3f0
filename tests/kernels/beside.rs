//! What a kernel and its definition are compared by.

use deltarun::engine::{backward, ops, Device, Matrix, Tensor, Trace, Vector};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub type Op<'a> = dyn Fn(&[Matrix], &[Vector]) -> Matrix + 'a;

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
pub fn own(x: &Matrix) -> Matrix {
    ops::scale(x, 1.0).unwrap()
}

/// What the elements of an op's value count in the sum whose gradients are compared.
pub fn factors(count: usize) -> Vec<f32> {
    Random::new(99).values(count, 1.0)
}

/// The value of an op on a device, and the gradients of all inputs of `Σ factors ⊙ value`.
pub fn value_and_gradients(device: &Device, inputs: &Inputs, op: &Op) -> (Vec<f32>, Vec<Vec<f32>>) {
    value_and_gradients_with(device, inputs, op, &factors)
}

/// The same with other factors, for so many elements.
pub fn value_and_gradients_with(
    device: &Device,
    inputs: &Inputs,
    op: &Op,
    factors: &dyn Fn(usize) -> Vec<f32>,
) -> (Vec<f32>, Vec<Vec<f32>>) {
    let trace = Trace::on();
    let matrices = inputs.matrices.iter();
    let matrices: Vec<_> = matrices
        .map(|(values, shape)| Tensor::new(device, values.clone(), *shape).unwrap())
        .collect();
    let vectors = inputs.vectors.iter();
    let vectors: Vec<_> = vectors
        .map(|v| Tensor::new(device, v.clone(), (v.len(),)).unwrap())
        .collect();
    let traced_matrices: Vec<_> = matrices.iter().map(|m| m.on(&trace)).collect();
    let traced_vectors: Vec<_> = vectors.iter().map(|v| v.on(&trace)).collect();
    let out = op(&traced_matrices, &traced_vectors);
    let value = out.read();
    let factors = Tensor::new(device, factors(value.len()), out.shape()).unwrap();
    let weighted = ops::multiply(&out, &factors.constant()).unwrap();
    let mut gradients = backward(weighted).unwrap();
    let of_matrices = matrices.iter().map(|m| gradients.take(m));
    let mut all: Vec<_> = of_matrices.collect();
    all.extend(vectors.iter().map(|v| gradients.take(v)));
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

/// Value and gradients by the CPU's kernels beside those by the definitions.
pub fn compare(inputs: &Inputs, op: &Op, tolerance: f32) {
    let (value, gradients) = value_and_gradients(&Device::Cpu, inputs, op);
    let (expected, expected_gradients) = value_and_gradients(&Device::DfdxCpu, inputs, op);
    close("value", &value, &expected, tolerance);
    for (i, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        close(&format!("gradient {i}"), found, expected, tolerance);
    }
}
