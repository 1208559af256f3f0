//! Examples: the tokens of a row, and what a model predicts from them.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cloze, Refusal, Target};
use crate::diagnostic::Problem;

/// Tokens of one text, or of a pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Encoded {
    /// Token numbers.
    pub tokens: Vec<u32>,
    /// Token types: 1 for the second text of a pair, if the family tells them apart.
    #[serde(with = "runs")]
    pub types: Vec<u8>,
    /// Whether a token is one of the tokenizer's own, such as `[CLS]`.
    #[serde(with = "runs")]
    pub special: Vec<bool>,
    /// The tokens whose rows the head reads, in ascending order; empty if the head says itself which. For a cloze, the
    /// mask, or the last token of the template in a causal family.
    pub reads: Vec<usize>,
    /// The number of tokens before the soft tokens, if a template says where those stand.
    pub soft: Option<usize>,
    /// For a sentence that came as words, the place of each word's first token among those to read: none if it has no
    /// tokens, or is beyond the longest sequence.
    pub words: Vec<Option<usize>>,
}

/// Lists with long runs of one value, as the values and lengths of their runs.
mod runs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T, S>(all: &[T], serializer: S) -> Result<S::Ok, S::Error>
    where
        T: PartialEq + Serialize,
        S: Serializer,
    {
        let runs = all.chunk_by(PartialEq::eq);
        let runs: Vec<(&T, usize)> = runs.map(|run| (&run[0], run.len())).collect();
        runs.serialize(serializer)
    }

    pub fn deserialize<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
    where
        T: Clone + Deserialize<'de>,
        D: Deserializer<'de>,
    {
        let runs = Vec::<(T, usize)>::deserialize(deserializer)?;
        let values = runs.into_iter();
        Ok(values
            .flat_map(|(value, length)| std::iter::repeat_n(value, length))
            .collect())
    }
}

/// One example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// Its tokens.
    pub text: Encoded,
    /// The decoder's start token and the tokens after it. A sequence-to-sequence task predicts each of them from
    /// those before it. Empty if the backbone has no decoder.
    pub decoder: Vec<u32>,
    /// The target to predict.
    pub target: Target,
    /// How many tokens were cut off because the text was too long, where the task counts them.
    pub cut: usize,
    /// Further sequences that are compared with this one: they are always in a batch beside it.
    pub others: Vec<Example>,
}

impl Example {
    /// The rows that it takes in a batch, including the decoder's and those of the others.
    pub fn rows(&self) -> usize {
        let others: usize = self.others.iter().map(Example::rows).sum();
        self.text.tokens.len() + self.decoder.len().saturating_sub(1) + others
    }

    /// This sequence, and the others.
    pub fn sequences(&self) -> impl Iterator<Item = &Example> {
        std::iter::once(self).chain(&self.others)
    }

    /// The places of the tokens that are answers.
    pub fn answers(&self) -> &[Range<usize>] {
        match &self.target {
            Target::Answers(places) | Target::OneOf { answer: places, .. } => places,
            _ => &[],
        }
    }

    /// The refusal of a text that was cut before something that it needs.
    pub fn cut_before(&self, what: &str) -> Problem {
        let length = self.text.tokens.len();
        let message = format!(
            "the text is cut before {what}: it has {} tokens, and the longest sequence {length}",
            length + self.cut
        );
        Problem::new("delta::data::no_answer", message)
            .help("raise `max_length`, or remove the row")
    }

    /// The same answer as the first of several.
    pub fn among(mut self, others: Vec<Example>, right: Option<usize>) -> Self {
        let answer = self.answers().to_vec();
        self.target = Target::OneOf { answer, right };
        self.others = others;
        self
    }

    /// The number of tokens that a language model is to predict; 1 for any other target.
    pub fn predicted(&self) -> usize {
        match (&self.target, self.decoder.is_empty()) {
            (Target::NextTokens, true) => self.text.tokens.len().saturating_sub(1),
            (Target::NextTokens, false) => self.decoder.len() - 1,
            (Target::Answers(_) | Target::OneOf { .. }, true) => {
                self.answers().iter().map(Range::len).sum()
            }
            (Target::OneOf { .. }, false) => self.decoder.len() - 1,
            (Target::MaskedTokens, _) => self.text.special.iter().filter(|own| !**own).count(),
            _ => 1,
        }
    }
}

impl Example {
    /// Whether the model is to predict each token of the text.
    pub fn learned(&self) -> Vec<bool> {
        let count = self.text.tokens.len();
        match &self.target {
            Target::Answers(_) | Target::OneOf { .. } => {
                let is_in =
                    |place: &usize| self.answers().iter().any(|range| range.contains(place));
                (0..count).map(|place| is_in(&place)).collect()
            }
            Target::NextTokens => (0..count).map(|place| place > 0).collect(),
            _ => vec![false; count],
        }
    }

