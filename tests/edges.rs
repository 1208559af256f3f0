//! Models whose `config.json` or checkpoint says something that few do: the logits are transformers', by
//! `tests/fixtures/make_edges.py`.

use std::path::Path;

use crate::common::{difference, fixture, plan_of, Expected};
use deltarun::backbone::{write_tensors, Checkpoint};
use deltarun::engine::{Device, Layout};
use deltarun::graph::{Batch, DecoderRows, Graph, HeadOrigin, Targets, Tensors};
use deltarun::plan::Plan;
use deltarun::run::{open_run, InputSettings, Integrity};

fn plan(directory: &Path, task: &str) -> Plan {
    let text = format!(
        r#"
        backbone "{}" {{ dropout = off }}
        data {{ train = tsv("train.tsv") }}
        {task}
        reparam low_rank = lora on **.block.0.attn.q
        stage tune {{ train = [low_rank, head], steps = 1, optimizer = adamw {{ lr = 1e-3 }} }}
        "#,
        directory.display()
    );
    plan_of(&text, directory)
}

/// The largest difference of the logits from transformers', whose columns are in the order `labels`.
fn worst(name: &str, task: &str, labels: &[usize]) -> f32 {
    let directory = fixture("edges").join(name);
    let mut graph = Graph::load(&plan(&directory, task), Device::Cpu).unwrap();
    graph.activate(&plan(&directory, task), 0).unwrap();
    worst_of(&graph, &directory, labels)
}

fn worst_of(graph: &Graph, directory: &Path, labels: &[usize]) -> f32 {
    let expected = Expected::open(directory);
    let tokens: Vec<usize> = expected.read("ids").iter().map(|id| *id as usize).collect();
    let layout = Layout::new(vec![8; 5], (0..5).collect());
    let has_decoder = crate::common::config(directory).decoder_layers.is_some();
    let batch = Batch {
        types: vec![0; tokens.len()],
        decoder: has_decoder.then(|| DecoderRows {
            tokens: tokens.clone(),
            layout: layout.clone(),
        }),
        layout,
        reads: Vec::new(),
        soft: Vec::new(),
        cached: None,
        total: 5,
        targets: Targets::None,
        tokens,
    };
    let found = graph.inference().logits(&batch).unwrap().read();
    let expected = expected.read("logits");
    let expected: Vec<f32> = match labels {
        [] => expected,
        order => expected
            .chunks(order.len())
            .flat_map(|row| order.iter().map(|column| row[*column]))
            .collect(),
    };
    difference(&found, &expected, false)
}

fn classify(labels: &str) -> String {
    format!("task classify {{ text = sentence, label = label, labels = {labels} }}")
}

