//! P-tuning (Liu et al., arXiv 2103.10385, section 3.2): an encoder computes the prompt. The
//! encoder is PEFT's MLP: `P = W₃ f(W₂ f(W₁ E + b₁) + b₂) + b₃` with relu.

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Init, NewParameter, PeftAdapter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of P-tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PTuning {
    /// Rows of P. Default: 20, as in PEFT's examples.
    pub tokens: usize,
    /// Width inside the encoder. Default: the hidden width, as in PEFT.
    pub hidden: usize,
}

impl DeltaMethod for PTuning {
    const NAME: &'static str = "p_tuning";
    const PREPOSITION: Preposition = Preposition::Before;
    const PAPER: &'static str = "Liu et al., arXiv 2103.10385";
    const SITES: &'static str = "choose `embeddings`";
    const CAN_BE_GATED: bool = false;

    fn read(fields: &Fields, config: &Config) -> Self {
        PTuning {
            tokens: fields.count("tokens", 1..=1_000_000).unwrap_or(20),
            hidden: fields
                .count("hidden", 1..=1_000_000)
                .unwrap_or(config.hidden),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Embeddings
    }

    fn peft_adapter(&self) -> PeftAdapter<'_> {
        PeftAdapter::Prompt
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (width, hidden) = (module.output, self.hidden);
        let weight = |name, out: usize, input: usize| {
            NewParameter::new(name, [out, input], Init::kaiming(input))
        };
        let bias =
            |name, out: usize, input: usize| NewParameter::new(name, [out], Init::kaiming(input));
        vec![
            NewParameter::new("embedding", [self.tokens, width], Init::Normal(1.0)),
            weight("first.weight", hidden, width),
            bias("first.bias", hidden, width),
            weight("second.weight", hidden, hidden),
            bias("second.bias", hidden, hidden),
            weight("third.weight", width, hidden),
            bias("third.bias", width, hidden),
        ]
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prompt(&self, at: &At) -> Outcome<Option<Matrix>> {
        let first = at.linear(["first.weight", "first.bias"], &at.matrix("embedding")?)?; // (tokens, hidden)
        let second = at.linear(
            ["second.weight", "second.bias"],
            &ops::activate(first, Activation::Relu)?,
        )?;
        let third = at.linear(
            ["third.weight", "third.bias"],
            &ops::activate(second, Activation::Relu)?,
        )?;
        Ok(Some(third)) // (tokens, width)
    }
}
