//! The chat template of a tokenizer, rendered as transformers renders it (`render_jinja_template`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use minijinja::value::{Kwargs, Value as Jinja};
use minijinja::{context, Environment, ErrorKind, State};
use regex::Regex;
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::Value;

use super::tokenizer_config::read;
use crate::backbone::read_text;
use crate::diagnostic::Problem;
use crate::task::{is_learned, Conversation, Marked};

/// What a template's `{% generation %}` block begins and ends with while it is rendered. Both are no characters, so no
/// text has them.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The templates of a tokenizer by name.
pub(super) struct ChatTemplates {
    environment: Environment<'static>,
    /// The texts of the tokenizer's special tokens, by their names.
    tokens: BTreeMap<String, String>,
    /// Whether a template says itself what an answer is.
    marks_answers: BTreeMap<String, bool>,
}

/// The names of the usual template and of the one for conversations with tools.
const DEFAULT: &str = "default";
const WITH_TOOLS: &str = "tool_use";

impl ChatTemplates {
    /// Reads the templates beside a tokenizer: `chat_template.jinja` and `additional_chat_templates/*.jinja`, or
    /// `chat_template` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// A file cannot be read, or is no template.
    pub fn read(
        directory: &Path,
        tokens: BTreeMap<String, String>,
    ) -> Result<Option<Self>, Problem> {
        let sources = sources(directory)?;
        if sources.is_empty() {
            return Ok(None);
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(write_as_python);
        environment.add_filter("generation", |text: String| {
            format!("{}{text}{}", MARKS[0], MARKS[1])
        });
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Jinja, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| today(&format));
        let mut marks_answers = BTreeMap::new();
        for (name, source) in sources {
            let marked = with_filter(&source);
            marks_answers.insert(name.clone(), marked != source);
            environment
                .add_template_owned(name.clone(), marked)
                .map_err(|e| refused(&format!("the chat template cannot be read: {e}")))?;
        }
        Ok(Some(ChatTemplates {
            environment,
            tokens,
            marks_answers,
        }))
    }

    /// The text of a conversation, and its answers. `is_open` begins the next answer.
    ///
    /// # Errors
    /// The template refuses the conversation, or it does not tell where an answer is.
    pub fn render(&self, conversation: &Conversation, is_open: bool) -> Result<Marked, Problem> {
        let name = self.name(conversation)?;
        let text = self.text(name, &conversation.messages, conversation, is_open)?;
        if is_open {
            let text = text.replace(MARKS, "");
            return Ok(whole(text, Vec::new()));
        }
        if self.marks_answers[name] {
            let mut marked = unmarked(&text);
            leave_out(&conversation.messages, &mut marked)?;
            return Ok(marked);
        }
        self.answers(name, conversation, text)
    }

    /// Whether the template for a conversation with tools reads them.
    pub fn reads_tools(&self) -> bool {
        let name = match self.marks_answers.contains_key(WITH_TOOLS) {
            true => WITH_TOOLS,
            false => DEFAULT,
        };
        let template = self.environment.get_template(name);
        template.is_ok_and(|template| template.undeclared_variables(false).contains("tools"))
    }

