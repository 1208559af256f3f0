//! Every method that PEFT has: logits and gradients equal to PEFT's with weights far from their init,
//! and what we write equal, tensor by tensor, to what PEFT wrote. The fixtures are
//! `tests/fixtures/make_methods.py`'s.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{classifier, config, difference, fixture, imported_graph, Expected};
use deltarun::backbone::Checkpoint;
use deltarun::engine::Backend;
use deltarun::graph::{Graph, Tensors};
use deltarun::peft::{export, import};
use deltarun::plan::{Change, Plan};
use dfdx::prelude::Cpu;

/// The fixture, and the backbone that it was made on.
const CASES: [(&str, &str); 15] = [
    ("rslora", "bert_a"),
    ("dora", "bert_a"),
    ("dora_gpt2", "gpt2"),
    ("loha", "bert_a"),
    ("lokr", "bert_a"),
    ("lokr_whole", "bert_a"),
    ("vera", "bert_a"),
    ("ia3", "bert_a"),
    ("prefix", "bert_a"),
    ("prefix_mlp", "bert_a"),
    ("prefix_gpt2", "gpt2"),
    ("prefix_roberta", "roberta"),
    ("prompt", "bert_a"),
    ("prompt_roberta", "roberta"),
    ("p_tuning", "bert_a"),
];

fn adapter(name: &str) -> PathBuf {
    fixture("methods").join(name)
}

fn opened(name: &str, backbone: &str) -> (Plan, Graph<Cpu>) {
    let directory = fixture(backbone);
    let imported = import(&adapter(name), &config(&directory)).unwrap();
    imported_graph(&directory, imported)
}

