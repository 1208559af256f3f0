//! Heads with the same labels in another order are the same heads, wherever they meet.

use crate::common::place::{Place, PIPELINE};
use deltarun::task::OfLabel;
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

/// Labels that a task leaves out are those of its training file: a run with them has the bits of one that names them.
#[test]
fn labels_are_found_in_the_training_file() {
    let place = Place::new();
    let named = "    labels = [negative, positive]\n";
    let run = |text: &str, name: &str| {
        place.write("x.delta", text.as_bytes());
        place.succeed(&["x.delta", "--quiet", "--out", name]);
        std::fs::read(place.path(&format!("{name}/delta.safetensors"))).unwrap()
    };
    assert!(PIPELINE.contains(named.trim()), "{PIPELINE}");
    let left_out = PIPELINE.replace("labels = [negative, positive]", "");
    let left_out = left_out.replace("label = label, ", "label = label");
    assert_eq!(run(&left_out, "found"), run(PIPELINE, "named"));
    place.write("x.delta", left_out.as_bytes());
    let plan = place.succeed(&["plan", "x.delta"]);
    assert!(
        plan.contains("labels of `task`: 2 labels of the training file, `negative` and `positive`"),
        "{plan}"
    );
    place.write("one.jsonl", b"{\"text\": \"a superb film\"}\n");
    let answer = place.succeed(&["predict", "found", "--input", "one.jsonl"]);
    assert!(answer.contains("\"positive\":"), "{answer}");
    // Numbers are in the order of their size, and a row of another set with a label that no row trains is refused.
    let rows = |labels: &[&str]| {
        labels
            .iter()
            .map(|label| format!("a film\t{label}\n"))
            .collect::<String>()
    };
    place.write(
        "train.tsv",
        format!("text\tlabel\n{}", rows(&["10", "9", "2", "10"])).as_bytes(),
    );
    place.write(
        "dev.tsv",
        format!("text\tlabel\n{}", rows(&["2", "9"])).as_bytes(),
    );
    let plan = place.succeed(&["plan", "x.delta"]);
    assert!(plan.contains("`2`, `9` and `10`"), "{plan}");
    place.write(
        "dev.tsv",
        format!("text\tlabel\n{}", rows(&["2", "3"])).as_bytes(),
    );
    let error = place.fail(2, &["check", "x.delta"]);
    assert!(error.contains("does not name the label `3`"), "{error}");
    for (labels, wanted) in [
        (vec!["1", "1"], "the label's column has 1 label,"),
        (vec![""], "the label's column has 0 labels,"),
    ] {
        place.write(
            "train.tsv",
            format!("text\tlabel\n{}", rows(&labels)).as_bytes(),
        );
        let error = place.fail(2, &["check", "x.delta"]);
        assert!(error.contains(wanted), "{error}");
    }
    let many: String = (0..1001)
        .map(|label| format!("a film\t{label}.5\n"))
        .collect();
    place.write("train.tsv", format!("text\tlabel\n{many}").as_bytes());
    let error = place.fail(2, &["check", "x.delta"]);
    assert!(
        error.contains("has 1,001 different values") && error.contains("use `regress`"),
        "{error}"
    );
    let error = place.fail(2, &["plan", "x.delta", "--config-only"]);
    assert!(error.contains("which is not read here"), "{error}");
}

