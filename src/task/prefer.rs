//! Pairs of answers of which one is preferred: the model learns to find it more likely than the other, by DPO, ORPO or
//! SimPO.

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::instruct::messages;
use super::{
    check_causal, column, refused, Conversation, Encoder, Example, Metric, Predictions, Refusal,
    Target, TaskKind,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;

/// `prefer { prompt = prompt, chosen = chosen, rejected = rejected, loss = dpo }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prefer {
    /// The column with the prompt; none if the answers are whole conversations.
    pub text: Vec<String>,
    /// The columns with the preferred answer and with the other one.
    pub answers: Vec<String>,
    /// The loss.
    pub preference: Preference,
    /// The system's message, before a conversation that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
}

/// The loss of a pair. `c` and `r` are the log-probabilities of the preferred answer and of the other one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// `−log σ(β ((c − r) − (c' − r')))`, with `c'` and `r'` of the model as it stands when the stage begins; smoothed
    /// labels take a share of the opposite (Rafailov et al., arXiv 2305.18290, eq. 7; Mitchell's note on cDPO).
    Dpo {
        /// β.
        beta: f32,
        /// The share of pairs that are assumed to be the wrong way round.
        smoothing: f32,
    },
    /// The mean loss of all tokens of the preferred text, and `−β log σ(odds)` with the logarithm of the ratio of the
    /// odds of both, by means per token (Hong et al., arXiv 2403.07691, eq. 6).
    Orpo {
        /// β; the paper's λ.
        beta: f32,
    },
    /// `−log σ(β (c − r) − γ)` with means per token (Meng et al., arXiv 2405.14734, eq. 6).
    Simpo {
        /// β.
        beta: f32,
        /// γ.
        gamma: f32,
        /// As in DPO.
        smoothing: f32,
    },
}

/// What a model makes of a pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    /// The sums of the log-probabilities of the tokens of each answer, the preferred one first.
    pub log_probs: [f64; 2],
    /// The number of these tokens.
    pub tokens: [usize; 2],
    /// The same sums of the model that it is compared with; 0 if there is none.
    pub reference: [f64; 2],
    /// The mean loss of all tokens of the preferred text.
    pub whole: f64,
}

/// The logarithm of a probability above which odds do not grow: nearer to 1, f32 has no other number.
pub const NEAREST_TO_CERTAIN: f32 = -1e-6;

impl Preference {
    /// Whether a model is compared with another one.
    pub fn has_reference(self) -> bool {
        matches!(self, Preference::Dpo { .. })
    }

    /// Whether the prompt's tokens count as well.
    pub fn reads_prompts(self) -> bool {
        matches!(self, Preference::Orpo { .. })
    }

    /// The rewards of the two answers, as TRL logs them, and the loss.
    pub fn judge(self, pair: &Pair) -> ([f64; 2], f64) {
        let mean = |index: usize| pair.log_probs[index] / pair.tokens[index].max(1) as f64;
        let means = [mean(0), mean(1)];
        let smoothed = |x: f64, smoothing: f32| {
            let smoothing = f64::from(smoothing);
            (1.0 - smoothing) * softplus(-x) + smoothing * softplus(x)
        };
        match self {
            Preference::Dpo { beta, smoothing } => {
                let reward = |index: usize| {
                    f64::from(beta) * (pair.log_probs[index] - pair.reference[index])
                };
                let rewards = [reward(0), reward(1)];
                (rewards, smoothed(rewards[0] - rewards[1], smoothing))
            }
            Preference::Simpo {
                beta,
                gamma,
                smoothing,
            } => {
                let rewards = means.map(|mean| f64::from(beta) * mean);
                let margin = rewards[0] - rewards[1] - f64::from(gamma);
                (rewards, smoothed(margin, smoothing))
            }
            Preference::Orpo { beta } => {
                let odds = |log: f64| {
                    let log = log.min(f64::from(NEAREST_TO_CERTAIN));
                    log - (-log.exp()).ln_1p()
                };
                let ratio = odds(means[0]) - odds(means[1]);
                let loss = pair.whole + f64::from(beta) * softplus(-ratio);
                (means.map(|mean| f64::from(beta) * mean), loss)
            }
        }
    }
}