    /// The template for a conversation: that for tools if it has any and there is one.
    fn name(&self, conversation: &Conversation) -> Result<&'static str, Problem> {
        let has = |name: &str| self.marks_answers.contains_key(name);
        match conversation.tools.is_some() && has(WITH_TOOLS) {
            true => Ok(WITH_TOOLS),
            false if has(DEFAULT) => Ok(DEFAULT),
            false => Err(refused(
                "none of the tokenizer's chat templates is called `default`",
            )),
        }
    }

    /// Finds the answers of a conversation whose template does not mark them. An answer follows what the template
    /// writes to ask for it, and ends where the template ends for the conversation up to it.
    fn answers(
        &self,
        name: &str,
        conversation: &Conversation,
        text: String,
    ) -> Result<Marked, Problem> {
        let messages = &conversation.messages;
        let before = |count: usize, is_open| match count {
            0 => Ok(String::new()),
            _ => self.text(name, &messages[..count], conversation, is_open),
        };
        let mut answers: Vec<Range<usize>> = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            // Turns of the assistant that follow each other, around a call of a tool, are each an answer.
            // One without a question before it is read, and is no answer.
            if message["role"] != "assistant" || index == 0 || !is_learned(message) {
                continue;
            }
            let asked = before(index, true)?;
            let begun = before(index, false)?;
            let start = common(&asked, &text);
            let is_told = text.starts_with(&begun) && start >= begun.len();
            let end = match index + 1 == messages.len() {
                true => text.len(),
                false => {
                    let until = before(index + 1, false)?;
                    if text.starts_with(&until) {
                        until.len()
                    } else {
                        0
                    }
                }
            };
            if !is_told || end <= start {
                let turn = index + 1;
                let message = format!("the chat template renders message {turn} differently when more messages follow, so its answer has no fixed place");
                return Err(refused(&message).help("split the conversation so that it ends with this answer, or mark the answers in the template with `{% generation %}` and `{% endgeneration %}`"));
            }
            answers.push(start..end);
        }
        Ok(whole(text, answers))
    }

    fn text(
        &self,
        name: &str,
        messages: &[Value],
        conversation: &Conversation,
        is_open: bool,
    ) -> Result<String, Problem> {
        let template = self
            .environment
            .get_template(name)
            .map_err(Problem::internal)?;
        let mut values: BTreeMap<String, Jinja> = self
            .tokens
            .iter()
            .map(|(name, token)| (name.clone(), Jinja::from(token.as_str())))
            .collect();
        values.insert("messages".to_owned(), Jinja::from_serialize(messages));
        values.insert("add_generation_prompt".to_owned(), is_open.into());
        // Jinja2's `none` cannot be searched, but transformers' templates search what is undefined.
        if let Some(tools) = &conversation.tools {
            values.insert("tools".to_owned(), Jinja::from_serialize(tools));
        }
        template
            .render(context! { ..Jinja::from_iter(values) })
            .map_err(|e| {
                let reason = e.detail().map_or_else(|| e.to_string(), str::to_owned);
                refused(&format!(
                    "the chat template refuses the conversation: {reason}"
                ))
            })
    }
}

/// The length of what two texts have in common at their beginning, in bytes.
fn common(a: &str, b: &str) -> usize {
    let pairs = a.chars().zip(b.chars());
    let same = pairs.take_while(|(a, b)| a == b);
    same.map(|(a, _)| a.len_utf8()).sum()
}

fn refused(message: &str) -> Problem {
    Problem::new("delta::data::chat_template", message)
        .help("change the messages, or write a template of your own: `template = \"Q: {question}\\nA: {answer}\"`")
}

fn whole(text: String, answers: Vec<Range<usize>>) -> Marked {
    Marked {
        text,
        answers,
        is_whole: true,
    }
}

/// Takes out the answers that are only read. A template's marks say which text is an answer, and not which turn it is of.
fn leave_out(messages: &[Value], marked: &mut Marked) -> Result<(), Problem> {
    let of_assistant = messages
        .iter()
        .filter(|message| message["role"] == "assistant");
    let learned: Vec<bool> = of_assistant.map(is_learned).collect();
    if learned.iter().all(|own| *own) {
        return Ok(());
    }
    if learned.len() != marked.answers.len() {
        let message = "a message has `weight: 0` or `train: false`, and the chat template marks another number of answers than there are turns of the assistant";
        return Err(refused(message));
    }
    let mut learned = learned.into_iter();
    marked.answers.retain(|_| learned.next() == Some(true));
    Ok(())
}

/// Takes the marks out of a text and notes what stood between them.
fn unmarked(text: &str) -> Marked {
    let mut marked = whole(String::new(), Vec::new());
    for (number, part) in text.split(MARKS).enumerate() {
        let start = marked.text.len();
        marked.text.push_str(part);
        if number % 2 == 1 && !part.is_empty() {
            marked.answers.push(start..marked.text.len());
        }
    }
    marked
}

