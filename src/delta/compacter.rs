//! Compacter (Karimi Mahabadi et al., arXiv 2106.04647, eq. 4 to 6): a bottleneck adapter after a
//! sub-layer. The adapter's weights are `W = Σᵢ Aᵢ ⊗ (sᵢ tᵢ)`, and all of the delta's modules share the small
//! `Aᵢ (n, n)`.

use serde::{Deserialize, Serialize};

use super::{bottleneck, At, DeltaMethod, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of Compacter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compacter {
    /// Width inside the adapter. Default: a 32nd of the hidden width, as in AdapterHub.
    pub bottleneck: usize,
    /// n, the number of Kronecker products in the sum. Default: 4, as in the paper.
    pub terms: usize,
    /// Rank of `sᵢ tᵢ`. Default: 1, as in the paper.
    pub rank: usize,
    /// f. Default: gelu, as in AdapterHub.
    pub activation: Activation,
}

impl Compacter {
    /// Computes `W (out, in)` from the shared `rules` and the factors `s` and `t`.
    fn weight(&self, at: &At, [s, t]: [&str; 2]) -> Outcome<Matrix> {
        let (rules, s, t) = (at.matrix("rules")?, at.matrix(s)?, at.matrix(t)?);
        let out = s.shape().0;
        let part = |table: &Matrix, i: usize, size: usize| {
            let rows: Vec<usize> = (i * size..(i + 1) * size).collect();
            ops::select_rows(table, &rows)
        };
        let mut sum: Option<Matrix> = None;
        for i in 0..self.terms {
            let rule = part(&rules, i, self.terms)?; // (n, n)
            let s = part(&s, i, out / self.terms)?; // (out / n, rank)
            let t = part(&t, i, self.rank)?; // (rank, in / n)
            let term = ops::kronecker(&rule, &ops::matmul(&s, &t)?)?; // (out, in)
            sum = Some(match sum {
                Some(sum) => ops::add(sum, &term)?,
                None => term,
            });
        }
        Ok(sum.expect("there is at least one term"))
    }
}

impl DeltaMethod for Compacter {
    const NAME: &'static str = "compacter";
    const PREPOSITION: Preposition = Preposition::After;
    const PAPER: &'static str = "Karimi Mahabadi et al., arXiv 2106.04647";
    const SITES: &'static str = "choose sub-layers, such as `block.*.{attn,ff}`";

    fn read(fields: &Fields, config: &Config) -> Self {
        let terms = fields.count("terms", 1..=64).unwrap_or(4);
        let multiple = (config.hidden / 32 / terms).max(1) * terms;
        let width = fields.count("bottleneck", 1..=1_000_000);
        Compacter {
            bottleneck: width.unwrap_or(multiple),
            terms,
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(1),
            activation: bottleneck::activation(fields, Activation::Gelu),
        }
    }

    fn accepts(site: Site) -> bool {
        matches!(
            site,
            Site::Attention | Site::CrossAttention | Site::FeedForward
        )
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        bottleneck::check(self.bottleneck, module)?;
        for (what, size) in [
            ("bottleneck", self.bottleneck),
            ("hidden width", module.output),
        ] {
            if size % self.terms != 0 {
                return Err(format!(
                    "`terms` is {}, which does not divide the {what} {size}",
                    self.terms
                ));
            }
        }
        Ok(())
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (hidden, width, rank) = (module.output, self.bottleneck, self.rank);
        let gain = 2f32.sqrt();
        let left = |name, out: usize| {
            NewParameter::new(
                name,
                [out, rank],
                Init::glorot(rank, out / self.terms, gain),
            )
        };
        let right = |name, input: usize| {
            let shape = [self.terms * rank, input / self.terms];
            NewParameter::new(name, shape, Init::glorot(input / self.terms, rank, gain))
        };
        vec![
            left("down.s", width),
            right("down.t", hidden),
            NewParameter::new("down.bias", [width], Init::ZEROS),
            left("up.s", hidden),
            right("up.t", width),
            NewParameter::new("up.bias", [hidden], Init::ZEROS),
        ]
    }

    fn shared(&self, _: &[&Module]) -> Vec<NewParameter> {
        // The paper's A₁ … Aₙ, one below the other.
        let shape = [self.terms * self.terms, self.terms];
        vec![NewParameter::new("rules", shape, Init::Normal(0.01))]
    }

    fn forward(&self, at: &At, _: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let linear = |factors, bias: &str, x: &Matrix| {
            ops::linear(x, &self.weight(at, factors)?.into(), Some(&at.vector(bias)))
        };
        let down = linear(["down.s", "down.t"], "down.bias", &y)?;
        let inner = ops::activate(down, self.activation)?; // (rows, bottleneck)
        let up = linear(["up.s", "up.t"], "up.bias", &inner)?;
        ops::add(y, &up)
    }
}
