//! How tokens are chosen.

use std::path::Path;

use serde_json::Value;

use crate::backbone::read_text;
use crate::diagnostic::Problem;
use crate::task::{Wishes, MOST_TOKENS};

/// Settings of a generation. See [`Wishes`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Decoding {
    pub max_tokens: usize,
    pub min_tokens: usize,
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    pub repetition_penalty: f32,
    pub beams: usize,
    pub length_penalty: f32,
    pub stop: Vec<String>,
    pub seed: u64,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
}

impl Decoding {
    /// All settings. Whoever wishes a limit on draws but no temperature wishes draws.
    ///
    /// # Errors
    /// Beams and draws exclude each other.
    pub fn of(wishes: Wishes, ends: Vec<u32>) -> Result<Self, Problem> {
        let usual = if wishes.limits_draws() { 1.0 } else { 0.0 };
        let decoding = Decoding {
            max_tokens: wishes.max_tokens.unwrap_or(MOST_TOKENS),
            min_tokens: wishes.min_tokens.unwrap_or(0),
            temperature: wishes.temperature.unwrap_or(usual),
            top_k: wishes.top_k.unwrap_or(0),
            top_p: wishes.top_p.unwrap_or(1.0),
            min_p: wishes.min_p.unwrap_or(0.0),
            repetition_penalty: wishes.repetition_penalty.unwrap_or(1.0),
            beams: wishes.beams.unwrap_or(1),
            length_penalty: wishes.length_penalty.unwrap_or(1.0),
            stop: wishes.stop,
            seed: wishes.seed.unwrap_or(0),
            ends,
        };
        decoding.check()?;
        match decoding.beams > 1 && decoding.temperature > 0.0 {
            true => Err(Problem::new(
                "delta::generate::beams",
                "a beam search takes the most probable tokens and draws none",
            )
            .help("leave out the beams, or add `--temperature 0`, also against `do_sample` of `generation_config.json`")),
            false => Ok(decoding),
        }
    }

    /// Checks the ranges of settings, whoever states them.
    ///
    /// # Errors
    /// One is out of its range.
    fn check(&self) -> Result<(), Problem> {
        let share = 0.0..=1.0;
        let wrong = [
            (
                "temperature",
                "from 0 to 100",
                (0.0..=100.0).contains(&self.temperature),
            ),
            (
                "top_p",
                "above 0 and at most 1",
                self.top_p > 0.0 && self.top_p <= 1.0,
            ),
            ("min_p", "from 0 to 1", share.contains(&self.min_p)),
            (
                "repetition_penalty",
                "above 0 and at most 100",
                self.repetition_penalty > 0.0 && self.repetition_penalty <= 100.0,
            ),
            ("beams", "from 1 to 64", (1..=64).contains(&self.beams)),
            (
                "length_penalty",
                "from -100 to 100",
                (-100.0..=100.0).contains(&self.length_penalty),
            ),
            ("max_tokens", "at least 1", self.max_tokens > 0),
            (
                "min_tokens",
                "at most `max_tokens`",
                self.min_tokens <= self.max_tokens,
            ),
            (
                "stop",
                "a text that is not empty",
                self.stop.iter().all(|stop| !stop.is_empty()),
            ),
        ];
        match wrong.into_iter().find(|(_, _, is_right)| !is_right) {
            None => Ok(()),
            Some((name, wanted, _)) => {
                let message = format!("`{name}` must be {wanted}");
                Err(Problem::new("delta::generate::range", message).help(
                    "change the option, or the setting of `generation_config.json` beside the model",
                ))
            }
        }
    }
}

/// What a backbone's `generation_config.json` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Defaults {
    /// What it wishes.
    pub wishes: Wishes,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// Settings that it has and deltarun has not.
    pub unknown: Vec<String>,
}

/// Keys that say nothing about the choice of tokens.
const SILENT: [&str; 12] = [
    "_from_model_config",
    "transformers_version",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "use_cache",
    "do_sample",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "return_dict_in_generate",
];

/// Values of keys that change nothing.
const NEUTRAL: [(&str, f64); 9] = [
    ("typical_p", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("num_return_sequences", 1.0),
    ("num_beam_groups", 1.0),
    ("diversity_penalty", 0.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
];

/// How many tokens transformers draws among unless a file says otherwise.
const USUAL_TOP_K: usize = 50;

impl Defaults {
    /// Reads `generation_config.json` of a backbone, and `config.json` where there is none, as transformers does.
    ///
    /// # Errors
    /// The file is not JSON.
    pub fn read(backbone: &Path) -> Result<Self, Problem> {
        let json = |name: &str| {
            let path = backbone.join(name);
            match read_text(&path) {
                Err(_) => Ok(Value::Null),
                Ok(text) => crate::text::json(&text).map_err(|e| {
                    let message = format!("`{}` cannot be read: {e}", path.display());
                    Problem::new("delta::generate::defaults", message)
                        .help("replace the file with the one of the original model, or remove it")
                }),
            }
        };
        let mut defaults = Defaults::default();
        let model = json("config.json")?;
        let stated = json("generation_config.json")?;
        let ends = |json: &Value| match &json["eos_token_id"] {
            Value::Array(all) => all.iter().filter_map(Value::as_u64).collect(),
            one => one.as_u64().into_iter().collect::<Vec<u64>>(),
        };
        let found = match stated["eos_token_id"].is_null() {
            true => ends(&model),
            false => ends(&stated),
        };
        defaults.ends = found
            .into_iter()
            .filter_map(|end| u32::try_from(end).ok())
            .collect();
        let number = |key: &str| stated[key].as_f64().map(|number| number as f32);
        let count = |key: &str| stated[key].as_u64().map(|number| number as usize);
        let draws = stated["do_sample"].as_bool() == Some(true);
        let drawn = |value: Option<f32>| value.filter(|_| draws);
        defaults.wishes = Wishes {
            max_tokens: count("max_new_tokens"),
            min_tokens: count("min_new_tokens"),
            temperature: draws.then(|| number("temperature").unwrap_or(1.0)),
            top_k: draws.then(|| count("top_k").unwrap_or(USUAL_TOP_K)),
            top_p: drawn(number("top_p")),
            min_p: drawn(number("min_p")),
            repetition_penalty: number("repetition_penalty").filter(|penalty| *penalty != 1.0),
            beams: count("num_beams").filter(|beams| *beams > 1),
            length_penalty: number("length_penalty").filter(|penalty| *penalty != 1.0),
            ..Wishes::default()
        };
        let read = [
            "max_new_tokens",
            "min_new_tokens",
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "num_beams",
            "length_penalty",
        ];
        let is_known = |key: &str, value: &Value| {
            let neutral = NEUTRAL.iter().find(|(name, _)| *name == key);
            SILENT.contains(&key)
                || read.contains(&key)
                || value.is_null()
                || *value == Value::Bool(false)
                || neutral.is_some_and(|(_, number)| value.as_f64() == Some(*number))
        };
        let all = stated.as_object().into_iter().flatten();
        let unknown = all.filter(|(key, value)| !is_known(key, value));
        defaults.unknown = unknown.map(|(key, _)| key.clone()).collect();
        Ok(defaults)
    }
}