#[test]
fn splits_that_cannot_be_are_refused_and_numbers_may_be_labels() {
    let place = Place::new();
    for (data, wanted) in [
        (
            "train = tsv(\"train.tsv\"), dev = split(train, 0.1)",
            "write `10%`",
        ),
        (
            "train = tsv(\"train.tsv\"), dev = split(train, 20)",
            "write `20%`",
        ),
        (
            "train = tsv(\"train.tsv\"), dev = split(train, 100%)",
            "a percentage between 0 % and 100 %",
        ),
        (
            "train = head(tsv(\"train.tsv\"), 0)",
            "a whole number from 1",
        ),
        (
            "train = few(tsv(\"train.tsv\"), 0)",
            "a whole number from 1",
        ),
        (
            "train = tsv(\"train.tsv\"), dev = split(tsv(\"train.tsv\"), 10%)",
            "such as `split(train, 10%)`",
        ),
        ("dev = split(train, 10%)", "no `train` to split"),
        (
            "train = tsv(\"train.tsv\"), dev = split(train, 60%), test = split(train, 50%)",
            "leave nothing to train on",
        ),
        (
            "train = few(tsv(\"train.tsv\"), 4), dev = split(train, 10%)",
            "takes from a whole file",
        ),
        (
            "train = head(tsv(\"train.tsv\"), 1), dev = split(train, 10%)",
            "leaves none for this set",
        ),
        (
            "train = head(tsv(\"train.tsv\"))",
            "such as `head(tsv(\"train.tsv\"), 1000)`",
        ),
    ] {
        let text = PIPELINE.replace(
            "    train = tsv(\"train.tsv\")\n    dev = tsv(\"dev.tsv\")\n",
            data,
        );
        place.write("x.delta", text.as_bytes());
        let error = place.run(&["x.delta", "--quiet", "--out", "run"]);
        let text = String::from_utf8(error.stderr).unwrap();
        assert!(
            error.status.code() == Some(2) && text.contains(wanted),
            "{data}: {text}"
        );
    }
    let text = PIPELINE.replace("dev = tsv(\"dev.tsv\")", "dev = split(train, 20%)");
    place.write("x.delta", text.as_bytes());
    place.succeed(&["x.delta", "--quiet", "--out", "run"]);
    let found = place.succeed(&["eval", "run", "--format", "json"]);
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["examples"], 12, "{found}");
    place.write(
        "train.tsv",
        b"text\tlabel\na superb film\t1\na stale film\t0\n",
    );
    let text = PIPELINE
        .replace("[negative, positive]", "[0, 1]")
        .replace("dev = tsv(\"dev.tsv\")", "");
    place.write("x.delta", text.as_bytes());
    place.succeed(&["check", "x.delta"]);
}

/// `eval` says how each label does: values by scikit-learn 1.9's `precision_recall_fscore_support` for these counts.
#[test]
fn every_label_has_its_measures() {
    // How often each was predicted where it is, how often it was predicted, and how often it is there.
    let counts = [(5, 6, 7), (7, 9, 11), (0, 3, 0)];
    let found = counts.map(|(right, predicted, examples)| OfLabel {
        name: String::new(),
        right,
        predicted,
        examples,
    });
    for (own, expected) in found.iter().zip([
        [
            0.833_333_333_333_333_4,
            0.714_285_714_285_714_3,
            0.769_230_769_230_769_2,
            7.0,
        ],
        [0.777_777_777_777_777_8, 0.636_363_636_363_636_4, 0.7, 11.0],
        [0.0, 0.0, 0.0, 0.0],
    ]) {
        let own = [own.precision(), own.recall(), own.f1(), own.examples as f64];
        for (own, expected) in own.iter().zip(expected) {
            assert!((own - expected).abs() < 1e-12, "{own} {expected}");
        }
    }
    let place = Place::new();
    place.write("x.delta", PIPELINE.as_bytes());
    place.succeed(&["x.delta", "--quiet", "--out", "run"]);
    let text = place.succeed(&["eval", "run"]);
    assert!(
        text.contains("precision") && text.contains("label, taken for"),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&place.succeed(&["eval", "run", "--format", "json"])).unwrap();
    let counts: Vec<Vec<usize>> = serde_json::from_value(json["confusion"].clone()).unwrap();
    assert_eq!(
        counts.concat().iter().sum::<usize>() as u64,
        json["examples"].as_u64().unwrap()
    );
    let right = (counts[0][0] + counts[1][1]) as f64 / json["examples"].as_f64().unwrap();
    assert!(
        (right - json["metrics"]["accuracy"].as_f64().unwrap()).abs() < 1e-9,
        "{json}"
    );
    // Its rows are the labels of the examples, its columns those that were predicted.
    let mut differ = false;
    for (place, label) in ["negative", "positive"].into_iter().enumerate() {
        let of = |key: &str| json["labels"][label][key].as_f64().unwrap();
        let right = counts[place][place] as f64;
        let examples: usize = counts[place].iter().sum();
        let predicted: usize = counts.iter().map(|row| row[place]).sum();
        assert_eq!(of("examples"), examples as f64, "{json}");
        assert_eq!(of("recall"), right / examples.max(1) as f64, "{json}");
        assert_eq!(of("precision"), right / predicted.max(1) as f64, "{json}");
        differ |= predicted != examples;
    }
    assert!(differ, "{json}");
}
