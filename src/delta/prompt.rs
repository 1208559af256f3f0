//! Prompt tuning: `[P; E(x)]` at the input alone (Lester et al., arXiv 2104.08691, section 2).

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Init, NewParameter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{Backend, Matrix};
use crate::plan::Fields;

/// Settings of prompt tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Rows of P; 10 as in the delta-tuning study.
    pub tokens: usize,
    /// How P begins; rows of the vocabulary, which the paper found better than noise.
    pub init: PromptInit,
}

/// How a prompt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// Embeddings of words drawn from the seed.
    Vocabulary,
    /// A standard normal distribution.
    Random,
}

impl DeltaMethod for Prompt {
    const NAME: &'static str = "prompt";
    const PREPOSITION: Preposition = Preposition::Before;
    const PAPER: &'static str = "Lester et al., arXiv 2104.08691";
    const SITES: &'static str = "choose `embeddings`";

    fn read(fields: &Fields, _: &Config) -> Self {
        let inits = [
            ("vocabulary", PromptInit::Vocabulary),
            ("random", PromptInit::Random),
        ];
        Prompt {
            tokens: fields.count("tokens", 1..=1_000_000).unwrap_or(10),
            init: fields
                .choice("init", &inits)
                .unwrap_or(PromptInit::Vocabulary),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Embeddings
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let init = match self.init {
            PromptInit::Vocabulary => Init::Vocabulary,
            PromptInit::Random => Init::Normal(1.0),
        };
        vec![NewParameter::new(
            "prompt",
            [self.tokens, module.output],
            init,
        )]
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prompt<D: Backend>(&self, at: &At<D>) -> Result<Option<Matrix<D>>, D::Err> {
        Ok(Some(at.matrix("prompt")))
    }
}
