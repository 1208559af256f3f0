//! Every ordered pair of methods in one model: it builds, a few steps lower the loss of a fixed batch,
//! and what is saved and loaded gives the same bits. A pair that cannot share a model is a mistake
//! with its reason.

use crate::common::{classifier, fixture, three_steps, try_plan, Expected, METHODS};
use deltarun::backbone::write_tensors;
use deltarun::backbone::Checkpoint;
use deltarun::engine::Device;
use deltarun::graph::{Batch, Graph};
use deltarun::plan::Plan;

/// The two statements, the first delta named `first` and the second `second`.
fn statements(first: &str, second: &str) -> String {
    let name = |statement: &str, name: &str| statement.replacen("delta", name, 1);
    format!("{}\n{}", name(first, "first"), name(second, "second"))
}

fn load(plan: &Plan) -> Graph {
    let mut graph = Graph::load(plan, Device::Cpu).unwrap();
    graph.activate(plan, 0).unwrap();
    graph
}

fn logits(graph: &Graph, batch: &Batch) -> Vec<f32> {
    graph.inference().logits(batch).unwrap().read()
}

/// Tries every pair on a backbone.
fn try_pairs(name: &str) {
    let directory = fixture(name);
    let batch = Expected::open(&directory).batch(0);
    let folder = tempfile::TempDir::new().unwrap();
    let file = folder.path().join("delta.safetensors");
    let (mut trained, mut refused) = (0, 0);
    for (first, _) in METHODS {
        for (second, _) in METHODS {
            let text = statements(first, second);
            if first.starts_with("unfreeze") && second.starts_with("unfreeze") {
                let problems = try_plan(&directory, 3, &text, "first, second, head").unwrap_err();
                assert_eq!(problems[0].code, "delta::plan::overlap", "{text}");
                refused += 1;
                continue;
            }
            let plan = classifier(&directory, 3, &text, "first, second, head");
            let mut graph = load(&plan);
            let (before, after) = three_steps(&mut graph, std::slice::from_ref(&batch));
            assert!(after < before, "{text}: {before} became {after}");
            write_tensors(&file, &graph.tensors(), None).unwrap();
            let saved = Checkpoint::open(std::slice::from_ref(&file)).unwrap();
            let names = saved.names().into_iter().map(str::to_owned);
            let tensors = names.map(|name| (name.clone(), saved.read(&name).unwrap()));
            let mut again = load(&plan);
            again.set(tensors.collect()).unwrap();
            assert_eq!(logits(&graph, &batch), logits(&again, &batch), "{text}");
            trained += 1;
        }
    }
    println!("{name}: {trained} pairs were trained, {refused} were refused");
    assert_eq!(trained + refused, METHODS.len() * METHODS.len());
}

#[test]
fn every_pair_trains_and_is_the_same_after_saving_and_loading() {
    try_pairs("bert_a");
}

#[test]
fn every_pair_trains_on_llama_and_is_the_same_after_saving_and_loading() {
    try_pairs("llama_a");
}
