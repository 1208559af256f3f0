//! Every method that PEFT has: logits and gradients equal to PEFT's with weights far from their init,
//! and what we write equal, tensor by tensor, to what PEFT wrote. The fixtures are
//! `tests/fixtures/make_methods.py`'s.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{classifier, config, difference, fixture, imported_graph, Expected};
use deltarun::backbone::Checkpoint;
use deltarun::engine::Device;
use deltarun::graph::{Graph, Tensors};
use deltarun::peft::{export, import};
use deltarun::plan::{Change, Plan};

/// Fixtures of methods inside the backbone, and the backbone that each was made on.
const TUNERS: [(&str, &str); 15] = [
    ("rslora", "bert_a"),
    ("dora", "bert_a"),
    ("dora_gpt2", "gpt2"),
    ("lora_embedding", "bert_a"),
    ("pissa", "bert_a"),
    ("adalora", "bert_a"),
    ("trainable_tokens", "bert_a"),
    ("layer_norms", "bert_a"),
    ("layer_norms_gpt2", "gpt2"),
    ("loha", "bert_a"),
    ("lokr", "bert_a"),
    ("lokr_whole", "bert_a"),
    ("vera", "bert_a"),
    ("miss", "bert_a"),
    ("ia3", "bert_a"),
];

/// Those of prompts and prefixes.
const PROMPTS: [(&str, &str); 7] = [
    ("prefix", "bert_a"),
    ("prefix_mlp", "bert_a"),
    ("prefix_gpt2", "gpt2"),
    ("prefix_roberta", "roberta"),
    ("prompt", "bert_a"),
    ("prompt_roberta", "roberta"),
    ("p_tuning", "bert_a"),
];

fn cases() -> impl Iterator<Item = (&'static str, &'static str)> {
    TUNERS.into_iter().chain(PROMPTS)
}

fn adapter(name: &str) -> PathBuf {
    fixture("methods").join(name)
}

fn opened(name: &str, backbone: &str) -> (Plan, Graph) {
    let directory = fixture(backbone);
    let imported = import(&adapter(name), &config(&directory)).unwrap();
    imported_graph(&directory, imported)
}

