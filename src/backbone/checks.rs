//! Checks that the dimensions of a `config.json` are consistent, and that it asks for nothing that we do not compute.

use serde_json::Value;

use super::config::{Config, LARGEST};
use super::family::{families, Family};

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
        let caps = [self.score_cap, self.score_width, self.logit_cap];
        let are_positive = caps.into_iter().flatten().all(|cap| cap > 0.0);
        let windows = self.blocks.iter().filter_map(|kind| kind.window);
        if !are_positive || windows.into_iter().any(|window| window == 0) {
            return Err("a window or a cap of the backbone is not above 0".to_owned());
        }
        for rotary in [&self.rotary, &self.local_rotary].into_iter().flatten() {
            rotary.check(width)?;
        }
        Ok(())
    }
}

/// Checks that every key in the family's `only` has a supported value.
pub(super) fn check_only(json: &Value, family: &Family) -> Result<(), String> {
    for (key, allowed) in &family.only {
        let found = match json.get(key) {
            None | Some(Value::Null) => continue,
            Some(found) => found,
        };
        let is_same = |allowed: &Value, found: &Value| match (allowed.as_f64(), found.as_f64()) {
            (Some(allowed), Some(found)) => allowed == found,
            _ => allowed == found,
        };
        let is_allowed = |found: &Value| allowed.iter().any(|allowed| is_same(allowed, found));
        // A list has a value for each block, so each of them must be supported.
        let is_list = |found: &Value| match found.as_array() {
            Some(items) => !items.is_empty() && items.iter().all(is_allowed),
            None => false,
        };
        if !is_allowed(found) && !is_list(found) {
            let allowed: Vec<String> = allowed.iter().map(|value| format!("`{value}`")).collect();
            let wanted = match allowed.is_empty() {
                true => "the key must be absent".to_owned(),
                false => format!("deltarun supports only {}", crate::text::list(&allowed)),
            };
            return Err(format!("its `{key}` is {found}: {wanted}"));
        }
    }
    Ok(())
}
