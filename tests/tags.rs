//! Tags: sentences that come as words, token classifiers, and runs from a CoNLL file to predictions, by
//! `tests/fixtures/make_tags.py`.

use std::collections::BTreeMap;

use crate::common::place::Place;
use crate::common::{config, difference, fixture, json_fixture, numbers, plan_of, text_of};
use deltarun::data::{batch, Prediction, TextEncoder};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::task::{Encoded, Encoder, Example, Sentence, Subwords, Target};
use serde_json::{json, Value};

fn expected() -> Value {
    json_fixture("tags.json")
}

#[test]
fn words_have_the_tokens_of_transformers() {
    let expected = expected();
    for (name, cases) in expected["tokenizers"].as_object().unwrap() {
        let directory = fixture("tokenizers").join(name);
        let encoder = TextEncoder::open(&directory, 12, &config(&directory)).unwrap();
        for case in cases.as_array().unwrap() {
            let words: Vec<String> = serde_json::from_value(case["words"].clone()).unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let firsts: Vec<Option<usize>> =
                serde_json::from_value(case["firsts"].clone()).unwrap();
            let Sentence { text, .. } = encoder.words(&words, Subwords::First).unwrap();
            assert_eq!(text.tokens, ids, "{name}: {words:?}");
            let found = text
                .words
                .iter()
                .map(|place| place.map(|place| text.reads[place]));
            assert_eq!(found.collect::<Vec<_>>(), firsts, "{name}: {words:?}");
        }
    }
}

/// With `subwords = all` every token of a word has a class, as in transformers' `run_ner.py` with `label_all_tokens`.
#[test]
fn all_tokens_of_words_have_the_classes_of_transformers() {
    let expected = expected();
    let mut classes = 0;
    for (name, cases) in expected["tokenizers"].as_object().unwrap() {
        let directory = fixture("tokenizers").join(name);
        let encoder = TextEncoder::open(&directory, 12, &config(&directory)).unwrap();
        let text = format!(
            "backbone \"{}\"\n\
             data {{ train = jsonl(\"t\") }}\n\
             task tag {{ tokens = words, tags = tags, labels = [\"O\", \"B-a\", \"I-a\", \"B-b\"], subwords = all }}\n\
             stage s {{ train = [head], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
            fixture("bert_a").display()
        );
        let plan = plan_of(&text, &directory);
        for case in cases.as_array().unwrap() {
            let row = [case["words"].to_string(), case["tags"].to_string()];
            let example = plan.tasks["task"].kind.encode(&row, &encoder).unwrap();
            let all: Vec<i64> = serde_json::from_value(case["all"].clone()).unwrap();
            let read = all.iter().enumerate().filter(|(_, class)| **class >= 0);
            let (reads, of_reads): (Vec<usize>, Vec<usize>) =
                read.map(|(token, class)| (token, *class as usize)).unzip();
            assert_eq!(example.text.reads, reads, "{name}: {row:?}");
            assert_eq!(example.target, Target::Classes(of_reads), "{name}: {row:?}");
            classes += reads.len();
        }
    }
    assert!(classes > 50);
}

#[test]
fn classifiers_of_tokens_are_those_of_transformers() {
    let expected = expected();
    let sentences: Vec<Vec<u32>> = serde_json::from_value(expected["sentences"].clone()).unwrap();
    let reads: Vec<Vec<usize>> = serde_json::from_value(expected["reads"].clone()).unwrap();
    let classes: Vec<Vec<usize>> = serde_json::from_value(expected["classes"].clone()).unwrap();
    let mut seen = 0;
    for (name, of_torch) in expected["backbones"].as_object().unwrap() {
        let directory = fixture(name);
        let text = format!(
            "backbone \"{}\" {{ dropout = off }}\n\
             data {{ train = jsonl(\"t\") }}\n\
             task tag {{ tokens = tokens, tags = tags, labels = [\"O\", \"B-a\", \"I-a\"] }}\n\
             stage s {{ train = [head], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
            directory.display()
        );
        let plan = plan_of(&text, &directory);
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
        let mut tensors = BTreeMap::new();
        for (part, shape) in [
            ("weight", vec![3, numbers(&of_torch["weight"]).len() / 3]),
            ("bias", vec![3]),
        ] {
            tensors.insert(
                format!("task.head.{part}"),
                (numbers(&of_torch[part]), shape),
            );
        }
        graph.set(tensors).unwrap();
        graph.activate(&plan, 0).unwrap();
        let examples: Vec<Example> = sentences
            .iter()
            .zip(&reads)
            .zip(&classes)
            .map(|((tokens, reads), classes)| Example {
                text: Encoded {
                    reads: reads.clone(),
                    ..text_of(tokens)
                },
                decoder: Vec::new(),
                target: Target::Classes(classes.clone()),
                cut: 0,
                others: Vec::new(),
            })
            .collect();
        let all: Vec<&Example> = examples.iter().collect();
        let batch = batch(&all, &[0, 1, 2], 0, Prediction::default());
        let logits = graph.inference().logits(&batch).unwrap().read();
        let worst = difference(&logits, &numbers(&of_torch["logits"]), false);
        assert!(worst < 1e-5, "{name}: logits differ by {worst}");
        let (loss, gradients) = graph.gradients(&[batch]).unwrap();
        let of_torch_loss = of_torch["loss"].as_f64().unwrap() as f32;
        assert!(
            (loss - of_torch_loss).abs() < 1e-5,
            "{name}: {loss}, {of_torch_loss}"
        );
        let weight = gradients
            .iter()
            .find(|(id, _)| id.to_string().ends_with("head.weight"));
        let worst = difference(weight.unwrap().1, &numbers(&of_torch["gradient"]), false);
        assert!(worst < 1e-5, "{name}: gradients differ by {worst}");
        seen += 1;
    }
    assert_eq!(seen, 5);
}

