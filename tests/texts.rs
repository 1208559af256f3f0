//! Metrics of written texts, by `tests/fixtures/make_texts.py`, and stages that write for them.

use crate::common::json_fixture;
use crate::common::place::Place;
use deltarun::task::metrics_of_texts;
use serde_json::{json, Value};

#[test]
fn metrics_are_those_of_sacrebleu_rouge_score_and_squad() {
    let expected = json_fixture("texts.json");
    let mut seen = 0;
    for group in expected.as_array().unwrap() {
        let texts: Vec<(String, String)> = serde_json::from_value(group["texts"].clone()).unwrap();
        for (metric, value) in metrics_of_texts(&texts) {
            let expected = group[metric.name()].as_f64().unwrap();
            // torchmetrics gives SQuAD's in f32.
            assert!(
                (value - expected).abs() < 1e-6,
                "{}: {value}, {expected}: {texts:?}",
                metric.name()
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 50);
}

fn architectures(name: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("pipelines/architectures")
        .join(name)
        .display()
        .to_string()
}

fn pipeline(backbone: &str, task: &str) -> String {
    format!(
        "pipeline write\nbackbone \"{}\" {{ max_length = 40 }}\n\
         data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }}\n\
         task {task}\n\
         unfreeze low = **\n\
         stage tune {{ train = [low], steps = 90, batch = 16, optimizer = adamw {{ lr = 3e-3 }}, evaluate = every 45 steps }}\n",
        architectures(backbone)
    )
}

/// What an evaluation writes is what `generate` writes, and its metrics are those of these texts.
#[test]
fn a_stage_is_measured_by_the_texts_that_it_writes() {
    let place = Place::new();
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let rows = table.lines().skip(1).map(|line| {
        let (text, label) = line.split_once('\t').unwrap();
        let answer = if label == "positive" {
            "superb"
        } else {
            "very stale"
        };
        json!({"q": text, "a": answer})
    });
    let rows: Vec<Value> = rows.take(24).collect();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    place.write("rows.jsonl", lines.as_bytes());
    for (backbone, task) in [
        ("t5", "seq2seq { source = q, target = a, metric = exact_match, generate = { max_tokens = 6 } }"),
        ("t5", "seq2seq { source = q, target = a, metric = bleu, generate = { max_tokens = 6, beams = 2 } }"),
        ("llama", "seq2seq { source = q, target = a, separator = \" was \", metric = exact_match, generate = { max_tokens = 6 } }"),
        ("llama", "instruct { template = \"{q} was {a}\", answer = a, metric = rouge_l, generate = { max_tokens = 6 } }"),
    ] {
        place.write("write.delta", pipeline(backbone, task).as_bytes());
        place.succeed(&["write.delta", "--quiet", "--out", "run"]);
        let found = place.succeed(&["eval", "run", "--format", "json"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        place.succeed(&["generate", "run", "--input", "rows.jsonl", "--output", "written.jsonl"]);
        let written = std::fs::read_to_string(place.path("written.jsonl")).unwrap();
        let written = written.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line["text"].as_str().unwrap().trim().to_owned()
        });
        let wanted = rows.iter().map(|row| row["a"].as_str().unwrap().to_owned());
        let texts: Vec<(String, String)> = written.zip(wanted).collect();
        for (metric, value) in metrics_of_texts(&texts) {
            let own = found["metrics"][metric.name()].as_f64().unwrap();
            assert!((own - value).abs() < 1e-9, "{task}: {}: {own}, {value}: {texts:?}", metric.name());
        }
        let exact = found["metrics"]["exact_match"].as_f64().unwrap();
        assert!(exact > 0.9, "{task}: {found}");
        std::fs::remove_file(place.path("written.jsonl")).unwrap();
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
}

#[test]
fn settings_of_writing_are_refused_by_name() {
    let place = Place::new();
    place.write("rows.jsonl", b"{\"q\": \"a film\", \"a\": \"good\"}\n");
    for (backbone, settings, wanted) in [
        (
            "t5",
            "generate = { beams = 4, temperature = 0.5 }",
            "a beam search takes the most probable tokens",
        ),
        (
            "t5",
            "generate = { max_tokens = 4, min_tokens = 5 }",
            "`min_tokens` is above `max_tokens`",
        ),
        (
            "t5",
            "generate = { min_tokens = 500 }",
            "`min_tokens` is above `max_tokens`",
        ),
        ("t5", "generate = { stop = \"\" }", "would end every answer"),
        (
            "t5",
            "generate = { seed = 3 }",
            "`seed` leaves a setting without effect",
        ),
        ("t5", "generate = { length_penalty = 2 }", "set `beams`"),
        ("t5", "generate = { most = 4 }", "has no setting `most`"),
        ("t5", "generate = 4", "must be a block"),
        (
            "t5",
            "generate = { top_p = 1.5 }",
            "`top_p` must be a number",
        ),
        ("t5", "separator = \"x\"", "remove `separator`"),
        ("llama", "metric = bleu", "add `separator ="),
    ] {
        let task = format!("seq2seq {{ source = q, target = a, {settings} }}");
        place.write("write.delta", pipeline(backbone, &task).as_bytes());
        let error = place.fail(2, &["check", "write.delta"]);
        assert!(error.contains(wanted), "{settings}: {error}");
    }
}
