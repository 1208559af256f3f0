//! The low-rank adapter of OpenDelta (`LowRankAdapterModel`): a bottleneck adapter after a sub-layer,
//! `y + U f(D y)`. D and U each have a product of two low-rank factors as their weight, and a bias.

use serde::{Deserialize, Serialize};

use super::{bottleneck, At, DeltaMethod, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of the low-rank adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowRankAdapter {
    /// Width inside the adapter. Default: a 32nd of the hidden width, as in OpenDelta.
    pub bottleneck: usize,
    /// Rank of D and U. Default: 1, as in OpenDelta.
    pub rank: usize,
    /// f. Default: gelu, as in OpenDelta.
    pub activation: Activation,
}

/// `U V x + b`: `x (rows, in)`, `U (out, rank)`, `V (rank, in)` → `(rows, out)`.
fn product(at: &At, [outer, inner, bias]: [&str; 3], x: &Matrix) -> Outcome<Matrix> {
    let low = ops::linear(x, &at.weight(inner), None)?; // (rows, rank)
    ops::linear(&low, &at.weight(outer), Some(&at.vector(bias)))
}

impl DeltaMethod for LowRankAdapter {
    const NAME: &'static str = "low_rank_adapter";
    const PREPOSITION: Preposition = Preposition::After;
    const PAPER: &'static str = "OpenDelta, arXiv 2307.03084";
    const SITES: &'static str = "choose sub-layers, such as `block.*.{attn,ff}`";

    fn read(fields: &Fields, config: &Config) -> Self {
        LowRankAdapter {
            bottleneck: bottleneck::width(fields, config.hidden, 32),
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
        match self.rank > self.bottleneck {
            true => Err(format!(
                "`rank` is {}, which exceeds the `bottleneck` {}",
                self.rank, self.bottleneck
            )),
            false => Ok(()),
        }
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (hidden, width, rank) = (module.output, self.bottleneck, self.rank);
        let factor = |name, out: usize, input: usize| {
            NewParameter::new(name, [out, input], Init::glorot(input, out, 2f32.sqrt()))
        };
        vec![
            factor("down.outer", width, rank),
            factor("down.inner", rank, hidden),
            NewParameter::new("down.bias", [width], Init::ZEROS),
            factor("up.outer", hidden, rank),
            factor("up.inner", rank, width),
            NewParameter::new("up.bias", [hidden], Init::ZEROS),
        ]
    }

    fn forward(&self, at: &At, _: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let down = product(at, ["down.outer", "down.inner", "down.bias"], &y)?;
        let inner = ops::activate(down, self.activation)?; // (rows, bottleneck)
        let up = product(at, ["up.outer", "up.inner", "up.bias"], &inner)?;
        ops::add(y, &up)
    }
}