const PIPELINE: &str = "pipeline find\nbackbone \"backbone\"\n\
    data { train = conll(\"train.conll\"), dev = conll(\"train.conll\") }\n\
    task tag { tokens = tokens, tags = tags, labels = [\"O\", \"B-good\", \"I-good\", \"B-bad\"] }\n\
    reparam low = lora { rank = 4 } on **.{q,v}\n\
    stage tune { train = [low, head], steps = 60, batch = 8, optimizer = adamw { lr = 5e-3 }, evaluate = every 20 steps }\n";

/// A folder with sentences in which some words are tagged.
fn place() -> Place {
    let place = Place::new();
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let mut text = "-DOCSTART- O\n\n".to_owned();
    for line in table.lines().skip(1) {
        for word in line.split('\t').next().unwrap().split(' ') {
            let tag = match word {
                "superb" | "clever" | "graceful" => "B-good",
                "stale" | "clumsy" | "dull" => "B-bad",
                _ => "O",
            };
            text += &format!("{word} {tag}\n");
        }
        text += "\n";
    }
    text += "\u{feff}\n";
    place.write("train.conll", text.as_bytes());
    place.write("find.delta", PIPELINE.as_bytes());
    place
}

#[test]
fn a_conll_file_becomes_a_model_that_finds_spans() {
    let place = place();
    place.succeed(&["find.delta", "--quiet"]);
    let found = place.succeed(&["eval", "runs/find", "--format", "json"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    let metrics = &found["metrics"];
    assert!(metrics["f1"].as_f64().unwrap() > 0.9, "{metrics}");
    // Each type has its measures, whose mean by the number of spans is the recall of all.
    let of = |kind: &str, key: &str| found["labels"][kind][key].as_f64().unwrap();
    let (good, bad) = (of("good", "examples"), of("bad", "examples"));
    assert!(
        good > 10.0 && bad > 10.0 && found["labels"].as_object().unwrap().len() == 2,
        "{found}"
    );
    let recall = (good * of("good", "recall") + bad * of("bad", "recall")) / (good + bad);
    assert!(
        (recall - metrics["recall"].as_f64().unwrap()).abs() < 1e-12,
        "{found}"
    );
    let text = place.succeed(&["eval", "runs/find"]);
    assert!(
        text.contains("precision") && text.contains("\n  good"),
        "{text}"
    );
    place.write(
        "input.jsonl",
        b"{\"tokens\": [\"the\", \"ending\", \"was\", \"superb\", \".\"], \"id\": 7}\n{\"tokens\": \"the cast was stale .\"}\n",
    );
    let written = place.succeed(&["predict", "runs/find", "--input", "input.jsonl"]);
    let answers: Vec<Value> = written
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers[0]["tags"], json!(["O", "O", "O", "B-good", "O"]));
    assert_eq!(
        answers[0]["spans"],
        json!([{"type": "good", "start": 3, "end": 4}])
    );
    // A word without tokens keeps its place.
    place.write(
        "input.jsonl",
        b"{\"tokens\": [\"the\", \" \", \"superb\", \".\"]}\n",
    );
    let written = place.succeed(&["predict", "runs/find", "--input", "input.jsonl"]);
    let answer: Value = serde_json::from_str(&written).unwrap();
    assert_eq!(answer["tags"], json!(["O", null, "B-good", "O"]));
    assert_eq!(
        answers[1]["spans"],
        json!([{"type": "bad", "start": 3, "end": 4}])
    );
    let config = std::fs::read_to_string(place.path("runs/find/peft/adapter_config.json")).unwrap();
    assert!(config.contains("\"TOKEN_CLS\""), "{config}");
    // The adapter alone names no labels: they are numbered.
    let predict = |run: &str| -> Value {
        let written = place.succeed(&["predict", run, "--input", "input.jsonl"]);
        serde_json::from_str(&written).unwrap()
    };
    let (own, adapter) = (predict("runs/find"), predict("runs/find/peft"));
    assert_eq!(
        adapter["tags"],
        json!(["LABEL_0", null, "LABEL_1", "LABEL_0"])
    );
    assert_eq!(own["logits"], adapter["logits"]);
    place.succeed(&["merge", "runs/find", "merged"]);
    let config = std::fs::read_to_string(place.path("merged/config.json")).unwrap();
    assert!(
        config.contains("ForTokenClassification") && config.contains("B-good"),
        "{config}"
    );
}

#[test]
fn rows_with_other_tags_or_numbers_of_words_are_refused_by_their_line() {
    let place = place();
    for (text, said) in [
        (
            "a O\nfilm B-new\n",
            "the task does not name the label `B-new`",
        ),
        ("a O\nfilm\n", "line 2: the row has 1 column"),
    ] {
        place.write("train.conll", text.as_bytes());
        let error = place.fail(2, &["check", "find.delta"]);
        assert!(error.contains(said), "{error}");
    }
    let lists = PIPELINE.replace("conll(\"train.conll\")", "jsonl(\"train.jsonl\")");
    place.write("find.delta", lists.as_bytes());
    for (row, said) in [
        (
            json!({"tokens": ["a", "film"], "tags": ["O"]}),
            "the row has 2 words and 1 tags",
        ),
        (
            json!({"tokens": [], "tags": []}),
            "the list of words is empty",
        ),
        (
            json!({"tokens": [["a"]], "tags": ["O"]}),
            "a word is neither a text nor a number",
        ),
    ] {
        place.write("train.jsonl", format!("{row}\n").as_bytes());
        let error = place.fail(2, &["check", "find.delta"]);
        assert!(error.contains(said), "{error}");
    }
}
