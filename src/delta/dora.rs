//! DoRA: `y = m / ‖W + s B A‖ ⊙ (W + s B A) x + b`. The norm is taken of each row, and no gradient flows
//! through it (Liu et al., arXiv 2402.09353, eq. 5 and section 4.3).

use serde::{Deserialize, Serialize};

use super::{
    is_on, At, DeltaMethod, Folded, Init, Lora, NewParameter, PeftConfig, PeftForm, PeftModule,
    Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome, Vector};
use crate::settings::Fields;

/// Settings of DoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dora {
    /// The low-rank change of the direction.
    #[serde(flatten)]
    pub low_rank: Lora,
}

impl Dora {
    /// `m / ‖W + s B A‖ (out)`
    fn factors(&self, at: &At) -> Outcome<Vector> {
        let (a, b) = (at.matrix("A")?.detached(), at.matrix("B")?.detached());
        let change = ops::scale(&ops::matmul(&b, &a)?, self.low_rank.scale())?; // (out, in)
        let sum = ops::add(at.values.module_weight().matrix()?.detached(), &change)?;
        let inverse = ops::reciprocal(&ops::row_norms(&sum)?)?;
        ops::multiply(&at.vector("magnitude"), &inverse)
    }
}

impl DeltaMethod for Dora {
    const NAME: &'static str = "dora";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Liu et al., arXiv 2402.09353";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("LORA");

    fn read(fields: &Fields, _: &Config) -> Self {
        Dora {
            low_rank: Lora::read_settings(fields),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        self.low_rank.check(module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let mut parameters = self.low_rank.parameters(module);
        let shape = [module.output];
        parameters.push(NewParameter::new("magnitude", shape, Init::RowNorms));
        parameters
    }

    fn second_factor(&self) -> Option<&'static str> {
        Some("B")
    }

    fn dropout(&self) -> f32 {
        self.low_rank.dropout
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let factors = self.factors(at)?;
        let sum = self.low_rank.add_change(at, x, y)?;
        let Some(bias) = at.values.module_bias() else {
            return ops::scale_columns(&sum, &factors);
        };
        // `y` includes the bias, which DoRA does not scale: subtract it first and add it again afterwards.
        let sum = ops::add_row(sum, &ops::scale(&bias, -1.0)?)?;
        ops::add_row(ops::scale_columns(&sum, &factors)?, &bias)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let change = self.low_rank.product(module, tensor);
        let magnitude = tensor("magnitude");
        layer.add(&change);
        let rows = layer.weight.chunks_exact_mut(module.input);
        for (out, row) in rows.enumerate() {
            let range = out * module.input..(out + 1) * module.input;
            let pairs = layer.base[range.clone()].iter().zip(&change[range]);
            let norm = pairs.map(|(w, c)| (w + c) * (w + c)).sum::<f32>().sqrt();
            let factor = magnitude[out] / norm;
            row.iter_mut().for_each(|weight| *weight *= factor);
            if let (Some(bias), Some(base)) = (&mut layer.bias, &layer.base_bias) {
                bias[out] = factor * (bias[out] - base[out]) + base[out];
            }
        }
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        let mut form = self.low_rank.peft()?;
        form.tensors = &[
            ("A", "lora_A.weight"),
            ("B", "lora_B.weight"),
            ("magnitude", "lora_magnitude_vector"),
        ];
        form.settings["use_dora"] = true.into();
        Some(form)
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        let mut plain = config.clone();
        plain.remove("use_dora");
        let low_rank = Lora::from_peft(&plain, module)?;
        is_on(config, "use_dora").then_some(Dora { low_rank })
    }
}
