//! MiSS (formerly Bone): `y = W x + b + Dᵀ S x`. The fixed S sums every `rank`-th column of the input, so
//! only D is stored (Kang and Yin, arXiv 2409.15371, section 3).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, lora, At, DeltaMethod, Folded, Init, NewParameter, PeftConfig, PeftForm, PeftModule,
    Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome, Tensor};
use crate::settings::Fields;

/// Settings of MiSS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Miss {
    /// Rows of D. Default: 64, as in PEFT.
    pub rank: usize,
    /// Dropout of S's input. Default: 0, as in PEFT.
    pub dropout: f32,
}

/// S, `(rank, input)`.
fn sums(rank: usize, input: usize) -> Vec<f32> {
    let places = (0..rank).flat_map(|row| (0..input).map(move |column| column % rank == row));
    places.map(f32::from).collect()
}

impl DeltaMethod for Miss {
    const NAME: &'static str = "miss";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Kang and Yin, arXiv 2409.15371";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("MISS");

    fn read(fields: &Fields, _: &Config) -> Self {
        Miss {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(64),
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        lora::check_rank(self.rank, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let shape = [self.rank, module.output];
        vec![NewParameter::new("D", shape, Init::ZEROS)]
    }

    fn dropout(&self) -> f32 {
        self.dropout
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let shape = (self.rank, x.shape().1);
        let sums = Tensor::new(&x.device(), sums(shape.0, shape.1), shape)?.constant();
        let low = ops::linear(&at.dropout(x, self.dropout)?, &sums.into(), None)?; // (rows, rank)
        ops::add(y, &ops::matmul(&low, &at.matrix("D")?)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let d = lora::transposed(&tensor("D"), module.output); // (out, rank)
        layer.add(&lora::product(
            &d,
            &sums(self.rank, module.input),
            module.input,
            1.0,
        ));
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[("D", "miss_block")],
            shared: &[],
            settings: json!({
                "r": self.rank,
                "miss_dropout": self.dropout,
                "init_weights": true,
                "bias": "none",
            }),
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        // PEFT's variants "bat" and "mini" have other blocks, which we do not support.
        let is_plain = !config
            .get("init_weights")
            .is_some_and(|init| init.is_string());
        (is_kind(config, Self::PEFT_KIND) && is_plain).then_some(Miss {
            rank: module.rank,
            dropout: 0.0,
        })
    }
}
