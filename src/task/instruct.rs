//! An answer to a prompt, or the assistant's turns of a conversation. The loss is on the answers alone, with the token
//! that ends each.

use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};

use super::template::fill;
use super::{
    check_causal, column, metrics_of_tokens, refused, Conversation, Encoder, Example, Marked,
    Metric, Piece, Predictions, Refusal, Target, TaskKind, Wishes, METRICS_OF_TEXTS,
};
use crate::backbone::Config;
use crate::diagnostic::Problem;
use crate::settings::Fields;
use crate::text::did_you_mean;

/// `instruct { prompt = question, answer = answer }`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instruct {
    /// The columns that the model reads before it answers.
    pub text: Vec<String>,
    /// The column with the answer; `None` if the answers are turns of the messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// How the columns become one text.
    pub form: Form,
    /// The system's message, before a conversation that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// How it writes answers.
    #[serde(default, skip_serializing_if = "Wishes::is_empty")]
    pub generate: Wishes,
}

/// How columns become one text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A prompt and its answer are a user's and an assistant's turn in the tokenizer's chat template.
    Turns,
    /// A column with a list of messages, and then one with the tools if there are any, in that template.
    Messages,
    /// A template of the pipeline's own.
    Template(Vec<Piece>),
}

impl TaskKind for Instruct {
    const NAME: &'static str = "instruct";
    const METRICS: &'static [Metric] = METRICS_OF_TEXTS;

    fn read(fields: &Fields) -> Self {
        let system = fields.text("system").map(|text| text.node);
        let generate = Wishes::read(fields);
        if let Some(messages) = fields.name("messages") {
            let tools = fields.name("tools").map(|name| name.node);
            return Instruct {
                text: std::iter::once(messages.node).chain(tools).collect(),
                answer: None,
                form: Form::Messages,
                system,
                generate,
            };
        }
        let answer = column(fields, "answer", "answer");
        let (text, form) = match template(fields, &answer) {
            Some(pieces) => {
                let columns = super::template::columns(&pieces);
                let text = columns.into_iter().filter(|name| *name != answer);
                (text.collect(), Form::Template(pieces))
            }
            None if fields.raw("template").is_some() => (Vec::new(), Form::Turns),
            None => (vec![column(fields, "prompt", "question")], Form::Turns),
        };
        Instruct {
            text,
            answer: Some(answer),
            form,
            system,
            generate,
        }
    }

    fn texts(&self) -> &[String] {
        &self.text
    }

    fn targets(&self) -> &[String] {
        self.answer.as_slice()
    }

    fn has_text_target(&self) -> bool {
        self.answer.is_some()
    }

    fn writes(&self) -> bool {
        true
    }

    fn wishes(&self) -> Wishes {
        self.generate.clone()
    }

    fn has_answers(&self) -> bool {
        true
    }

    fn is_structured(&self, column: &str) -> bool {
        match self.form {
            Form::Messages => self.text.iter().any(|name| name == column),
            Form::Turns => true,
            Form::Template(_) => false,
        }
    }

    fn has_messages(&self, _: &str) -> bool {
        self.form == Form::Turns
    }

    fn may_be_null(&self, column: &str) -> bool {
        self.form == Form::Messages && self.text.get(1).is_some_and(|tools| tools == column)
    }

    /// A template may have room for an input that few instructions need.
    fn needs_all_texts(&self) -> bool {
        !matches!(self.form, Form::Template(_))
    }

    fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    fn target_of(&self, _: &[String]) -> Result<Target, Refusal> {
        Ok(Target::Answers(Vec::new()))
    }

