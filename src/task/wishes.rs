//! How a model that writes chooses its tokens.

use serde::{Deserialize, Serialize};

use crate::diagnostic::{Problem, Span};
use crate::settings::Fields;
use crate::syntax::ast::Value;

/// Settings of a generation; each may be left open.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// The most tokens of an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<usize>,
    /// No token ends an answer before it has this many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tokens: Option<usize>,
    /// The divisor of logits before a draw; 0 takes the most probable token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// A draw is among this many of the most probable tokens; 0 for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
    /// A draw is among the most probable tokens that together have this probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// A draw is among tokens with at least this share of the highest probability.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// The divisor of the logits of tokens that occurred; 1 changes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// The number of beams; 1 for no search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beams: Option<usize>,
    /// The power of the length by which a beam's score is divided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length_penalty: Option<f32>,
    /// Texts that end an answer. They are no part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// The seed of draws.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl Wishes {
    /// These wishes, and `other`'s where there are none. Whoever wishes a search for beams leaves none of the other's
    /// draws, and the other way round.
    pub fn or(self, other: Wishes) -> Wishes {
        let other = match (self.searches(), self.draws()) {
            (true, _) => Wishes {
                temperature: None,
                top_k: None,
                top_p: None,
                min_p: None,
                ..other
            },
            (false, true) => Wishes {
                beams: None,
                temperature: other.temperature.filter(|own| *own > 0.0),
                ..other
            },
            (false, false) => other,
        };
        Wishes {
            max_tokens: self.max_tokens.or(other.max_tokens),
            min_tokens: self.min_tokens.or(other.min_tokens),
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repetition_penalty: self.repetition_penalty.or(other.repetition_penalty),
            beams: self.beams.or(other.beams),
            length_penalty: self.length_penalty.or(other.length_penalty),
            stop: match self.stop.is_empty() {
                true => other.stop,
                false => self.stop,
            },
            seed: self.seed.or(other.seed),
        }
    }

    /// Reads `generate = { max_tokens = 64 }`.
    pub(super) fn read(fields: &Fields) -> Self {
        let Some(value) = fields.raw("generate") else {
            return Wishes::default();
        };
        let Value::Block(block) = &value.node else {
            fields.wrong("generate", value, "a block such as `{ max_tokens = 64 }`");
            return Wishes::default();
        };
        let own = fields.nested("`generate`", value.span, block);
        let number = |key, range| own.optional_number(key, range).map(|number| number as f32);
        let positive = f64::from(f32::MIN_POSITIVE);
        let stop = own.texts("stop");
        let wishes = Wishes {
            max_tokens: own.count("max_tokens", 1..=MOST),
            min_tokens: own.count("min_tokens", 0..=MOST),
            temperature: number("temperature", 0.0..=100.0),
            top_k: own.count("top_k", 0..=MOST),
            top_p: number("top_p", positive..=1.0),
            min_p: number("min_p", 0.0..=1.0),
            repetition_penalty: number("repetition_penalty", positive..=100.0),
            beams: own.count("beams", 1..=64),
            length_penalty: number("length_penalty", -100.0..=100.0),
            stop: stop.unwrap_or_default(),
            seed: own.count("seed", 0..=MOST).map(|seed| seed as u64),
        };
        own.finish();
        wishes.check(fields, value.span);
        wishes
    }

    /// Reports settings that exclude each other.
    fn check(&self, fields: &Fields, span: Span) {
        let report = |message: &str, help: &str| {
            let problem = Problem::new("delta::plan::generate", message);
            fields.report(problem.at(span, "in here").help(help));
        };
        let (searches, draws) = (self.searches(), self.draws());
        if searches && draws {
            report(
                "a beam search takes the most probable tokens and draws none",
                "remove `beams`, or what draws: `temperature`, `top_k`, `top_p` and `min_p`",
            );
        }
        if self.stop.iter().any(String::is_empty) {
            report(
                "a text of `stop` is empty, and would end every answer",
                "remove it",
            );
        }
        let idle = [
            (
                "length_penalty",
                self.length_penalty.is_some() && !searches,
                "set `beams`",
            ),
            ("seed", self.seed.is_some() && !draws, "set `temperature`"),
            (
                "temperature = 0",
                self.temperature == Some(0.0) && self.limits_draws(),
                "remove it, or `top_k`, `top_p` and `min_p`",
            ),
        ];
        for (key, _, help) in idle.into_iter().filter(|(_, is_idle, _)| *is_idle) {
            report(&format!("`{key}` leaves a setting without effect"), help);
        }
        if self.min_tokens > self.max_tokens.or(Some(MOST_TOKENS)) {
            report(
                "`min_tokens` is above `max_tokens`, which is 256 unless it is set",
                "raise `max_tokens`, or lower `min_tokens`",
            );
        }
    }

    /// Whether a search for beams is wished.
    fn searches(&self) -> bool {
        self.beams.is_some_and(|beams| beams > 1)
    }

    /// Whether draws are wished: with a temperature, or with a limit on them alone.
    fn draws(&self) -> bool {
        match self.temperature {
            Some(temperature) => temperature > 0.0,
            None => self.limits_draws(),
        }
    }

    /// Whether a limit on draws is wished.
    pub fn limits_draws(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some() || self.min_p.is_some()
    }

    /// Whether nothing is wished.
    pub fn is_empty(&self) -> bool {
        *self == Wishes::default()
    }
}

/// The most tokens of an answer, where nobody states another number.
pub const MOST_TOKENS: usize = 256;

/// The largest number of a setting.
const MOST: usize = 1 << 30;
