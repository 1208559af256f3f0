//! LoRA: `y = W x + b + s · B A x` with `s = alpha / rank`
//! (Hu et al., arXiv 2106.09685, eq. 3), or `s = alpha / √rank` (rsLoRA: Kalajdzievski,
//! arXiv 2312.03732, section 3). With `init = pissa`, A and B begin as A₀ and B₀, the principal
//! singular vectors of W, and `y = (W − s · B₀ A₀) x + b + s · B A x` (Meng et al.,
//! arXiv 2404.02948, eq. 2 to 5). An embedding table E becomes `E + s · A Bᵀ`.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, is_on, At, DeltaMethod, Folded, Init, NewParameter, PeftAdapter, PeftConfig, PeftForm,
    PeftModule, PeftTensor, Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of LoRA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Columns of B and rows of A. Default: 8, as in OpenDelta and PEFT.
    pub rank: usize,
    /// The scaling's numerator. Default: 16, as in OpenDelta.
    pub alpha: f32,
    /// The scaling's denominator. Default: the rank, as in the paper.
    #[serde(default)]
    pub scaling: Scaling,
    /// Dropout of A's input. Default: 0, as in PEFT.
    pub dropout: f32,
    /// Initial values of A and B. Default: as in the paper.
    #[serde(default)]
    pub init: LoraInit,
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

/// Initial values of A and B.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraInit {
    /// A at random, B at zero.
    #[default]
    Standard,
    /// Principal singular vectors of the weight, from which their product is subtracted.
    Pissa,
}

impl Scaling {
    /// The factor s for this `alpha` and `rank`.
    pub fn of(self, alpha: f32, rank: usize) -> f32 {
        match self {
            Scaling::Standard => alpha / rank as f32,
            Scaling::RankStabilized => alpha / (rank as f32).sqrt(),
        }
    }
}

impl Lora {
    /// Reads all settings except `init`.
    pub(super) fn read_settings(fields: &Fields) -> Self {
        let scalings = [
            ("standard", Scaling::Standard),
            ("rank_stabilized", Scaling::RankStabilized),
        ];
        Lora {
            rank: fields.count("rank", 1..=1_000_000).unwrap_or(8),
            alpha: fields.number("alpha", 16.0, 1e-6..=1e6) as f32,
            scaling: fields.choice("scaling", &scalings).unwrap_or_default(),
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
            init: LoraInit::Standard,
        }
    }

    /// The factor s.
    pub fn scale(&self) -> f32 {
        self.scaling.of(self.alpha, self.rank)
    }

    /// The rank of its change to a weight. It doubles for PiSSA, which also subtracts `s · B₀ A₀`.
    pub fn full_rank(&self) -> usize {
        match self.init {
            LoraInit::Standard => self.rank,
            LoraInit::Pissa => 2 * self.rank,
        }
    }

    /// `y + s · B A x`: `x (rows, in)`, `y (rows, out)`.
    pub(super) fn add_change(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let x = at.dropout(x, self.dropout)?;
        ops::add_low_rank(y, &x, &at.weight("A"), &at.weight("B"), self.scale())
    }

    /// The change to a weight: `s · B A (out, in)`, or `s · (B A − B₀ A₀)` for PiSSA.
    pub(super) fn product(&self, module: &Module, tensor: &dyn Fn(&str) -> Vec<f32>) -> Vec<f32> {
        let mut change = product(&tensor("B"), &tensor("A"), module.input, self.scale());
        if self.init == LoraInit::Pissa {
            let [a, b] = INITIAL.map(tensor);
            let initial = product(&b, &a, module.input, self.scale());
            let pairs = change.iter_mut().zip(&initial);
            pairs.for_each(|(change, initial)| *change -= initial);
        }
        change
    }
}

