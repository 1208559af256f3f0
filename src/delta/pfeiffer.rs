//! The adapter of Pfeiffer et al., arXiv 2005.00247 (section 3.2.2, appendix A), as in AdapterHub. It
//! sits only after the feed-forward. It reads the normalized residual sum, `a = U f(D LN(y + x))`, and
//! adds its result to the sum: `LN(y + a + x)`.

use serde::{Deserialize, Serialize};

use super::{bottleneck, houlsby, At, DeltaMethod, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of the Pfeiffer adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pfeiffer {
    /// Width inside the adapter. Default: a sixteenth of the hidden width, as in AdapterHub.
    pub bottleneck: usize,
    /// f. Default: relu, as in AdapterHub.
    pub activation: Activation,
}

impl DeltaMethod for Pfeiffer {
    const NAME: &'static str = "pfeiffer";
    const PREPOSITION: Preposition = Preposition::After;
    const PAPER: &'static str = "Pfeiffer et al., arXiv 2005.00247";
    const SITES: &'static str = "choose feed-forward modules, such as `block.*.ff`";

    fn read(fields: &Fields, config: &Config) -> Self {
        Pfeiffer {
            bottleneck: bottleneck::width(fields, config.hidden, 16),
            activation: bottleneck::activation(fields, Activation::Relu),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::FeedForward
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        bottleneck::check(self.bottleneck, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        bottleneck::parameters(module.output, self.bottleneck, houlsby::INIT, houlsby::INIT)
    }

    fn forward(&self, at: &At, _: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let sum = match at.residual {
            Some(residual) => at.values.norm(&ops::add(y.clone(), residual)?)?,
            None => y.clone(),
        };
        ops::add(y, &bottleneck::apply(at, &sum, self.activation)?)
    }
}
