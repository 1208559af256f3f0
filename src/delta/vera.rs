//! VeRA: `y = W x + b + λ_b ⊙ B (λ_d ⊙ A x)`. A and B are drawn from the seed and never trained, and all
//! of the delta's modules share them (Kopiczko et al., arXiv 2310.11454, eq. 2).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, At, DeltaMethod, Folded, Init, NewParameter, PeftConfig, PeftForm, PeftModule,
    Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome, Weight};
use crate::settings::Fields;

/// Settings of VeRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vera {
    /// Rows of A and columns of B. Default: 256, as in PEFT.
    pub rank: usize,
    /// Dropout of A's input. Default: 0, as in PEFT.
    pub dropout: f32,
}

/// Initial value of λ_d, as in PEFT and the paper's appendix.
const D_INITIAL: f32 = 0.1;

/// Kaiming with a gain of √2, as PEFT draws the projections.
fn init(input: usize) -> Init {
    Init::Uniform((6.0 / input as f32).sqrt())
}

impl DeltaMethod for Vera {
    const NAME: &'static str = "vera";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Kopiczko et al., arXiv 2310.11454";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("VERA");

    fn read(fields: &Fields, _: &Config) -> Self {
        Vera {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(256),
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        vec![
            NewParameter::new("lambda_d", [self.rank], Init::Constant(D_INITIAL)),
            NewParameter::new("lambda_b", [module.output], Init::ZEROS),
        ]
    }

    /// A and B, large enough for the widest module. A narrower module uses their first columns and rows.
    fn shared(&self, modules: &[&Module]) -> Vec<NewParameter> {
        let widest = |width: fn(&Module) -> usize| modules.iter().map(|m| width(m)).max();
        let input = widest(|module| module.input).unwrap_or(1);
        let output = widest(|module| module.output).unwrap_or(1);
        vec![
            NewParameter::new("A", [self.rank, input], init(input)).frozen(),
            NewParameter::new("B", [output, self.rank], init(self.rank)).frozen(),
        ]
    }

    fn dropout(&self) -> f32 {
        self.dropout
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let (input, output) = (x.shape().1, y.shape().1);
        let (a, b) = (at.weight("A"), at.weight("B"));
        let a: Weight = match a.shape().1 == input {
            true => a,
            false => ops::columns(&a.matrix()?, 0..input)?.into(),
        };
        let b: Weight = match b.shape().0 == output {
            true => b,
            false => ops::select_rows(&b.matrix()?, &(0..output).collect::<Vec<_>>())?.into(),
        };
        let low = ops::linear(&at.dropout(x, self.dropout)?, &a, None)?; // (rows, rank)
        let low = ops::scale_columns(&low, &at.vector("lambda_d"))?;
        let change = ops::linear(&low, &b, None)?; // (rows, out)
        ops::add(y, &ops::scale_columns(&change, &at.vector("lambda_b"))?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let (a, b) = (tensor("A"), tensor("B"));
        let (d, lambda_b) = (tensor("lambda_d"), tensor("lambda_b"));
        let width = a.len() / self.rank;
        let rows = layer.weight.chunks_exact_mut(module.input).enumerate();
        for (out, row) in rows {
            let b = &b[out * self.rank..(out + 1) * self.rank];
            for (a, (b, d)) in a.chunks_exact(width).zip(b.iter().zip(&d)) {
                let factor = lambda_b[out] * b * d;
                row.iter_mut()
                    .zip(a)
                    .for_each(|(sum, a)| *sum += factor * a);
            }
        }
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[("lambda_d", "vera_lambda_d"), ("lambda_b", "vera_lambda_b")],
            shared: &[("A", "vera_A"), ("B", "vera_B")],
            settings: json!({
                "r": self.rank,
                "vera_dropout": self.dropout,
                "d_initial": D_INITIAL,
                "save_projection": true,
                "bias": "none",
            }),
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        is_kind(config, Self::PEFT_KIND).then_some(Vera {
            rank: module.rank,
            dropout: 0.0,
        })
    }
}
