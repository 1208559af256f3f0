//! AdamW and SGD, on the host. Deltas have few parameters, and the gradients of a step arrive on the host anyway, where
//! they are summed over the groups of the batch.

use std::collections::BTreeMap;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::delta::ParameterId;
use crate::plan::Optimizer;

/// What an optimizer remembers of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient (AdamW), or velocity (SGD).
    pub first: Vec<f32>,
    /// Running mean of its square (AdamW only).
    pub second: Vec<f32>,
}

/// An optimizer with its memory.
#[derive(Clone, Debug)]
pub struct Stepper {
    config: Optimizer,
    /// By parameter key.
    pub moments: BTreeMap<String, Moments>,
    /// Steps done.
    pub steps: usize,
}

impl Stepper {
    /// An optimizer that has done no step.
    pub fn new(config: Optimizer) -> Self {
        Stepper {
            config,
            moments: BTreeMap::new(),
            steps: 0,
        }
    }

    /// Begins the next step; every parameter is then [`update`](Self::update)d once.
    pub fn begin(&mut self) {
        self.steps += 1;
    }

    /// Moves one parameter by its gradient, with learning rate `lr`.
    pub fn update(&mut self, key: &str, parameter: &mut [f32], gradient: &[f32], lr: f32) {
        let moments = match self.moments.get_mut(key) {
            Some(moments) => moments,
            None => self.moments.entry(key.to_owned()).or_default(),
        };
        moments.first.resize(parameter.len(), 0.0);
        match self.config {
            Optimizer::AdamW {
                betas,
                epsilon,
                weight_decay,
                ..
            } => {
                moments.second.resize(parameter.len(), 0.0);
                let step = AdamStep::new(betas, epsilon, weight_decay, lr, self.steps);
                step.apply(parameter, gradient, &mut moments.first, &mut moments.second);
            }
            Optimizer::Sgd {
                momentum,
                weight_decay,
                ..
            } => {
                let velocity = &mut moments.first;
                for ((p, g), v) in parameter.iter_mut().zip(gradient).zip(velocity) {
                    *v = momentum * *v + g + weight_decay * *p;
                    *p -= lr * *v;
                }
            }
        }
    }
}

/// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2), with the order of operations of PyTorch.
struct AdamStep {
    betas: (f32, f32),
    epsilon: f32,
    decay: f32,
    rate: f32,
    root_correction: f32,
}

impl AdamStep {
    fn new(betas: (f32, f32), epsilon: f32, weight_decay: f32, lr: f32, step: usize) -> Self {
        let correction = |beta: f32| 1.0 - f64::from(beta).powi(step as i32);
        AdamStep {
            betas,
            epsilon,
            decay: 1.0 - lr * weight_decay,
            rate: (f64::from(lr) / correction(betas.0)) as f32,
            root_correction: correction(betas.1).sqrt() as f32,
        }
    }

    fn apply(&self, parameter: &mut [f32], gradient: &[f32], mean: &mut [f32], square: &mut [f32]) {
        let parameters = parameter
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK));
        let moments = mean.par_chunks_mut(CHUNK).zip(square.par_chunks_mut(CHUNK));
        parameters
            .zip(moments)
            .for_each(|((p, g), (m, v))| adam_chunk(self, p, g, m, v));
    }
}

/// [`AdamStep::apply`] for one chunk.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn adam_chunk(
    step: &AdamStep,
    parameter: &mut [f32],
    gradient: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
) {
    let (a, b) = step.betas;
    for (((p, g), m), v) in parameter.iter_mut().zip(gradient).zip(mean).zip(square) {
        *m += (1.0 - a) * (g - *m);
        *v = b * *v + (1.0 - b) * g * g;
        let root = v.sqrt() / step.root_correction + step.epsilon;
        *p = *p * step.decay - step.rate * (*m / root);
    }
}

/// The number of elements that one thread works on at a time.
const CHUNK: usize = 1 << 16;

/// `Σ g²` in independent sums, which the compiler vectorizes, joined at the end.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2+fma"))]
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    for chunk in values.chunks(lanes.len()) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    lanes.iter().sum()
}

/// Scales all gradients down so that their norm is at most `limit`; returns the norm before.
pub fn clip(gradients: &mut BTreeMap<ParameterId, Vec<f32>>, limit: Option<f32>) -> f32 {
    let square = |values: &Vec<f32>| -> f64 {
        // Sums each chunk and then adds up the chunks in their order, so that the number of threads changes nothing.
        let chunks: Vec<f64> = values.par_chunks(CHUNK).map(sum_of_squares).collect();
        chunks.iter().sum()
    };
    let norm = gradients.values().map(square).sum::<f64>().sqrt() as f32;
    if let Some(limit) = limit.filter(|limit| norm > *limit) {
        let factor = limit / (norm + 1e-6);
        let all = gradients.values_mut();
        all.for_each(|values| values.par_iter_mut().for_each(|g| *g *= factor));
    }
    norm
}
