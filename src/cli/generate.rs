//! `deltarun generate`: JSON lines with prompts in, JSON lines with answers out. `deltarun chat`: the same as a
//! conversation on a terminal.

use std::io::{BufRead, Write};

use serde_json::{json, Map, Value};

use super::arguments::{ChatOptions, DecodingOptions, GenerateOptions};
use super::commands::{device, open_source};
use super::input::read_as_run;
use super::lines::{answer_file, at_line, check_output, stopped, Answering, Asked, Stop, ID};
use super::predict::{example, values};
use super::Ended;
use crate::data::Wanted;
use crate::diagnostic::{Problem, Problems};
use crate::generate::{generate as answers_of, text_of, Decoding, Defaults, Written};
use crate::plan::FilePlan;
use crate::run::{Loaded, Loader};
use crate::task::{Conversation, Encoder, Example, Marked, Wishes};
use crate::terminal::{note, print, say};
use crate::text::list;

pub(super) fn generate(options: &GenerateOptions) -> Result<Ended, Problems> {
    check_output(&options.files)?;
    let loaded = open_source(&options.source, device(&options.source.device)?)?;
    let writer = ModelWriter::new(&loaded, &options.decoding)?;
    answer_file(&writer, &options.files)
}

/// A model that writes.
struct ModelWriter<'a> {
    loaded: &'a Loaded,
    loader: Loader,
    decoding: Decoding,
}

impl<'a> ModelWriter<'a> {
    fn new(loaded: &'a Loaded, options: &DecodingOptions) -> Result<Self, Problem> {
        let task = loaded.task()?;
        if !task.kind.writes() {
            let message = format!("the task `{}` writes no text", task.kind.name());
            return Err(Problem::new("delta::cli::task", message)
                .help(match task.kind.predicts() {
                    true => "answer with `deltarun predict`, or use a run whose last task is `instruct`, `causal_lm` or `seq2seq`",
                    false => "use a run whose last task is `instruct`, `causal_lm` or `seq2seq`, such as a further stage of this one",
                }));
        }
        // A prompt may be longer than the texts of the training.
        let mut plan = loaded.plan.clone();
        let own = plan.tokens(plan.stages.len());
        let longest = plan.backbone.config.longest().saturating_sub(own);
        plan.backbone.max_length = plan.backbone.max_length.max(longest);
        let loader = Loader::new(&plan)?;
        let defaults = Defaults::read(&loaded.plan.backbone.directory)?;
        say_defaults(&defaults, &options.wishes().or(task.kind.wishes()));
        let mut ends = defaults.ends;
        ends.extend(loader.encoder().end_token());
        let wishes = options.wishes().or(task.kind.wishes()).or(defaults.wishes);
        let decoding = Decoding::of(wishes, ends)?;
        Ok(ModelWriter {
            loaded,
            loader,
            decoding,
        })
    }

    fn prompt(&self, marked: &Marked) -> Result<Example, Problem> {
        let prompt = self.loader.encoder().prompt(marked)?;
        match (prompt.text.tokens.is_empty(), prompt.cut) {
            (true, _) => Err(Problem::new(
                "delta::data::no_tokens",
                "the tokenizer finds no tokens in the prompt",
            )
            .help("give a prompt with a text")),
            (_, 0) => Ok(prompt),
            (_, cut) => {
                let length = prompt.text.tokens.len();
                let message = format!(
                    "the prompt has {} tokens, and the longest sequence {length}",
                    length + cut
                );
                Err(Problem::new("delta::generate::too_long", message).help("shorten it"))
            }
        }
    }

    fn text(&self, written: &Written) -> Result<String, Problem> {
        text_of(written, &self.decoding, &|tokens| {
            self.loader.encoder().decode(tokens)
        })
    }
}

