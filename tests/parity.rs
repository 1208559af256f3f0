//! The same numbers as transformers and PEFT, on fixtures that `tests/fixtures/make.py` wrote with
//! them: hidden states, logits, losses, gradients, and twenty steps of AdamW.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{config, difference, fixture, imported_graph, Expected};
use deltarun::delta::ParameterId;
use deltarun::engine::Device;
use deltarun::graph::{Batch, Graph, Targets};
use deltarun::peft::{import, Imported};
use deltarun::plan::{Optimizer, Plan};
use deltarun::task::Encoder;
use deltarun::train::optimizer::Stepper;

/// Those that have a head of a language model's as well.
const DECODERS: [&str; 10] = [
    "llama_a", "llama_b", "qwen2", "mistral", "qwen3", "smollm3", "gemma", "gemma2", "gemma3",
    "phi3",
];

/// Those that have an encoder and a decoder.
const ENCODER_DECODERS: [&str; 3] = ["t5_v1_0", "t5_v1_1", "mt5"];

/// The fixtures, and how close hidden states and logits must be to them.
fn fixtures() -> impl Iterator<Item = (PathBuf, f32)> {
    let others = [
        "bert_a",
        "bert_b",
        "roberta",
        "gpt2",
        "distilbert",
        "modernbert",
        "modernbert_first",
    ];
    let all = others.into_iter().chain(DECODERS).chain(ENCODER_DECODERS);
    all.map(|name| (fixture(name), 1e-5))
}

/// What a check needs to know of a fixture.
type Check = fn(&Path, f32);

/// What `make.py` wrote for a real MiniLM.
#[test]
#[ignore = "needs DELTARUN_MINILM"]
fn a_real_minilm_is_that_of_transformers_and_peft() {
    let directory = std::env::var_os("DELTARUN_MINILM").expect("DELTARUN_MINILM is set");
    let checks: [Check; 4] = [
        check_hidden_states,
        check_imported_lora,
        check_gradients,
        check_twenty_steps,
    ];
    for check in checks {
        check(Path::new(&directory), 1e-4);
    }
}

#[test]
fn hidden_states_are_those_of_transformers() {
    fixtures().for_each(|(directory, tolerance)| check_hidden_states(&directory, tolerance));
}

fn check_hidden_states(directory: &Path, tolerance: f32) {
    let name = directory.file_name().unwrap_or_default().display();
    let expected = Expected::open(directory);
    let config = config(directory);
    let plan = crate::common::classifier(directory, 2, "", "head");
    let graph = Graph::load(&plan, Device::Cpu).unwrap();
    let hidden = graph.inference().hidden(&expected.batch(0)).unwrap();
    let expected = expected.packed_rows("hidden", 0, config.hidden);
    let worst = difference(&hidden.read(), &expected, false);
    println!("{name}: hidden states differ by at most {worst:e}");
    assert!(worst < tolerance, "{name}: {worst}");
}

#[test]
fn logits_and_losses_with_an_imported_lora_are_those_of_peft() {
    fixtures().for_each(|(directory, tolerance)| check_imported_lora(&directory, tolerance));
}

fn check_imported_lora(directory: &Path, tolerance: f32) {
    let name = directory.file_name().unwrap_or_default().display();
    let expected = Expected::open(directory);
    let imported = import(&directory.join("adapter"), &config(directory)).unwrap();
    let (_, graph) = imported_graph(directory, imported);
    let batch = expected.batch(0);
    let logits = graph.inference().logits(&batch).unwrap();
    let worst = difference(&logits.read(), &expected.read("logits"), false);
    let loss = graph.inference().loss(&batch).unwrap().read();
    let loss = difference(&loss, &expected.read("loss"), false);
    println!("{name}: logits differ by at most {worst:e}, the loss by {loss:e}");
    assert!(
        worst < tolerance && loss < tolerance,
        "{name}: {worst} {loss}"
    );
}

