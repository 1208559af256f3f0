//! The bottleneck adapter of Houlsby et al., arXiv 1902.00751 (section 2.1): `y + U f(D y)`, after a
//! sub-layer and before its residual sum.

use serde::{Deserialize, Serialize};

use super::{bottleneck, At, DeltaMethod, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of the Houlsby adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Houlsby {
    /// Width inside the adapter. Default: a sixteenth of the hidden width, as in AdapterHub.
    pub bottleneck: usize,
    /// f. Default: swish, as in AdapterHub.
    pub activation: Activation,
}

/// Initial weights, as in AdapterHub. The standard deviation is so small that a fresh adapter changes
/// almost nothing.
pub(super) const INIT: Init = Init::Normal(0.02);

impl DeltaMethod for Houlsby {
    const NAME: &'static str = "houlsby";
    const PREPOSITION: Preposition = Preposition::After;
    const PAPER: &'static str = "Houlsby et al., arXiv 1902.00751";
    const SITES: &'static str = "choose sub-layers, such as `block.*.{attn,ff}`";

    fn read(fields: &Fields, config: &Config) -> Self {
        Houlsby {
            bottleneck: bottleneck::width(fields, config.hidden, 16),
            activation: bottleneck::activation(fields, Activation::Swish),
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
        bottleneck::parameters(module.output, self.bottleneck, INIT, INIT)
    }

    fn forward(&self, at: &At, _: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let change = bottleneck::apply(at, &y, self.activation)?;
        ops::add(y, &change)
    }
}
