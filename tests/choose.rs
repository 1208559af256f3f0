//! Choices among answers: scores, loss and gradients by `tests/fixtures/make_choices.py`, and runs.

use crate::common::place::Place;
use crate::common::{difference, fixture, json_fixture, numbers, plan_of, text_of};
use deltarun::data::{groups, Prediction};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::task::{Example, Target};
use deltarun::train::predict;
use serde_json::{json, Value};

fn sequence(prompt: &[u32], answer: &[u32], start: Option<u32>) -> Example {
    let (tokens, decoder) = match start {
        Some(start) => (prompt.to_vec(), [&[start], answer].concat()),
        None => ([prompt, answer].concat(), Vec::new()),
    };
    Example {
        target: Target::Answers(std::iter::once(prompt.len()..tokens.len()).collect()),
        text: text_of(&tokens),
        decoder,
        cut: 0,
        others: Vec::new(),
    }
}

#[test]
fn scores_losses_and_gradients_are_those_of_transformers() {
    let expected = json_fixture("choices.json");
    type Prompt = (Vec<u32>, Vec<Vec<u32>>, usize);
    let prompts: Vec<Prompt> = serde_json::from_value(expected["prompts"].clone()).unwrap();
    for (name, weight) in [
        ("llama_a", "block.0.attn.q.weight"),
        ("t5_v1_0", "encoder.block.0.attn.q.weight"),
    ] {
        let directory = fixture(name);
        let of_torch = &expected[name];
        let start = of_torch["start"].as_u64().map(|start| start as u32);
        let example = |(prompt, answers, right): &Prompt| {
            let mut all = answers.iter().map(|answer| sequence(prompt, answer, start));
            let first = all.next().unwrap();
            first.among(all.collect(), Some(*right))
        };
        let examples: Vec<Example> = prompts.iter().map(example).collect();
        let all: Vec<&Example> = examples.iter().collect();
        for score in ["sum", "mean"] {
            let text = format!(
                "backbone \"{}\" {{ dropout = off }}\n\
                 data {{ train = jsonl(\"t\") }}\n\
                 task choose {{ prompt = a, answers = b, label = c, score = {score} }}\n\
                 unfreeze low = **\n\
                 stage s {{ train = [low], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
                directory.display()
            );
            let plan = plan_of(&text, &directory);
            let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
            graph.activate(&plan, 0).unwrap();
            let of_torch = &of_torch[score];
            let scores = predict(&graph, &examples).unwrap().concat();
            let expected: Vec<Vec<f32>> =
                serde_json::from_value(of_torch["scores"].clone()).unwrap();
            let worst = difference(&scores, &expected.concat(), false);
            assert!(worst < 2e-5, "{name}, {score}: scores differ by {worst}");
            // One group for all prompts, or one for each.
            for group_rows in [1000, 8] {
                let groups = groups(&all, 0, Prediction::default(), group_rows);
                let (loss, gradients) = graph.gradients(&groups).unwrap();
                let loss_of_torch = of_torch["loss"].as_f64().unwrap() as f32;
                assert!(
                    (loss - loss_of_torch).abs() < 2e-5,
                    "{name}, {score}: {loss}, {loss_of_torch}"
                );
                let own = gradients
                    .iter()
                    .find(|(id, _)| id.to_string().ends_with(weight));
                let worst = difference(own.unwrap().1, &numbers(&of_torch["gradient"]), false);
                assert!(worst < 1e-5, "{name}, {score}: gradients differ by {worst}");
            }
        }
    }
}

/// Questions whose right answer is a word of the text's kind.
fn rows(place: &Place) -> Vec<(String, &'static str)> {
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let rows = table.lines().skip(1).map(|line| {
        let (text, label) = line.split_once('\t').unwrap();
        let right = if label == "positive" {
            "superb"
        } else {
            "stale"
        };
        (text.to_owned(), right)
    });
    rows.collect()
}

fn pipeline(backbone: &str, task: &str) -> String {
    format!(
        "pipeline pick\nbackbone \"{backbone}\" {{ max_length = 40 }}\n\
         data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }}\n\
         task {task}\n\
         unfreeze low = **\n\
         stage tune {{ train = [low], steps = 80, batch = 16, optimizer = adamw {{ lr = 3e-3 }}, evaluate = every 40 steps, keep = last }}\n"
    )
}

