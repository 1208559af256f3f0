//! Preferences: losses and gradients of pairs, by `tests/fixtures/make_preferences.py`, and a run.

use crate::common::place::Place;
use crate::common::{difference, fixture, json_fixture, numbers, plan_of, text_of};
use deltarun::data::{groups, Prediction};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::task::{Comparison, Example, Likelihoods, Target};
use serde_json::{json, Value};

fn expected() -> Value {
    json_fixture("preferences.json")
}

fn sequence(prompt: &[u32], answer: &[u32]) -> Example {
    let tokens = [prompt, answer].concat();
    let places = std::iter::once(prompt.len()..tokens.len()).collect();
    Example {
        text: text_of(&tokens),
        decoder: Vec::new(),
        target: Target::Answers(places),
        cut: 0,
        others: Vec::new(),
    }
}

fn graph(loss: &str, delta: &str) -> Graph {
    let directory = fixture("llama_a");
    let text = format!(
        "backbone \"{}\" {{ dropout = off }}\n\
         data {{ train = jsonl(\"t\") }}\n\
         task prefer {{ chosen = chosen, rejected = rejected, {loss} }}\n\
         {delta}\n\
         stage s {{ train = [low], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
        directory.display()
    );
    let plan = plan_of(&text, &directory);
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    graph.activate(&plan, 0).unwrap();
    graph
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let expected = expected();
    let pairs: Vec<[Vec<u32>; 3]> = serde_json::from_value(expected["pairs"].clone()).unwrap();
    let examples: Vec<Example> = pairs
        .iter()
        .map(|[prompt, first, second]| {
            let other = sequence(prompt, second);
            sequence(prompt, first).among(vec![other], Some(0))
        })
        .collect();
    let all: Vec<&Example> = examples.iter().collect();
    let reference: Vec<[f32; 2]> = serde_json::from_value(expected["reference"].clone()).unwrap();
    for (name, settings) in [
        ("dpo", "loss = dpo, beta = 0.4, smoothing = 0.1"),
        (
            "simpo",
            "loss = simpo, beta = 0.4, gamma = 0.3, smoothing = 0.1",
        ),
        ("orpo", "loss = orpo, beta = 0.4"),
    ] {
        let of_trl = &expected[name];
        let loss_of_trl = of_trl["loss"].as_f64().unwrap() as f32;
        // The head's weight is trained, or it is frozen and the logits are never in memory together.
        for delta in [
            "unfreeze low = **",
            "reparam low = lora { rank = 2 } on **.q",
        ] {
            let graph = graph(settings, delta);
            // One group for all pairs, or one for each.
            for group_rows in [1000, 8] {
                let prediction = Prediction {
                    reads_prompts: name == "orpo",
                    reference: if name == "dpo" { &reference } else { &[] },
                    ..Prediction::default()
                };
                let groups = groups(&all, 0, prediction, group_rows);
                let ((loss, gradients), compared) = graph.gradients_and_answers(&groups).unwrap();
                let mean = |sum: f64| sum / compared.prompts as f64;
                let logged = [
                    ("margin", mean(compared.chosen - compared.rejected)),
                    ("accuracy", mean(compared.right as f64)),
                    ("chosen", mean(compared.chosen)),
                    ("rejected", mean(compared.rejected)),
                ];
                for (key, value) in logged {
                    let of_trl = of_trl[key].as_f64().unwrap();
                    assert!(
                        (value - of_trl).abs() < 1e-5,
                        "{name}, {key}: {value} {of_trl}"
                    );
                }
                assert!(
                    (loss - loss_of_trl).abs() < 2e-5 * loss_of_trl.abs().max(1.0),
                    "{name}, {delta}: {loss}, {loss_of_trl}"
                );
                let weight = gradients
                    .iter()
                    .find(|(id, _)| id.to_string().ends_with("block.0.attn.q.weight"));
                if let Some((_, gradient)) = weight {
                    let worst = difference(gradient, &numbers(&of_trl["gradient"]), false);
                    assert!(worst < 1e-5, "{name}: gradients differ by {worst}");
                }
                assert_eq!(weight.is_some(), delta.starts_with("unfreeze"));
            }
        }
    }
}

/// An evaluation's loss and rewards are those of the formulas, in f64.
#[test]
fn rewards_are_those_of_the_formulas() {
    let pair = Likelihoods {
        sums: vec![-6.0, -9.0],
        tokens: vec![3, 4],
        reference: vec![-7.0, -8.0],
        whole: 2.5,
        right: 0,
    };
    let dpo = Comparison::Dpo {
        beta: 0.1,
        smoothing: 0.0,
    };
    let rewards = dpo.scores(&pair);
    let loss = dpo.loss(&pair, &rewards);
    assert!(
        (rewards[0] - 0.1).abs() < 1e-7 && (rewards[1] + 0.1).abs() < 1e-7,
        "{rewards:?}"
    );
    // −log σ(0.2)
    assert!((loss - 0.598_138_869).abs() < 1e-7, "{loss}");
}

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}[SEP]{% endif %}{% endfor %}";

