//! Conversations become the texts that transformers makes of them, with the same answers, by
//! `tests/fixtures/make_chat.py`.

use std::path::Path;

use crate::common::{config, fixture};
use deltarun::data::TextEncoder;
use deltarun::task::{Conversation, Encoder};
use serde_json::{json, Value};

/// Renders every conversation of a file in every template of it. Returns how many texts there were, and the templates
/// whose texts or answers differ.
fn render_all(path: &Path) -> (usize, Vec<String>) {
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = fixture("tokenizers/fast_as_stored");
    for file in ["tokenizer.json", "config.json"] {
        std::fs::copy(tokenizer.join(file), folder.path().join(file)).unwrap();
    }
    let mut settings = expected["tokens"].clone();
    settings["tokenizer_class"] = json!("PreTrainedTokenizerFast");
    std::fs::write(
        folder.path().join("tokenizer_config.json"),
        settings.to_string(),
    )
    .unwrap();
    let config = config(folder.path());
    let (mut texts, mut wrong) = (0, Vec::new());
    for (name, template) in expected["templates"].as_object().unwrap() {
        let source = template["source"].as_str().unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
        let encoder = TextEncoder::open(folder.path(), 512, &config).unwrap();
        let marks = source.contains("generation %}");
        for case in template["cases"].as_array().unwrap() {
            let conversation =
                &expected["conversations"][case["conversation"].as_u64().unwrap() as usize];
            let tools = conversation["tools"].clone();
            let found = encoder.converse(
                &Conversation {
                    messages: conversation["messages"].as_array().unwrap().clone(),
                    tools: Some(tools).filter(|tools| !tools.is_null()),
                },
                case["open"].as_bool().unwrap(),
            );
            let Some(text) = case["text"].as_str() else {
                if found.is_ok() {
                    wrong.push(format!("{name} renders {case}"));
                }
                continue;
            };
            texts += 1;
            match found {
                // Without marks of its own, a template may not tell where an earlier answer ends.
                Err(problem) if !marks && problem.message.contains("no fixed place") => {}
                Err(problem) => wrong.push(format!("{name}: {}\n{case}", problem.message)),
                Ok(found) => {
                    // An empty block is an answer without tokens.
                    let stated = case["answers"].as_array().unwrap().iter();
                    let expected_answers: Vec<&Value> =
                        stated.filter(|place| place[0] != place[1]).collect();
                    let answers = found.answers.iter();
                    let answers: Vec<[usize; 2]> = answers.map(|at| [at.start, at.end]).collect();
                    if found.text != text {
                        wrong.push(format!("{name}:\n{:?}\n{text:?}", found.text));
                    } else if marks && json!(answers) != json!(expected_answers) {
                        wrong.push(format!("{name}: {answers:?}\n{case}"));
                    }
                }
            }
        }
    }
    (texts, wrong)
}

#[test]
fn conversations_are_written_as_transformers_writes_them() {
    let (texts, wrong) = render_all(&fixture("chat.json"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert_eq!(texts, 34);
}

/// A first turn of the assistant, which nobody asked for, is read and not learned.
/// The answers of a conversation in a template.
fn answers(template: &str, messages: Vec<Value>) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = fixture("tokenizers/fast_as_stored");
    for file in ["tokenizer.json", "config.json"] {
        std::fs::copy(tokenizer.join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let encoder = TextEncoder::open(folder.path(), 512, &config(folder.path())).unwrap();
    let conversation = Conversation {
        messages,
        tools: None,
    };
    let found = encoder.converse(&conversation, false).unwrap();
    let of = |range: &std::ops::Range<usize>| found.text[range.clone()].to_owned();
    found.answers.iter().map(of).collect()
}

const PLAIN: &str = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
const MARKED: &str = "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn a_first_turn_of_the_assistant_is_no_answer() {
    let messages = vec![
        turn("assistant", "hi"),
        turn("user", "one"),
        turn("assistant", "two"),
    ];
    assert_eq!(answers(PLAIN, messages), ["two"]);
}

/// OpenAI's files say `weight`, Axolotl's `train`.
#[test]
fn an_answer_may_be_read_and_not_learned() {
    for (key, no, yes) in [
        ("weight", json!(0), json!(1)),
        ("train", json!(false), json!(true)),
    ] {
        let with = |content: &str, value: &Value| {
            let mut message = turn("assistant", content);
            message[key] = value.clone();
            message
        };
        let messages = vec![
            turn("user", "a"),
            with("one", &no),
            turn("user", "b"),
            with("two", &yes),
            turn("user", "c"),
            turn("assistant", "three"),
        ];
        for template in [PLAIN, MARKED] {
            assert_eq!(answers(template, messages.clone()), ["two", "three"]);
        }
    }
}

#[test]
#[ignore = "needs DELTARUN_CHAT"]
fn published_templates_write_what_transformers_writes() {
    let path = std::env::var_os("DELTARUN_CHAT").expect("DELTARUN_CHAT is set");
    let (texts, wrong) = render_all(Path::new(&path));
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(texts > 700, "{texts}");
}
