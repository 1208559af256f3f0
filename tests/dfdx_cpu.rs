//! `--device dfdx-cpu`: whole steps of every family as the definitions compute them in dfdx, beside the kernels.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{config, difference, fixture, imported_graph_on, Expected};
use deltarun::delta::ParameterId;
use deltarun::engine::Device;
use deltarun::graph::{Batch, Graph};
use deltarun::peft::import;

/// Loss and gradients of a step.
fn step(graph: &Graph, batch: &Batch) -> (f32, BTreeMap<ParameterId, Vec<f32>>) {
    graph.gradients(std::slice::from_ref(batch)).unwrap()
}

#[test]
fn steps_by_definitions_are_those_by_kernels() {
    for name in [
        "bert_a",
        "roberta",
        "gpt2",
        "llama_a",
        "qwen2",
        "gemma2",
        "gemma3",
        "smollm3",
        "distilbert",
        "t5_v1_0",
        "t5_v1_1",
    ] {
        let directory = fixture(name);
        let full = crate::common::classifier(&directory, 3, "unfreeze all = **", "all, head");
        let graphs = |device: Device| {
            let imported = import(&directory.join("adapter"), &config(&directory)).unwrap();
            let (_, low_rank) = imported_graph_on(&directory, imported, device.clone());
            let mut everything = Graph::load(&full, device).unwrap();
            everything.activate(&full, 0).unwrap();
            [low_rank, everything]
        };
        let batch = Expected::open(&directory).batch(0);
        let both = graphs(Device::Cpu).into_iter().zip(graphs(Device::DfdxCpu));
        for (what, (graph, of_dfdx)) in ["LoRA", "full"].into_iter().zip(both) {
            let (loss, gradients) = step(&graph, &batch);
            let (expected, of_definitions) = step(&of_dfdx, &batch);
            // Beside the largest of all: some are zero but for rounding.
            let all = |gradients: &BTreeMap<ParameterId, Vec<f32>>| -> Vec<f32> {
                gradients.values().flatten().copied().collect()
            };
            let worst = difference(&all(&gradients), &all(&of_definitions), true);
            println!(
                "{name}, {what}: the loss differs by {:.1e}, {} gradients by {worst:.1e}",
                (loss - expected).abs(),
                gradients.len()
            );
            assert!((loss - expected).abs() < 1e-5, "{name}: {loss} {expected}");
            assert!(worst < 1e-4, "{name}, {what}: {worst}");
        }
    }
    quickstart();
}

/// The first step of the quickstart, by the command.
fn quickstart() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let text = std::fs::read_to_string(root.join("quickstart.delta")).unwrap();
    let text = text
        .replace(
            "\"quickstart/",
            &format!("\"{}/quickstart/", root.display()),
        )
        .replace("epochs = 10", "steps = 12")
        .replace("epochs = 16", "steps = 12");
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("q.delta"), text).unwrap();
    let losses = |device: &str| -> Vec<f32> {
        let arguments = ["q.delta", "--quiet", "--device", device, "--out", device];
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_deltarun"));
        let output = command.args(arguments).current_dir(place.path()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        let log = std::fs::read_to_string(place.path().join(device).join("log.jsonl")).unwrap();
        let lines = log.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["loss"].as_f64()
        });
        lines.flatten().map(|loss| loss as f32).collect()
    };
    let (by_kernels, by_definitions) = (losses("cpu"), losses("dfdx-cpu"));
    let worst = difference(&by_kernels, &by_definitions, false);
    println!(
        "quickstart: {} losses differ by at most {worst:.1e}",
        by_kernels.len()
    );
    assert!(by_kernels.len() >= 24 && worst < 1e-3, "{worst}");
}