#[test]
fn missing_keys_take_the_defaults_of_transformers() {
    for name in ["bert_defaults", "roberta_defaults", "gpt2_defaults"] {
        let worst = worst(name, &classify("{ \"0\" = a, \"1\" = b }"), &[]);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

#[test]
fn positions_of_roberta_follow_its_padding() {
    let worst = worst("roberta_padding_5", &classify("[a, b]"), &[]);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn tied_weights_are_what_the_checkpoint_says() {
    for name in [
        "tied_same",
        "tied_other",
        "tied_decoder_alone",
        "tied_decoder_bias_alone",
        "tied_other_bias",
        "untied",
        "roberta_tied_other",
    ] {
        let worst = worst(name, "task masked_lm { text = sentence }", &[]);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
    for name in ["t5_scaled", "t5_raw_untied", "t5_raw_tied"] {
        let worst = worst(name, "task seq2seq { source = a, target = b }", &[]);
        assert!(worst < 1e-5, "{name}: {worst}");
    }
    let worst = worst("gpt2_tied_other", "task causal_lm { text = sentence }", &[]);
    assert!(worst < 1e-5, "{worst}");
}

/// A head is taken by the names of its labels, whatever the order of the task's.
#[test]
fn a_head_of_the_checkpoint_is_taken_by_name() {
    for (labels, order) in [
        ("[contradiction, entailment, neutral]", [0, 1, 2]),
        ("[entailment, neutral, contradiction]", [1, 2, 0]),
        (
            "{ \"e\" = Entailment, \"n\" = Neutral, \"c\" = Contradiction }",
            [1, 2, 0],
        ),
        (
            "{ entailment = yes, neutral = maybe, contradiction = no }",
            [1, 2, 0],
        ),
    ] {
        let worst = worst("bert_nli", &classify(labels), &order);
        assert!(worst < 1e-5, "{labels}: {worst}");
    }
}

/// A model that transformers saved with a head answers without a run, with the labels that its `config.json` names.
#[test]
fn a_saved_classifier_answers_by_itself() {
    let directory = fixture("edges/bert_nli");
    let open = |directory: &Path| {
        let (reads, integrity) = (InputSettings::default(), Integrity::Checked);
        open_run(directory, None, reads, integrity, Device::Cpu)
    };
    let loaded = open(&directory).unwrap();
    let labels = loaded.task().unwrap().kind.labels();
    let names: Vec<&str> = labels.iter().map(|label| label.name.as_str()).collect();
    assert_eq!(names, ["contradiction", "entailment", "neutral"]);
    let worst = worst_of(&loaded.graph, &directory, &[]);
    assert!(worst < 1e-5, "{worst}");
    // transformers draws a head that the checkpoint lacks, and has none for the class without one.
    let place = tempfile::tempdir().unwrap();
    let stored = Checkpoint::open_directory(&directory).unwrap();
    let names = stored.names().into_iter().map(str::to_owned);
    let body = names.filter(|name| !name.starts_with("classifier."));
    let body: Tensors = body
        .map(|name| (name.clone(), stored.read(&name).unwrap()))
        .collect();
    write_tensors(&place.path().join("model.safetensors"), &body, None).unwrap();
    let config = std::fs::read_to_string(directory.join("config.json")).unwrap();
    for (class, wanted) in [
        ("BertForSequenceClassification", "classification head"),
        ("BertModel", "no head that answers"),
    ] {
        let config = config.replace("BertForSequenceClassification", class);
        std::fs::write(place.path().join("config.json"), config).unwrap();
        let problem = open(place.path()).err().unwrap();
        assert!(
            problem.message.contains(wanted),
            "{class}: {}",
            problem.message
        );
    }
}

#[test]
fn a_head_for_other_labels_is_drawn_and_said() {
    let directory = fixture("edges/bert_nli");
    let file = deltarun::backbone::Checkpoint::open_directory(&directory).unwrap();
    for (labels, said) in [
        (
            "[sports, politics, weather]",
            "`contradiction`, `entailment` and `neutral`",
        ),
        ("[entailment, neutral]", "3 outputs, but the task needs 2"),
    ] {
        let plan = plan(&directory, &classify(labels));
        let (_, task) = plan.final_task().unwrap();
        match HeadOrigin::of(&plan.backbone.config, task, Some(&file)) {
            HeadOrigin::Drawn(why) => assert!(why.contains(said), "{why}"),
            other => panic!("{labels}: {other:?}"),
        }
    }
}

/// transformers reads T5's embeddings through a table for each stack, and ties them where a checkpoint has one alone.
#[test]
fn tables_of_stacks_are_one_or_refused() {
    let directory = fixture("t5_v1_0");
    let stored = Checkpoint::open_directory(&directory).unwrap();
    let names: Vec<String> = stored.names().into_iter().map(str::to_owned).collect();
    let read = |name: String| {
        let tensor = stored.read(&name).unwrap();
        (name, tensor)
    };
    let all: Tensors = names.into_iter().map(read).collect();
    let place = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json"] {
        let _ = std::fs::copy(directory.join(file), place.path().join(file));
    }
    for (is_equal, name) in [
        (true, "encoder"),
        (true, "decoder"),
        (false, "encoder"),
        (false, "decoder"),
    ] {
        let mut tensors = all.clone();
        let mut table = all["shared.weight"].clone();
        if !is_equal {
            table.0[7] += 0.5;
        }
        let name = format!("{name}.embed_tokens.weight");
        tensors.insert(name.clone(), table);
        write_tensors(&place.path().join("model.safetensors"), &tensors, None).unwrap();
        let plan = plan(place.path(), "task seq2seq { source = a, target = b }");
        let loaded = Graph::load(&plan, Device::Cpu);
        match is_equal {
            true => assert!(loaded.is_ok(), "{name}"),
            false => {
                let problem = loaded.err().unwrap();
                assert!(problem.message.contains(&name), "{}", problem.message);
            }
        }
    }
}

/// T5's fresh norms begin as `initializer_factor` (`T5PreTrainedModel._init_weights`).
#[test]
fn fresh_norms_of_a_t5_begin_as_its_factor() {
    let place = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(fixture("t5_v1_0").join("config.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json["initializer_factor"] = 0.5.into();
    std::fs::write(place.path().join("config.json"), json.to_string()).unwrap();
    let text = format!(
        "backbone \"{}\" {{ weights = random }}\ndata {{ train = tsv(\"t.tsv\") }}\n\
         task seq2seq {{ source = a, target = b }}\nunfreeze all = **\n\
         stage tune {{ train = [all], steps = 1, optimizer = sgd {{ lr = 1 }} }}",
        place.path().display()
    );
    let graph = Graph::load(&plan_of(&text, place.path()), Device::Cpu).unwrap();
    let norm = graph.effective("encoder.norm.weight").unwrap();
    assert!(norm.iter().all(|weight| *weight == 0.5), "{norm:?}");
}
