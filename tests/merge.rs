//! What `merge` leaves: tensors of the shapes that the configuration says, the labels, and everything that the
//! backbone's directory had beside them. That its logits are the run's is checked by `merge` itself.

use std::path::{Path, PathBuf};

use crate::common::{fixture, plan_of};
use deltarun::backbone::Checkpoint;
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::run::merge;
use serde_json::{json, Value};

/// Merges a fresh LoRA on a backbone, whose `config.json` has these keys beside its own.
fn merged(backbone: &Path, task: &str, more: &Value) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let copy = place.path().join("backbone");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(
        backbone.join("model.safetensors"),
        copy.join("model.safetensors"),
    )
    .unwrap();
    let text = std::fs::read_to_string(backbone.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    std::fs::write(copy.join("config.json"), config.to_string()).unwrap();
    for file in ["chat_template.jinja", "generation_config.json"] {
        std::fs::write(copy.join(file), "{}").unwrap();
    }
    let text = format!(
        r#"
        backbone "{}" {{ dropout = off }}
        data {{ train = tsv("train.tsv") }}
        {task}
        reparam delta = lora {{ rank = 2 }} on **.attn.{{q,v}}
        stage tune {{ train = [delta, head], steps = 1, optimizer = adamw {{ lr = 1e-3 }} }}
        "#,
        copy.display()
    );
    let plan = plan_of(&text, &copy);
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    // Far from the identity that a LoRA begins as.
    let mut tensors = graph.tensors();
    tensors.retain(|key, _| key.starts_with("delta."));
    for (values, _) in tensors.values_mut() {
        values
            .iter_mut()
            .enumerate()
            .for_each(|(i, value)| *value += 0.1 * ((i % 7) as f32 - 3.0));
    }
    graph.set(tensors).unwrap();
    graph.adopt_heads();
    graph.activate(&plan, 1).unwrap();
    let out = place.path().join("merged");
    merge(&plan, &graph, &out).unwrap();
    (place, out)
}

fn config_of(directory: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(directory.join("config.json")).unwrap()).unwrap()
}

const CLASSIFY: &str = "task classify { text = sentence, label = label, labels = [a, b, c] }";

#[test]
fn a_bert_without_a_pooler_gets_one_of_its_size() {
    // A masked language model's checkpoint has none.
    let more = json!({ "num_labels": 2, "problem_type": "regression", "dtype": "float16" });
    let (_place, out) = merged(&fixture("edges/tied_same"), CLASSIFY, &more);
    let file = Checkpoint::open_directory(&out).unwrap();
    assert_eq!(file.shape("bert.pooler.dense.weight"), Some(&[12, 12][..]));
    assert_eq!(file.shape("classifier.weight"), Some(&[3, 12][..]));
    let config = config_of(&out);
    assert_eq!(config["num_labels"], 3);
    assert_eq!(config["problem_type"], "single_label_classification");
    assert_eq!(config["id2label"], json!({ "0": "a", "1": "b", "2": "c" }));
    // transformers would round the weights to 16 bits.
    assert_eq!(config["dtype"], "float32");
    for file in ["chat_template.jinja", "generation_config.json"] {
        assert!(out.join(file).exists(), "{file}");
    }
}

#[test]
fn a_language_model_keeps_its_own_decoder_and_what_is_not_read() {
    let task = "task causal_lm { text = sentence }";
    let (_place, out) = merged(&fixture("edges/gpt2_tied_other"), task, &json!({}));
    let file = Checkpoint::open_directory(&out).unwrap();
    assert_eq!(file.read("lm_head.bias").unwrap().0, vec![1.0; 41]);
    let [decoder, table] =
        ["lm_head.weight", "transformer.wte.weight"].map(|name| file.read(name).unwrap().0);
    assert_ne!(decoder, table);
    let (_place, out) = merged(
        &fixture("edges/tied_same"),
        "task masked_lm { text = sentence }",
        &json!({}),
    );
    let file = Checkpoint::open_directory(&out).unwrap();
    assert!(
        !file.has("cls.predictions.decoder.weight"),
        "what is tied is there once"
    );
}
