//! Writes the drafted pipeline, with a comment where something was assumed.

use std::fmt::Write;
use std::path::Path;

use serde_json::{json, Value};

use super::file::DataFile;
use super::guess::FileKind;
use super::Draft;
use crate::backbone::{Config, FeedForwardKind};
use crate::data::{Sample, TextEncoder};
use crate::diagnostic::Problem;
use crate::task::{Conversation, Encoder};
use crate::text::counted;

/// Steps that a short training needs to learn anything.
const LEAST_STEPS: usize = 300;

/// Writes the pipeline for a file.
pub(super) fn write(
    file: &DataFile,
    sample: &Sample,
    guess: &FileKind,
    (backbone, config, encoder): (Option<&str>, Option<&Config>, Option<&TextEncoder>),
    is_elsewhere: bool,
    notes: &[String],
) -> Result<Draft, Problem> {
    let (kind, settings) = task(guess, config);
    let proposed = proposed(guess);
    let is_decoder = config.map_or(proposed.is_decoder, Config::is_decoder);
    let (length, longest) = lengths(sample, guess, encoder);
    let length = config.map_or(length, |config| length.min(config.longest()));
    let rows = sample.rows.len();
    let (name, seen) = (name(file), counted(rows, "row"));
    let mut text = format!(
        "# Drafted by `deltarun init` from {}; read it once, and change what you know better.\npipeline {name}\n\n\
         # `--set rank=8` tries another value, and so does a script.\nparam rank = 16\nparam lr = {}\n\n",
        quoted(&file.plan.path.display().to_string()),
        rate(kind, is_decoder),
    );
    if backbone.is_none() {
        text += "# Any directory of a Hugging Face model, a GGUF file, or a model of the hub.\n";
    }
    let model = backbone.unwrap_or(proposed.name);
    let whole = Path::new(model)
        .canonicalize()
        .ok()
        .filter(|_| is_elsewhere);
    let model = quoted(&whole.map_or(model.to_owned(), |whole| whole.display().to_string()));
    let _ = write!(
        text,
        "# The longest of the first {seen} has about {longest} tokens; longer texts are cut.\n\
         backbone {model} {{ max_length = {length} }}\n\n"
    );
    for note in notes {
        let _ = writeln!(text, "# {note}.");
    }
    text += &data(file, rows, is_elsewhere);
    let unread = unread(sample, guess);
    if !unread.is_empty() {
        let _ = writeln!(text, "# Not read: {}.", crate::text::list(&unread));
    }
    let _ = write!(text, "task {kind} {{\n{}\n}}\n\n", settings.join("\n"));
    let sites = sites(config, is_decoder);
    let _ = write!(
        text,
        "reparam low_rank = lora {{ rank = rank, alpha = 32 }} on {sites}\n\n"
    );
    text += &stage(kind, rows);
    let or_more = match Some(rows) == file.plan.most {
        true => " or more",
        false => "",
    };
    let columns = crate::text::quoted_list(sample.columns.iter().map(String::as_str));
    let found = format!("{seen}{or_more} with {columns}: the task `{kind}`");
    Draft::new(name, found, &text)
}

/// The columns that the task does not read.
fn unread(sample: &Sample, guess: &FileKind) -> Vec<String> {
    let (texts, label) = (guess.texts(), guess.label());
    let is_read = |name: &str| texts.contains(&name) || label == Some(name);
    let unread = sample.columns.iter().filter(|name| !is_read(name));
    unread.map(|name| format!("`{name}`")).collect()
}

/// The `data` block.
fn data(file: &DataFile, rows: usize, is_elsewhere: bool) -> String {
    let read = |path: &Path| {
        // A pattern is no file: its directory is.
        let directory = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let whole = directory.canonicalize().ok().zip(path.file_name());
        let whole = whole.map(|(directory, name)| directory.join(name));
        let whole = whole.filter(|_| is_elsewhere);
        let path = whole.as_deref().unwrap_or(path).display().to_string();
        let (reader, settings) = &file.reader;
        format!("{reader}({}{settings})", quoted(&path))
    };
    let mut text = format!("data {{\ntrain = {}\n", read(&file.plan.path));
    text += &match &file.dev {
        Some(dev) => format!("dev = {}\n", read(dev)),
        None if rows >= 20 => {
            "dev = split(train, 10%)   # taken away from the training\n".to_owned()
        }
        None => "# Too few rows to take some away: the training is not evaluated.\n".to_owned(),
    };
    if let Some(test) = &file.test {
        text += &format!("test = {}\n", read(test));
    }
    text + "}\n\n"
}

