//! Intrinsic dimension: `y = (W + P z) x + b`. All modules share one small `z`. Each module has its own
//! projection P, which is drawn from the seed and never trained (DID: Li et al., arXiv 1804.08838, eq. 2;
//! Aghajanyan et al., arXiv 2012.13255, section 3). With `structure_aware = on`, each module also has a λ:
//! `W + λ P z` (SAID: section 3.1 there; their code also has one λ for each weight).

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Folded, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Fastfood, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of intrinsic dimension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntrinsicDimension {
    /// Length of z.
    pub dimension: usize,
    /// Whether each module has a λ.
    pub structure_aware: bool,
}

impl IntrinsicDimension {
    /// The module's projection. Its seed is a parameter, so that it is saved with the delta.
    fn projection(&self, seed: &[f32], length: usize) -> Fastfood {
        let bits = seed.iter().map(|part| u64::from(part.to_bits()));
        Fastfood {
            dimension: self.dimension,
            length,
            seed: bits.fold(0, |seed, part| (seed << 32) | part),
        }
    }
}

impl DeltaMethod for IntrinsicDimension {
    const NAME: &'static str = "intrinsic_dimension";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Aghajanyan et al., arXiv 2012.13255";
    const SITES: &'static str = "choose linear layers, such as `block.*.{attn,ff}.*`";

    fn read(fields: &Fields, _: &Config) -> Self {
        if fields.value("dimension").is_none() {
            fields.missing("dimension", "1000");
        }
        let switch = [("on", true), ("off", false)];
        IntrinsicDimension {
            dimension: fields.count("dimension", 1..=1_000_000).unwrap_or(1),
            structure_aware: fields
                .choice("structure_aware", &switch)
                .unwrap_or_default(),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn parameters(&self, _: &Module) -> Vec<NewParameter> {
        let mut parameters = vec![NewParameter::new("seed", [2], Init::Uniform(1.0)).frozen()];
        if self.structure_aware {
            parameters.push(NewParameter::new("lambda", [1, 1], Init::Constant(1.0)));
        }
        parameters
    }

    fn shared(&self, _: &[&Module]) -> Vec<NewParameter> {
        vec![NewParameter::new("z", [1, self.dimension], Init::ZEROS)]
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let shape = at.values.module_weight().shape();
        let z = match self.structure_aware {
            true => ops::matmul(&at.matrix("lambda")?, &at.matrix("z")?)?,
            false => at.matrix("z")?,
        };
        let projection = self.projection(&at.vector("seed").read(), shape.0 * shape.1);
        let change = ops::project(&z, projection, shape)?; // (out, in)
        ops::add(y, &ops::linear(x, &change.into(), None)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let mut z = tensor("z");
        if let (true, [lambda]) = (self.structure_aware, tensor("lambda").as_slice()) {
            z.iter_mut().for_each(|z| *z *= lambda);
        }
        let length = module.output * module.input;
        layer.add(&self.projection(&tensor("seed"), length).apply(&z));
        true
    }
}