    fn encode(&self, row: &[String], encoder: &dyn Encoder) -> Result<Example, Problem> {
        let answer = row.get(self.text.len()).filter(|_| self.answer.is_some());
        if answer.is_some_and(|answer| answer.trim().is_empty()) {
            return Err(no_answer("the answer is empty").help("fill it in, or remove the row"));
        }
        let marked = match &self.form {
            Form::Template(pieces) => {
                let mut marked = self.filled(pieces, row);
                if let Some(end) = encoder.end() {
                    marked.text.push_str(&end);
                    if let Some(answer) = marked.answers.last_mut() {
                        answer.end = marked.text.len();
                    }
                }
                marked
            }
            _ => {
                let conversation = self.conversation(row).map_err(refused)?;
                if conversation.tools.is_some() && !encoder.reads_tools() {
                    let message = "the row has tools, and the tokenizer's chat template reads none";
                    return Err(Problem::new("delta::data::tools", message).help(
                        "remove `tools` from the task, or use a model whose template has them",
                    ));
                }
                encoder.converse(&conversation, false)?
            }
        };
        let example = encoder.marked(&marked)?;
        match (example.predicted(), example.cut) {
            (0, 0) => Err(no_answer("no turn of the assistant is an answer")
                .help("give every conversation a message whose `role` is `assistant`")),
            (0, _) => Err(example.cut_before("its answer")),
            _ => Ok(example),
        }
    }

    fn open(&self, row: &[String], encoder: &dyn Encoder) -> Result<Marked, Problem> {
        match &self.form {
            Form::Template(pieces) => {
                let mut marked = self.filled(pieces, row);
                let end = marked.answers.first().map_or(0, |answer| answer.start);
                // The answer's first token includes the space before it.
                marked.text = marked.text[..end].trim_end_matches(' ').to_owned();
                marked.answers.clear();
                Ok(marked)
            }
            _ => {
                let conversation = self.conversation(row).map_err(refused)?;
                encoder.converse(&conversation.unanswered(), true)
            }
        }
    }

    fn check(&self, config: &Config) -> Result<(), Problem> {
        check_causal(config)
    }

    fn metrics(&self, found: &Predictions) -> Vec<(Metric, f64)> {
        metrics_of_tokens(found)
    }
}

impl Instruct {
    /// The messages of a row, the answer among them if the row has it.
    fn conversation(&self, row: &[String]) -> Result<Conversation, Refusal> {
        let conversation = match &self.form {
            Form::Messages => Conversation::read(&row[0], row.get(1).map(String::as_str))?,
            _ => {
                let mut messages = Vec::new();
                for (text, role) in row.iter().zip(["user", "assistant"]) {
                    messages.extend(turns(text, role)?);
                }
                Conversation {
                    messages,
                    tools: None,
                }
            }
        };
        Ok(conversation.with_system(self.system.as_deref()))
    }

    /// The texts of a row in the pipeline's own template. Without an answer, the text ends where it would stand.
    fn filled(&self, pieces: &[Piece], row: &[String]) -> Marked {
        let value = |column: &str| {
            let place = self.text.iter().position(|name| name == column);
            let text = row.get(place.unwrap_or(self.text.len()));
            text.map_or("", String::as_str)
        };
        let (before, answer) = pieces.split_at(pieces.len() - 1);
        let mut text = fill(before, value);
        let start = text.len();
        text.push_str(&fill(answer, value));
        Marked {
            answers: std::iter::once(start..text.len()).collect(),
            text,
            is_whole: false,
        }
    }
}

fn no_answer(message: &str) -> Problem {
    Problem::new("delta::data::no_answer", message)
}

/// Reads `template`, which names the answer's column once, at its end.
pub(super) fn template(fields: &Fields, answer: &str) -> Option<Vec<Piece>> {
    let template = fields.text("template")?;
    let report = |message: &str, help: &str| {
        let problem = Problem::new("delta::plan::template", message);
        fields.report(problem.at(template.span, "in this template").help(help));
    };
    if let Some(prompt) = fields.raw("prompt") {
        let message = "the task has both `prompt` and `template`";
        fields.report(
            Problem::new("delta::plan::template", message)
                .at(prompt.span, "either this")
                .at(template.span, "or this")
                .help("remove `prompt`: the template names the columns"),
        );
    }
    if fields.raw("system").is_some() {
        report(
            "`system` belongs to the tokenizer's chat template",
            "write the system's message in the template itself",
        );
    }
    let example = format!("end it with the answer: \"Q: {{question}}\\nA: {{{answer}}}\"");
    let pieces = match Piece::read(&template.node) {
        Ok(pieces) => pieces,
        Err((message, _)) => {
            report(&message, &example);
            return None;
        }
    };
    let is_plain = |piece: &Piece| matches!(piece, Piece::Text(_) | Piece::Field { .. });
    let is_answer =
        |piece: &Piece| matches!(piece, Piece::Field { column, .. } if column == answer);
    if !pieces.iter().all(is_plain) {
        report("the template has more than texts and columns", &example);
    } else if pieces.iter().filter(|piece| is_answer(piece)).count() != 1
        || !pieces.last().is_some_and(is_answer)
    {
        report("the template does not end with the answer", &example);
    } else {
        return Some(pieces);
    }
    None
}

