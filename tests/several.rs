//! `classify` with several labels for a text, with weights of classes and with smoothed labels, by
//! `tests/fixtures/make_losses.py`.

use crate::common::place::Place;
use crate::common::{difference, fixture, json_fixture, numbers, plan_of, text_of};
use deltarun::data::{groups, Prediction};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::task::{Example, Target};
use serde_json::{json, Value};

fn expected() -> Value {
    json_fixture("losses.json")
}

/// The loss and the gradient of the head, computed in groups of this many rows.
fn loss(settings: &str, targets: Vec<Target>, group_rows: usize) -> (f32, Vec<f32>) {
    let directory = fixture("bert_b");
    let text = format!(
        "backbone \"{}\" {{ dropout = off }}\n\
         data {{ train = tsv(\"t\") }}\n\
         task classify {{ text = text, label = label, labels = [l0, l1, l2, l3], {settings} }}\n\
         stage s {{ train = [head], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
        directory.display()
    );
    let plan = plan_of(&text, &directory);
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    graph.activate(&plan, 0).unwrap();
    let sentences: Vec<Vec<u32>> = serde_json::from_value(expected()["sentences"].clone()).unwrap();
    let examples: Vec<Example> = sentences
        .into_iter()
        .zip(targets)
        .map(|(tokens, target)| Example {
            text: text_of(&tokens),
            decoder: Vec::new(),
            target,
            cut: 0,
            others: Vec::new(),
        })
        .collect();
    let all: Vec<&Example> = examples.iter().collect();
    let shares = plan.tasks["task"].kind.shares(&[1, 0, 1, 1]);
    let prediction = Prediction {
        shares: shares.as_ref(),
        ..Prediction::default()
    };
    let groups = groups(&all, 0, prediction, group_rows);
    let (loss, gradients) = graph.gradients(&groups).unwrap();
    let weight = gradients
        .into_iter()
        .find(|(id, _)| id.to_string().ends_with("head.weight"));
    (loss, weight.unwrap().1)
}

fn check(of_torch: &Value, settings: &str, targets: &[Target]) {
    // The same in one group and in three.
    for group_rows in [1000, 4] {
        let (loss, gradient) = loss(settings, targets.to_vec(), group_rows);
        let expected = of_torch["loss"].as_f64().unwrap() as f32;
        assert!(
            (loss - expected).abs() < 1e-5,
            "{settings}: {loss}, {expected}"
        );
        let worst = difference(&gradient, &numbers(&of_torch["gradient"]), false);
        assert!(worst < 1e-5, "{settings}: gradients differ by {worst}");
    }
}

#[test]
fn losses_are_those_of_pytorch() {
    let expected = expected();
    let sets: Vec<Vec<u8>> = serde_json::from_value(expected["sets"].clone()).unwrap();
    let set = |set: Vec<u8>| Target::Set(set.into_iter().map(|has| has == 1).collect());
    let sets: Vec<Target> = sets.into_iter().map(set).collect();
    check(&expected["several"], "several = on", &sets);
    let classes: Vec<usize> = serde_json::from_value(expected["classes"].clone()).unwrap();
    let classes: Vec<Target> = classes.into_iter().map(Target::Class).collect();
    let settings = "weights = { l0 = 0.5, l1 = 1, l2 = 2, l3 = 3 }, smoothing = 0.1";
    check(&expected["weighted"], settings, &classes);
}

const PIPELINE: &str = "pipeline topics\nbackbone \"backbone\"\n\
    data { train = jsonl(\"train.jsonl\"), dev = jsonl(\"train.jsonl\") }\n\
    task classify { TASK }\n\
    reparam low = lora { rank = 4 } on **.{q,v}\n\
    stage tune { train = [low, head], steps = 80, batch = 8, optimizer = adamw { lr = 5e-3 }, evaluate = every 40 steps }\n";

