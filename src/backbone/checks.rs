//! Checks that the dimensions of a `config.json` are consistent.

use super::config::{Config, LARGEST};
use super::family::families;

/// The most blocks of a stack: far more than any model has, but few enough to list.
const MOST_BLOCKS: usize = 1 << 12;

impl Config {
    /// Checks that the dimensions are consistent.
    ///
    /// # Errors
    /// One sentence about the first inconsistency.
    pub fn check(&self) -> Result<(), String> {
        if families().iter().all(|family| family.name != self.family) {
            return Err(format!("there is no family `{}`", self.family));
        }
        let sizes = [
            self.hidden,
            self.heads,
            self.inner,
            self.vocabulary,
            self.positions,
        ];
        if sizes.iter().any(|size| !(1..=LARGEST).contains(size)) || self.types > LARGEST {
            return Err("a dimension of the backbone is 0 or too large".to_owned());
        }
        let shares = [
            self.norm_epsilon,
            self.dropout,
            self.attention_dropout,
            self.inner_dropout,
            self.last_dropout,
            self.classifier_dropout,
        ];
        if shares.iter().any(|share| !(0.0..1.0).contains(share)) {
            return Err(
                "an epsilon or a dropout of the backbone is not between 0 and 1".to_owned(),
            );
        }
        let stacks = [Some(self.layers), self.decoder_layers];
        let mut heights = stacks.into_iter().flatten();
        if let Some(layers) = heights.find(|layers| !(1..=MOST_BLOCKS).contains(layers)) {
            return Err(format!(
                "it has {layers} blocks, but must have 1 to {MOST_BLOCKS}"
            ));
        }
        let is_beyond = |token: u32| token as usize >= self.vocabulary;
        if let Some(token) = self.start_token.filter(|token| is_beyond(*token)) {
            return Err(format!(
                "its `decoder_start_token_id` {token} is outside its vocabulary of {} tokens",
                self.vocabulary
            ));
        }
        if let Some(distances) = &self.distances {
            distances.check()?;
        }
        if self.head_width.is_none() && !self.hidden.is_multiple_of(self.heads) {
            return Err(format!(
                "its {} attention heads do not divide its hidden width {}",
                self.heads, self.hidden
            ));
        }
        let (shared, width) = (self.key_value_heads(), self.head_width());
        if shared == 0 || !self.heads.is_multiple_of(shared) {
            return Err(format!(
                "its {shared} key-value heads do not divide its {} attention heads",
                self.heads
            ));
        }
        if width == 0 || width * self.heads > LARGEST {
            return Err(format!("its attention heads cannot be {width} wide"));
        }
        if self.rotary.is_some() && !width.is_multiple_of(2) {
            return Err(format!(
                "rotary embeddings need heads of an even width, but its heads are {width} wide"
            ));
        }
        Ok(())
    }
}