/// A usual rate for LoRA: QLoRA's for decoders, and larger ones for encoders and T5.
fn rate(kind: &str, is_decoder: bool) -> &'static str {
    match (kind, is_decoder) {
        ("prefer", _) => "5e-5",
        (_, true) => "2e-4",
        ("seq2seq" | "span_lm", false) => "1e-3",
        _ => "5e-4",
    }
}

/// The stage.
fn stage(kind: &str, rows: usize) -> String {
    let has_own_head = matches!(kind, "classify" | "regress" | "tag");
    let (batch, least, trained) = match has_own_head {
        true => (16, 3, "low_rank, head"),
        // A checkpoint may lack the head of its pre-training.
        false if kind == "masked_lm" => (16, 1, "low_rank, head"),
        false => (8, 1, "low_rank"),
    };
    let epochs = (LEAST_STEPS * batch).div_ceil(rows.max(1)).clamp(least, 20);
    format!(
        "stage tune {{\ntrain = [{trained}]\nepochs = {epochs}\nbatch = {batch}\n\
         optimizer = adamw {{ lr = lr }}\nschedule = linear {{ warmup = 6% }}\n}}\n"
    )
}

/// The file's name as the pipeline's: letters, digits and underscores.
fn name(file: &DataFile) -> String {
    let stem = file
        .plan
        .path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    // A pattern of shards has its name before the number.
    let stem = stem.split(['.', '*']).next().unwrap_or_default();
    let stem = stem.trim_end_matches(['-', '_']).to_owned();
    // `train` alone says nothing; its directory may.
    let parent = file
        .plan
        .path
        .parent()
        .and_then(|parent| parent.file_name());
    let whole = match (stem.as_str(), parent) {
        ("train" | "dev" | "test" | "data", Some(parent)) => parent.to_string_lossy().into_owned(),
        _ => stem,
    };
    let name: String = whole
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_lowercase()
            } else {
                '_'
            }
        })
        .collect();
    let name = name.trim_matches('_');
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => name.to_owned(),
        _ => format!("task_{name}"),
    }
}

/// The task's kind and its settings.
fn task(guess: &FileKind, config: Option<&Config>) -> (&'static str, Vec<String>) {
    let text = |names: &[String]| match names {
        [one] => format!("text = {}", word(one)),
        several => {
            let names: Vec<String> = several.iter().map(|name| word(name)).collect();
            format!("text = [{}]", names.join(", "))
        }
    };
    // A decoder reads source and target as one text.
    let is_decoder = config.is_some_and(Config::is_decoder);
    let separator = is_decoder.then(|| "separator = \" => \"".to_owned());
    match guess {
        FileKind::Messages { messages } => ("instruct", vec![format!("messages = {}", word(messages))]),
        FileKind::Instruct { prompt, answer } => {
            ("instruct", vec![format!("prompt = {}", word(prompt)), format!("answer = {}", word(answer))])
        }
        FileKind::Plain { prompt, answer } => (
            "instruct",
            vec![
                format!("template = \"{{{prompt}}}\\n{{{answer}}}\"   # the tokenizer has no chat template"),
                format!("answer = {}", word(answer)),
            ],
        ),
        FileKind::Alpaca { instruction, input, answer } => (
            "instruct",
            vec![
                format!("template = \"### Instruction:\\n{{{instruction}}}\\n\\n### Input:\\n{{{input}}}\\n\\n### Response:\\n{{{answer}}}\""),
                format!("answer = {}", word(answer)),
            ],
        ),
        FileKind::Reading { context, question } => (
            "instruct",
            vec![
                format!("template = \"{{{context}}}\\nQuestion: {{{question}}}\\nAnswer: {{answers.text.0}}\""),
                "answer = \"answers.text.0\"".to_owned(),
            ],
        ),
        FileKind::Prefer { prompt, chosen, rejected } => {
            let prompt = prompt.iter().map(|prompt| format!("prompt = {}", word(prompt)));
            let answers = [("chosen", chosen), ("rejected", rejected)];
            let answers = answers.map(|(key, column)| format!("{key} = {}", word(column)));
            ("prefer", prompt.chain(answers).chain(["loss = dpo".to_owned()]).collect())
        }
        FileKind::Tag {
            tokens,
            tags,
            is_plain,
        } => {
            let columns = [
                format!("tokens = {}", word(tokens)),
                format!("tags = {}", word(tags)),
            ];
            let plain = is_plain.then(|| "scheme = plain   # labels of words, not of spans".to_owned());
            ("tag", columns.into_iter().chain(plain).collect())
        }
        FileKind::Choose {
            context,
            prompt,
            answers,
            label,
            labels,
        } => {
            let words = |names: &[String]| {
                let names: Vec<String> = names.iter().map(|name| word(name)).collect();
                format!("[{}]", names.join(", "))
            };
            let asked = match context {
                Some(context) => format!("template = \"{{{context}}}\\n{{{prompt}}} {{answer}}\""),
                None => format!("prompt = {}", word(prompt)),
            };
            let answers = match answers.as_slice() {
                [list] => word(list),
                several => words(several),
            };
            let named = (!labels.is_empty()).then(|| format!("labels = {}", words(labels)));
            let settings = [asked, format!("answers = {answers}"), format!("label = {}", word(label))];
            ("choose", settings.into_iter().chain(named).collect())
        }
        FileKind::Classify { text: names, label, is_several } => {
            let mut settings = vec![text(names), format!("label = {}", word(label))];
            settings.extend(is_several.then(|| "several = on".to_owned()));
            ("classify", settings)
        }
        FileKind::Regress { text: names, label } => ("regress", vec![text(names), format!("label = {}", word(label))]),
        FileKind::Translate { source, target } => (
            "seq2seq",
            [
                format!("source = {}", word(source)),
                format!("target = {}", word(target)),
                "metric = rouge_l".to_owned(),
                "generate = { max_tokens = 64 }".to_owned(),
            ]
            .into_iter()
            .chain(separator)
            .collect(),
        ),
        FileKind::Language { text } => {
            let kind = match config {
                Some(config) if config.decoder_layers.is_some() => "span_lm",
                Some(config) if !config.is_decoder() => "masked_lm",
                _ => "causal_lm",
            };
            (kind, vec![format!("text = {}", word(text))])
        }
    }
}

