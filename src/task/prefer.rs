//! Pairs of a preferred and another answer: the model learns to find the preferred one more likely, by DPO, ORPO or SimPO.

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::instruct::turns;
use super::{
    check_causal, column, refused, Comparison, Conversation, Encoder, Example, Metric, Predictions,
    Refusal, Target, TaskKind,
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
    pub preference: Comparison,
    /// The system's message, before a conversation that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
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
        Ok(first.among(vec![second], Some(0)))
    }

    fn open(&self, row: &[String], encoder: &dyn Encoder) -> Result<super::Marked, Problem> {
        let conversation = self.conversation(row, None).map_err(refused)?;
        encoder.converse(&conversation.unanswered(), true)
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        check_causal(config)
    }

    fn comparison(&self) -> Option<Comparison> {
        Some(self.preference)
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        let margin = |(scores, _): &(Vec<f64>, usize)| scores[0] - scores[1];
        let margins: f64 = found.scores.iter().map(margin).sum();
        vec![
            (Metric::Accuracy, found.right_answers()),
            (Metric::Margin, margins / found.scores.len().max(1) as f64),
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
        if example.cut > 0 {
            return Err(example.cut_before("its answer"));
        }
        let message = "the last turn is no answer of the assistant";
        Err(Problem::new("delta::data::no_answer", message)
            .help("end both conversations with a message whose `role` is `assistant`"))
    }

    /// The turns of a prompt and an answer: each is a text, or a list of messages.
    fn conversation(
        &self,
        prompt: &[String],
        answer: Option<&str>,
    ) -> Result<Conversation, Refusal> {
        let mut all: Vec<Value> = Vec::new();
        for text in prompt {
            all.extend(spoken_turns(text, "user")?);
        }
        if let Some(text) = answer {
            let own = spoken_turns(text, "assistant")?;
            if prompt.is_empty() && own.len() == 1 {
                return Err((
                    "the answer stands alone, without a prompt before it".to_owned(),
                    "name the column with the prompts: `prompt = COLUMN`; without one, both answers are lists of messages that begin with the user's".to_owned(),
                ));
            }
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

/// The turns of a text in the form of Anthropic's preferences (hh-rlhf): `\n\nHuman: ...\n\nAssistant: ...`.
fn spoken(text: &str) -> Option<Vec<Value>> {
    const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let next = |text: &str| {
        let found = MARKS
            .iter()
            .filter_map(|(mark, role)| Some((text.find(mark)?, *mark, *role)));
        found.min()
    };
    let (0, ..) = next(text)? else { return None };
    let (mut rest, mut turns) = (text, Vec::new());
    while let Some((start, mark, role)) = next(rest) {
        rest = &rest[start + mark.len()..];
        let end = next(rest).map_or(rest.len(), |(end, ..)| end);
        turns.push(json!({"role": role, "content": rest[..end].trim()}));
        rest = &rest[end..];
    }
    // A prompt ends where the answer begins.
    turns.pop_if(|last| last["role"] == "assistant" && last["content"] == "");
    Some(turns)
}

/// The turns of a cell: those of a list of messages or of a conversation in one text, or one with its text.
fn spoken_turns(text: &str, role: &str) -> Result<Vec<Value>, Refusal> {
    spoken(text).map_or_else(|| turns(text, role), Ok)
}

/// Reads `loss` and its settings. The defaults are TRL's for DPO and ORPO, and for SimPO those of its authors' code
/// (β 2, γ half of it).
fn preference(fields: &Fields) -> Comparison {
    let losses = [("dpo", 0), ("orpo", 1), ("simpo", 2)];
    let positive = 1e-6..=1e6;
    match fields.choice("loss", &losses).unwrap_or(0) {
        0 => Comparison::Dpo {
            beta: fields.number("beta", 0.1, positive) as f32,
            smoothing: fields.number("smoothing", 0.0, 0.0..=0.5) as f32,
        },
        1 => Comparison::Orpo {
            beta: fields.number("beta", 0.1, positive) as f32,
        },
        _ => Comparison::Simpo {
            beta: fields.number("beta", 2.0, positive) as f32,
            gamma: fields.number("gamma", 1.0, 0.0..=1e6) as f32,
            smoothing: fields.number("smoothing", 0.0, 0.0..=0.5) as f32,
        },
    }
}