/// The graph of a language model with what it is to train.
fn language_model(directory: &Path, imported: Option<Imported>) -> (Plan, Graph) {
    let task = match config(directory).decoder_layers {
        None => "causal_lm { text = text }",
        Some(_) => "seq2seq { source = text, target = text }",
    };
    let text = format!(
        "backbone \"{}\" {{ dropout = off }}
        data {{ train = text(\"train.txt\") }}
        task {task}
        unfreeze norms = **.norm
        stage tune {{ train = [norms], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
        directory.display()
    );
    let mut plan = crate::common::plan_of(&text, Path::new(""));
    if let Some(imported) = &imported {
        let names = imported.deltas.iter().map(|delta| delta.name.clone());
        plan.stages[0].train = names.collect();
        plan.stages[0].train_head = false;
        plan.deltas = imported.deltas.clone();
    }
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    if let Some(imported) = imported {
        graph.set(imported.tensors).unwrap();
    }
    graph.activate(&plan, 0).unwrap();
    (plan, graph)
}

/// A batch whose every token is predicted off the row before it.
fn predicting(mut batch: Batch) -> Batch {
    let ranges = batch.layout.ranges();
    let rows: Vec<usize> = ranges
        .flat_map(|range| range.start + 1..range.end)
        .collect();
    let tokens = rows.iter().map(|row| batch.tokens[*row]).collect();
    batch.total = rows.len();
    batch.targets = Targets::Tokens { rows, tokens };
    batch
}

/// What `make.py` wrote for a real SmolLM2.
#[test]
#[ignore = "needs DELTARUN_SMOLLM2"]
fn a_real_llama_reads_texts_as_transformers_and_learns_as_peft() {
    let directory = std::env::var_os("DELTARUN_SMOLLM2").expect("DELTARUN_SMOLLM2 is set");
    let directory = Path::new(&directory);
    let expected = Expected::open(directory);
    let config = config(directory);
    let batch = expected.batch(0);
    let texts = std::fs::read_to_string(directory.join("texts.json")).unwrap();
    let texts: Vec<Vec<String>> = serde_json::from_str::<Vec<String>>(&texts)
        .unwrap()
        .into_iter()
        .map(|text| vec![text])
        .collect();
    let encoder = deltarun::data::TextEncoder::open(directory, 512, &config).unwrap();
    let encoded = texts.iter().map(|texts| encoder.texts(texts).unwrap());
    let tokens: Vec<u32> = encoded.flat_map(|text| text.tokens).collect();
    let tokens = tokens.iter();
    assert!(tokens.eq(batch
        .tokens
        .iter()
        .map(|token| *token as u32)
        .collect::<Vec<_>>()
        .iter()));

    let logits = |graph: &Graph, name: &str| {
        let found = graph.inference().logits(&batch).unwrap();
        let of_transformers = expected.packed_rows(name, 0, config.vocabulary);
        difference(&found.read(), &of_transformers, false)
    };
    let (_, graph) = language_model(directory, None);
    let plain = logits(&graph, "language_model.logits");
    let imported = import(&directory.join("adapter"), &config).unwrap();
    let (_, mut graph) = language_model(directory, Some(imported));
    let tuned = logits(&graph, "logits");
    let batch = predicting(batch.clone());
    let losses = twenty_steps(&mut graph, |_| batch.clone(), 1e-3);
    let losses = difference(&losses, &expected.read("losses"), false);
    println!("SmolLM2: logits differ by at most {plain:e}, with a LoRA by {tuned:e}, 20 losses by {losses:e}");
    assert!(plain < 1e-3 && tuned < 1e-3 && losses < 1e-3);
}

/// The losses of twenty steps of AdamW.
fn twenty_steps(graph: &mut Graph, batch: impl Fn(usize) -> Batch, lr: f32) -> Vec<f32> {
    let mut stepper = Stepper::new(Optimizer::AdamW {
        lr,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        weight_decay: 0.01,
    });
    let mut losses = Vec::new();
    for step in 0..20 {
        let (loss, gradients) = graph.gradients(&[batch(step)]).unwrap();
        losses.push(loss);
        stepper.begin();
        let mut tensors = graph.tensors();
        tensors.retain(|key, _| gradients.contains_key(key.as_str()));
        for (key, (values, _)) in &mut tensors {
            stepper.update(key, values, &gradients[key.as_str()], 1, lr);
        }
        graph.set(tensors).unwrap();
    }
    losses
}

#[test]
fn logits_and_losses_of_language_models_are_those_of_transformers() {
    for name in DECODERS {
        let directory = fixture(name);
        let expected = Expected::open(&directory);
        let (_, graph) = language_model(&directory, None);
        let batch = expected.batch(0);
        let logits = graph.inference().logits(&batch).unwrap();
        let logits = difference(
            &logits.read(),
            &expected.packed_rows("language_model.logits", 0, 61),
            false,
        );
        let batch = predicting(batch);
        let loss = graph.inference().loss(&batch).unwrap().read();
        let loss = difference(&loss, &expected.read("language_model.loss"), false);
        println!("{name}: logits differ by at most {logits:e}, the loss by {loss:e}");
        assert!(logits < 1e-5 && loss < 1e-5, "{name}: {logits} {loss}");
    }
}

#[test]
fn an_encoder_and_a_decoder_are_those_of_transformers() {
    for name in ENCODER_DECODERS {
        let directory = fixture(name);
        let expected = Expected::open(&directory);
        let (_, graph) = language_model(&directory, None);
        let batch = expected.seq2seq(0);
        let encoded = graph.inference().encoded(&batch).unwrap();
        let of_transformers = expected.packed_rows("seq2seq.encoded", 0, 20);
        let encoded = difference(&encoded.unwrap().read(), &of_transformers, false);
        let logits = graph.inference().logits(&batch).unwrap();
        let of_transformers = expected.target_rows("seq2seq.logits", 0, 61);
        let logits = difference(&logits.read(), &of_transformers, false);
        let loss = graph.inference().loss(&batch).unwrap().read();
        let loss = difference(&loss, &expected.read("seq2seq.loss"), false);
        println!("{name}: hidden states of the encoder differ by at most {encoded:e}, logits by {logits:e}, the loss by {loss:e}");
        assert!(
            encoded < 1e-5 && logits < 1e-5 && loss < 1e-5,
            "{name}: {encoded} {logits} {loss}"
        );
    }
}

#[test]
fn a_lora_of_an_encoder_and_a_decoder_learns_as_in_peft() {
    for name in ENCODER_DECODERS {
        let directory = fixture(name);
        let expected = Expected::open(&directory);
        let imported = import(&directory.join("adapter_seq2seq"), &config(&directory)).unwrap();
        let (_, mut graph) = language_model(&directory, Some(imported));
        let batch = expected.seq2seq(0);
        let logits = graph.inference().logits(&batch).unwrap();
        let of_peft = expected.target_rows("seq2seq.tuned.logits", 0, 61);
        let logits = difference(&logits.read(), &of_peft, false);
        assert!(logits < 1e-5, "{name}: {logits}");
        let (_, gradients) = graph.gradients(&[batch]).unwrap();
        let gradients = gradients_differ(
            name,
            &graph,
            &expected,
            "seq2seq.tuned.gradient.",
            "",
            &gradients,
        );
        let losses = twenty_steps(&mut graph, |step| expected.seq2seq(step % 4), 3e-3);
        let losses = difference(&losses, &expected.read("seq2seq.tuned.losses"), false);
        println!("{name}: logits differ by at most {logits:e}, gradients by {gradients:e}, 20 losses by {losses:e}");
        assert!(losses < 1e-3, "{name}: {losses}");
    }
}

/// Our key of a gradient that the script saved under PEFT's name.
fn our_keys(graph: &Graph, prefix: &str) -> BTreeMap<String, String> {
    let mut keys = BTreeMap::new();
    for id in graph.trained() {
        let Some(module) = id.site().and_then(|site| graph.tree().module(site)) else {
            continue;
        };
        let (site, name) = (format!("{prefix}{}", module.checkpoint_name), id.name());
        keys.insert(format!("{site}.lora_{name}.weight"), id.to_string());
        keys.insert(format!("{site}.lora_embedding_{name}"), id.to_string());
    }
    for (parameter, key) in graph.head_ids() {
        keys.insert(parameter.source.name, key.to_string());
    }
    keys
}

#[test]
fn gradients_of_lora_and_classifier_are_those_of_peft() {
    fixtures().for_each(|(directory, tolerance)| check_gradients(&directory, tolerance));
}

fn check_gradients(directory: &Path, _: f32) {
    let name = directory.file_name().unwrap_or_default().display();
    let expected = Expected::open(directory);
    let imported = import(&directory.join("adapter"), &config(directory)).unwrap();
    let (_, graph) = imported_graph(directory, imported);
    let (_, gradients) = graph.gradients(&[expected.batch(0)]).unwrap();
    let prefix = &config(directory).family().base_model_prefix;
    let worst = gradients_differ(
        &name.to_string(),
        &graph,
        &expected,
        "gradient.",
        prefix,
        &gradients,
    );
    println!(
        "{name}: {} gradients differ by at most {worst:e}, relative",
        gradients.len()
    );
}

/// The largest relative difference of gradients from those that the script saved under names that begin with `saved`.
fn gradients_differ(
    name: &str,
    graph: &Graph,
    expected: &Expected,
    beginning: &str,
    prefix: &str,
    gradients: &BTreeMap<ParameterId, Vec<f32>>,
) -> f32 {
    let keys = our_keys(graph, prefix);
    let saved: Vec<String> = expected
        .names()
        .into_iter()
        .filter(|name| name.starts_with(beginning))
        .collect();
    assert_eq!(
        saved.len(),
        gradients.len(),
        "{name}: {saved:?} {:?}",
        gradients.keys()
    );
    let mut worst = 0.0f32;
    for saved in &saved {
        let key = &keys[saved.trim_start_matches(beginning)];
        let of_peft = match saved.ends_with("lora_embedding_A") {
            true => expected.read_transposed(saved),
            false => expected.read(saved),
        };
        let found = difference(&gradients[key.as_str()], &of_peft, true);
        assert!(found < 1e-4, "{name}, {saved}: relative difference {found}");
        worst = worst.max(found);
    }
    worst
}

#[test]
fn twenty_steps_of_adamw_have_the_losses_of_peft() {
    fixtures().for_each(|(directory, tolerance)| check_twenty_steps(&directory, tolerance));
}

fn check_twenty_steps(directory: &Path, _: f32) {
    let name = directory.file_name().unwrap_or_default().display();
    let expected = Expected::open(directory);
    let imported = import(&directory.join("adapter"), &config(directory)).unwrap();
    let (_, mut graph) = imported_graph(directory, imported);
    let losses = twenty_steps(&mut graph, |step| expected.batch(step % 4), 3e-3);
    let worst = difference(&losses, &expected.read("losses"), false);
    println!(
        "{name}: 20 losses differ by at most {worst:e} (first {}, last {})",
        losses[0], losses[19]
    );
    assert!(worst < 1e-3, "{name}: {worst}");
    assert!(losses[16..].iter().sum::<f32>() < losses[..4].iter().sum::<f32>());
}