/// Says what a backbone's `generation_config.json` decides beside `wishes`, and what of it is not done.
fn say_defaults(defaults: &Defaults, wishes: &Wishes) {
    let stated = defaults.wishes.clone();
    if stated != Wishes::default() {
        let fields = |wishes: &Wishes| match serde_json::to_value(wishes) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        let own = fields(wishes);
        let (replaced, kept): (Vec<_>, Vec<_>) = fields(&stated)
            .into_iter()
            .map(|(key, value)| (own.contains_key(&key), format!("{key} = {value}")))
            .partition(|(is_replaced, _)| *is_replaced);
        let names =
            |all: Vec<(bool, String)>| all.into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        if !kept.is_empty() {
            note(&format!(
                "`generation_config.json` decides {}",
                list(&names(kept))
            ));
        }
        if !replaced.is_empty() {
            note(&format!(
                "the options or the pipeline replace {} of `generation_config.json`",
                list(&names(replaced))
            ));
        }
    }
    if !defaults.unknown.is_empty() {
        note(&format!(
            "`generation_config.json` sets {}, which deltarun does not have",
            list(&defaults.unknown)
        ));
    }
}

impl Answering for ModelWriter<'_> {
    type Question = Marked;

    fn most(&self) -> usize {
        16
    }

    fn example(&self) -> String {
        let task = self.loaded.task();
        task.map_or(String::new(), |task| example(task.kind.texts()))
    }

    fn file(&self, file: FilePlan) -> Result<FilePlan, Problem> {
        read_as_run(&self.loaded.plan, file)
    }

    fn wanted(&self) -> Vec<Wanted<'_>> {
        let Ok(task) = self.loaded.task() else {
            return Vec::new();
        };
        let texts = task.kind.texts().iter().map(String::as_str);
        let names = texts.chain([ID]);
        let mut all: Vec<Wanted> = names.map(|name| Wanted::of(name, &task.kind)).collect();
        // What any model that writes may read.
        for name in ["messages", "tools", "prompt"] {
            if all.iter().all(|own| own.name != name) {
                all.push(Wanted {
                    is_structured: name != "prompt",
                    may_be_null: true,
                    ..Wanted::text(name)
                });
            }
        }
        all
    }

    fn read(&self, object: &Map<String, Value>) -> Result<Marked, (String, String)> {
        let said = |problem: Problem| {
            let help = problem.help.clone().unwrap_or_default();
            (problem.message, help)
        };
        let kind = &self.loaded.task().map_err(said)?.kind;
        // A run reads what it was trained on; whatever else a model is, it may read a conversation.
        let columns = kind.texts();
        let has_own =
            !columns.is_empty() && columns.iter().all(|column| object.contains_key(column));
        let conversation = match (object.get("messages"), object.get("prompt")) {
            (Some(messages), _) if !has_own => {
                let tools = object.get("tools").map(Value::to_string);
                Conversation::read(&messages.to_string(), tools.as_deref())?
            }
            // Whole conversations are read from `messages`, or begun with a prompt.
            (None, Some(Value::String(prompt))) if columns.is_empty() => Conversation {
                messages: vec![json!({"role": "user", "content": prompt})],
                tools: None,
            },
            _ if columns.is_empty() => {
                let message = "the object has neither `messages` nor `prompt`".to_owned();
                return Err((message, "write `{\"prompt\": \"...\"}`".to_owned()));
            }
            _ => {
                let row = values(object, columns, kind)?;
                return kind.open(&row, self.loader.encoder()).map_err(said);
            }
        };
        let conversation = conversation.with_system(kind.system()).unanswered();
        let encoder = self.loader.encoder();
        encoder.converse(&conversation, true).map_err(said)
    }

    fn answer(&self, asked: &[Asked<Marked>], output: &mut dyn Write) -> Result<(), Stop> {
        let mut prompts = Vec::new();
        for (at, line) in asked.iter().enumerate() {
            match self.prompt(&line.question) {
                Ok(prompt) => prompts.push(prompt),
                Err(mut problem) => {
                    problem.message = at_line(line.number, &problem.message).message;
                    self.answer(&asked[..at], output)?;
                    return Err(Stop::Problem(at, problem));
                }
            }
        }
        if prompts.is_empty() {
            return Ok(());
        }
        let mut done: Vec<Option<Written>> = vec![None; asked.len()];
        let mut next = 0;
        let mut wrong = None;
        let mut write = |number: usize, written: &Written, done: &mut Vec<Option<Written>>| {
            done[number] = Some(written.clone());
            // An answer is written as soon as those before it are.
            while let Some(written) = done.get(next).and_then(Option::as_ref) {
                let line = self.line(&asked[next], written);
                let line = line.map_err(|problem| Stop::Problem(next, problem));
                let line = line.and_then(|line| {
                    let put = writeln!(output, "{line}").and_then(|()| output.flush());
                    put.map_err(|e| stopped(next, &e))
                });
                if let Err(stop) = line {
                    wrong = Some(stop);
                    return false;
                }
                next += 1;
            }
            true
        };
        let references: Vec<&Example> = prompts.iter().collect();
        let mut is_failed = false;
        let mut each = |number: usize, written: &Written| {
            // Nobody waits any more once an answer could not be written.
            is_failed |= !is_failed && written.is_over && !write(number, written, &mut done);
            !is_failed
        };
        let all = answers_of(
            &self.loaded.graph,
            &references,
            &self.decoding,
            &|tokens| self.loader.encoder().decode(tokens),
            &mut each,
        );
        match all {
            Ok(all) => {
                for (number, written) in all.iter().enumerate() {
                    if done[number].is_none() && !write(number, written, &mut done) {
                        break;
                    }
                }
            }
            Err(problem) => return Err(Stop::Problem(next, problem)),
        }
        wrong.map_or(Ok(()), Err)
    }
}

