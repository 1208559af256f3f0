//! LoRA: `y = W x + b + s · B A x` with `s = alpha / rank`
//! (Hu et al., arXiv 2106.09685, eq. 3), or `s = alpha / √rank` (rsLoRA: Kalajdzievski,
//! arXiv 2312.03732, section 3).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, is_on, At, DeltaMethod, Folded, Init, NewParameter, PeftConfig, PeftForm, PeftModule,
    Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{Backend, Matrix};
use crate::plan::Fields;

/// Settings of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Columns of B and rows of A; 8 as in OpenDelta and PEFT.
    pub rank: usize,
    /// The scaling's numerator; 16 as in OpenDelta.
    pub alpha: f32,
    /// The scaling's denominator; the rank, as in the paper.
    #[serde(default)]
    pub scaling: Scaling,
    /// Dropout of what A reads; 0 as in PEFT.
    pub dropout: f32,
}

/// How the scaling depends on the rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// `alpha / rank`
    #[default]
    Standard,
    /// `alpha / √rank`, as in rsLoRA
    RankStabilized,
}

impl Scaling {
    /// s
    pub fn of(self, alpha: f32, rank: usize) -> f32 {
        match self {
            Scaling::Standard => alpha / rank as f32,
            Scaling::RankStabilized => alpha / (rank as f32).sqrt(),
        }
    }
}

impl Lora {
    /// s
    pub fn scale(&self) -> f32 {
        self.scaling.of(self.alpha, self.rank)
    }

    /// `s · B A x`: `x (rows, in)` → `(rows, out)`.
    pub(super) fn change<D: Backend>(
        &self,
        at: &At<D>,
        x: &Matrix<D>,
    ) -> Result<Matrix<D>, D::Err> {
        let x = at.dropout(x, self.dropout)?;
        let low = D::linear(&x, &at.weight("A"), None)?; // (rows, rank)
        let low = D::scale(&low, self.scale())?;
        D::linear(&low, &at.weight("B"), None)
    }

    /// `s · B A (out, in)`
    pub(super) fn product(&self, module: &Module, tensor: &dyn Fn(&str) -> Vec<f32>) -> Vec<f32> {
        product(&tensor("B"), &tensor("A"), module.input, self.scale())
    }
}

/// `scale · B A` of `B (out, rank)` and `A (rank, input)`, on the host.
pub(super) fn product(b: &[f32], a: &[f32], input: usize, scale: f32) -> Vec<f32> {
    let rank = a.len() / input;
    let mut change = vec![0.0; b.len() / rank * input];
    let rows = change.chunks_exact_mut(input);
    for (row, b) in rows.zip(b.chunks_exact(rank)) {
        for (factor, a) in b.iter().zip(a.chunks_exact(input)) {
            for (sum, a) in row.iter_mut().zip(a) {
                *sum += scale * factor * a;
            }
        }
    }
    change
}

impl DeltaMethod for Lora {
    const NAME: &'static str = "lora";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Hu et al., arXiv 2106.09685";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";

    fn read(fields: &Fields, _: &Config) -> Self {
        let scalings = [
            ("standard", Scaling::Standard),
            ("rank_stabilized", Scaling::RankStabilized),
        ];
        Lora {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(8),
            alpha: fields.number("alpha", 16.0, 1e-6..=1e6) as f32,
            scaling: fields.choice("scaling", &scalings).unwrap_or_default(),
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        matches!(site, Site::Linear | Site::Fused)
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        check_rank(self.rank, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let init = Init::kaiming(module.input); // as PEFT draws it
        vec![
            NewParameter::new("A", [self.rank, module.input], init),
            NewParameter::new("B", [module.output, self.rank], Init::ZEROS),
        ]
    }

    fn forward<D: Backend>(
        &self,
        at: &At<D>,
        x: &Matrix<D>,
        y: Matrix<D>,
    ) -> Result<Matrix<D>, D::Err> {
        D::add(&y, &self.change(at, x)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        layer.add(&self.product(module, tensor));
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            kind: "LORA",
            tensors: &[("A", "lora_A.weight"), ("B", "lora_B.weight")],
            shared: &[],
            settings: json!({
                "r": self.rank,
                "lora_alpha": self.alpha,
                "lora_dropout": self.dropout,
                "use_rslora": self.scaling == Scaling::RankStabilized,
                "use_dora": false,
                "bias": "none",
                "init_lora_weights": true,
            }),
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        let is_ours = is_kind(config, "LORA") && !is_on(config, "use_dora");
        is_ours.then(|| Lora {
            rank: module.rank,
            alpha: module.alpha,
            scaling: match is_on(config, "use_rslora") {
                true => Scaling::RankStabilized,
                false => Scaling::Standard,
            },
            dropout: 0.0,
        })
    }
}

/// What is wrong with a rank at a linear layer.
pub(super) fn check_rank(rank: usize, module: &Module) -> Result<(), String> {
    let (input, output) = (module.input, module.output);
    match rank > input.min(output) {
        true => Err(format!(
            "`rank` is {rank}, above the smaller dimension of `{}` ({output}x{input})",
            module.path
        )),
        false => Ok(()),
    }
}
