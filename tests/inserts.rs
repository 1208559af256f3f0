//! Adapters that PEFT does not have: the numbers of their papers' formulas in PyTorch, by
//! `tests/fixtures/make_inserts.py`.

use crate::common::{classifier, difference, fixture, Expected};
use deltarun::engine::Device;
use deltarun::graph::Graph;

/// The name of a method, and its statement.
const CASES: [(&str, &str); 5] = [
    (
        "houlsby",
        "insert delta = houlsby { bottleneck = 5 } after block.*.{attn,ff}",
    ),
    (
        "pfeiffer",
        "insert delta = pfeiffer { bottleneck = 5 } after block.*.ff",
    ),
    (
        "parallel",
        "insert delta = parallel { bottleneck = 5 } beside block.*.{attn,ff}",
    ),
    (
        "compacter",
        "insert delta = compacter { bottleneck = 4, terms = 2 } after block.*.{attn,ff}",
    ),
    (
        "low_rank_adapter",
        "insert delta = low_rank_adapter { bottleneck = 4, rank = 2 } after block.*.{attn,ff}",
    ),
];

#[test]
fn logits_and_gradients_are_those_of_the_formulas() {
    for (backbone, labels) in [("bert_a", 2), ("gpt2", 3)] {
        for (name, statement) in CASES {
            let directory = fixture(backbone);
            let plan = classifier(&directory, labels, statement, "delta");
            let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
            let file = format!("inserts/{backbone}_{name}.safetensors");
            let expected = Expected::of_file(&fixture(&file));
            let mut tensors = graph.tensors();
            tensors.retain(|key, _| key.starts_with("delta."));
            for (key, (values, _)) in &mut tensors {
                *values = expected.read(key);
            }
            let weights = tensors.len();
            graph.set(tensors).unwrap();
            graph.activate(&plan, 0).unwrap();
            let batch = Expected::open(&directory).batch(0);
            let logits = graph.inference().logits(&batch).unwrap().read();
            let logits = difference(&logits, &expected.read("logits"), false);
            let (loss, gradients) = graph.gradients(&[batch]).unwrap();
            let loss = difference(&[loss], &expected.read("loss"), false);
            assert_eq!(gradients.len(), weights, "{backbone}, {name}");
            let worst = gradients.iter().map(|(key, gradient)| {
                let of_formula = expected.read(&format!("gradient.{key}"));
                difference(gradient, &of_formula, true)
            });
            let worst = worst.fold(0.0, f32::max);
            println!("{backbone}, {name}: logits differ by at most {logits:.1e}, {weights} gradients by {worst:.1e}");
            assert!(
                logits < 1e-5 && loss < 1e-5 && worst < 1e-4,
                "{backbone}, {name}: {logits} {loss} {worst}"
            );
        }
    }
}