#[test]
fn answers_are_learned_and_predicted_on_a_decoder_and_on_t5() {
    let place = Place::new();
    let architectures =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures");
    let rows = rows(&place);
    for name in ["llama", "t5"] {
        let backbone = architectures.join(name).display().to_string();
        // A list of answers with names of their own, as ARC has it; a list; a column for each.
        let nested = rows.iter().map(|(text, right)| {
            let (texts, key) = match *right {
                "superb" => (["superb", "stale"], "A"),
                _ => (["superb", "stale"], "B"),
            };
            json!({"q": text, "choices": {"text": texts, "label": ["A", "B"]}, "key": key})
        });
        let listed = rows.iter().map(|(text, right)| {
            let right = usize::from(*right == "stale");
            json!({"q": text, "choices": ["superb", "stale"], "key": right})
        });
        let columns = rows.iter().map(|(text, right)| {
            json!({"q": text, "one": "superb", "two": "stale", "key": if *right == "superb" { "good" } else { "bad" }})
        });
        let all: [(Vec<Value>, &str, &str); 3] = [
            (nested.collect(), "choose { prompt = q, answers = choices, label = key }", "A"),
            (listed.collect(), "choose { template = \"{q} It was {answer}\", answers = choices, label = key, score = mean }", "0"),
            (columns.collect(), "choose { prompt = q, answers = [one, two], labels = [good, bad], label = key }", "good"),
        ];
        for (rows, task, label) in all {
            let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
            place.write("rows.jsonl", lines.as_bytes());
            place.write("pick.delta", pipeline(&backbone, task).as_bytes());
            place.succeed(&["pick.delta", "--quiet", "--out", "run"]);
            let found = place.succeed(&["eval", "run", "--format", "json"]);
            let found: Value = serde_json::from_str(&found).unwrap();
            let accuracy = found["metrics"]["accuracy"].as_f64().unwrap();
            assert!(accuracy > 0.9, "{name}, {task}: {found}");
            place.succeed(&[
                "predict",
                "run",
                "--input",
                "rows.jsonl",
                "--output",
                "answers.jsonl",
            ]);
            let answers = std::fs::read_to_string(place.path("answers.jsonl")).unwrap();
            let answers = answers
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap());
            let (mut right, mut count) = (0, 0);
            for (answer, row) in answers.zip(&rows) {
                let key = row["key"].to_string();
                right += usize::from(answer["label"].as_str() == Some(key.trim_matches('"')));
                count += 1;
                let total: f64 = answer["probabilities"]
                    .as_object()
                    .unwrap()
                    .values()
                    .map(|p| p.as_f64().unwrap())
                    .sum();
                assert!((total - 1.0).abs() < 1e-9);
                assert!(answer["probabilities"][label].is_number(), "{answer}");
            }
            assert!((f64::from(right as u32) / f64::from(count) - accuracy).abs() < 1e-6);
            std::fs::remove_file(place.path("answers.jsonl")).unwrap();
            std::fs::remove_dir_all(place.path("run")).unwrap();
        }
    }
}

#[test]
fn rows_without_a_choice_are_refused_by_their_line() {
    let place = Place::new();
    let llama =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
    let llama = llama.display().to_string();
    let text = pipeline(
        &llama,
        "choose { prompt = q, answers = choices, label = key }",
    );
    place.write("pick.delta", text.as_bytes());
    let long = "a film ".repeat(60);
    for (row, wanted) in [
        (
            json!({"q": "a film", "choices": ["a", "b"], "key": 2}),
            "write a number from 0 to 1",
        ),
        (
            json!({"q": "a film", "choices": ["a", "b"], "key": "B"}),
            "`labels = [A, B]`",
        ),
        (
            json!({"q": "a film", "choices": ["a"], "key": 0}),
            "the row has 1 answer to choose from",
        ),
        (
            json!({"q": "a film", "choices": "a, b", "key": 0}),
            "the answers are no list",
        ),
        (
            json!({"q": "a film", "choices": ["a", ""], "key": 0}),
            "no tokens in an answer",
        ),
        (
            json!({"q": "a film", "choices": {"text": ["a", "b"], "label": ["A"]}, "key": "A"}),
            "names for 1",
        ),
        (
            json!({"q": "a film", "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "key": "A"}),
            "two of the row's answers are called `A`",
        ),
        (
            json!({"q": long.clone(), "choices": ["a", "b"], "key": 0}),
            "cut before the end of an answer",
        ),
    ] {
        place.write("rows.jsonl", format!("{row}\n").as_bytes());
        let error = place.fail(2, &["check", "pick.delta"]);
        assert!(
            error.contains("line 1") && error.contains(wanted),
            "{row}: {error}"
        );
    }
    let text = pipeline(
        &llama,
        "choose { prompt = q, answers = [a, b], labels = [A, B, C], label = key }",
    );
    place.write("pick.delta", text.as_bytes());
    let error = place.fail(2, &["check", "pick.delta"]);
    assert!(
        error.contains("there are 2 answers and 3 labels"),
        "{error}"
    );
    place.write(
        "pick.delta",
        pipeline(&llama, "choose { prompt = q, answers = [], label = key }").as_bytes(),
    );
    let error = place.fail(2, &["check", "pick.delta"]);
    assert!(error.contains("has no `answers`"), "{error}");
    for (task, wanted) in [
        ("choose { template = \"{q} of {choices}: {answer}\", answers = choices, label = key }", "a column of answers"),
        ("choose { prompt = q, answers = [a, b], label = key, labels = { \"0\" = A, \"1\" = B } }", "must be a list"),
    ] {
        place.write("pick.delta", pipeline(&llama, task).as_bytes());
        let error = place.fail(2, &["check", "pick.delta"]);
        assert!(error.contains(wanted), "{task}: {error}");
    }
    // A T5 writes the answer apart from the prompt, and a cut one is refused as well.
    let t5 = llama.replace("llama", "t5");
    place.write(
        "pick.delta",
        pipeline(&t5, "choose { prompt = q, answers = choices, label = key }").as_bytes(),
    );
    let row = json!({"q": "a film", "choices": ["superb", long], "key": 0});
    place.write("rows.jsonl", format!("{row}\n").as_bytes());
    let error = place.fail(2, &["check", "pick.delta"]);
    assert!(error.contains("cut before the end of an answer"), "{error}");
}