/// Writes `{% generation %}` blocks as blocks of a filter, which are trimmed alike.
fn with_filter(source: &str) -> String {
    let tag = |name: &str| Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}"));
    let (Ok(begin), Ok(end)) = (tag("generation"), tag("endgeneration")) else {
        return source.to_owned();
    };
    let begun = begin.replace_all(source, "{%$1 filter generation $2%}");
    end.replace_all(&begun, "{%$1 endfilter $2%}").into_owned()
}

/// The templates by name, wherever they are.
fn sources(directory: &Path) -> Result<BTreeMap<String, String>, Problem> {
    let mut sources = BTreeMap::new();
    let config = read(directory, "tokenizer_config.json")?;
    match &config["chat_template"] {
        Value::String(source) => {
            sources.insert(DEFAULT.to_owned(), source.clone());
        }
        Value::Array(named) => sources.extend(named.iter().filter_map(|template| {
            let text = |key: &str| template[key].as_str().map(str::to_owned);
            Some((text("name")?, text("template")?))
        })),
        _ => {}
    }
    let file = |path: &Path| match read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(refused(&format!(
            "`{}` cannot be read: {e}",
            path.display()
        ))),
    };
    // A file counts instead of the key.
    if let Some(source) = file(&directory.join("chat_template.jinja"))? {
        sources = BTreeMap::from([(DEFAULT.to_owned(), source)]);
        let more = std::fs::read_dir(directory.join("additional_chat_templates"));
        for path in more
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            let name = path.file_stem().and_then(|name| name.to_str());
            let is_template = path.extension().is_some_and(|ending| ending == "jinja");
            if let (Some(name), true, Some(source)) = (name, is_template, file(&path)?) {
                sources.insert(name.to_owned(), source);
            }
        }
    }
    Ok(sources)
}

/// Python's way to write a value.
fn write_as_python(
    out: &mut minijinja::Output,
    state: &State,
    value: &Jinja,
) -> Result<(), minijinja::Error> {
    let word = match (value.is_none(), bool::try_from(value.clone())) {
        (true, _) => "None",
        (_, Ok(true)) if value.kind() == minijinja::value::ValueKind::Bool => "True",
        (_, Ok(false)) if value.kind() == minijinja::value::ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(minijinja::Error::from)
}

/// `json.dumps` as transformers calls it: nothing but what must be is escaped, and items are divided by spaces.
fn to_json(value: &Jinja, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sorts: Option<bool> = options.get("sort_keys")?;
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let failed =
        |e: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sorts == Some(true) {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    match (indent, separators.as_deref()) {
        (Some(indent), _) => {
            let indent = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(indent.as_bytes());
            json.serialize(&mut Serializer::with_formatter(&mut bytes, formatter))
                .map_err(failed)?;
        }
        (None, separators) => {
            let (item, key) = match separators {
                Some([item, key]) => (item.as_str(), key.as_str()),
                _ => (", ", ": "),
            };
            json.serialize(&mut Serializer::with_formatter(
                &mut bytes,
                Spaced { item, key },
            ))
            .map_err(failed)?;
        }
    }
    String::from_utf8(bytes)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// JSON on one line, with texts of its own between items and behind keys.
struct Spaced<'a> {
    item: &'a str,
    key: &'a str,
}

impl serde_json::ser::Formatter for Spaced<'_> {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        if first {
            Ok(())
        } else {
            out.write_all(self.item.as_bytes())
        }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.begin_array_value(out, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
    ) -> std::io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
}

/// Today's date in a format of `strftime`.
fn today(format: &str) -> Result<String, minijinja::Error> {
    let failed =
        || minijinja::Error::new(ErrorKind::InvalidOperation, "the date cannot be written");
    let format = std::ffi::CString::new(format).map_err(|_| failed())?;
    let mut text = [0u8; 256];
    // SAFETY: `now` and `parts` live through the calls, and `strftime` writes at most `text.len()` bytes.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut parts: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut parts).is_null() {
            return Err(failed());
        }
        libc::strftime(
            text.as_mut_ptr().cast(),
            text.len(),
            format.as_ptr(),
            &parts,
        )
    };
    String::from_utf8(text[..length].to_vec()).map_err(|_| failed())
}
