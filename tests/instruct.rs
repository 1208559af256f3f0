//! From a file of questions and answers to a model that answers: `instruct`, `generate` and `chat`.

use std::path::Path;

use crate::common::place::Place;
use serde_json::{json, Value};

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} {{ m.content }} {% if m.role == 'assistant' %}[SEP]{% endif %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}";

/// A folder with the small Llama, and rows that ask which way a review leans.
fn place() -> Place {
    let place = Place::new();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
    std::fs::create_dir(place.path("llama")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(llama.join(file), place.path("llama").join(file)).unwrap();
    }
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]", "chat_template": TEMPLATE});
    place.write(
        "llama/tokenizer_config.json",
        settings.to_string().as_bytes(),
    );
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let row = |line: &str| {
        let (text, label) = line.split_once('\t').unwrap();
        let answer = if label == "positive" {
            "superb"
        } else {
            "stale"
        };
        json!({"text": text, "answer": answer}).to_string() + "\n"
    };
    let rows: String = table.lines().skip(1).map(row).collect();
    place.write("train.jsonl", rows.as_bytes());
    place
}

fn pipeline(task: &str) -> String {
    format!(
        "pipeline ask\nbackbone \"llama\" {{ max_length = 40 }}\n\
         data {{ train = jsonl(\"train.jsonl\"), dev = jsonl(\"train.jsonl\") }}\n\
         task instruct {{ {task} }}\n\
         unfreeze low = **\n\
         stage tune {{ train = [low], steps = 60, batch = 16, optimizer = adamw {{ lr = 3e-3 }}, evaluate = every 20 steps }}\n"
    )
}

/// The losses on the dev set, in order.
fn dev_losses(place: &Place) -> Vec<f64> {
    let log = std::fs::read_to_string(place.path("runs/ask/log.jsonl")).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter_map(|line| {
            line["metrics"]["loss"]
                .as_f64()
                .or(line["dev"]["loss"].as_f64())
        })
        .collect()
}

#[test]
fn a_file_of_questions_becomes_a_model_that_answers() {
    let place = place();
    for task in [
        "prompt = text, answer = answer",
        "template = \"the film : {text} was {answer}\", answer = answer",
    ] {
        place.write("ask.delta", pipeline(task).as_bytes());
        place.succeed(&["check", "ask.delta"]);
        let plan = place.succeed(&["plan", "ask.delta"]);
        assert!(plan.contains("of them learned"), "{plan}");
        let learned = plan.lines().find(|line| line.starts_with("    learned"));
        assert!(
            learned.is_some_and(|line| line.ends_with("[SEP]")),
            "{plan}"
        );
        place.succeed(&["ask.delta", "--quiet"]);
        let losses = dev_losses(&place);
        assert!(losses.len() == 3 && losses[2] < losses[0], "{losses:?}");
        let rows = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
        let mut rows: Vec<Value> = rows
            .lines()
            .take(2)
            .map(|row| serde_json::from_str(row).unwrap())
            .collect();
        rows[0]["id"] = json!("a");
        let prompts = format!("{}\n{}\n", rows[0], rows[1]);
        place.write("prompts.jsonl", prompts.as_bytes());
        let written = place.succeed(&[
            "generate",
            "runs/ask",
            "--input",
            "prompts.jsonl",
            "--max-tokens",
            "6",
        ]);
        let answers: Vec<Value> = written
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(answers.len(), 2);
        assert_eq!(
            (&answers[0]["id"], &answers[1]["id"]),
            (&json!("a"), &json!(2))
        );
        for (answer, row) in answers.iter().zip(&rows) {
            assert_eq!(answer["text"], row["answer"], "{answers:?}");
            assert_eq!(answer["ended_by"], "end");
        }
        std::fs::remove_dir_all(place.path("runs")).unwrap();
    }
}

#[test]
fn answers_before_a_bad_prompt_are_kept() {
    let place = place();
    place.write(
        "prompts.jsonl",
        b"{\"text\": \"a film\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"a film\"}]}\n{\"txt\": \"a film\"}\n",
    );
    let arguments = [
        "generate",
        "llama",
        "--input",
        "prompts.jsonl",
        "--max-tokens",
        "3",
    ];
    let output = place.run(&arguments);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8(output.stdout).unwrap().lines().count(), 2);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("line 3: the object has no `text`"),
        "{error}"
    );
}