#[test]
fn logits_are_those_of_peft() {
    for (name, backbone) in cases() {
        let (_, graph) = opened(name, backbone);
        let expected = Expected::open(&adapter(name));
        let batch = Expected::open(&fixture(backbone)).batch(0);
        let logits = graph.inference().logits(&batch).unwrap().read();
        let worst = difference(&logits, &expected.read("logits"), false);
        println!("{name}: logits differ by at most {worst:.1e}");
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

/// A tensor's name in PEFT, `.weight` left out, and the columns of ours where PEFT has it transposed.
type Stored = (String, Option<usize>);

/// How PEFT stores each trained key.
fn stored(plan: &Plan, graph: &Graph) -> BTreeMap<String, Stored> {
    let prefix = &plan.backbone.config.family().base_model_prefix;
    let mut stored = BTreeMap::new();
    let mut put = |key: String, module: &str, suffix: &str, columns: Option<usize>| {
        let name = format!("base_model.model.{prefix}{module}.{suffix}");
        let name = name.trim_end_matches(".weight").to_owned();
        stored.insert(key, (name, columns));
    };
    for delta in &plan.deltas {
        match &delta.change {
            Change::Method { method, sites } => {
                for module in sites.iter().map(|site| graph.tree().module(site).unwrap()) {
                    for parameter in method.parameters(module) {
                        let (suffix, columns) = match method.peft_tensor(module, &parameter) {
                            Some(tensor) => {
                                let columns = tensor.is_transposed.then(|| parameter.shape[1]);
                                (tensor.suffix, columns)
                            }
                            None if parameter.name == "rows" => {
                                ("token_adapter.trainable_tokens_delta", None)
                            }
                            None => continue, // what is not trained
                        };
                        let key = format!("{}.{}.{}", delta.name, module.path, parameter.name);
                        put(key, &module.checkpoint_name, suffix, columns);
                    }
                }
            }
            Change::Unfreeze { parameters } => {
                for path in parameters {
                    let (module, leaf) = path.rsplit_once('.').unwrap();
                    let module = &graph.tree().module(module).unwrap().checkpoint_name;
                    let key = format!("{}.{path}", delta.name);
                    put(key, module, &format!("ln_tuning_layers.{leaf}"), None);
                }
            }
        }
    }
    for (parameter, key) in graph.head_ids() {
        let name = format!("base_model.model.{}", parameter.source.full_name(prefix));
        stored.insert(
            key.to_string(),
            (name.trim_end_matches(".weight").to_owned(), None),
        );
    }
    stored
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let column = |c: usize| values.iter().skip(c).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}

#[test]
fn gradients_are_those_of_peft() {
    for (name, backbone) in TUNERS {
        let (plan, graph) = opened(name, backbone);
        let expected = Expected::open(&adapter(name));
        let batch = Expected::open(&fixture(backbone)).batch(0);
        let (_, gradients) = graph.gradients(&[batch]).unwrap();
        let stored = stored(&plan, &graph);
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
            let (name_there, columns) = &stored[key.path()];
            let gradient = match columns {
                Some(columns) => transposed(gradient, *columns),
                None => gradient.clone(),
            };
            let found = difference(&gradient, &saved[name_there], true);
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
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
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
        let logits = graph.inference().logits(&batch).unwrap().read();
        let worst = difference(&logits, &expected.read("logits"), false);
        assert!(worst < 1e-5, "{name}: {worst}");
        let (_, gradients) = graph.gradients(&[batch]).unwrap();
        let wanted = ours_of(&expected, "gradient", hidden, &graph);
        let deltas = gradients.keys().filter(|id| id.delta() == Some("delta"));
        assert_eq!(deltas.count(), wanted.len(), "{name}");
        for (key, (values, _)) in &wanted {
            let found = difference(&gradients[key.as_str()], values, true);
            assert!(found < 1e-4, "{name}, {key}: relative difference {found}");
        }
        println!("{name}: logits differ by at most {worst:.1e}");
    }
}

/// The tensors of PEFT's prompt encoder under our keys.
fn ours_of(expected: &Expected, what: &str, hidden: usize, graph: &Graph) -> Tensors {
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
    // PiSSA is written as the LoRA that is left of it, see below.
    for (name, backbone) in cases().filter(|(name, _)| *name != "pissa") {
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

/// PEFT's conversion subtracts what A and B began as, in ranks of its own; singular vectors have no
/// sign, so what counts is what the two adapters compute.
#[test]
fn pissa_is_written_as_the_lora_that_peft_makes_of_it() {
    let (plan, graph) = opened("pissa", "bert_a");
    let folder = tempfile::TempDir::new().unwrap();
    export(&plan, &graph, folder.path()).unwrap();
    let expected = Expected::open(&adapter("pissa")).read("logits");
    let batch = Expected::open(&fixture("bert_a")).batch(0);
    let head = import(folder.path(), &plan.backbone.config)
        .unwrap()
        .tensors;
    // PEFT leaves the head out of what it converts.
    let converted = adapter("pissa/converted");
    let config_file = |directory: &Path| directory.join("adapter_config.json");
    let text = std::fs::read_to_string(config_file(&converted)).unwrap();
    let mut settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    settings["modules_to_save"] = serde_json::Value::Null;
    let headless = tempfile::TempDir::new().unwrap();
    std::fs::write(config_file(headless.path()), settings.to_string()).unwrap();
    let file = "adapter_model.safetensors";
    std::fs::copy(converted.join(file), headless.path().join(file)).unwrap();
    for directory in [folder.path(), headless.path()] {
        let mut imported = import(directory, &plan.backbone.config).unwrap();
        imported.outputs = Some(2);
        let is_head = |key: &str| key.starts_with("task.");
        imported
            .tensors
            .extend(head.clone().into_iter().filter(|(key, _)| is_head(key)));
        let (_, graph) = imported_graph(&fixture("bert_a"), imported);
        let logits = graph.inference().logits(&batch).unwrap().read();
        let worst = difference(&logits, &expected, false);
        assert!(worst < 1e-5, "{}: {worst}", directory.display());
    }
    let shapes = |directory: &Path| -> Vec<(String, Vec<usize>)> {
        let file = Checkpoint::open(&[directory.join("adapter_model.safetensors")]).unwrap();
        let names = file
            .names()
            .into_iter()
            .filter(|name| name.contains("lora"));
        names
            .map(|name| (name.to_owned(), file.shape(name).unwrap().to_vec()))
            .collect()
    };
    assert_eq!(shapes(folder.path()), shapes(&adapter("pissa/converted")));
}
