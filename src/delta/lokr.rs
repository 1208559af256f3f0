//! LoKr: `ΔW = s · W₁ ⊗ W₂` with `s = alpha / rank`, and `W₂ = B A` if that is smaller (Yeh et al.,
//! arXiv 2309.14859, section 3.2). Dimensions are split into factors as in PEFT's LoKr.

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

/// Settings of LoKr.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lokr {
    /// Rank of W₂. Default: 8, as in PEFT.
    pub rank: usize,
    /// The scaling's numerator. Default: 8, as in PEFT.
    pub alpha: f32,
}

/// Splits `size` into the two factors that are closest to each other. The smaller comes first.
fn factors(size: usize) -> (usize, usize) {
    let mut small = (size as f64).sqrt() as usize;
    while !size.is_multiple_of(small) {
        small -= 1;
    }
    (small, size / small)
}

/// Dimensions of the factors: `W₁ (l, m)`, `W₂ (k, n)`.
struct Shapes {
    l: usize,
    m: usize,
    k: usize,
    n: usize,
}

impl Shapes {
    fn of(module: &Module) -> Self {
        let (l, k) = factors(module.output);
        let (m, n) = factors(module.input);
        Shapes { l, m, k, n }
    }

    /// Whether W₂ is stored as a product of two matrices.
    fn is_divided(&self, rank: usize) -> bool {
        2 * rank < self.k.max(self.n)
    }
}

impl Lokr {
    fn scale(&self) -> f32 {
        self.alpha / self.rank as f32
    }
}

impl DeltaMethod for Lokr {
    const NAME: &'static str = "lokr";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Yeh et al., arXiv 2309.14859";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("LOKR");

    fn read(fields: &Fields, _: &Config) -> Self {
        Lokr {
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
        let shapes = Shapes::of(module);
        let Shapes { l, m, k, n } = shapes;
        // As PEFT draws them: W₁ at zero, the others Kaiming.
        let mut parameters = vec![NewParameter::new("W1", [l, m], Init::ZEROS)];
        match shapes.is_divided(self.rank) {
            true => parameters.extend([
                NewParameter::new("W2_B", [k, self.rank], Init::kaiming(self.rank)),
                NewParameter::new("W2_A", [self.rank, n], Init::kaiming(n)),
            ]),
            false => parameters.push(NewParameter::new("W2", [k, n], Init::kaiming(n))),
        }
        parameters
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let (l, m) = at.matrix("W1")?.shape();
        let (k, n) = (y.shape().1 / l, x.shape().1 / m);
        let second = match (Shapes { l, m, k, n }).is_divided(self.rank) {
            true => ops::matmul(&at.matrix("W2_B")?, &at.matrix("W2_A")?)?, // (k, n)
            false => at.matrix("W2")?,
        };
        let first = ops::scale(&at.matrix("W1")?, self.scale())?;
        let change = ops::kronecker(&first, &second)?; // (out, in)
        ops::add(y, &ops::linear(x, &change.into(), None)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let shapes = Shapes::of(module);
        let first = tensor("W1");
        let second = match shapes.is_divided(self.rank) {
            true => product(&tensor("W2_B"), &tensor("W2_A"), shapes.n, 1.0),
            false => tensor("W2"),
        };
        let element = |row: usize, column: usize| {
            let a = first[row / shapes.k * shapes.m + column / shapes.n];
            let b = second[row % shapes.k * shapes.n + column % shapes.n];
            self.scale() * a * b
        };
        let rows = 0..module.output;
        let places = rows.flat_map(|row| (0..module.input).map(move |column| (row, column)));
        layer.add(
            &places
                .map(|(row, column)| element(row, column))
                .collect::<Vec<_>>(),
        );
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[
                ("W1", "lokr_w1"),
                ("W2", "lokr_w2"),
                ("W2_B", "lokr_w2_a"),
                ("W2_A", "lokr_w2_b"),
            ],
            shared: &[],
            settings: json!({
                "r": self.rank,
                "alpha": self.alpha,
                "decompose_both": false,
                "decompose_factor": -1,
            }),
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        is_kind(config, Self::PEFT_KIND).then_some(Lokr {
            rank: module.rank,
            alpha: module.alpha,
        })
    }
}
