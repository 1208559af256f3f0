//! Random projections that need no matrix: Fastfood (Le et al. 2013, section 2, eq. 4), as the
//! studies of intrinsic dimension use it (Li et al., arXiv 1804.08838, section 3).
//!
//! `P = [V₁; V₂; …]` with `V = H G Π H B`. B has random signs, Π is a permutation, G is normal, and H is the
//! Walsh–Hadamard matrix of `width`, the least power of two that is at least `dimension`. Columns of P have length 1,
//! but for the rows that are cut off the last block.

use rand::seq::SliceRandom;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// A projection from `dimension` to `length` numbers, drawn from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fastfood {
    /// The number of inputs.
    pub dimension: usize,
    /// The number of outputs.
    pub length: usize,
    /// The seed that it is drawn from.
    pub seed: u64,
}

/// One block V of P.
pub(super) struct Block {
    /// B, `(width)`; zeros beyond `dimension`.
    pub signs: Vec<f32>,
    /// Π, `(width)`.
    pub order: Vec<usize>,
    /// G, `(width)`, scaled for columns of length 1.
    pub gaussians: Vec<f32>,
}

impl Fastfood {
    /// The size of H.
    pub(super) fn width(&self) -> usize {
        self.dimension.next_power_of_two()
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = Block> + '_ {
        (0..self.length.div_ceil(self.width())).map(|number| self.block(number as u64))
    }

    fn block(&self, number: u64) -> Block {
        let width = self.width();
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(number);
        let sign = |random: &mut ChaCha8Rng| [1.0, -1.0][(random.next_u32() >> 31) as usize];
        let mut signs: Vec<f32> = (0..self.dimension).map(|_| sign(&mut random)).collect();
        signs.resize(width, 0.0);
        let mut order: Vec<usize> = (0..width).collect();
        order.shuffle(&mut random);
        let gaussians = (0..width).map(|_| StandardNormal.sample(&mut random));
        let mut gaussians: Vec<f32> = gaussians.collect();
        let sum: f32 = gaussians.iter().map(|weight| weight * weight).sum();
        let scale = 1.0 / (sum * self.length as f32).sqrt();
        gaussians.iter_mut().for_each(|weight| *weight *= scale);
        Block {
            signs,
            order,
            gaussians,
        }
    }

    /// `P z`: `z (dimension)` → `(length)`.
    pub fn apply(&self, z: &[f32]) -> Vec<f32> {
        assert_eq!(z.len(), self.dimension, "fastfood: z has another dimension");
        let mut result = Vec::with_capacity(self.length + self.width());
        for block in self.blocks() {
            let mut mixed = block.signs;
            mixed.iter_mut().zip(z).for_each(|(sign, z)| *sign *= z);
            hadamard(&mut mixed);
            let gained = block.order.iter().zip(&block.gaussians);
            let mut row: Vec<f32> = gained.map(|(from, weight)| weight * mixed[*from]).collect();
            hadamard(&mut row);
            result.append(&mut row);
        }
        result.truncate(self.length);
        result
    }

    /// `Pᵀ g`: `g (length)` → `(dimension)`.
    pub fn apply_transposed(&self, g: &[f32]) -> Vec<f32> {
        assert_eq!(g.len(), self.length, "fastfood: g has another length");
        let width = self.width();
        let mut sum = vec![0.0; self.dimension];
        for (block, part) in self.blocks().zip(g.chunks(width)) {
            let mut row = part.to_vec();
            row.resize(width, 0.0);
            hadamard(&mut row);
            let mut mixed = vec![0.0; width];
            for ((to, weight), value) in block.order.iter().zip(&block.gaussians).zip(&row) {
                mixed[*to] = weight * value;
            }
            hadamard(&mut mixed);
            for ((sum, sign), value) in sum.iter_mut().zip(&block.signs).zip(&mixed) {
                *sum += sign * value;
            }
        }
        sum
    }
}

/// `x ← H x`. The length of `x` is a power of two.
fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_length_one() {
        let projection = Fastfood {
            dimension: 13,
            length: 16 * 40,
            seed: 5,
        };
        for column in 0..13 {
            let mut z = vec![0.0; 13];
            z[column] = 1.0;
            let length: f32 = projection.apply(&z).iter().map(|v| v * v).sum();
            assert!((length - 1.0).abs() < 1e-5, "{length}");
        }
    }
}
