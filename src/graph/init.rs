//! Fresh parameters. Each is drawn from the seed and its own name, so that adding one does not
//! change another.

use rand::distr::{Distribution, Uniform};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use sha2::{Digest, Sha256};

use crate::backbone::Parameter;
use crate::delta::Init;

/// Draws the initial elements of fresh parameters.
pub(super) struct Initializer {
    pub seed: u64,
    /// Standard deviation of the backbone's own weights.
    pub deviation: f32,
    /// Initial value of every norm weight.
    pub norm: f32,
}

impl Initializer {
    /// Elements of a new parameter.
    pub fn values(&self, key: &str, count: usize, init: &Init) -> Vec<f32> {
        let mut random = self.random(key);
        match *init {
            Init::Constant(value) => vec![value; count],
            Init::Normal(deviation) => (0..count)
                .map(|_| {
                    let draw: f32 = StandardNormal.sample(&mut random);
                    deviation * draw
                })
                .collect(),
            Init::Uniform(bound) => match Uniform::new_inclusive(-bound, bound) {
                Ok(uniform) => (0..count).map(|_| uniform.sample(&mut random)).collect(),
                Err(_) => vec![0.0; count],
            },
            _ => unreachable!("all else begins as other weights, not at random"),
        }
    }

    /// Draws `count` numbers below `end`, with replacement.
    pub fn choices(&self, key: &str, count: usize, end: usize) -> Vec<usize> {
        let mut random = self.random(key);
        (0..count).map(|_| random.random_range(0..end)).collect()
    }

    fn random(&self, key: &str) -> ChaCha8Rng {
        let mut hasher = Sha256::new();
        hasher.update(self.seed.to_le_bytes());
        hasher.update(key);
        ChaCha8Rng::from_seed(hasher.finalize().into())
    }

    /// Initial elements of a parameter of the backbone or a head, as in transformers. Weights are normal,
    /// biases are 0, and norm weights are 1 or T5's `initializer_factor`.
    pub fn parameter(&self, parameter: &Parameter) -> Vec<f32> {
        let init = match (parameter.is_bias(), parameter.shape.len()) {
            (true, _) => Init::ZEROS,
            (false, 1) => Init::Constant(self.norm),
            (false, _) => Init::Normal(match parameter.fan {
                Some(fan) => self.deviation / (fan as f32).sqrt(),
                None => self.deviation,
            }),
        };
        self.values(&parameter.path, parameter.count(), &init)
    }
}