/// A backbone that a draft names when the user names none.
struct Proposed {
    name: &'static str,
    is_decoder: bool,
}

/// A small backbone of the hub for a task.
fn proposed(guess: &FileKind) -> Proposed {
    let (name, is_decoder) = match guess {
        FileKind::Classify { .. } | FileKind::Regress { .. } => {
            ("hf:distilbert/distilbert-base-uncased", false)
        }
        FileKind::Tag { .. } => ("hf:distilbert/distilbert-base-cased", false),
        FileKind::Translate { .. } => ("hf:google/flan-t5-small", false),
        FileKind::Language { .. } => ("hf:HuggingFaceTB/SmolLM2-135M", true),
        _ => ("hf:HuggingFaceTB/SmolLM2-135M-Instruct", true),
    };
    Proposed { name, is_decoder }
}

/// Where a LoRA pays most (Dettmers et al., arXiv 2305.14314, section 4: at all linear layers of a decoder).
fn sites(config: Option<&Config>, is_decoder: bool) -> &'static str {
    let is_gated = config.is_none_or(|config| config.feed_forward() == FeedForwardKind::Gated);
    match (is_decoder, is_gated) {
        (true, true) => "block.*.{attn.{q,k,v,o},ff.{gate,up,down}}",
        (true, false) => "block.*.{attn.{q,k,v,o},ff.{up,down}}",
        (false, _) => "**.attn.{q,v}",
    }
}

/// A `max_length`, and the tokens of the longest row; without a tokenizer, four bytes of a text are about one.
fn lengths(sample: &Sample, guess: &FileKind, encoder: Option<&TextEncoder>) -> (usize, usize) {
    let read = guess.texts();
    let places: Vec<usize> = (0..sample.columns.len())
        .filter(|place| read.contains(&sample.columns[*place].as_str()))
        .collect();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let tokens = |row: &Vec<Value>| {
        let texts: Vec<String> = places.iter().map(|place| text(&row[*place])).collect();
        let whole = texts.join(" ");
        let exact = encoder.and_then(|own| own.texts(std::slice::from_ref(&whole)).ok());
        exact.map_or(whole.len() / 4 + 8, |encoded| encoded.tokens.len())
    };
    let mut all: Vec<usize> = sample.rows.iter().map(tokens).collect();
    all.sort_unstable();
    let usual = all[(all.len() * 99 / 100).min(all.len() - 1)];
    let around = match guess {
        FileKind::Classify { .. } | FileKind::Regress { .. } | FileKind::Tag { .. } => 0,
        _ => encoder.and_then(around_turns).unwrap_or(24),
    };
    let length = (usual + around).next_multiple_of(16).clamp(32, 1024);
    (length, all[all.len() - 1] + around)
}

/// The tokens that a chat template puts around a prompt and its answer.
fn around_turns(encoder: &TextEncoder) -> Option<usize> {
    let turn = |role: &str| json!({"role": role, "content": "a"});
    let conversation = Conversation {
        messages: vec![turn("user"), turn("assistant")],
        tools: None,
    };
    let written = encoder.converse(&conversation, false).ok()?;
    Some(encoder.prompt(&written).ok()?.text.tokens.len())
}

/// A name as the language writes it.
fn word(name: &str) -> String {
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    match is_plain {
        true => name.to_owned(),
        false => quoted(name),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
