//! The same numbers as transformers and PEFT, on fixtures that `tests/fixtures/make.py` wrote with
//! them: hidden states, logits, losses, gradients, and twenty steps of AdamW.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::{config, difference, fixture, imported_graph, Expected};
use deltarun::engine::Backend;
use deltarun::peft::import;
use deltarun::plan::Optimizer;
use deltarun::train::optimizer::Stepper;
use dfdx::prelude::Cpu;

/// The fixtures and how close hidden states and logits must be to them; and a real MiniLM, where
/// `DELTARUN_MINILM` names what `make.py` wrote for it.
fn fixtures() -> Vec<(PathBuf, f32)> {
    let mut all: Vec<_> = ["bert_a", "bert_b", "roberta", "gpt2"]
        .iter()
        .map(|name| (fixture(name), 1e-5))
        .collect();
    match std::env::var_os("DELTARUN_MINILM") {
        Some(directory) => all.push((directory.into(), 1e-4)),
        None => {
            println!("MiniLM is skipped: DELTARUN_MINILM is not set (see tests/fixtures/make.py)")
        }
    }
    all
}

#[test]
fn hidden_states_are_those_of_transformers() {
    for (directory, tolerance) in fixtures() {
        let name = directory.file_name().unwrap_or_default().display();
        let expected = Expected::open(&directory);
        let config = config(&directory);
        let plan = common::classifier(&directory, 2, "", "head");
        let graph = deltarun::graph::Graph::load(&plan, Cpu::default()).unwrap();
        let hidden = graph.inference().hidden(&expected.batch(0)).unwrap();
        let expected = expected.packed_rows("hidden", 0, config.hidden);
        let worst = difference(&Cpu::read(&hidden), &expected, false);
        println!("{name}: hidden states differ by at most {worst:e}");
        assert!(worst < tolerance, "{name}: {worst}");
    }
}

#[test]
fn logits_and_losses_with_an_imported_lora_are_those_of_peft() {
    for (directory, tolerance) in fixtures() {
        let name = directory.file_name().unwrap_or_default().display();
        let expected = Expected::open(&directory);
        let imported = import(&directory.join("adapter"), &config(&directory)).unwrap();
        let (_, graph) = imported_graph(&directory, imported);
        let batch = expected.batch(0);
        let logits = graph.inference().logits(&batch).unwrap();
        let worst = difference(&Cpu::read(&logits), &expected.read("logits"), false);
        let loss = Cpu::read(&graph.inference().loss(&batch).unwrap());
        let loss = difference(&loss, &expected.read("loss"), false);
        println!("{name}: logits differ by at most {worst:e}, the loss by {loss:e}");
        assert!(
            worst < tolerance && loss < tolerance,
            "{name}: {worst} {loss}"
        );
    }
}

/// Our key of a gradient that the script saved under PEFT's name.
fn our_keys(graph: &deltarun::graph::Graph<Cpu>) -> BTreeMap<String, String> {
    let prefix = match graph.tree().module("block.0.attn.qkv") {
        Some(_) => "transformer.",
        None if graph.tree().module("pooler").is_some() => "bert.",
        None => "roberta.",
    };
    let mut keys = BTreeMap::new();
    for key in graph.trained() {
        for module in graph.tree().modules() {
            let site = format!(".{}.", module.path);
            let (Some(at), Some(leaf)) = (key.find(&site), key.rsplit('.').next()) else {
                continue;
            };
            if !module.checkpoint_name.is_empty() && at + site.len() + leaf.len() == key.len() {
                let name = format!("{prefix}{}.lora_{leaf}.weight", module.checkpoint_name);
                keys.insert(name, key.clone());
            }
        }
    }
    for (parameter, key) in graph.head_keys() {
        keys.insert(parameter.source.name, key);
    }
    keys
}

#[test]
fn gradients_of_lora_and_classifier_are_those_of_peft() {
    for (directory, _) in fixtures() {
        let name = directory.file_name().unwrap_or_default().display();
        let expected = Expected::open(&directory);
        let imported = import(&directory.join("adapter"), &config(&directory)).unwrap();
        let (_, graph) = imported_graph(&directory, imported);
        let (_, gradients) = graph.gradients(&[expected.batch(0)]).unwrap();
        let keys = our_keys(&graph);
        let saved: Vec<String> = expected
            .names()
            .into_iter()
            .filter(|name| name.starts_with("gradient."))
            .collect();
        assert_eq!(
            saved.len(),
            gradients.len(),
            "{name}: {saved:?} {:?}",
            gradients.keys()
        );
        let mut worst = 0.0f32;
        for saved in &saved {
            let key = &keys[saved.trim_start_matches("gradient.")];
            let found = difference(&gradients[key], &expected.read(saved), true);
            assert!(found < 1e-4, "{name}, {saved}: relative difference {found}");
            worst = worst.max(found);
        }
        println!(
            "{name}: {} gradients differ by at most {worst:e}, relative",
            saved.len()
        );
    }
}

#[test]
fn twenty_steps_of_adamw_have_the_losses_of_peft() {
    for (directory, _) in fixtures() {
        let name = directory.file_name().unwrap_or_default().display();
        let expected = Expected::open(&directory);
        let imported = import(&directory.join("adapter"), &config(&directory)).unwrap();
        let (_, mut graph) = imported_graph(&directory, imported);
        let optimizer = Optimizer::AdamW {
            lr: 3e-3,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            weight_decay: 0.01,
        };
        let mut stepper = Stepper::new(optimizer);
        let mut losses = Vec::new();
        for step in 0..20 {
            let (loss, gradients) = graph.gradients(&[expected.batch(step % 4)]).unwrap();
            losses.push(loss);
            stepper.begin();
            let mut tensors = graph.tensors();
            tensors.retain(|key, _| gradients.contains_key(key));
            for (key, (values, _)) in &mut tensors {
                stepper.update(key, values, &gradients[key], 3e-3);
            }
            graph.set(tensors).unwrap();
        }
        let worst = difference(&losses, &expected.read("losses"), false);
        println!(
            "{name}: 20 losses differ by at most {worst:e} (first {}, last {})",
            losses[0], losses[19]
        );
        assert!(worst < 1e-3, "{name}: {worst}");
        assert!(losses[16..].iter().sum::<f32>() < losses[..4].iter().sum::<f32>());
    }
}
