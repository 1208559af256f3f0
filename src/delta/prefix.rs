//! Prefix tuning: `softmax(q [P_K; K]ᵀ / √d) [P_V; V]` in each attention (Li and Liang,
//! arXiv 2101.00190, section 4). With `hidden` set, an MLP computes P: `P = U tanh(D E + b) + c`. All
//! attentions share the MLP except for its last layer. Without `hidden`, and with a linear head, the method
//! is P-tuning v2 (Liu et al., arXiv 2110.07602).

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Init, NewParameter, PeftAdapter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::diagnostic::Problem;
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of prefix tuning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prefix {
    /// Rows of P_K and P_V. Default: 30, as in AdapterHub.
    pub tokens: usize,
    /// Width inside the MLP. Default: no MLP.
    pub hidden: Option<usize>,
    /// The text as whose keys and values P begins. Default: none, P is drawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<PrefixText>,
}

/// A text as whose keys and values a prefix begins (Li and Liang, section 7.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixText {
    /// The text.
    pub text: String,
    /// Its first tokens, as many as the prefix has rows.
    pub tokens: Vec<usize>,
}

/// Initial values of embeddings in PEFT: PyTorch's default.
const EMBEDDING: Init = Init::Normal(1.0);

impl DeltaMethod for Prefix {
    const NAME: &'static str = "prefix";
    const PREPOSITION: Preposition = Preposition::Before;
    const PAPER: &'static str = "Li and Liang, arXiv 2101.00190";
    const SITES: &'static str = "choose attention modules, such as `block.*.attn`";

    fn read(fields: &Fields, config: &Config) -> Self {
        let prefix = Prefix {
            tokens: fields.count("tokens", 1..=1_000_000).unwrap_or(30),
            hidden: fields.count("hidden", 1..=1_000_000),
            init: fields.text("init").map(|text| PrefixText {
                text: text.node,
                tokens: Vec::new(),
            }),
        };
        let reason = match (&prefix.init, prefix.hidden) {
            (Some(_), Some(_)) => "with `hidden`, an MLP computes the prefix",
            (Some(_), None) if !config.is_decoder() => {
                "only the keys and values of a decoder do not depend on later tokens"
            }
            _ => return prefix,
        };
        if let Some(value) = fields.raw("init") {
            let message = format!("a prefix cannot begin from a text here: {reason}");
            let problem = Problem::new("delta::plan::prefix", message).at(value.span, "here");
            fields.report(problem.help("remove `init`"));
        }
        prefix
    }

    fn accepts(site: Site) -> bool {
        matches!(site, Site::Attention | Site::CrossAttention)
    }

    fn peft_adapter(&self) -> PeftAdapter<'_> {
        PeftAdapter::Prefix
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let (tokens, width) = (self.tokens, module.keys);
        match self.hidden {
            None => vec![
                NewParameter::new("keys", [tokens, width], EMBEDDING),
                NewParameter::new("values", [tokens, width], EMBEDDING),
            ],
            Some(hidden) => {
                let init = || Init::kaiming(hidden);
                vec![
                    NewParameter::new("keys.weight", [width, hidden], init()),
                    NewParameter::new("keys.bias", [width], init()),
                    NewParameter::new("values.weight", [width, hidden], init()),
                    NewParameter::new("values.bias", [width], init()),
                ]
            }
        }
    }

    fn shared(&self, modules: &[&Module]) -> Vec<NewParameter> {
        let (Some(hidden), Some(module)) = (self.hidden, modules.first()) else {
            return Vec::new();
        };
        let width = module.keys;
        vec![
            NewParameter::new("embedding", [self.tokens, width], EMBEDDING),
            NewParameter::new("down.weight", [hidden, width], Init::kaiming(width)),
            NewParameter::new("down.bias", [hidden], Init::kaiming(width)),
        ]
    }

    fn texts(&self) -> Vec<&str> {
        self.init.iter().map(|init| init.text.as_str()).collect()
    }

    fn set_tokens(&mut self, found: Vec<Vec<usize>>) -> Result<(), String> {
        let Some(init) = &mut self.init else {
            return Ok(());
        };
        let mut found = found.concat();
        if found.len() < self.tokens {
            return Err(format!(
                "the text has {} tokens, and the prefix {} rows: write `tokens = {}`, or a longer text",
                found.len(),
                self.tokens,
                found.len()
            ));
        }
        found.truncate(self.tokens);
        init.tokens = found;
        Ok(())
    }

    fn reads_frame(&self) -> bool {
        true
    }

    fn begins_after(&self) -> Option<&[usize]> {
        self.init.as_ref().map(|init| init.tokens.as_slice())
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prefix(&self, at: &At) -> Outcome<Option<[Matrix; 2]>> {
        if self.hidden.is_none() {
            return Ok(Some([at.matrix("keys")?, at.matrix("values")?]));
        }
        let inner = at.linear(["down.weight", "down.bias"], &at.matrix("embedding")?)?; // (tokens, hidden)
        let inner = ops::activate(inner, Activation::Tanh)?;
        Ok(Some([
            at.linear(["keys.weight", "keys.bias"], &inner)?,
            at.linear(["values.weight", "values.bias"], &inner)?,
        ]))
    }
}