/// The roles that most chat templates know.
const ROLES: [&str; 5] = ["system", "user", "assistant", "tool", "developer"];

/// The turns of a cell: those of a list of messages, or one with its text.
pub(super) fn turns(text: &str, role: &str) -> Result<Vec<Value>, Refusal> {
    let is_message = |item: &Value| item["role"].is_string() || item["from"].is_string();
    let list: Option<Vec<Value>> = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text).ok(),
        false => None,
    };
    match list {
        Some(list) if list.iter().any(is_message) => messages(text),
        // A text may be a list of something else.
        _ => Ok(vec![json!({"role": role, "content": text})]),
    }
}

/// The messages of a cell: a list of objects with a `role`, or with ShareGPT's `from` and `value`.
pub(super) fn messages(text: &str) -> Result<Vec<Value>, Refusal> {
    let wrong = |message: &str| {
        let help = "write `[{\"role\": \"user\", \"content\": \"...\"}, {\"role\": \"assistant\", \"content\": \"...\"}]`";
        (message.to_owned(), help.to_owned())
    };
    let Ok(Value::Array(mut messages)) = serde_json::from_str(text) else {
        return Err(wrong("the messages are not a JSON list"));
    };
    if messages.is_empty() {
        return Err(wrong("the list of messages is empty"));
    }
    for message in &mut messages {
        let Value::Object(fields) = message else {
            return Err(wrong("a message is not an object"));
        };
        rename_share_gpt(fields);
        let Some(role) = fields.get("role").and_then(Value::as_str) else {
            return Err(wrong("a message has no `role`"));
        };
        check_weight(fields)?;
        // A template may have roles of its own, but a misspelt one is read and never learned.
        if let Some(near) = did_you_mean(role, ROLES).filter(|near| *near != role) {
            let message = format!("a message has the role `{role}`");
            return Err((message, format!("did you mean `{near}`?")));
        }
    }
    Ok(messages)
}

/// Whether an answer is learned, and not only read: OpenAI's files say `weight`, Axolotl's `train`.
pub fn is_learned(message: &Value) -> bool {
    message["weight"] != json!(0)
        && message["weight"] != json!(0.0)
        && message["train"] != json!(false)
}

fn check_weight(message: &Map<String, Value>) -> Result<(), Refusal> {
    let number = message.get("weight").filter(|weight| !weight.is_null());
    let is_known = |weight: &Value| matches!(weight.as_f64(), Some(0.0 | 1.0));
    let train = message.get("train").filter(|train| !train.is_null());
    let wrong = match (number, train) {
        (Some(weight), _) if !is_known(weight) => ("weight", weight, "0 or 1"),
        (_, Some(train)) if !train.is_boolean() => ("train", train, "true or false"),
        _ => return Ok(()),
    };
    let (key, value, wanted) = wrong;
    Err((
        format!("a message has `{key}: {value}`"),
        format!("write {wanted}: an answer is learned, or only read"),
    ))
}

/// ShareGPT's names of roles and contents.
fn rename_share_gpt(fields: &mut Map<String, Value>) {
    let role = match fields.get("from").and_then(Value::as_str) {
        Some("human") => "user",
        Some("gpt") => "assistant",
        Some(other) => other,
        None => return,
    };
    let role = json!(role);
    if let (false, Some(content)) = (fields.contains_key("role"), fields.remove("value")) {
        fields.remove("from");
        fields.insert("role".to_owned(), role);
        fields.insert("content".to_owned(), content);
    }
}

/// The tools of a cell: a list; none if it is empty or null.
pub(super) fn tools(text: &str) -> Result<Option<Value>, Refusal> {
    match serde_json::from_str(text) {
        Ok(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Ok(Value::Null) => Ok(None),
        Ok(tools @ Value::Array(_)) => Ok(Some(tools)),
        _ => Err((
            "the tools are not a JSON list".to_owned(),
            "write a list of JSON schemas, `[]` for none".to_owned(),
        )),
    }
}
