//! Prompt tuning: `[P; E(x)]`, only at the input (Lester et al., arXiv 2104.08691, section 2).

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Init, NewParameter, PeftAdapter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{Matrix, Outcome};
use crate::settings::Fields;
use crate::syntax::ast::Value;

/// Settings of prompt tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prompt {
    /// Rows of P. Default: 10, as in the delta-tuning study.
    pub tokens: usize,
    /// Initial values of P. Default: rows of the vocabulary, which the paper found better than noise.
    pub init: PromptInit,
}

/// Initial values of a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptInit {
    /// Word embeddings, drawn from the seed.
    Vocabulary,
    /// A standard normal distribution.
    Random,
    /// Embeddings of a text's tokens, repeated from the first if the prompt is longer.
    Text {
        /// The text.
        text: String,
        /// Its tokens.
        tokens: Vec<usize>,
    },
}

impl DeltaMethod for Prompt {
    const NAME: &'static str = "prompt";
    const PREPOSITION: Preposition = Preposition::Before;
    const PAPER: &'static str = "Lester et al., arXiv 2104.08691";
    const SITES: &'static str = "choose `embeddings`";
    const CAN_BE_GATED: bool = false;

    fn read(fields: &Fields, _: &Config) -> Self {
        let init = match fields.value("init").map(|value| value.node) {
            None => PromptInit::Vocabulary,
            Some(Value::Text(text)) => PromptInit::Text {
                text,
                tokens: Vec::new(),
            },
            Some(_) => match fields.choice("init", &[("vocabulary", false), ("random", true)]) {
                Some(true) => PromptInit::Random,
                _ => PromptInit::Vocabulary,
            },
        };
        let tokens = fields.count("tokens", 1..=1_000_000).unwrap_or(10);
        Prompt { tokens, init }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Embeddings
    }

    fn peft_adapter(&self) -> PeftAdapter<'_> {
        PeftAdapter::Prompt
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let init = match &self.init {
            PromptInit::Vocabulary => Init::Vocabulary,
            PromptInit::Random => Init::Normal(1.0),
            PromptInit::Text { tokens, .. } => Init::Words(tokens.clone()),
        };
        vec![NewParameter::new(
            "prompt",
            [self.tokens, module.output],
            init,
        )]
    }

    fn texts(&self) -> Vec<&str> {
        match &self.init {
            PromptInit::Text { text, .. } => vec![text],
            _ => Vec::new(),
        }
    }

    fn set_tokens(&mut self, found: Vec<Vec<usize>>) -> Result<(), String> {
        if let PromptInit::Text { tokens, .. } = &mut self.init {
            *tokens = found.concat();
        }
        Ok(())
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prompt(&self, at: &At) -> Outcome<Option<Matrix>> {
        Ok(Some(at.matrix("prompt")?))
    }
}
