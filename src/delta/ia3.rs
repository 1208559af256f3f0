//! (IA)³: learned factors scale the outputs of the key and value layers, `l ⊙ (W x + b)`, and the input
//! of the feed-forward's second layer, `W (l ⊙ x) + b` (Liu et al., arXiv 2205.05638, section 3.3).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, At, DeltaMethod, Folded, Init, NewParameter, PeftConfig, PeftForm, PeftModule,
    PeftTensor, Preposition,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of (IA)³.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ia3 {
    /// What the factors scale. Default: as in the paper.
    pub on: Scaled,
}

/// What the factors scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaled {
    /// The input of the feed-forward's second layer, and the output of every other module.
    Usual,
    /// The input of every module.
    Input,
    /// The output of every module.
    Output,
}

impl Ia3 {
    /// Whether the factors scale the input of the module at this path.
    fn scales_input(&self, path: &str) -> bool {
        match self.on {
            Scaled::Usual => path.ends_with(".ff.down"),
            Scaled::Input => true,
            Scaled::Output => false,
        }
    }
}

impl DeltaMethod for Ia3 {
    const NAME: &'static str = "ia3";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Liu et al., arXiv 2205.05638";
    const SITES: &'static str = "choose linear layers, such as `block.*.{attn.{k,v},ff.down}`";
    const CAN_BE_GATED: bool = false;
    const PEFT_KIND: Option<&'static str> = Some("IA3");

    fn read(fields: &Fields, _: &Config) -> Self {
        let places = [
            ("usual", Scaled::Usual),
            ("input", Scaled::Input),
            ("output", Scaled::Output),
        ];
        Ia3 {
            on: fields.choice("on", &places).unwrap_or(Scaled::Usual),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn peft_list(&self, module: &Module) -> Option<(&'static str, bool)> {
        Some(("feedforward_modules", self.scales_input(&module.path)))
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let size = match self.scales_input(&module.path) {
            true => module.input,
            false => module.output,
        };
        vec![NewParameter::new("scale", [size], Init::Constant(1.0))]
    }

    fn input(&self, at: &At, x: Matrix) -> Outcome<Matrix> {
        match self.scales_input(at.values.site()) {
            true => ops::scale_columns(&x, &at.vector("scale")),
            false => Ok(x),
        }
    }

    fn forward(&self, at: &At, _: &Matrix, y: Matrix) -> Outcome<Matrix> {
        match self.scales_input(at.values.site()) {
            true => Ok(y),
            false => ops::scale_columns(&y, &at.vector("scale")),
        }
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let scale = tensor("scale");
        let on_input = self.scales_input(&module.path);
        for (out, row) in layer.weight.chunks_exact_mut(module.input).enumerate() {
            for (column, weight) in row.iter_mut().enumerate() {
                *weight *= scale[if on_input { column } else { out }];
            }
        }
        if let (false, Some(bias)) = (on_input, &mut layer.bias) {
            let pairs = bias.iter_mut().zip(&scale);
            pairs.for_each(|(bias, scale)| *bias *= scale);
        }
        true
    }

    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[("scale", "ia3_l")],
            shared: &[],
            settings: json!({}),
        })
    }

    /// PEFT stores the factors as a column, or as a row if they scale the module's input.
    fn peft_tensor(&self, module: &Module, parameter: &NewParameter) -> Option<PeftTensor> {
        let count = parameter.count();
        Some(PeftTensor {
            shape: match self.scales_input(&module.path) {
                true => vec![1, count],
                false => vec![count, 1],
            },
            ..self.peft()?.tensor(parameter)?
        })
    }

    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        is_kind(config, Self::PEFT_KIND).then_some(Ia3 {
            on: match module.is_feedforward {
                true => Scaled::Input,
                false => Scaled::Output,
            },
        })
    }
}