/// `log (1 + eˣ)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl TaskKind for Prefer {
    const NAME: &'static str = "prefer";
    const METRICS: &'static [Metric] = &[Metric::Accuracy, Metric::Margin, Metric::Loss];

    fn read(fields: &Fields) -> Self {
        let prompt = fields.name("prompt").map(|name| name.node);
        Prefer {
            text: prompt.into_iter().collect(),
            answers: vec![
                column(fields, "chosen", "chosen"),
                column(fields, "rejected", "rejected"),
            ],
            preference: preference(fields),
            system: fields.text("system").map(|text| text.node),
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn targets(&self) -> &[String] {
        &self.answers
    }

    fn has_text_target(&self) -> bool {
        true
    }

    fn has_answers(&self) -> bool {
        true
    }

    fn writes(&self) -> bool {
        true
    }

    fn is_structured(&self, _: &str) -> bool {
        true
    }

    fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::Answers(Vec::new()))
    }

    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let (prompt, answers) = row.split_at(self.text.len());
        let [chosen, rejected] = answers else {
            return Err(Problem::internal("a pair has two answers"));
        };
        let mut first = self.answer_to(prompt, chosen, encoder)?;
        let second = self.answer_to(prompt, rejected, encoder)?;
        first.cut = first.cut.max(second.cut);
        if let Target::Answers(places) = first.target {
            first.target = Target::Preferred(places);
        }
        first.others = vec![second];
        Ok(first)
    }

    fn open(&self, row: &[String], encoder: &dyn Encoder) -> Result<super::Marked, Problem> {
        let conversation = self.conversation(row, None).map_err(refused)?;
        encoder.converse(&conversation.unanswered(), true)
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        check_causal(config)
    }

    fn preference(&self) -> Option<Preference> {
        Some(self.preference)
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        let count = found.rewards.len().max(1) as f64;
        let right = found.rewards.iter().filter(|[c, r]| c > r).count();
        let margins: f64 = found.rewards.iter().map(|[c, r]| c - r).sum();
        vec![
            (Metric::Accuracy, right as f64 / count),
            (Metric::Margin, margins / count),
        ]
    }
}

impl Prefer {
    /// The example of one answer.
    fn answer_to(
        &self,
        prompt: &[String],
        answer: &str,
        encoder: &dyn Encoder,
    ) -> Result<Example, Problem> {
        let conversation = self.conversation(prompt, Some(answer)).map_err(refused)?;
        let mut marked = encoder.converse(&conversation, false)?;
        // Earlier turns of the assistant are both answers' prompt.
        marked.answers = marked.answers.pop().into_iter().collect();
        let example = encoder.marked(&marked)?;
        if example.predicted() > 0 {
            return Ok(example);
        }
        let length = example.text.tokens.len();
        let (message, help) = match example.cut {
            0 => (
                "the last turn is no answer of the assistant".to_owned(),
                "end both conversations with a message whose `role` is `assistant`",
            ),
            cut => (
                format!(
                    "the text is cut before its answer: it has {} tokens, and the longest sequence {length}",
                    length + cut
                ),
                "raise `max_length`, or remove the row",
            ),
        };
        Err(Problem::new("delta::data::no_answer", message).help(help))
    }

    /// The turns of a prompt and an answer: each is a text, or a list of messages.
    fn conversation(
        &self,
        prompt: &[String],
        answer: Option<&str>,
    ) -> Result<Conversation, Refusal> {
        let mut all: Vec<Value> = Vec::new();
        for text in prompt {
            all.extend(turns(text, "user")?);
        }
        if let Some(text) = answer {
            let own = turns(text, "assistant")?;
            let asks = own.iter().any(|message| message["role"] == "user");
            if asks && !prompt.is_empty() {
                return Err((
                    "the answer is a conversation with a turn of the user, and there is a prompt as well"
                        .to_owned(),
                    "remove `prompt` from the task: the answers are whole conversations".to_owned(),
                ));
            }
            all.extend(own);
        }
        let conversation = Conversation {
            messages: all,
            tools: None,
        };
        Ok(conversation.with_system(self.system.as_deref()))
    }
}

/// The turns of a cell: those of a list of messages, or one with its text.
fn turns(text: &str, role: &str) -> Result<Vec<Value>, Refusal> {
    let is_list = text.trim_start().starts_with('[');
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Array(_)) if is_list => messages(text),
        _ => Ok(vec![json!({"role": role, "content": text})]),
    }
}

/// Reads `loss` and its settings. The defaults are TRL's for DPO and ORPO, and for SimPO those of its authors' code
/// (β 2, γ half of it).
fn preference(fields: &Fields) -> Preference {
    let losses = [("dpo", 0), ("orpo", 1), ("simpo", 2)];
    let positive = 1e-6..=1e6;
    match fields.choice("loss", &losses).unwrap_or(0) {
        0 => Preference::Dpo {
            beta: fields.number("beta", 0.1, positive) as f32,
            smoothing: fields.number("smoothing", 0.0, 0.0..=0.5) as f32,
        },
        1 => Preference::Orpo {
            beta: fields.number("beta", 0.1, positive) as f32,
        },
        _ => Preference::Simpo {
            beta: fields.number("beta", 2.0, positive) as f32,
            gamma: fields.number("gamma", 1.0, 0.0..=1e6) as f32,
            smoothing: fields.number("smoothing", 0.0, 0.0..=0.5) as f32,
        },
    }
}