    /// Whether an answer has one of these tokens: for a target that is no answer, whether anything has.
    pub fn ends_with(&self, ends: &[u32]) -> bool {
        let has_end = |range: &Range<usize>| {
            let tokens = &self.text.tokens[range.clone()];
            tokens.iter().any(|token| ends.contains(token))
        };
        self.answers().iter().all(has_end)
    }
}

/// The turns of a conversation, as chat templates read them.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// A list of objects with a `role` and a `content`.
    pub messages: Vec<Value>,
    /// The tools that the model may call, if there are any.
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation from the JSON of a list of messages and of a list of tools.
    ///
    /// # Errors
    /// They are no lists of messages and tools.
    pub fn read(messages: &str, tools: Option<&str>) -> Result<Self, Refusal> {
        Ok(Conversation {
            messages: super::instruct::messages(messages)?,
            tools: match tools {
                Some(tools) => super::instruct::tools(tools)?,
                None => None,
            },
        })
    }

    /// The same, begun by the system's message unless it has one.
    pub fn with_system(mut self, system: Option<&str>) -> Self {
        let first = self.messages.first();
        let has_own = first.is_some_and(|first| first["role"] == "system");
        if let Some(system) = system.filter(|_| !has_own) {
            let message = serde_json::json!({"role": "system", "content": system});
            self.messages.insert(0, message);
        }
        self
    }

    /// The same without a last turn of the assistant.
    pub fn unanswered(mut self) -> Self {
        if self
            .messages
            .last()
            .is_some_and(|last| last["role"] == "assistant")
        {
            self.messages.pop();
        }
        self
    }
}

/// A text, and the parts of it that are answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marked {
    /// The text.
    pub text: String,
    /// The answers in it: ranges of its bytes, in ascending order.
    pub answers: Vec<Range<usize>>,
    /// Whether the text already has the tokens that a tokenizer puts around a text.
    pub is_whole: bool,
}

/// Which tokens of a word are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subwords {
    /// The first one.
    #[default]
    First,
    /// All, unless the first one is cut off.
    All,
}

impl Subwords {
    /// Whether it is the default.
    pub fn is_first(&self) -> bool {
        *self == Subwords::First
    }
}

/// A sentence that came as words.
#[derive(Clone, Debug, PartialEq)]
pub struct Sentence {
    /// Its tokens, with those of each word that are to be read.
    pub text: Encoded,
    /// How many tokens were cut off.
    pub cut: usize,
}

/// Turns texts into tokens.
pub trait Encoder {
    /// The tokens of a text or a pair of texts, cut to the longest sequence.
    ///
    /// # Errors
    /// The tokenizer refuses a text, or the backbone has no embedding for a token or token type.
    fn texts(&self, texts: &[String]) -> Result<Encoded, Problem>;

    /// How many tokens of a text were cut from its encoding.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    fn cut_of(&self, text: &str, encoded: &Encoded) -> Result<usize, Problem>;

    /// The tokens of a sentence's words, cut to the longest sequence.
    ///
    /// # Errors
    /// See [`Encoder::texts`].
    fn words(&self, words: &[String], subwords: Subwords) -> Result<Sentence, Problem>;

    /// The tokens of texts in a template.
    ///
    /// # Errors
    /// A text has the mask in it; the template alone is too long; what [`Encoder::texts`] reports.
    fn cloze(&self, cloze: &Cloze, texts: &[String]) -> Result<Encoded, Problem>;

    /// The tokens of a decoder's sequence: the start token, then those of a text. Empty if the backbone has no decoder.
    fn decoded(&self, text: &Encoded) -> Vec<u32>;

    /// A conversation as the tokenizer's chat template writes it. `is_open` begins the answer to its last turn.
    ///
    /// # Errors
    /// There is no chat template, or it refuses the conversation.
    fn converse(&self, conversation: &Conversation, is_open: bool) -> Result<Marked, Problem>;

    /// Whether the tokenizer's chat template reads tools.
    fn reads_tools(&self) -> bool;

    /// The example of a text with answers in it. The target is the tokens of the answers, cut to the longest sequence.
    ///
    /// # Errors
    /// What [`Encoder::texts`] reports.
    fn marked(&self, marked: &Marked) -> Result<Example, Problem>;

    /// The text of the token that ends a text, if the tokenizer has one.
    fn end(&self) -> Option<String>;
}
