//! Hides parts of texts, for a model to find. What is hidden depends only on an example's random key.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::engine::Layout;
use crate::graph::Targets;
use crate::task::{Encoded, Example, Target};

/// What is hidden from a model, and how.
#[derive(Clone, Debug, PartialEq)]
pub enum Noising {
    /// Tokens at their places.
    Tokens(Masking),
    /// Spans, which a decoder writes.
    Spans(Spans),
}

/// How tokens are masked for a masked language model (Devlin et al., arXiv 1810.04805, section 3.1). Of the
/// chosen tokens, 80 % become the mask, 10 % become a random token, and 10 % stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Masking {
    /// The share of tokens that are chosen; at least one in every text.
    pub share: f32,
    /// The mask's number.
    pub mask_token: u32,
    /// The number of tokens in the vocabulary.
    pub vocabulary: usize,
}

impl Masking {
    /// Chooses tokens, changes them in `tokens`, and asks for them.
    pub(super) fn hide(
        &self,
        sequences: &[&Example],
        layout: &Layout,
        tokens: &mut [usize],
    ) -> Targets {
        let (mut rows, mut hidden) = (Vec::new(), Vec::new());
        for (number, (example, range)) in sequences.iter().zip(layout.ranges()).enumerate() {
            let mut random = ChaCha8Rng::seed_from_u64(layout.key(number));
            let mut places: Vec<usize> = (0..range.len())
                .filter(|&i| !example.text.special.get(i).copied().unwrap_or(false))
                .collect();
            let count = (places.len() as f32 * self.share).round().max(1.0) as usize;
            places.shuffle(&mut random);
            places.truncate(count);
            places.sort_unstable();
            for place in places {
                let token = &mut tokens[range.start + place];
                rows.push(range.start + place);
                hidden.push(*token);
                let draw: f32 = random.random();
                if draw < 0.8 {
                    *token = self.mask_token as usize;
                } else if draw < 0.9 {
                    *token = random.random_range(0..self.vocabulary);
                }
            }
        }
        Targets::Tokens {
            rows,
            tokens: hidden,
        }
    }
}

/// How spans are hidden for a T5 (Raffel et al., arXiv 1910.10683, section 3.1.4): a token of its own stands for each, and
/// the decoder writes that token and the span.
#[derive(Clone, Debug, PartialEq)]
pub struct Spans {
    /// The share of tokens that are in spans; at least one in every text.
    pub share: f32,
    /// The mean number of tokens of a span.
    pub length: f32,
    /// The tokens that stand for the spans, in their order.
    pub marks: Vec<u32>,
}

impl Spans {
    /// An example without its spans, whose decoder writes them.
    pub fn hide(&self, example: &Example, key: u64) -> Example {
        let own = &example.text;
        let is_own = |special: &&bool| **special;
        let before = own.special.iter().take_while(is_own).count();
        let after = own.special.iter().rev().take_while(is_own).count();
        let last = own.tokens.len().saturating_sub(after).max(before);
        let mut random = ChaCha8Rng::seed_from_u64(key);
        let (mut tokens, mut written) = (own.tokens[..before].to_vec(), Vec::new());
        let mut place = before;
        let lengths = self.lengths(last - before, &mut random);
        for ((kept, hidden), mark) in lengths.into_iter().zip(&self.marks) {
            tokens.extend(&own.tokens[place..place + kept]);
            place += kept;
            tokens.push(*mark);
            written.push(*mark);
            written.extend(&own.tokens[place..place + hidden]);
            place += hidden;
        }
        // The token that ends the text ends what is written as well.
        let end = &own.tokens[last..];
        tokens.extend(end);
        written.extend(end);
        let start = example.decoder.first().copied();
        let is_special = |place: usize| place < before || place >= tokens.len() - end.len();
        Example {
            text: Encoded {
                types: vec![0; tokens.len()],
                special: (0..tokens.len()).map(is_special).collect(),
                tokens,
                ..own.clone()
            },
            decoder: start.into_iter().chain(written).collect(),
            target: Target::NextTokens,
            cut: 0,
            others: Vec::new(),
        }
    }

    /// The lengths of what stays and of the span after it, in turn, for a text of `count` tokens.
    fn lengths(&self, count: usize, random: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
        let hidden = (count as f32 * self.share).round() as usize;
        let hidden = hidden.clamp(1, count.saturating_sub(1).max(1)).min(count);
        let kept = count - hidden;
        let spans = (hidden as f32 / self.length).round() as usize;
        let spans = spans.clamp(1, kept.max(1)).min(self.marks.len());
        if kept == 0 {
            return vec![(0, hidden)];
        }
        let hidden = parts(hidden, spans, random);
        parts(kept, spans, random).into_iter().zip(hidden).collect()
    }
}

/// Divides `count` into this many parts of at least one, each division as probable as any other.
fn parts(count: usize, parts: usize, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut is_first: Vec<bool> = (1..count).map(|place| place < parts).collect();
    is_first.shuffle(random);
    let mut lengths = vec![1];
    for is_first in is_first {
        match lengths.last_mut() {
            Some(last) if !is_first => *last += 1,
            _ => lengths.push(1),
        }
    }
    lengths
}
