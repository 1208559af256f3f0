//! Trains some rows of an embedding table and keeps the others, like `trainable_tokens` of PEFT. This is
//! for words that the backbone does not know well.

use serde::{Deserialize, Serialize};

use super::{At, DeltaMethod, Folded, Init, NewParameter, PeftAdapter, Preposition};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome};
use crate::settings::Fields;

/// Settings of trainable tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainableTokens {
    /// Words, tokenized as after a space. All tokens of each word are trained.
    pub words: Vec<String>,
    /// The trained rows, as token numbers. They include the tokens of `words` once planning has looked them up.
    pub tokens: Vec<usize>,
}

impl DeltaMethod for TrainableTokens {
    const NAME: &'static str = "trainable_tokens";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "PEFT, https://github.com/huggingface/peft";
    const SITES: &'static str = "choose `embeddings.word`";
    const CAN_BE_GATED: bool = false;

    fn read(fields: &Fields, _: &Config) -> Self {
        let words = fields.names("words");
        let tokens = fields.counts("tokens");
        if fields.value("words").is_none() && fields.value("tokens").is_none() {
            fields.missing("words", "[\"good\", \"bad\"]");
        }
        TrainableTokens {
            words: words.into_iter().flatten().map(|word| word.node).collect(),
            tokens: tokens.unwrap_or_default(),
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Embedding
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        let (path, entries) = (&module.path, module.output);
        match self.tokens.iter().find(|token| **token >= entries) {
            _ if path != "embeddings.word" => {
                Err(format!("`{path}` does not hold token embeddings"))
            }
            Some(token) => Err(format!(
                "token {token} is outside the vocabulary of {entries} tokens"
            )),
            None => Ok(()),
        }
    }

    fn texts(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<usize>>) -> Result<(), String> {
        for token in tokens.concat() {
            if !self.tokens.contains(&token) {
                self.tokens.push(token);
            }
        }
        Ok(())
    }

    fn peft_adapter(&self) -> PeftAdapter<'_> {
        PeftAdapter::Rows(self)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let shape = [self.tokens.len(), module.input];
        let init = Init::Rows(self.tokens.clone());
        vec![NewParameter::new("rows", shape, init)]
    }

    fn look_up(&self, at: &At, indices: &[usize], y: Matrix) -> Outcome<Matrix> {
        // Append the trained rows to `y`. Then each row of the result is the trained row of its token if there is
        // one, else its row of `y`.
        let place = |index: &usize| self.tokens.iter().position(|token| token == index);
        let chosen = indices.iter().enumerate().map(|(row, index)| {
            let trained = place(index).map(|place| indices.len() + place);
            trained.unwrap_or(row)
        });
        let chosen: Vec<usize> = chosen.collect();
        ops::select_rows(&ops::join_rows(&[y, at.matrix("rows")?])?, &chosen)
    }

    fn fold(&self, module: &Module, table: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let rows = tensor("rows");
        for (token, row) in self.tokens.iter().zip(rows.chunks_exact(module.input)) {
            let start = token * module.input;
            table.weight[start..start + module.input].copy_from_slice(row);
        }
        true
    }
}