#[test]
fn pairs_are_learned_and_evaluated_and_refused_by_their_line() {
    let place = Place::new();
    let llama =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
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
        let (good, bad) = match label {
            "positive" => ("superb", "stale"),
            _ => ("stale", "superb"),
        };
        json!({"prompt": text, "chosen": good, "rejected": [{"role": "assistant", "content": bad}]})
            .to_string()
            + "\n"
    };
    let rows: String = table.lines().skip(1).map(row).collect();
    place.write("pairs.jsonl", rows.as_bytes());
    let pipeline = |loss: &str| {
        format!(
            "pipeline taste\nbackbone \"llama\" {{ max_length = 40 }}\n\
             data {{ train = jsonl(\"pairs.jsonl\"), dev = jsonl(\"pairs.jsonl\") }}\n\
             task prefer {{ prompt = prompt, chosen = chosen, rejected = rejected, {loss} }}\n\
             unfreeze low = **\n\
             stage tune {{ train = [low], steps = 120, batch = 16, optimizer = adamw {{ lr = 3e-3 }}, evaluate = every 60 steps, keep = last }}\n"
        )
    };
    for loss in ["loss = dpo, beta = 0.5", "loss = orpo", "loss = simpo"] {
        place.write("taste.delta", pipeline(loss).as_bytes());
        place.succeed(&["taste.delta", "--quiet", "--out", "run"]);
        let log = std::fs::read_to_string(place.path("run/log.jsonl")).unwrap();
        let last = log
            .lines()
            .rev()
            .find(|line| line.contains("\"dev\":{"))
            .unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        assert!(
            last["dev"]["accuracy"].as_f64().unwrap() > 0.8,
            "{loss}: {last}"
        );
        // The model that the stage began with is made anew.
        let found = place.succeed(&["eval", "run", "--format", "json"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        for name in ["loss", "margin", "accuracy"] {
            let (eval, log) = (&found["metrics"][name], &last["dev"][name]);
            let difference = eval.as_f64().unwrap() - log.as_f64().unwrap();
            assert!(difference.abs() < 1e-6, "{loss}, {name}: {eval}, {log}");
        }
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
    // What the last of several stages began with is gone when a run evaluates its test set.
    let two = pipeline("loss = dpo").replace(
        "dev = jsonl(\"pairs.jsonl\")",
        "test = jsonl(\"pairs.jsonl\")",
    ) + "stage more { train = [low], steps = 1, optimizer = adamw { lr = 1e-3 } }\n";
    place.write("two.delta", two.as_bytes());
    let error = place.fail(2, &["check", "two.delta"]);
    assert!(error.contains("delta::run::reference"), "{error}");
    let row =
        json!({"prompt": "a film", "chosen": [{"role": "user", "content": "no"}], "rejected": "b"});
    place.write("pairs.jsonl", format!("{row}\n").as_bytes());
    let error = place.fail(2, &["check", "taste.delta"]);
    assert!(
        error.contains("line 1") && error.contains("remove `prompt` from the task"),
        "{error}"
    );
    // Anthropic's form (hh-rlhf): whole conversations in one text. A run of them continues a prompt or a conversation.
    let talk = |answer: &str| {
        format!("\n\nHuman: a film\n\nAssistant: it was\n\nHuman: how?\n\nAssistant: {answer}")
    };
    let row = json!({"chosen": talk("good"), "rejected": talk("bad")});
    place.write("pairs.jsonl", format!("{row}\n").repeat(8).as_bytes());
    let whole = pipeline("loss = orpo")
        .replace("prompt = prompt, ", "")
        .replace("steps = 120", "steps = 2");
    place.write("whole.delta", whole.as_bytes());
    place.succeed(&["whole.delta", "--quiet", "--out", "run"]);
    let written = |input: &Value| {
        place.write("input.jsonl", input.to_string().as_bytes());
        let text = place.succeed(&[
            "generate",
            "run",
            "--input",
            "input.jsonl",
            "--max-tokens",
            "4",
        ]);
        serde_json::from_str::<Value>(&text).unwrap()["text"].clone()
    };
    let film = json!({"prompt": "the film was superb"});
    assert_eq!(
        written(&film),
        written(&json!({"messages": [{"role": "user", "content": "the film was superb"}]}))
    );
    // A prompt may end where the answer begins.
    let parts =
        json!({"prompt": "\n\nHuman: a film\n\nAssistant:", "chosen": "good", "rejected": "bad"});
    let plain = json!({"prompt": "a film", "chosen": "good", "rejected": "bad"});
    let first = |row: &Value| {
        place.write("pairs.jsonl", format!("{row}\n").as_bytes());
        place.write("parts.delta", pipeline("loss = orpo").as_bytes());
        let plan = place.succeed(&["plan", "parts.delta", "--format", "json"]);
        serde_json::from_str::<Value>(&plan).unwrap()["first_examples"].clone()
    };
    assert_eq!(first(&parts), first(&plain));
    place.write("input.jsonl", b"{\"other\": \"a film\"}");
    let error = place.fail(2, &["generate", "run", "--input", "input.jsonl"]);
    assert!(error.contains("neither `messages` nor `prompt`"), "{error}");
    place.write(
        "pairs.jsonl",
        b"{\"chosen\": \"good\", \"rejected\": \"bad\"}\n",
    );
    let error = place.fail(2, &["check", "whole.delta"]);
    assert!(
        error.contains("name the column with the prompts"),
        "{error}"
    );
    let row = json!({"prompt": "a film", "chosen": null, "rejected": "b"});
    place.write("pairs.jsonl", format!("{row}\n").as_bytes());
    let error = place.fail(2, &["check", "taste.delta"]);
    assert!(error.contains("`chosen` is null"), "{error}");
}