impl ModelWriter<'_> {
    fn line(&self, asked: &Asked<Marked>, written: &Written) -> Result<Value, Problem> {
        let text = self.text(written)?;
        let last = written.tokens.last();
        let ended = match written.ended {
            true if last.is_some_and(|last| self.decoding.ends.contains(last)) => "end",
            true => "stop",
            false => "max_tokens",
        };
        Ok(asked.answered([
            ("text".to_owned(), json!(text)),
            ("tokens".to_owned(), json!(written.tokens.len())),
            ("ended_by".to_owned(), json!(ended)),
        ]))
    }
}

pub(super) fn chat(options: &ChatOptions) -> Result<Ended, Problems> {
    let loaded = open_source(&options.source, device(&options.source.device)?)?;
    let writer = ModelWriter::new(&loaded, &options.decoding)?;
    let mut messages = Vec::new();
    let own = loaded.task()?.kind.system();
    if let Some(system) = options.system.as_deref().or(own) {
        messages.push(json!({"role": "system", "content": system}));
    }
    say("write a message and Enter; an empty line ends the conversation");
    loop {
        print("> ");
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).map_err(|e| {
            Problem::new(
                "delta::cli::input",
                format!("the message cannot be read: {e}"),
            )
            .help("write it in UTF-8")
        })?;
        let line = line.trim();
        if read == 0 || line.is_empty() {
            return Ok(Ended::Done);
        }
        messages.push(json!({"role": "user", "content": line}));
        let conversation = Conversation {
            messages: messages.clone(),
            tools: None,
        };
        let marked = writer.loader.encoder().converse(&conversation, true)?;
        let prompt = writer.prompt(&marked)?;
        let mut shown = 0;
        // A character may take several tokens, so what has come so far is decoded each time.
        let mut each = |_: usize, written: &Written| {
            let text = writer.text(written).unwrap_or_default();
            let whole = text.trim_end_matches('\u{fffd}');
            if whole.len() > shown && whole.is_char_boundary(shown) {
                print(&whole[shown..]);
                shown = whole.len();
            }
            true
        };
        let written = answers_of(
            &loaded.graph,
            &[&prompt],
            &writer.decoding,
            &|tokens| writer.loader.encoder().decode(tokens),
            &mut each,
        )?;
        print("\n");
        let answer = writer.text(&written[0])?;
        messages.push(json!({"role": "assistant", "content": answer}));
    }
}
