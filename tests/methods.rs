//! What holds for every method: gradients against finite differences, what a fresh delta changes,
//! and that frozen weights do not change.

use crate::common::{classifier, difference, fixture, Expected, METHODS};
use deltarun::backbone::Checkpoint;
use deltarun::delta::ParameterId;
use deltarun::engine::{Device, Layout};
use deltarun::graph::{Batch, Graph, Targets};
use deltarun::plan::Plan;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn load(backbone: &str, statement: &str, train: &str) -> (Plan, Graph, Vec<Batch>) {
    let directory = fixture(backbone);
    let labels = if backbone == "bert_a" { 2 } else { 3 };
    let plan = classifier(&directory, labels, statement, train);
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    graph.activate(&plan, 0).unwrap();
    let expected = Expected::open(&directory);
    (plan, graph, vec![expected.batch(0)])
}

/// Moves every trained parameter away from where it begins, so that no gradient is zero by accident.
fn shake(graph: &mut Graph, seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut tensors = graph.trained_tensors();
    for (values, _) in tensors.values_mut() {
        values
            .iter_mut()
            .for_each(|value| *value += 0.2 * random.random_range(-1.0..1.0f32));
    }
    graph.set(tensors).unwrap();
}

fn loss(graph: &Graph, batch: &[Batch]) -> f64 {
    batch
        .iter()
        .map(|batch| f64::from(graph.inference().loss(batch).unwrap().read()[0]))
        .sum()
}

/// The same method in encoder and decoder, with its cross attentions.
pub fn in_both_stacks(statement: &str) -> String {
    statement
        .replace("block.*.attn", "block.*.{attn,cross}")
        .replace("attn.{q,o}", "{attn,cross}.{q,o}")
        .replace("attn.{k,v}", "{attn,cross}.{k,v}")
        .replace("{attn,ff}", "{attn,cross,ff}")
        .replace("block.*", "**.block.*")
        .replace("**.bias", "**.norm")
}

