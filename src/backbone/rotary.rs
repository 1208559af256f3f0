//! Rotary position embeddings (RoPE: Su et al., arXiv 2104.09864) and the ways to stretch them over longer texts,
//! as `modeling_rope_utils.py` of transformers computes them.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The rotary embeddings of a `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rotary {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are changed.
    #[serde(default)]
    pub scaling: RopeScaling,
    /// The share of a head's columns that is rotated, from the first on.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub share: f64,
}

fn whole() -> f64 {
    1.0
}

fn is_whole(share: &f64) -> bool {
    *share == 1.0
}

/// A change of the frequencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// No change. transformers' `dynamic` also changes nothing for texts up to `max_position_embeddings`, and ours are
    /// never longer.
    #[default]
    Default,
    /// Divides all frequencies by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Divides low frequencies by a factor and keeps high ones (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Frequencies with at most this many turns within `original` positions are low.
        low: f64,
        /// Frequencies with at least this many turns are high.
        high: f64,
        /// The positions that the model was first trained for.
        original: f64,
    },
    /// YaRN (Peng et al., arXiv 2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// Numbers of turns within `original` positions: frequencies with at least the first number stay unchanged, and
        /// those with at most the second are divided by the whole factor.
        beta: (f64, f64),
        /// Whether the first and last dimensions of the transition are rounded outwards.
        truncate: bool,
        /// The positions that the model was first trained for.
        original: f64,
        /// The factor of cosines and sines.
        attention_factor: f64,
    },
    /// LongRoPE (Ding et al., arXiv 2402.13753), for texts within `original` positions: longer ones have other factors.
    Long {
        /// The divisor of each frequency.
        factors: Vec<f64>,
        /// The positions that the model was first trained for.
        original: f64,
        /// The factor of cosines and sines.
        attention_factor: f64,
    },
}

impl RopeScaling {
    /// transformers' `rope_type`.
    pub fn name(&self) -> &'static str {
        match self {
            RopeScaling::Default => "default",
            RopeScaling::Linear { .. } => "linear",
            RopeScaling::Llama3 { .. } => "llama3",
            RopeScaling::Yarn { .. } => "yarn",
            RopeScaling::Long { .. } => "longrope",
        }
    }
}

impl Rotary {
    /// Reads `rope_parameters`, as transformers 5 writes it, or `rope_theta` and `rope_scaling`, as 4 did. A backbone
    /// whose blocks have two kinds of frequencies states them under the names of `layer_types`, and `layers` names the
    /// kind to read; `rope_scaling` is for `full_attention`.
    ///
    /// # Errors
    /// One sentence: the kind of scaling is not supported, a key is unknown, or a number is missing or wrong.
    pub fn parse(
        json: &Value,
        theta: f64,
        positions: usize,
        layers: Option<&str>,
    ) -> Result<Self, String> {
        let is_stated = |value: &&Value| !value.is_null() && **value != Value::Object(Map::new());
        let stated = |name: &'static str| Some((name, json.get(name).filter(is_stated)?));
        let scaling = stated("rope_scaling").filter(|_| layers != Some("sliding_attention"));
        // As in transformers, the older name takes precedence if both are present.
        let Some((name, value)) = scaling.or_else(|| stated("rope_parameters")) else {
            let scaling = RopeScaling::Default;
            let share = share_of(json.get("partial_rotary_factor"))?;
            return Ok(Rotary {
                theta,
                scaling,
                share: share.unwrap_or(1.0),
            });
        };
        let none = Value::Object(Map::new());
        let value = match layers.filter(|_| name == "rope_parameters") {
            None => value,
            Some(layers) => {
                let kinds = ["full_attention", "sliding_attention"];
                let keys = value.as_object().into_iter().flat_map(|map| map.keys());
                if let Some(key) = keys.into_iter().find(|key| !kinds.contains(&key.as_str())) {
                    return Err(format!("its `{name}` has `{key}` beside `full_attention` and `sliding_attention`, which its two kinds of blocks read"));
                }
                value.get(layers).filter(is_stated).unwrap_or(&none)
            }
        };
        let Some(map) = value.as_object() else {
            return Err(format!("its `{name}` must be an object"));
        };
        let original = json.get("original_max_position_embeddings");
        let keys = RopeKeys {
            name,
            map,
            original,
        };
        let theta = keys.number("rope_theta")?.unwrap_or(theta);
        let scaling = keys.scaling(positions as f64)?;
        if !(theta.is_finite() && theta > 1.0) {
            return Err(format!("its `rope_theta` must be above 1, found {theta}"));
        }
        let inner = share_of(map.get("partial_rotary_factor"))?;
        let outer = share_of(json.get("partial_rotary_factor"))?;
        Ok(Rotary {
            theta,
            scaling,
            share: inner.or(outer).unwrap_or(1.0),
        })
    }

