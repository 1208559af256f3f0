//! Blocks that are computed again in the backward pass: loss and gradients are the same to the bit.

use crate::common::{classifier, fixture, Expected, METHODS};
use deltarun::engine::Device;
use deltarun::graph::Graph;

/// Every method on every kind of block, with dropout, of one group and of several.
#[test]
fn recomputed_blocks_change_no_bit() {
    for (backbone, dropout) in [
        ("bert_a", 0.2),
        ("roberta", 0.0),
        ("gpt2", 0.2),
        ("llama_a", 0.0),
        ("gemma3", 0.0),
        ("modernbert", 0.1),
        ("t5_v1_1", 0.2),
    ] {
        let directory = fixture(backbone);
        let labels = if backbone == "bert_a" { 2 } else { 3 };
        for (statement, _) in METHODS {
            let statement = match backbone {
                "t5_v1_1" => crate::methods::in_both_stacks(statement),
                "gemma3" | "modernbert" => statement.replace("**.bias", "**.norm"),
                _ => statement.to_owned(),
            };
            let mut plan = classifier(&directory, labels, &statement, "delta, head");
            plan.backbone.config.dropout = dropout;
            plan.backbone.config.attention_dropout = dropout;
            let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
            let expected = Expected::open(&directory);
            let groups = [expected.batch(0), expected.batch(0)];
            let found = [false, true].map(|recompute| {
                plan.stages[0].recompute = recompute;
                graph.activate(&plan, 0).unwrap();
                graph.gradients(&groups).unwrap()
            });
            assert!(found[0].1.values().flatten().any(|g| *g != 0.0));
            assert!(found[0] == found[1], "{backbone}: {statement}");
        }
    }
}
