//! The optimizers, on the host. Deltas have few parameters, and the gradients of a step arrive on the host anyway, where
//! they are summed over the groups of the batch.

use std::collections::BTreeMap;

use multiversion::multiversion;
use rayon::prelude::*;

use crate::delta::ParameterId;
use crate::plan::Optimizer;

/// What an optimizer remembers of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Running mean of the gradient (AdamW, Lion), velocity (SGD), or running mean of the squares of each row, or of each
    /// element of a vector (Adafactor).
    pub first: Vec<f32>,
    /// Running mean of its square (AdamW), or of the squares of each column (Adafactor).
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

    /// Moves one parameter by its gradient, with learning rate `lr`. A matrix has `columns` of them, a vector one.
    pub fn update(
        &mut self,
        key: &str,
        parameter: &mut [f32],
        gradient: &[f32],
        columns: usize,
        lr: f32,
    ) {
        let moments = match self.moments.get_mut(key) {
            Some(moments) => moments,
            None => self.moments.entry(key.to_owned()).or_default(),
        };
        if !matches!(self.config, Optimizer::Adafactor { .. }) {
            moments.first.resize(parameter.len(), 0.0);
        }
        match self.config {
            Optimizer::Lion {
                betas: (a, b),
                weight_decay,
                ..
            } => {
                let mean = &mut moments.first;
                for ((p, g), m) in parameter.iter_mut().zip(gradient).zip(mean) {
                    let direction = a * *m + (1.0 - a) * g;
                    // The sign of 0 is 0 here.
                    let sign = f32::from(i8::from(direction > 0.0) - i8::from(direction < 0.0));
                    *p = *p * (1.0 - lr * weight_decay) - lr * sign;
                    *m = b * *m + (1.0 - b) * g;
                }
            }
            Optimizer::Adafactor {
                scale_parameter,
                threshold,
                decay,
                weight_decay,
                ..
            } => {
                let step = Adafactor {
                    lr: match scale_parameter {
                        true => lr * rms(parameter).max(SMALLEST_SIZE),
                        false => lr,
                    },
                    kept: 1.0 - (self.steps as f64).powf(-f64::from(decay)) as f32,
                    threshold,
                    weight_decay,
                };
                step.apply(parameter, gradient, columns, moments);
            }
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

/// One step of Adafactor (Shazeer and Stern, arXiv 1804.04235, algorithms 4 and 5), with transformers' order of
/// operations.
struct Adafactor {
    lr: f32,
    /// The share of the running mean that is kept.
    kept: f32,
    threshold: f32,
    weight_decay: f32,
}

/// Added to squared gradients, and the least size of a parameter that a rate is relative to (ε₁ and ε₂).
const SMALLEST_SQUARE: f32 = 1e-30;
const SMALLEST_SIZE: f32 = 1e-3;

impl Adafactor {
    fn apply(
        &self,
        parameter: &mut [f32],
        gradient: &[f32],
        columns: usize,
        moments: &mut Moments,
    ) {
        let square = |g: &f32| g * g + SMALLEST_SQUARE;
        let mix = |mean: &mut f32, new: f32| *mean = self.kept * *mean + (1.0 - self.kept) * new;
        let mut update: Vec<f32>;
        if columns == 1 {
            moments.first.resize(parameter.len(), 0.0);
            let means = moments.first.iter_mut().zip(gradient);
            means.for_each(|(mean, g)| mix(mean, square(g)));
            let elements = gradient.iter().zip(&moments.first);
            update = elements.map(|(g, mean)| g / mean.sqrt()).collect();
        } else {
            let rows = parameter.len() / columns;
            moments.first.resize(rows, 0.0);
            moments.second.resize(columns, 0.0);
            let mut of_columns = vec![0.0; columns];
            for (mean, row) in moments.first.iter_mut().zip(gradient.chunks_exact(columns)) {
                mix(mean, row.iter().map(square).sum::<f32>() / columns as f32);
                let sums = of_columns.iter_mut().zip(row);
                sums.for_each(|(sum, g)| *sum += square(g));
            }
            for (mean, sum) in moments.second.iter_mut().zip(of_columns) {
                mix(mean, sum / rows as f32);
            }
            let whole = moments.first.iter().sum::<f32>() / rows as f32;
            update = Vec::with_capacity(parameter.len());
            for (mean, row) in moments.first.iter().zip(gradient.chunks_exact(columns)) {
                let of_row = 1.0 / (mean / whole).sqrt();
                let elements = row.iter().zip(&moments.second);
                update.extend(elements.map(|(g, column)| of_row / column.sqrt() * g));
            }
        }
        let factor = self.lr / (rms(&update) / self.threshold).max(1.0);
        for (p, step) in parameter.iter_mut().zip(update) {
            *p = *p * (1.0 - self.weight_decay * self.lr) - factor * step;
        }
    }
}

/// The root of the mean of squares.
fn rms(values: &[f32]) -> f32 {
    (sum_of_squares(values) / values.len().max(1) as f64).sqrt() as f32
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
