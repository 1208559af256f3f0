//! The bottleneck adapter of Houlsby et al., arXiv 1902.00751 (section 2.1): behind a sub-layer and
//! before its residual sum, `y + U f(D y)`.

use serde::{Deserialize, Serialize};

use super::{AtSite, DeltaMethod, Init, NewParameter, Placement};
use crate::backbone::{Config, Module, Site};
use crate::engine::{Activation, Backend, Matrix};
use crate::plan::Fields;

/// Settings of the Houlsby adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Houlsby {
    /// Width inside the adapter; a sixteenth of the hidden width, as in AdapterHub.
    pub bottleneck: usize,
    /// f; swish, as in AdapterHub.
    pub activation: Activation,
}

/// Standard deviation of fresh weights, as in AdapterHub: so small that the adapter begins as
/// nearly nothing.
const INIT: f32 = 0.02;

impl DeltaMethod for Houlsby {
    const NAME: &'static str = "houlsby";
    const STATEMENT: Placement = Placement::Insert;
    const PAPER: &'static str = "Houlsby et al., arXiv 1902.00751";

    fn read(fields: &Fields, config: &Config) -> Self {
        let default = (config.hidden / 16).max(1);
        let activations = [
            ("swish", Activation::Swish),
            ("relu", Activation::Relu),
            ("gelu", Activation::Gelu),
            ("tanh", Activation::Tanh),
        ];
        Houlsby {
            bottleneck: fields.count("bottleneck", 1..=1_000_000).unwrap_or(default),
            activation: fields
                .choice("activation", &activations)
                .unwrap_or(Activation::Swish),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::SubLayer
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        if self.bottleneck > module.output {
            return Err(format!(
                "`bottleneck` is {}, above the width {} of `{}`",
                self.bottleneck, module.output, module.path
            ));
        }
        Ok(())
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (hidden, bottleneck) = (module.output, self.bottleneck);
        let parameter = |name, shape, init| NewParameter { name, shape, init };
        vec![
            parameter("down.weight", vec![bottleneck, hidden], Init::Normal(INIT)),
            parameter("down.bias", vec![bottleneck], Init::Zeros),
            parameter("up.weight", vec![hidden, bottleneck], Init::Normal(INIT)),
            parameter("up.bias", vec![hidden], Init::Zeros),
        ]
    }

    fn forward<D: Backend>(
        &self,
        at: &impl AtSite<D>,
        _: &Matrix<D>,
        y: Matrix<D>,
    ) -> Result<Matrix<D>, D::Err> {
        let down = D::linear(&y, &at.weight("down.weight"), Some(&at.vector("down.bias")))?;
        let inner = D::activate(&down, self.activation)?; // (rows, bottleneck)
        let up = D::linear(&inner, &at.weight("up.weight"), Some(&at.vector("up.bias")))?;
        D::add(&y, &up)
    }
}
