//! LoRA: `y = W x + b + s · B A x` with `s = alpha / rank`
//! (Hu et al., arXiv 2106.09685, eq. 3).

use serde::{Deserialize, Serialize};

use super::{AtSite, DeltaMethod, Init, NewParameter, Placement};
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
    /// Dropout of what A reads; 0 as in PEFT.
    pub dropout: f32,
}

impl Lora {
    /// `alpha / rank`.
    pub fn scaling(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

impl DeltaMethod for Lora {
    const NAME: &'static str = "lora";
    const STATEMENT: Placement = Placement::Reparam;
    const PAPER: &'static str = "Hu et al., arXiv 2106.09685";
    const PEFT_TENSORS: &'static [(&'static str, &'static str)] =
        &[("A", "lora_A.weight"), ("B", "lora_B.weight")];

    fn read(fields: &Fields, _: &Config) -> Self {
        Lora {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(8),
            alpha: fields.number("alpha", 16.0, 1e-6..=1e6) as f32,
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        matches!(site, Site::Linear | Site::Fused)
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        let (input, output) = (module.input, module.output);
        if self.rank > input.min(output) {
            return Err(format!(
                "`rank` is {}, above the smaller dimension of `{}` ({output}x{input})",
                self.rank, module.path
            ));
        }
        Ok(())
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        vec![
            NewParameter {
                name: "A",
                shape: vec![self.rank, module.input],
                // Kaiming with a = √5, as PEFT draws it: U(±1/√in).
                init: Init::Uniform(1.0 / (module.input as f32).sqrt()),
            },
            NewParameter {
                name: "B",
                shape: vec![module.output, self.rank],
                init: Init::Zeros,
            },
        ]
    }

    fn forward<D: Backend>(
        &self,
        at: &impl AtSite<D>,
        x: &Matrix<D>,
        y: Matrix<D>,
    ) -> Result<Matrix<D>, D::Err> {
        let x = at.dropout(x, self.dropout)?;
        let low = D::linear(&x, &at.weight("A"), None)?; // (rows, rank)
        let low = D::scale(&low, self.scaling())?;
        let change = D::linear(&low, &at.weight("B"), None)?; // (rows, out)
        D::add(&y, &change)
    }

    fn merged(&self, module: &Module, tensor: &dyn Fn(&str) -> Vec<f32>) -> Option<Vec<f32>> {
        let (a, b) = (tensor("A"), tensor("B")); // (rank, in), (out, rank)
        let mut change = vec![0.0; module.output * module.input];
        for (row, b) in change
            .chunks_exact_mut(module.input)
            .zip(b.chunks_exact(self.rank))
        {
            for (factor, a) in b.iter().zip(a.chunks_exact(module.input)) {
                for (sum, a) in row.iter_mut().zip(a) {
                    *sum += self.scaling() * factor * a;
                }
            }
        }
        Some(change)
    }
}
