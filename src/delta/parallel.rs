//! The parallel adapter of He et al., arXiv 2110.04366 (table 1). It sits beside a sub-layer and reads
//! the same input: `y + s · U f(D x)`. A parallel adapter on every feed-forward, together with a prefix of
//! 30 tokens on every attention, is their mix-and-match adapter (MAM).

use serde::{Deserialize, Serialize};

use super::{bottleneck, At, DeltaMethod, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of the parallel adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parallel {
    /// Width inside the adapter. Default: half the hidden width, as in AdapterHub.
    pub bottleneck: usize,
    /// f. Default: relu, as in AdapterHub.
    pub activation: Activation,
    /// s. Default: 4, as in the paper.
    pub scale: f32,
}

impl DeltaMethod for Parallel {
    const NAME: &'static str = "parallel";
    const PREPOSITION: Preposition = Preposition::Beside;
    const PAPER: &'static str = "He et al., arXiv 2110.04366";
    const SITES: &'static str = "choose sub-layers, such as `block.*.ff`";

    fn read(fields: &Fields, config: &Config) -> Self {
        Parallel {
            bottleneck: bottleneck::width(fields, config.hidden, 2),
            activation: bottleneck::activation(fields, Activation::Relu),
            scale: fields.number("scale", 4.0, 1e-6..=1e6) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        matches!(
            site,
            Site::Attention | Site::CrossAttention | Site::FeedForward
        )
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        bottleneck::check(self.bottleneck, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let hidden = module.output;
        bottleneck::parameters(hidden, self.bottleneck, Init::kaiming(hidden), Init::ZEROS)
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let change = bottleneck::apply(at, x, self.activation)?;
        ops::add(y, &ops::scale(&change, self.scale)?)
    }
}