    /// Checks that it fits heads of a width.
    ///
    /// # Errors
    /// One sentence that says why it does not.
    pub(super) fn check(&self, width: usize) -> Result<(), String> {
        let rotated = (width as f64 * self.share) as usize;
        if rotated == 0 || !rotated.is_multiple_of(2) {
            return Err(format!("rotary embeddings need an even number of columns, but rotate {rotated} of the {width} columns of its heads"));
        }
        match &self.scaling {
            RopeScaling::Long { factors, .. } if factors.len() != rotated / 2 => Err(format!(
                "its `short_factor` must have {} numbers, one for each pair of columns, found {}",
                rotated / 2,
                factors.len()
            )),
            _ => Ok(()),
        }
    }

    /// The frequency of each pair of columns in a head of `width` columns, `(width / 2)`, in radians per position;
    /// and the factor of cosines and sines.
    pub fn frequencies(&self, width: usize) -> (Vec<f32>, f32) {
        let width = (width as f64 * self.share) as usize;
        let plain = |pair: usize| self.theta.powf(-(2.0 * pair as f64) / width as f64);
        let pairs = 0..width / 2;
        match self.scaling {
            RopeScaling::Long {
                ref factors,
                attention_factor,
                ..
            } => {
                let scaled = |pair: usize| (plain(pair) / factors[pair]) as f32;
                (pairs.map(scaled).collect(), attention_factor as f32)
            }
            RopeScaling::Default => (pairs.map(|pair| plain(pair) as f32).collect(), 1.0),
            RopeScaling::Linear { factor } => (
                pairs.map(|pair| (plain(pair) / factor) as f32).collect(),
                1.0,
            ),
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let scaled = |pair| {
                    let frequency: f64 = plain(pair);
                    let turns = original * frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    ((1.0 - kept) * frequency / factor + kept * frequency) as f32
                };
                (pairs.map(scaled).collect(), 1.0)
            }
            RopeScaling::Yarn {
                factor,
                beta: (fast, slow),
                truncate,
                original,
                attention_factor,
            } => {
                let dimension = |turns: f64| {
                    width as f64 * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln())
                };
                let (mut first, mut last) = (dimension(fast), dimension(slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let first = first.max(0.0);
                let last = last.min(width as f64 - 1.0);
                let last = if last == first { last + 0.001 } else { last };
                let scaled = |pair: usize| {
                    let ramp = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    (plain(pair) * (ramp / factor + 1.0 - ramp)) as f32
                };
                (pairs.map(scaled).collect(), attention_factor as f32)
            }
        }
    }
}

/// The share of a head's columns that is rotated, if it is stated.
fn share_of(stated: Option<&Value>) -> Result<Option<f64>, String> {
    match stated.filter(|stated| !stated.is_null()) {
        None => Ok(None),
        Some(stated) => match stated.as_f64() {
            Some(share) if share > 0.0 && share <= 1.0 => Ok(Some(share)),
            _ => Err(format!(
                "its `partial_rotary_factor` must be above 0 and at most 1, found {stated}"
            )),
        },
    }
}

/// The keys of `rope_parameters` or `rope_scaling`.
struct RopeKeys<'a> {
    name: &'a str,
    map: &'a Map<String, Value>,
    /// `original_max_position_embeddings` in `config.json` itself. As in transformers, it takes precedence over the
    /// value in `map`.
    original: Option<&'a Value>,
}

