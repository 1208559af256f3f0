//! LoHa: `ΔW = s · (B₁ A₁) ⊙ (B₂ A₂)` with `s = alpha / rank` (Hyeon-Woo et al., arXiv 2108.06098,
//! proposition 1; as an adapter: Yeh et al., arXiv 2309.14859).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::lora::{check_rank, product};
use super::{
    is_kind, At, DeltaMethod, Folded, Init, NewParameter, PeftConfig, PeftForm, PeftModule,
    Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of LoHa.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loha {
    /// Rank of each of the two products. Default: 8, as in PEFT.
    pub rank: usize,
    /// The scaling's numerator. Default: 8, as in PEFT.
    pub alpha: f32,
}

impl Loha {
    fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

impl DeltaMethod for Loha {
    const NAME: &'static str = "loha";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Hyeon-Woo et al., arXiv 2108.06098";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("LOHA");

    fn read(fields: &Fields, _: &Config) -> Self {
        Loha {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(8),
            alpha: fields.number("alpha", 8.0, 1e-6..=1e6) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        check_rank(self.rank, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (input, output, rank) = (module.input, module.output, self.rank);
        // As PEFT draws them: A₂ at zero, the others Kaiming.
        vec![
            NewParameter::new("B1", [output, rank], Init::kaiming(rank)),
            NewParameter::new("A1", [rank, input], Init::kaiming(input)),
            NewParameter::new("B2", [output, rank], Init::kaiming(rank)),
            NewParameter::new("A2", [rank, input], Init::ZEROS),
        ]
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let first = ops::matmul(&at.matrix("B1")?, &at.matrix("A1")?)?; // (out, in)
        let second = ops::matmul(&at.matrix("B2")?, &at.matrix("A2")?)?; // (out, in)
        let change = ops::scale(&ops::multiply(&first, &second)?, self.scale())?;
        ops::add(y, &ops::linear(x, &change.into(), None)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let first = product(&tensor("B1"), &tensor("A1"), module.input, self.scale());
        let second = product(&tensor("B2"), &tensor("A2"), module.input, 1.0);
        let pairs = first.iter().zip(&second);
        layer.add(&pairs.map(|(a, b)| a * b).collect::<Vec<_>>());
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[
                ("B1", "hada_w1_a"),
                ("A1", "hada_w1_b"),
                ("B2", "hada_w2_a"),
                ("A2", "hada_w2_b"),
            ],
            shared: &[],
            settings: json!({ "r": self.rank, "alpha": self.alpha }),
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        is_kind(config, Self::PEFT_KIND).then_some(Loha {
            rank: module.rank,
            alpha: module.alpha,
        })
    }
}
