//! AdaLoRA's schedule beside PEFT's: the loss with its penalty, and every E, after each of twelve
//! steps in which half of the ranks go. The fixture is `tests/fixtures/make_methods.py`'s.

use std::collections::BTreeMap;

use crate::common::{classifier, difference, fixture, Expected};
use deltarun::backbone::Checkpoint;
use deltarun::delta::Step;
use deltarun::engine::Device;
use deltarun::graph::{Graph, Tensors};
use deltarun::plan::Optimizer;
use deltarun::train::optimizer::Stepper;

const STEPS: usize = 12;
const STATEMENT: &str =
    "reparam delta = adalora { rank = 4, target_rank = 2, alpha = 5, warmup = 2, \
     last = 3, interval = 2 } on block.*.attn.{q,v}";

/// Our key of each tensor of PEFT's.
fn keys() -> impl Iterator<Item = (String, String)> {
    let places = (0..2).flat_map(|layer| [("q", "query"), ("v", "value")].map(|p| (layer, p)));
    places.flat_map(|(layer, (ours, theirs))| {
        ["A", "B", "E"].map(|name| {
            let there = format!(
                "base_model.model.bert.encoder.layer.{layer}.attention.self.{theirs}.lora_{name}"
            );
            (format!("delta.block.{layer}.attn.{ours}.{name}"), there)
        })
    })
}

fn graph_at_the_start(expected: &Expected) -> Graph {
    let directory = fixture("bert_a");
    let plan = classifier(&directory, 2, STATEMENT, "delta");
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    graph.activate(&plan, 0).unwrap();
    let mut tensors: Tensors = graph.trained_tensors();
    for (ours, theirs) in keys() {
        tensors.get_mut(&ours).unwrap().0 = expected.read(&theirs);
    }
    let backbone = Checkpoint::open(&[directory.join("model.safetensors")]).unwrap();
    for (parameter, key) in graph.head_ids() {
        tensors.insert(
            key.to_string(),
            backbone.read(&parameter.source.name).unwrap(),
        );
    }
    graph.set(tensors).unwrap();
    graph
}

#[test]
fn ranks_go_as_in_peft() {
    let expected = Expected::open(&fixture("methods/adalora_budget"));
    let mut graph = graph_at_the_start(&expected);
    let plan = classifier(&fixture("bert_a"), 2, STATEMENT, "delta");
    let adalora = plan.deltas[0].on_host().unwrap();
    let groups = [Expected::open(&fixture("bert_a")).batch(0)];
    let mut stepper = Stepper::new(Optimizer::AdamW {
        lr: 0.05,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        weight_decay: 0.0,
    });
    let mut memory = BTreeMap::new();
    let mut worst = 0.0f32;
    for number in 1..=STEPS {
        let (loss, mut gradients) = graph.gradients(&groups).unwrap();
        let mut step = Step {
            number,
            steps: STEPS,
            values: graph.trained_values_of("delta"),
            gradients: &mut gradients,
            device: &Device::Cpu,
            memory: &mut memory,
        };
        let loss = loss + adalora.penalty(&mut step).unwrap();
        let found = difference(&[loss], &expected.read(&format!("loss.{number}")), true);
        assert!(found < 1e-4, "step {number}: the loss differs by {found}");
        stepper.begin();
        for (id, values) in &mut step.values {
            stepper.update(id.path(), values, &step.gradients[id], 1, 0.05);
        }
        adalora.allocate(&mut step);
        let mut tensors = graph.trained_tensors();
        for (id, values) in step.values {
            tensors.get_mut(id.path()).unwrap().0 = values;
        }
        for (ours, theirs) in keys().filter(|(ours, _)| ours.ends_with('E')) {
            let wanted = expected.read(&format!("{number}.{theirs}"));
            let found = difference(&tensors[&ours].0, &wanted, false);
            assert!(found < 1e-4, "step {number}, {ours}: {found}");
            let is_zero = |values: &[f32]| values.iter().map(|v| *v == 0.0).collect::<Vec<_>>();
            assert_eq!(
                is_zero(&tensors[&ours].0),
                is_zero(&wanted),
                "step {number}, {ours}"
            );
            worst = worst.max(found);
        }
        graph.set(tensors).unwrap();
    }
    let left = keys().filter(|(ours, _)| ours.ends_with('E'));
    let left = left.flat_map(|(ours, _)| graph.tensor(&ours).unwrap());
    assert_eq!(left.filter(|value| *value != 0.0).count(), 2 * 4);
    println!("E differs from PEFT's by at most {worst:.1e}");
}