#[test]
fn texts_with_several_labels_are_learned_and_predicted() {
    let place = Place::new();
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let row = |line: &str| {
        let (text, label) = line.split_once('\t').unwrap();
        let is_good = u8::from(label == "positive");
        let is_long = u8::from(text.len() > 60);
        let mut topics = Vec::new();
        topics.extend((is_good == 1).then_some("good"));
        topics.extend((is_long == 1).then_some("long"));
        json!({"text": text, "topics": topics, "good": is_good, "long": is_long}).to_string() + "\n"
    };
    let rows: String = table.lines().skip(1).map(row).collect();
    place.write("train.jsonl", rows.as_bytes());
    let mut found = Vec::new();
    for task in [
        "text = text, label = topics, labels = [good, long], several = on",
        "text = text, label = [good, long], several = on",
    ] {
        place.write("topics.delta", PIPELINE.replace("TASK", task).as_bytes());
        place.succeed(&["topics.delta", "--quiet", "--out", "run"]);
        let metrics = place.succeed(&["eval", "run", "--format", "json"]);
        place.write("input.jsonl", b"{\"text\": \"the ending was superb .\"}\n");
        let answer = place.succeed(&["predict", "run", "--input", "input.jsonl"]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["labels"].is_array(), "{answer}");
        place.succeed(&["merge", "run", "merged"]);
        let merged = std::fs::read_to_string(place.path("merged/config.json")).unwrap();
        assert!(merged.contains("multi_label_classification"), "{merged}");
        std::fs::remove_dir_all(place.path("merged")).unwrap();
        found.push((metrics, answer["logits"].clone()));
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
    // Both ways to write labels are one task.
    assert_eq!(found[0], found[1]);
    let metrics: Value = serde_json::from_str(&found[0].0).unwrap();
    let labels = metrics["labels"].as_object().unwrap();
    let f1: f64 = labels.values().map(|own| own["f1"].as_f64().unwrap()).sum();
    let macro_f1 = metrics["metrics"]["macro_f1"].as_f64().unwrap();
    assert!(
        (f1 / labels.len() as f64 - macro_f1).abs() < 1e-12,
        "{metrics}"
    );
    assert!(
        metrics["metrics"]["f1"].as_f64().unwrap() > 0.7,
        "{metrics}"
    );
}

#[test]
fn labels_and_settings_that_do_not_fit_are_refused() {
    let place = Place::new();
    let several = "text = text, label = topics, labels = [good, long], several = on";
    for (task, row, said) in [
        (
            several,
            json!({"text": "a", "topics": ["bad"]}),
            "the task does not name the label `bad`",
        ),
        (
            several,
            json!({"text": "a", "topics": [["good"]]}),
            "the labels are not a list",
        ),
        (
            "text = text, label = [good, long], several = on",
            json!({"text": "a", "good": 2, "long": 0}),
            "`2` in the column `good` is neither 1 nor 0",
        ),
        (
            "text = text, label = topics, labels = [good, long], several = on, metric = matthews",
            json!({}),
            "matthews",
        ),
        (
            "text = text, label = topics, labels = [good, long], several = on, weights = balanced",
            json!({}),
            "`weights` is for tasks whose texts have one label each",
        ),
        (
            "text = text, label = topics, labels = [good, long], weights = { good = 1 }",
            json!({}),
            "a weight for each label",
        ),
        (
            "text = text, label = topics, labels = [good, long], weights = { good = 1, wrong = 2 }",
            json!({}),
            "which is not a label of the task",
        ),
        (
            "text = text, label = [a, b], labels = [good], several = on",
            json!({}),
            "`label` names 2 columns, and `labels` 1 labels",
        ),
    ] {
        place.write("train.jsonl", format!("{row}\n").as_bytes());
        place.write("topics.delta", PIPELINE.replace("TASK", task).as_bytes());
        let error = place.fail(2, &["check", "topics.delta"]);
        assert!(error.contains(said), "{task}: {error}");
    }
}

/// `balanced` trains with the weights that scikit-learn computes: `examples / (labels · examples of the label)`.
#[test]
fn balanced_weights_are_those_of_scikit_learn() {
    let place = Place::new();
    // 24 and 8 examples: scikit-learn's `compute_class_weight("balanced")` gives 2/3 and 2.
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let of = |label: &str, count: usize| -> String {
        let rows = table.lines().filter(|line| line.ends_with(label));
        rows.take(count).map(|line| format!("{line}\n")).collect()
    };
    let rows = format!(
        "text\tlabel\n{}{}",
        of("\tnegative", 24),
        of("\tpositive", 8)
    );
    assert_eq!(rows.lines().count(), 33);
    place.write("train.tsv", rows.as_bytes());
    let delta = |weights: &str| {
        let text = crate::common::place::PIPELINE;
        let text = text.replace("label = label", &format!("label = label{weights}"));
        place.write("small.delta", text.as_bytes());
        place.succeed(&["small.delta", "--quiet"]);
        let delta = std::fs::read(place.path("runs/small/delta.safetensors")).unwrap();
        std::fs::remove_dir_all(place.path("runs")).unwrap();
        delta
    };
    let balanced = delta("\n    weights = balanced");
    let stated = delta("\n    weights = { negative = 0.6666666666666666, positive = 2 }");
    assert!(balanced == stated);
    assert!(balanced != delta(""));
}