/// The derivative along the gradient of each parameter, by a central difference of order 4, against
/// the gradient's norm.
#[test]
fn gradients_are_those_of_finite_differences() {
    for backbone in [
        "bert_a", "roberta", "gpt2", "llama_a", "qwen2", "gemma3", "t5_v1_1",
    ] {
        for (statement, _) in METHODS {
            let statement = &match backbone {
                "t5_v1_1" => in_both_stacks(statement),
                "gemma3" => statement.replace("**.bias", "**.norm"),
                _ => statement.to_owned(),
            };
            let (_, mut graph, batch) = load(backbone, statement, "delta, head");
            // Seeds that keep the relus of P-tuning's encoder away from their kinks.
            let seed = match backbone {
                "llama_a" => 5,
                "qwen2" => 8,
                _ => 4,
            };
            shake(&mut graph, seed);
            let (_, gradients) = graph.gradients(&batch).unwrap();
            let start = graph.tensors();
            let mut worst = 0.0f64;
            for (key, gradient) in &gradients {
                let norm = gradient
                    .iter()
                    .map(|g| f64::from(*g).powi(2))
                    .sum::<f64>()
                    .sqrt();
                // DoRA's norms are constants by definition, so what passes through A and B is no
                // gradient of the loss; those are held to PEFT's (`tests/peft_methods.rs`).
                let is_detached = statement.contains("dora") && key.name() != "magnitude";
                if is_detached {
                    continue;
                }
                // Along the gradient, where f32 losses can resolve it, and along a random direction: a gradient that is
                // zero, or wrong beside its own direction, shows there.
                let along = gradient.iter().map(|g| f64::from(*g) / norm.max(1e-3));
                let mut random = ChaCha8Rng::seed_from_u64(5);
                let sign = |_| if random.random::<bool>() { 1.0 } else { -1.0 };
                let side = (gradient.len() as f64).sqrt();
                let across: Vec<f64> = (0..gradient.len()).map(sign).map(|s| s / side).collect();
                for direction in [along.collect::<Vec<f64>>(), across] {
                    let mut at = |distance: f64| {
                        let (mut values, shape) = start[key.path()].clone();
                        for (value, d) in values.iter_mut().zip(&direction) {
                            *value += (distance * d) as f32;
                        }
                        graph
                            .set([(key.to_string(), (values, shape))].into())
                            .unwrap();
                        loss(&graph, &batch)
                    };
                    // Scores that are not divided by the root of the width bend more.
                    let h = if backbone == "t5_v1_1" { 0.003 } else { 0.01 };
                    let slope =
                        (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
                    at(0.0);
                    let products = gradient
                        .iter()
                        .zip(&direction)
                        .map(|(g, d)| f64::from(*g) * d);
                    let expected: f64 = products.sum();
                    let error = (slope - expected).abs() / norm.max(0.02);
                    worst = worst.max(error);
                    assert!(
                        error < 5e-3,
                        "{backbone}, {statement}, {key}: {slope} is not {expected}"
                    );
                }
            }
            println!(
                "{backbone}, {statement}: {} gradients, worst relative error {worst:.1e}",
                gradients.len()
            );
        }
    }
}

#[test]
fn what_should_change_nothing_at_first_changes_nothing() {
    for (statement, _) in METHODS.iter().filter(|(_, is_neutral)| *is_neutral) {
        let (_, plain, batch) = load("bert_a", "", "head");
        let (_, graph, _) = load("bert_a", statement, "delta, head");
        let difference = (loss(&plain, &batch) - loss(&graph, &batch)).abs();
        assert!(difference < 1e-6, "{statement}: {difference}");
    }
}

#[test]
fn a_fresh_adapter_changes_almost_nothing() {
    let statement = "insert delta = houlsby { bottleneck = 5 } after block.*.{attn,ff}";
    let (_, plain, batch) = load("bert_a", "", "head");
    let (_, graph, _) = load("bert_a", statement, "delta, head");
    let difference = (loss(&plain, &batch) - loss(&graph, &batch)).abs();
    assert!(difference > 0.0 && difference < 1e-2, "{difference}");
}

const GATED: [&str; 3] = [
    "reparam delta = lora { rank = 3, alpha = 5, gate = on } on block.*.attn.{q,v}",
    "insert delta = houlsby { bottleneck = 5, gate = on } after block.*.{attn,ff}",
    "insert delta = prefix { tokens = 3, gate = on } before block.*.attn",
];

/// Opens all gates by `bias`, whatever they read.
fn set_gates(graph: &mut Graph, bias: f32) {
    let mut gates = graph.trained_tensors();
    gates.retain(|key, _| key.contains(".gate."));
    assert!(!gates.is_empty());
    for (key, (values, _)) in &mut gates {
        values.fill(if key.ends_with("bias") { bias } else { 0.0 });
    }
    graph.set(gates).unwrap();
}

#[test]
fn an_open_gate_is_none_and_a_closed_one_takes_the_delta_away() {
    for statement in GATED {
        let (_, mut plain, _) = load(
            "bert_a",
            &statement.replace(", gate = on", ""),
            "delta, head",
        );
        let (_, mut graph, batch) = load("bert_a", statement, "delta, head");
        shake(&mut plain, 4);
        graph.set(plain.tensors()).unwrap();
        set_gates(&mut graph, 40.0);
        let difference = (loss(&graph, &batch) - loss(&plain, &batch)).abs();
        assert!(difference < 1e-6, "{statement}: {difference}");
        if statement.contains("prefix") {
            continue; // keys of zero still take their share of the softmax
        }
        set_gates(&mut graph, -40.0);
        let (_, mut bare, _) = load("bert_a", "", "head");
        let mut head = plain.tensors();
        head.retain(|key, _| !key.starts_with("delta."));
        bare.set(head).unwrap();
        let difference = (loss(&graph, &batch) - loss(&bare, &batch)).abs();
        assert!(difference < 1e-6, "{statement}: {difference}");
    }
}

/// With nothing read, a gate is σ(b): the same as a smaller alpha.
#[test]
fn a_gate_weighs_by_the_sigmoid() {
    let statement = GATED[0];
    let (_, mut graph, batch) = load("bert_a", statement, "delta, head");
    shake(&mut graph, 4);
    set_gates(&mut graph, 1.5);
    let weighed = 5.0 / (1.0 + (-1.5f64).exp());
    let weaker = statement
        .replace(", gate = on", "")
        .replace("alpha = 5", &format!("alpha = {weighed}"));
    let (_, mut plain, _) = load("bert_a", &weaker, "delta, head");
    let mut same = graph.tensors();
    same.retain(|key, _| !key.contains(".gate."));
    plain.set(same).unwrap();
    let difference = (loss(&graph, &batch) - loss(&plain, &batch)).abs();
    assert!(difference < 1e-6, "{difference}");
}

/// A gate is one sequence's own: what else is in the batch does not matter.
#[test]
fn a_gate_opens_for_each_sequence_alone() {
    for statement in GATED {
        let (_, mut graph, batch) = load("bert_a", statement, "delta, head");
        shake(&mut graph, 4);
        let batch = &batch[0];
        let all = graph.inference().logits(batch).unwrap().read();
        let labels = all.len() / batch.layout.sequences();
        for (number, range) in batch.layout.ranges().enumerate() {
            let alone = Batch {
                tokens: batch.tokens[range.clone()].to_vec(),
                types: batch.types[range.clone()].to_vec(),
                layout: Layout::new([range.len()], vec![0]),
                reads: Vec::new(),
                soft: Vec::new(),
                cached: None,
                decoder: None,
                total: 1,
                targets: Targets::Classes(vec![0]),
            };
            let logits = graph.inference().logits(&alone).unwrap().read();
            let found = difference(&logits, &all[number * labels..][..labels], false);
            assert!(found < 1e-5, "{statement}, sequence {number}: {found}");
        }
    }
}

#[test]
fn only_what_a_stage_trains_gets_a_gradient() {
    let statements = "reparam a = lora on block.0.attn.q\nreparam b = lora on block.1.attn.q\nunfreeze c = block.1.ff.norm";
    let (_, graph, batch) = load(
        "bert_a",
        &format!("{statements}\nstage first {{ train = [b, c], steps = 1, optimizer = sgd {{ lr = 1 }} }}"),
        "a, head",
    );
    let (_, gradients) = graph.gradients(&batch).unwrap();
    let keys: Vec<&str> = gradients.keys().map(ParameterId::path).collect();
    assert_eq!(
        keys,
        [
            "b.block.1.attn.q.A",
            "b.block.1.attn.q.B",
            "c.block.1.ff.norm.bias",
            "c.block.1.ff.norm.weight"
        ]
    );
}

/// Two deltas at one site act in the order of the file, and a stage's `without` takes one away.
#[test]
fn stages_keep_earlier_deltas_and_do_without_them_when_told() {
    let statements = "reparam a = lora on block.*.attn.q\nreparam b = lora on block.*.attn.q";
    let stage = |name: &str, train: &str, more: &str| {
        format!("stage {name} {{ train = [{train}], steps = 1, optimizer = sgd {{ lr = 1 }} {more} }}\n")
    };
    let text = |without: &str| {
        format!(
            "{statements}\n{}{}",
            stage("one", "a, head", ""),
            stage("two", "b", without)
        )
    };
    let active = |without: &str| -> Vec<String> {
        let plan = classifier(&fixture("bert_a"), 2, &text(without), "a");
        plan.active(1)
            .iter()
            .map(|delta| delta.name.clone())
            .collect()
    };
    assert_eq!(active(""), ["a", "b"]);
    assert_eq!(active("without = [a]"), ["b"]);
}

/// On grouped heads with rotary embeddings, and on an encoder and a decoder: what a method learned is what is read back.
#[test]
fn every_method_learns_and_is_read_back_the_same() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("delta.safetensors");
    for backbone in ["llama_a", "t5_v1_1"] {
        for (statement, _) in METHODS {
            let statement = match backbone {
                "t5_v1_1" => in_both_stacks(statement),
                _ => statement.to_owned(),
            };
            let (_, mut graph, batch) = load(backbone, &statement, "delta, head");
            let before = loss(&graph, &batch);
            for _ in 0..4 {
                let (_, gradients) = graph.gradients(&batch).unwrap();
                let squares = gradients.values().flatten().map(|g| g * g);
                let step = 0.05 / squares.sum::<f32>().sqrt();
                let change = |_: &ParameterId, values: &mut [f32], gradient: &[f32], _: usize| {
                    let both = values.iter_mut().zip(gradient);
                    both.for_each(|(value, g)| *value -= step * g);
                };
                graph.update(&gradients, change).unwrap();
            }
            let after = loss(&graph, &batch);
            assert!(after < before, "{backbone}, {statement}: {before}, {after}");
            deltarun::backbone::write_tensors(&file, &graph.tensors(), None).unwrap();
            let stored = Checkpoint::open(std::slice::from_ref(&file)).unwrap();
            let names = stored.names().into_iter().map(str::to_owned);
            let tensors = names.map(|name| (name.clone(), stored.read(&name).unwrap()));
            let (_, mut again, _) = load(backbone, &statement, "delta, head");
            again.set(tensors.collect()).unwrap();
            let logits = |graph: &Graph| graph.inference().logits(&batch[0]).unwrap().read();
            assert_eq!(logits(&graph), logits(&again), "{backbone}, {statement}");
        }
    }
}