/// The names of PiSSA's A₀ and B₀.
pub(crate) const INITIAL: [&str; 2] = ["A_initial", "B_initial"];

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
    const SITES: &'static str =
        "choose linear layers, such as `block.*.attn.{q,v}`, or embedding tables";
    const PEFT_KIND: Option<&'static str> = Some("LORA");

    fn read(fields: &Fields, _: &Config) -> Self {
        let inits = [("standard", LoraInit::Standard), ("pissa", LoraInit::Pissa)];
        Lora {
            init: fields.choice("init", &inits).unwrap_or_default(),
            ..Lora::read_settings(fields)
        }
    }

    fn accepts(site: Site) -> bool {
        matches!(site, Site::Linear | Site::Fused | Site::Embedding)
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        match (self.init, module.site) {
            (LoraInit::Pissa, Site::Fused | Site::Embedding) => Err(format!(
                "`init = pissa` needs a single linear layer, but `{}` is {}",
                module.path,
                module.site.describe()
            )),
            _ => check_rank(self.rank, module),
        }
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (rank, scale) = (self.rank, self.scale());
        if module.site == Site::Embedding {
            let (entries, width) = (module.output, module.input);
            return vec![
                NewParameter::new("A", [entries, rank], Init::ZEROS),
                NewParameter::new("B", [width, rank], Init::Normal(1.0)),
            ];
        }
        let (a_shape, b_shape) = ([rank, module.input], [module.output, rank]);
        if self.init == LoraInit::Pissa {
            let (rows, columns) = (
                Init::PrincipalRows { scale },
                Init::PrincipalColumns { scale },
            );
            return vec![
                NewParameter::new("A", a_shape, rows.clone()),
                NewParameter::new("B", b_shape, columns.clone()),
                NewParameter::new(INITIAL[0], a_shape, rows).frozen(),
                NewParameter::new(INITIAL[1], b_shape, columns).frozen(),
            ];
        }
        vec![
            // as PEFT draws it
            NewParameter::new("A", a_shape, Init::kaiming(module.input)),
            NewParameter::new("B", b_shape, Init::ZEROS),
        ]
    }

    fn second_factor(&self) -> Option<&'static str> {
        Some("B")
    }

    fn dropout(&self) -> f32 {
        self.dropout
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let y = match self.init {
            LoraInit::Standard => y,
            LoraInit::Pissa => {
                let [a, b] = INITIAL.map(|name| at.weight(name));
                ops::add_low_rank(y, x, &a, &b, -self.scale())?
            }
        };
        self.add_change(at, x, y)
    }

    fn look_up(&self, at: &At, indices: &[usize], y: Matrix) -> Outcome<Matrix> {
        let low = ops::select_rows(&at.matrix("A")?, indices)?; // (rows, rank)
        let low = ops::scale(&low, self.scale())?;
        ops::add(y, &ops::linear(&low, &at.weight("B"), None)?)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        if module.site == Site::Embedding {
            let b = transposed(&tensor("B"), self.rank); // (rank, width)
            layer.add(&product(&tensor("A"), &b, module.input, self.scale()));
            return true;
        }
        layer.add(&self.product(module, tensor));
        true
    }

    fn peft_adapter(&self) -> PeftAdapter<'_> {
        PeftAdapter::LowRank(self)
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
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

    fn peft_tensor(&self, module: &Module, parameter: &NewParameter) -> Option<PeftTensor> {
        if module.site != Site::Embedding {
            return self.peft()?.tensor(parameter);
        }
        let is_a = parameter.name == "A";
        let (suffix, shape) = match is_a {
            true => ("lora_embedding_A", vec![self.rank, module.output]),
            false => ("lora_embedding_B", vec![module.input, self.rank]),
        };
        Some(PeftTensor {
            suffix,
            shape,
            is_transposed: is_a,
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        let is_ours = is_kind(config, Self::PEFT_KIND) && !is_on(config, "use_dora");
        let init = config
            .get("init_lora_weights")
            .and_then(|init| init.as_str());
        is_ours.then(|| Lora {
            rank: module.rank,
            alpha: module.alpha,
            scaling: match is_on(config, "use_rslora") {
                true => Scaling::RankStabilized,
                false => Scaling::Standard,
            },
            dropout: 0.0,
            init: match init {
                // PEFT initializes an embedding table in the standard way, whatever this setting says.
                Some("pissa") if !module.is_embedding => LoraInit::Pissa,
                _ => LoraInit::Standard,
            },
        })
    }
}

/// Transposes a matrix with `columns` columns.
pub(crate) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns.max(1);
    let places = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column)));
    places
        .map(|(row, column)| values[row * columns + column])
        .collect()
}

/// Checks that a rank does not exceed the smaller dimension of a linear layer.
pub(super) fn check_rank(rank: usize, module: &Module) -> Result<(), String> {
    let (input, output) = (module.input, module.output);
    match rank > input.min(output) {
        true => Err(format!(
            "`rank` is {rank}, which exceeds the smaller dimension of `{}` ({output}x{input})",
            module.path
        )),
        false => Ok(()),
    }
}