#[test]
fn options_out_of_their_range_are_refused() {
    let place = place();
    place.write("prompts.jsonl", b"{\"text\": \"a film\"}\n");
    for (options, said) in [
        (
            &["--stop", ""][..],
            "`stop` must be a text that is not empty",
        ),
        (
            &["--repetition-penalty", "0"],
            "`repetition_penalty` must be above 0",
        ),
        (
            &["--min-tokens", "9", "--max-tokens", "3"],
            "`min_tokens` must be at most `max_tokens`",
        ),
        (&["--beams", "2", "--temperature", "1"], "draws none"),
        (&["--backbone", "llama"], "has no backbone"),
    ] {
        let arguments = [&["generate", "llama", "--input", "prompts.jsonl"], options].concat();
        let error = place.fail(2, &arguments);
        assert!(error.contains(said), "{error}");
    }
}

/// A backbone's `generation_config.json` decides, and a note says so; an option replaces what it says.
#[test]
fn defaults_of_a_backbone_are_honoured_aloud() {
    let place = place();
    let defaults = json!({"max_new_tokens": 2, "eos_token_id": [3], "do_sample": true, "temperature": 0.5, "no_repeat_ngram_size": 3});
    place.write(
        "llama/generation_config.json",
        defaults.to_string().as_bytes(),
    );
    place.write("prompts.jsonl", b"{\"text\": \"a film\"}\n");
    let said = |options: &[&str]| {
        let arguments = [&["generate", "llama", "--input", "prompts.jsonl"], options].concat();
        let output = place.run(&arguments);
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        (
            answer["tokens"].as_u64().unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (tokens, error) = said(&[]);
    assert!(tokens <= 2, "{tokens}");
    assert!(
        error.contains("decides max_tokens = 2, temperature = 0.5 and top_k = 50"),
        "{error}"
    );
    assert!(
        error.contains("sets no_repeat_ngram_size, which deltarun does not have"),
        "{error}"
    );
    let (_, error) = said(&["--temperature", "0", "--top-k", "0"]);
    assert!(
        error.contains("replace temperature = 0.5 and top_k = 50"),
        "{error}"
    );
}

#[test]
fn rows_that_teach_nothing_are_refused_by_name() {
    let place = place();
    let messages = "messages = messages";
    let long = "film ".repeat(60);
    for (task, row, said) in [
        (
            "prompt = text, answer = answer",
            json!({"text": long, "answer": "superb"}),
            "the text is cut before its answer",
        ),
        (
            messages,
            json!({"messages": "hello"}),
            "the messages are not a JSON list",
        ),
        (
            messages,
            json!({"messages": []}),
            "the list of messages is empty",
        ),
        (
            messages,
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]}),
            "did you mean `assistant`?",
        ),
        (
            messages,
            json!({"messages": [{"content": "a"}]}),
            "a message has no `role`",
        ),
        (
            messages,
            json!({"messages": [{"role": "user", "content": "a"}]}),
            "no turn of the assistant is an answer",
        ),
        (
            "messages = messages, tools = tools",
            json!({"messages": [{"role": "user", "content": "a"}], "tools": "x"}),
            "the tools are not a JSON list",
        ),
        (
            "messages = messages, tools = tools",
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tools": [{"name": "x"}]}),
            "the tokenizer's chat template reads none",
        ),
        (
            messages,
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}),
            "write 0 or 1",
        ),
        (
            messages,
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}),
            "no turn of the assistant is an answer",
        ),
    ] {
        place.write("train.jsonl", format!("{row}\n").as_bytes());
        place.write("ask.delta", pipeline(task).as_bytes());
        let error = place.fail(2, &["check", "ask.delta"]);
        assert!(error.contains(said), "{error}");
        assert!(error.contains("line 1:"), "{error}");
    }
    // ShareGPT's names are read, and a cut answer is said.
    let row =
        json!({"messages": [{"from": "human", "value": "a film"}, {"from": "gpt", "value": long}]});
    place.write("train.jsonl", format!("{row}\n").as_bytes());
    place.write("ask.delta", pipeline(messages).as_bytes());
    let output = place.run(&["check", "ask.delta"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && error.contains("delta::data::cut"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_without_a_chat_template_is_refused_with_a_way_out() {
    let place = place();
    place.write("llama/tokenizer_config.json", b"{}");
    place.write(
        "ask.delta",
        pipeline("prompt = text, answer = answer").as_bytes(),
    );
    let error = place.fail(2, &["check", "ask.delta"]);
    assert!(error.contains("has no chat template"), "{error}");
    assert!(error.contains("template = "), "{error}");
}

/// The words that the small Llama writes without an end, and with a text that ends them or keeps them going.
#[test]
fn answers_end_by_a_text_and_not_before_the_fewest_tokens() {
    let place = place();
    place.write("prompts.jsonl", b"{\"text\": \"a fine film with\"}\n");
    let write = |options: &[&str]| -> Value {
        let arguments = [
            "generate",
            "llama",
            "--input",
            "prompts.jsonl",
            "--max-tokens",
            "8",
        ];
        serde_json::from_str(&place.succeed(&[&arguments[..], options].concat())).unwrap()
    };
    let whole = write(&[]);
    let text = whole["text"].as_str().unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    let later = words.iter().find(|word| **word != words[0]).unwrap();
    let (before, _) = text.split_once(later).unwrap();
    let stopped = write(&["--stop", later]);
    assert_eq!(stopped["ended_by"], "stop", "{stopped}");
    assert_eq!(
        stopped["text"].as_str().unwrap().trim(),
        before.trim(),
        "{whole}"
    );
    // A token that ends answers is not written before there are enough.
    let tokenizer = std::fs::read_to_string(place.path("llama/tokenizer.json")).unwrap();
    let tokenizer: Value = serde_json::from_str(&tokenizer).unwrap();
    let end = &tokenizer["model"]["vocab"][words[0]];
    let defaults = json!({"eos_token_id": [end]}).to_string();
    place.write("llama/generation_config.json", defaults.as_bytes());
    assert_eq!(write(&[])["tokens"], 1);
    assert_eq!(write(&[])["ended_by"], "end");
    let long = write(&["--min-tokens", "4"]);
    assert!(long["tokens"].as_u64().unwrap() >= 4, "{long}");
}

/// A conversation on a terminal: each answer is to all turns before it.
#[test]
fn a_conversation_is_answered_turn_by_turn() {
    use std::io::Write;
    let place = place();
    let mut child = place
        .command(&["chat", "llama", "--max-tokens", "3"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"a fine film\nand the plot\n\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answers: Vec<&str> = text.split("> ").skip(1).collect();
    assert_eq!(answers.len(), 3, "{text}");
    assert!(
        answers[..2].iter().all(|answer| !answer.trim().is_empty()),
        "{text}"
    );
}

/// A template that writes the tokenizer's first token has it once, and rows without the end token are reported.
#[test]
fn the_first_token_is_read_once_and_a_missing_end_is_said() {
    let place = place();
    let tokens = |template: &str| {
        let task = format!("template = \"{template}\", answer = answer");
        place.write("ask.delta", pipeline(&task).as_bytes());
        let plan = place.succeed(&["plan", "ask.delta"]);
        let example = plan.split("first example").nth(1).unwrap().to_owned();
        example.matches("[CLS]").count()
    };
    assert_eq!(tokens("[CLS] {text} : {answer}"), 1);
    assert_eq!(tokens("{text} : {answer}"), 1);
    let without = TEMPLATE.replace("[SEP]", "");
    let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]", "chat_template": without});
    place.write(
        "llama/tokenizer_config.json",
        settings.to_string().as_bytes(),
    );
    place.write(
        "ask.delta",
        pipeline("prompt = text, answer = answer").as_bytes(),
    );
    let output = place.run(&["check", "ask.delta"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("have an answer without `[SEP]`"), "{said}");
}
