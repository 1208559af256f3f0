//! Heads with the same labels in another order are the same heads, wherever they meet.

use crate::common::place::{Place, PIPELINE};
use serde_json::Value;

/// Two runs whose labels are in opposite orders, each better than a guess.
fn opposite() -> Place {
    let place = Place::new();
    let text = PIPELINE
        .replace("steps = 12", "steps = 80")
        .replace("1e-3", "5e-3");
    place.write(
        "one.delta",
        text.replace("pipeline small", "pipeline one").as_bytes(),
    );
    let other = text.replace("pipeline small", "pipeline other");
    place.write(
        "other.delta",
        other
            .replace("[negative, positive]", "[positive, negative]")
            .as_bytes(),
    );
    place.succeed(&["one.delta", "--quiet"]);
    place.succeed(&["other.delta", "--quiet"]);
    place
}

fn predictions(place: &Place, run: &str) -> Vec<Value> {
    let answers = place.succeed(&["predict", run, "--input", "texts.jsonl"]);
    answers
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn combine_puts_labels_in_one_order() {
    let place = opposite();
    place.write(
        "texts.jsonl",
        "{\"text\": \"i hated it .\"}\n{\"text\": \"i loved it .\"}\n".as_bytes(),
    );
    place.succeed(&["combine", "runs/one", "runs/other", "--out", "ab"]);
    place.succeed(&["combine", "runs/other", "runs/one", "--out", "ba"]);
    for (ab, ba) in predictions(&place, "ab")
        .iter()
        .zip(predictions(&place, "ba"))
    {
        for label in ["negative", "positive"] {
            let of = |answer: &Value| answer["probabilities"][label].as_f64().unwrap();
            assert!((of(ab) - of(&ba)).abs() < 1e-5, "{ab} {ba}");
        }
    }
    for (weights, said) in [
        ("1,-1", "add up to 0"),
        ("NaN,1", "the weight NaN"),
        ("inf,1", "the weight inf"),
    ] {
        let message = place.fail(
            2,
            &[
                "combine",
                "runs/one",
                "runs/other",
                "--weights",
                weights,
                "--out",
                "none",
            ],
        );
        assert!(message.contains(said), "{message}");
        assert!(!place.path("none").exists() && !place.path("none.partial").exists());
    }
    let three = PIPELINE
        .replace("[negative, positive]", "[negative, good]")
        .replace("pipeline small", "pipeline three");
    for file in ["train.tsv", "dev.tsv"] {
        let text = std::fs::read_to_string(place.path(file)).unwrap();
        place.write(file, text.replace("\tpositive", "\tgood").as_bytes());
    }
    place.write("three.delta", three.as_bytes());
    place.succeed(&["three.delta", "--quiet"]);
    let message = place.fail(2, &["combine", "runs/one", "runs/three", "--out", "none"]);
    assert!(message.contains("have different heads"), "{message}");
}

#[test]
fn evaluate_puts_labels_in_one_order() {
    let place = opposite();
    let script = "let run = pipeline(\"one.delta\").run();\n\
                  let own = run.evaluate(pipeline(\"one.delta\"));\n\
                  let other = run.evaluate(pipeline(\"other.delta\"));\n\
                  print(`${own} ${other} ${run.value}`);";
    place.write("labels.rhai", script.as_bytes());
    let said = place.succeed(&["labels.rhai", "--quiet"]);
    let values: Vec<f64> = said
        .split_whitespace()
        .map(|value| value.parse().unwrap())
        .collect();
    assert_eq!(values[0], values[1], "{said}");
    assert_eq!(values[0], values[2], "{said}");
    // The task that the other's last stage is on is asked, whatever its name is, and positions are those of the run.
    let two = PIPELINE
        .replace(
            "task classify {",
            "task aa = classify { text = text, label = label, labels = [negative, positive] }\n\
                                     task zz = classify {",
        )
        .replace("    steps = 12", "    task = zz, steps = 12")
        .replace("stage tune", "stage first { task = aa, train = [low_rank, head], steps = 1, optimizer = adamw { lr = 1e-3 } }\n\nstage tune");
    let prompted = PIPELINE.replace(
        "stage tune",
        "insert soft = prompt { tokens = 10 } before embeddings\n\nstage tune",
    );
    let prompted = prompted.replace("train = [", "train = [soft, ");
    place.write("two.delta", two.as_bytes());
    place.write(
        "prompted.delta",
        prompted
            .replace("pipeline small", "pipeline prompted")
            .as_bytes(),
    );
    let script = "let run = pipeline(\"one.delta\").run();\n\
                  let own = run.evaluate(pipeline(\"one.delta\"));\n\
                  let two = run.evaluate(pipeline(\"two.delta\"));\n\
                  let soft = pipeline(\"prompted.delta\").run();\n\
                  let cut = soft.evaluate(pipeline(\"long.delta\"));\n\
                  print(`${own} ${two}`);";
    let long = "many words of this text ".repeat(30);
    place.write(
        "long.tsv",
        format!("text\tlabel\n{long}\tpositive\n{long}\tnegative\n").as_bytes(),
    );
    place.write(
        "long.delta",
        PIPELINE
            .replace("dev.tsv", "long.tsv")
            .replace(" { max_length = 32 }", "")
            .as_bytes(),
    );
    place.write("labels.rhai", script.as_bytes());
    let said = place.succeed(&["labels.rhai", "--quiet"]);
    let (own, two) = said.trim().split_once(' ').unwrap();
    assert_eq!(own, two);
    let other = PIPELINE.replace("[negative, positive]", "[bad, good]");
    place.write("third.delta", other.as_bytes());
    let script = "pipeline(\"one.delta\").run().evaluate(pipeline(\"third.delta\"));";
    place.write("labels.rhai", script.as_bytes());
    let message = place.fail(2, &["labels.rhai", "--quiet"]);
    assert!(
        message.contains("have different tasks or labels"),
        "{message}"
    );
}