#[test]
fn logits_are_those_of_peft() {
    for (name, backbone) in CASES {
        let (_, graph) = opened(name, backbone);
        let expected = Expected::open(&adapter(name));
        let batch = Expected::open(&fixture(backbone)).batch(0);
        let logits = Cpu::read(&graph.inference().logits(&batch).unwrap());
        let worst = difference(&logits, &expected.read("logits"), false);
        println!("{name}: logits differ by at most {worst:.1e}");
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

/// PEFT's name of each trained key, `.weight` left out.
fn names(plan: &Plan, graph: &Graph<Cpu>) -> BTreeMap<String, String> {
    let prefix = plan.backbone.config.family().prefix;
    let mut names = BTreeMap::new();
    for delta in &plan.deltas {
        let Change::Method { method, sites } = &delta.change else {
            continue;
        };
        let form = method.peft().unwrap();
        for module in sites.iter().map(|site| graph.tree().module(site).unwrap()) {
            for (ours, suffix) in form.tensors {
                let key = format!("{}.{}.{ours}", delta.name, module.path);
                let suffix = suffix.trim_end_matches(".weight");
                let name = format!(
                    "base_model.model.{prefix}{}.{suffix}",
                    module.checkpoint_name
                );
                names.insert(key, name);
            }
        }
    }
    for (parameter, key) in graph.head_keys() {
        let name = format!("base_model.model.{}", parameter.source.full_name(&prefix));
        names.insert(key, name.trim_end_matches(".weight").to_owned());
    }
    names
}

#[test]
fn gradients_are_those_of_peft() {
    for (name, backbone) in CASES.into_iter().take(8) {
        let (plan, graph) = opened(name, backbone);
        let expected = Expected::open(&adapter(name));
        let batch = Expected::open(&fixture(backbone)).batch(0);
        let (_, gradients) = graph.gradients(&[batch]).unwrap();
        let names = names(&plan, &graph);
        let mut saved: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for key in expected.names() {
            if let Some(key) = key.strip_prefix("gradient.") {
                let plain = key.trim_end_matches(".weight").to_owned();
                saved.insert(plain, expected.read(&format!("gradient.{key}")));
            }
        }
        assert_eq!(saved.len(), gradients.len(), "{name}: {:?}", saved.keys());
        let mut worst = 0.0f32;
        for (key, gradient) in &gradients {
            let found = difference(gradient, &saved[&names[key]], true);
            assert!(found < 1e-4, "{name}, {key}: relative difference {found}");
            worst = worst.max(found);
        }
        println!(
            "{name}: {} gradients, worst relative difference {worst:.1e}",
            saved.len()
        );
    }
}

/// Prompts and prefixes with the encoders that make them, whose weights PEFT does not save.
#[test]
fn gradients_of_prompts_and_encoders_are_those_of_peft() {
    let prefix = "insert delta = prefix { tokens = 3 } before block.*.attn";
    let mlp = "insert delta = prefix { tokens = 3, hidden = 7 } before block.*.attn";
    let prompt = "insert delta = prompt { tokens = 4 } before embeddings";
    let encoder = "insert delta = p_tuning { tokens = 4, hidden = 7 } before embeddings";
    let cases = [
        ("prefix", "bert_a", prefix),
        ("prefix_mlp", "bert_a", mlp),
        ("prefix_gpt2", "gpt2", prefix),
        ("prefix_roberta", "roberta", prefix),
        ("prompt", "bert_a", prompt),
        ("prompt_roberta", "roberta", prompt),
        ("p_tuning", "bert_a", encoder),
    ];
    for (name, backbone, statement) in cases {
        let directory = fixture(backbone);
        let expected = Expected::open(&adapter(name));
        let labels = expected.read("logits").len() / 5;
        let plan = classifier(&directory, labels, statement, "delta, head");
        let mut graph = Graph::load(&plan, Cpu::default()).unwrap();
        graph.activate(&plan, 0).unwrap();
        let imported = import(&adapter(name), &config(&directory)).unwrap();
        let head = imported
            .tensors
            .into_iter()
            .filter(|(key, _)| key.starts_with("task."));
        graph.set(head.collect()).unwrap();
        let hidden = plan.backbone.config.hidden;
        let weights = ours_of(&expected, "parameter", hidden, &graph);
        graph.set(weights).unwrap();
        let batch = Expected::open(&directory).batch(0);
        let logits = Cpu::read(&graph.inference().logits(&batch).unwrap());
        let worst = difference(&logits, &expected.read("logits"), false);
        assert!(worst < 1e-5, "{name}: {worst}");
        let (_, gradients) = graph.gradients(&[batch]).unwrap();
        let wanted = ours_of(&expected, "gradient", hidden, &graph);
        let deltas = gradients.keys().filter(|key| key.starts_with("delta."));
        assert_eq!(deltas.count(), wanted.len(), "{name}");
        for (key, (values, _)) in &wanted {
            let found = difference(&gradients[key], values, true);
            assert!(found < 1e-4, "{name}, {key}: relative difference {found}");
        }
        println!("{name}: logits differ by at most {worst:.1e}");
    }
}

/// The tensors of PEFT's prompt encoder under our keys.
fn ours_of(expected: &Expected, what: &str, hidden: usize, graph: &Graph<Cpu>) -> Tensors {
    let trained = graph.trained_tensors();
    let is_prefix = trained.keys().any(|key| key.contains(".attn."));
    let has_encoder = trained.keys().any(|key| key.ends_with("embedding"));
    let read = |name: &str| expected.read(&format!("{what}.prompt_encoder.{name}"));
    let mut tensors = Tensors::new();
    let mut put = |key: &str, values: Vec<f32>| {
        let shape = trained[key].1.clone();
        tensors.insert(key.to_owned(), (values, shape));
    };
    match (is_prefix, has_encoder) {
        (false, false) => put("delta.embeddings.prompt", read("embedding.weight")),
        (false, true) => {
            put("delta.embeddings.embedding", read("embedding.weight"));
            for (number, layer) in ["first", "second", "third"].iter().enumerate() {
                for leaf in ["weight", "bias"] {
                    let name = format!("mlp_head.{}.{leaf}", 2 * number);
                    put(&format!("delta.embeddings.{layer}.{leaf}"), read(&name));
                }
            }
        }
        (true, _) => {
            let layers = trained.keys().filter(|k| k.contains(".attn.keys")).count();
            let layers = if has_encoder { layers / 2 } else { layers };
            let slots = (0..2 * layers).map(|s| (s, s / 2, ["keys", "values"][s % 2]));
            if has_encoder {
                put("delta.embedding", read("embedding.weight"));
                put("delta.down.weight", read("transform.0.weight"));
                put("delta.down.bias", read("transform.0.bias"));
                for (slot, layer, name) in slots {
                    for (leaf, size) in [("weight", 7 * hidden), ("bias", hidden)] {
                        let all = read(&format!("transform.2.{leaf}"));
                        let part = all[slot * size..(slot + 1) * size].to_vec();
                        put(&format!("delta.block.{layer}.attn.{name}.{leaf}"), part);
                    }
                }
            } else {
                let all = read("embedding.weight");
                for (slot, layer, name) in slots {
                    let rows = all.chunks(2 * layers * hidden);
                    let part = rows.flat_map(|row| row[slot * hidden..][..hidden].to_vec());
                    put(&format!("delta.block.{layer}.attn.{name}"), part.collect());
                }
            }
        }
    }
    tensors
}

/// What we write is what PEFT wrote: the same tensors, the same bits, settings that mean the same.
#[test]
fn what_is_written_is_what_peft_wrote() {
    for (name, backbone) in CASES {
        let (plan, graph) = opened(name, backbone);
        let folder = tempfile::TempDir::new().unwrap();
        export(&plan, &graph, folder.path()).unwrap();
        let tensors = |directory: &Path| {
            let file = Checkpoint::open(&[directory.join("adapter_model.safetensors")]).unwrap();
            let names = file.names().into_iter().map(str::to_owned);
            names
                .map(|name| (name.clone(), file.read(&name).unwrap()))
                .collect::<BTreeMap<_, _>>()
        };
        assert_eq!(tensors(folder.path()), tensors(&adapter(name)), "{name}");
        let again = import(folder.path(), &plan.backbone.config).unwrap();
        assert_eq!(again.deltas, plan.deltas, "{name}");
    }
}