impl RopeKeys<'_> {
    fn scaling(&self, positions: f64) -> Result<RopeScaling, String> {
        let is_there = |value: &&Value| !value.is_null();
        let stated = |key: &str| self.map.get(key).filter(is_there);
        let kind = match stated("rope_type").or(stated("type")) {
            None => "default",
            Some(Value::String(kind)) => kind,
            Some(other) => return Err(self.wrong("rope_type", "a text", other)),
        };
        // The name of the first files.
        let kind = if kind == "su" { "longrope" } else { kind };
        let own: &[&str] = match kind {
            "default" => &[],
            "linear" | "dynamic" => &["factor", "original_max_position_embeddings"],
            "llama3" => &[
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            ],
            "yarn" => &[
                "factor",
                "beta_fast",
                "beta_slow",
                "mscale",
                "mscale_all_dim",
                "attention_factor",
                "truncate",
                "original_max_position_embeddings",
            ],
            "longrope" => &[
                "factor",
                "short_factor",
                "long_factor",
                "attention_factor",
                "original_max_position_embeddings",
            ],
            _ => {
                return Err(format!(
                    "the rotary scaling `{kind}` of its `{}` is not one of `default`, `linear`, `dynamic`, `llama3`, `yarn` and `longrope`",
                    self.name
                ))
            }
        };
        let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        let is_known =
            |key: &&String| common.contains(&key.as_str()) || own.contains(&key.as_str());
        if let Some(key) = self.map.keys().find(|key| !is_known(key)) {
            return Err(format!(
                "the key `{key}` of its `{}` does not belong to the rotary scaling `{kind}`",
                self.name
            ));
        }
        Ok(match kind {
            "linear" => RopeScaling::Linear {
                factor: self.at_least_1("factor")?,
            },
            "llama3" => RopeScaling::Llama3 {
                factor: self.at_least_1("factor")?,
                low: self.needed("low_freq_factor")?,
                high: self.needed("high_freq_factor")?,
                original: self.original(positions)?,
            },
            "yarn" => self.yarn(positions)?,
            "longrope" => self.long(positions)?,
            _ => RopeScaling::Default,
        })
    }

    fn yarn(&self, positions: f64) -> Result<RopeScaling, String> {
        let factor = self.at_least_1("factor")?;
        let of_scale = |mscale: f64| match factor > 1.0 {
            true => 0.1 * mscale * factor.ln() + 1.0,
            false => 1.0,
        };
        let scales = (self.positive("mscale")?, self.positive("mscale_all_dim")?);
        let attention_factor = match (self.number("attention_factor")?, scales) {
            (Some(stated), _) => stated,
            (None, (Some(one), Some(all))) => of_scale(one) / of_scale(all),
            _ => of_scale(1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            // transformers treats 0 as absent.
            beta: (
                self.positive("beta_fast")?.unwrap_or(32.0),
                self.positive("beta_slow")?.unwrap_or(1.0),
            ),
            truncate: match self.map.get("truncate") {
                None => true,
                Some(Value::Bool(truncate)) => *truncate,
                Some(other) => return Err(self.wrong("truncate", "`true` or `false`", other)),
            },
            original: self.original(positions)?,
            attention_factor,
        })
    }

    fn long(&self, positions: f64) -> Result<RopeScaling, String> {
        let list = |key: &str| {
            let entries = self.map.get(key).and_then(Value::as_array);
            let numbers = entries.and_then(|all| all.iter().map(Value::as_f64).collect());
            let are_positive = |numbers: &Vec<f64>| numbers.iter().all(|number| *number > 0.0);
            let missing = || format!("its `{}` has no list `{key}` of numbers above 0", self.name);
            numbers.filter(are_positive).ok_or_else(missing)
        };
        let factors = list("short_factor")?;
        if list("long_factor")?.len() != factors.len() {
            return Err(format!(
                "`short_factor` and `long_factor` of its `{}` have different lengths",
                self.name
            ));
        }
        let original = self.original(positions)?;
        let factor = self.positive("factor")?.unwrap_or(positions / original);
        Ok(RopeScaling::Long {
            factors,
            original,
            attention_factor: match self.number("attention_factor")? {
                Some(stated) => stated,
                None if factor <= 1.0 => 1.0,
                None => (1.0 + factor.ln() / original.ln()).sqrt(),
            },
        })
    }

    fn wrong(&self, key: &str, wanted: &str, found: &Value) -> String {
        let name = self.name;
        format!("`{key}` of its `{name}` must be {wanted}, found {found}")
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number >= 0.0 => Ok(Some(number)),
                _ => Err(self.wrong(key, "a number of at least 0", value)),
            },
        }
    }

    /// A number; `None` if it is 0 or absent.
    fn positive(&self, key: &str) -> Result<Option<f64>, String> {
        Ok(self.number(key)?.filter(|number| *number > 0.0))
    }

    fn needed(&self, key: &str) -> Result<f64, String> {
        let missing = || format!("its `{}` has no `{key}`", self.name);
        self.number(key)?.ok_or_else(missing)
    }

    fn original(&self, positions: f64) -> Result<f64, String> {
        const KEY: &str = "original_max_position_embeddings";
        let outer = self.original.filter(|outer| !outer.is_null());
        let outer = outer.map(|outer| match outer.as_f64() {
            Some(number) if number >= 1.0 => Ok(number),
            _ => Err(format!("its `{KEY}` must be at least 1, found {outer}")),
        });
        Ok(match outer.transpose()? {
            Some(original) => original,
            None => self.number(KEY)?.unwrap_or(positions),
        })
    }

    fn at_least_1(&self, key: &str) -> Result<f64, String> {
        let number = self.needed(key)?;
        match number >= 1.0 {
            true => Ok(number),
            false => Err(self.wrong(key, "at least 1", &Value::from(number))),
        }
    }
}
