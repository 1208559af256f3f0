//! The frozen blocks computed once: what a pass that begins with kept activations gives is what one gives
//! that begins with the embeddings, to the bit.

use crate::common::{classifier, fixture, plan_of, Expected};
use deltarun::engine::Device;
use deltarun::graph::optimizations::frozen_blocks;
use deltarun::graph::{Batch, Graph};
use deltarun::plan::Plan;
use deltarun::train::{ActivationCache, ActivationCaches};
use std::sync::Arc;

/// Deltas of an earlier stage, frozen below, and the one on the last block that is trained.
const FROZEN: [&str; 4] = [
    "",
    "insert low = prompt { tokens = 3 } before embeddings",
    "insert low = prefix { tokens = 2 } before block.0.attn",
    "unfreeze low = {embeddings.word,block.0.**}.bias",
];
const TRAINED: [&str; 4] = [
    "reparam top = lora { rank = 2 } on block[last 1].attn.{q,v}",
    "insert top = pfeiffer { bottleneck = 4, gate = on } after block[last 1].ff",
    "unfreeze top = block[last 1].**",
    // Behind the last block, or nothing at all: the rows that the head reads are kept alone.
    "",
];

fn check(plan: &Plan, backbone: &str, room: usize) {
    let mut graph = Graph::load(plan, Device::Cpu).unwrap();
    let last = plan.stages.len() - 1;
    graph.activate(plan, last).unwrap();
    let first = plan.first_trained_block(last);
    assert!(first > 0);
    let expected = Expected::open(&fixture(backbone));
    let plain = vec![expected.batch(0), expected.batch(1)];
    let logits = graph.logits(&plain).unwrap();
    let gradients = graph.gradients(&plain[..1]).unwrap();
    let store = ActivationCache::with_room(first, room);
    // Once computed, once read, and once in another order of groups.
    for round in 0..3 {
        let mut kept: Vec<Batch> = plain.clone();
        for batch in &mut kept {
            let own = std::slice::from_mut(batch);
            store.attach(&graph, &mut *own).unwrap();
            assert!(own[0].cached.is_some());
        }
        assert_eq!(logits, graph.logits(&kept).unwrap(), "round {round}");
        assert_eq!(gradients, graph.gradients(&kept[..1]).unwrap());
    }
}

#[test]
fn what_is_kept_changes_no_bit() {
    for (backbone, labels) in [("bert_a", 2), ("roberta", 3), ("gpt2", 3), ("llama_a", 3)] {
        for low in FROZEN
            .iter()
            .filter(|low| backbone != "gpt2" || !low.contains("prompt"))
        {
            let low = low.replace("{embeddings.word,block.0.**}", "block.0.attn.{q,k}");
            for top in TRAINED {
                let earlier = match low.is_empty() {
                    true => String::new(),
                    false => {
                        "stage early { train = [low, head], steps = 1, optimizer = sgd { lr = 1 } }"
                            .to_owned()
                    }
                };
                let train = if top.is_empty() { "head" } else { "top, head" };
                let statements = format!("{low}\n{top}\n{earlier}");
                let plan = classifier(&fixture(backbone), labels, &statements, train);
                // In memory, half of it, and all of it in a file.
                for room in [1 << 20, 2000, 0] {
                    check(&plan, backbone, room);
                }
            }
        }
    }
}

/// Runs share what lies below the lowest trained site where it is the backbone's alone.
#[test]
fn plans_that_agree_share_a_store() {
    let prefixes = ActivationCaches::default();
    let store = |statements: &str| {
        let plan = classifier(&fixture("bert_a"), 2, statements, "top, head");
        (prefixes.get(&plan, 0), plan)
    };
    let lora = "reparam top = lora { rank = 2 } on block[last 1].attn.{q,v}";
    let (first, plan) = store(lora);
    let (same, _) = store("insert top = pfeiffer { bottleneck = 4 } after block[last 1].ff");
    assert!(Arc::ptr_eq(&first, &same));
    for other in [
        "reparam top = lora on block.*.attn.q",
        // Its tokens take places of the position table.
        "insert top = prefix { tokens = 2 } before block[last 1].attn",
    ] {
        assert!(!Arc::ptr_eq(&first, &store(other).0), "{other}");
    }
    let low = format!("unfreeze low = block.0.**.bias\n{lora}");
    let low = format!(
        "{low}\nstage early {{ train = [low, head], steps = 1, optimizer = sgd {{ lr = 1 }} }}"
    );
    let low = classifier(&fixture("bert_a"), 2, &low, "top, head");
    assert!(!frozen_blocks::are_shared(&low, 1));

    // What one run kept serves another, to the bit.
    let batch = [Expected::open(&fixture("bert_a")).batch(0)];
    let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
    graph.activate(&plan, 0).unwrap();
    first.attach(&graph, &mut batch.clone()).unwrap();
    let (_, pfeiffer) = store("insert top = pfeiffer { bottleneck = 4 } after block[last 1].ff");
    let mut graph = Graph::load(&pfeiffer, Device::Cpu).unwrap();
    graph.activate(&pfeiffer, 0).unwrap();
    let mut kept = batch.clone();
    same.attach(&graph, &mut kept).unwrap();
    assert_eq!(graph.logits(&batch).unwrap(), graph.logits(&kept).unwrap());
}

/// When it is done, and why not.
#[test]
fn the_plan_says_when_frozen_blocks_are_computed_once() {
    let reason = |dropout: &str, statements: &str, task: &str, epochs: usize| {
        let text = format!(
            r#"
            backbone "{}" {{ dropout = {dropout} }}
            data {{ train = tsv("train.tsv") }}
            {task}
            {statements}
            stage early {{ train = [low, head], steps = 1, optimizer = sgd {{ lr = 1 }} }}
            stage tune {{ train = [top, head], epochs = {epochs}, optimizer = sgd {{ lr = 1 }} }}
            "#,
            fixture("bert_a").display()
        );
        frozen_blocks::check(&plan_of(&text, std::path::Path::new(".")), 1)
    };
    let deltas = "reparam low = lora on block.0.attn.q\nreparam top = lora on block.1.attn.q";
    let task = r#"task classify { text = sentence, label = label, labels = ["0", "1"] }"#;
    assert_eq!(reason("off", deltas, task, 2), Ok(1));
    let mut reasons = vec![
        reason("off", deltas, task, 1),
        reason("0.1", deltas, task, 2),
        reason("off", deltas, "task masked_lm { text = sentence }", 2),
    ];
    let dropping = deltas.replace("low = lora", "low = lora { dropout = 0.1 }");
    reasons.push(reason("off", &dropping, task, 2));
    let lowest = deltas.replace("block.1", "block.0");
    reasons.push(reason("off", &lowest, task, 2));
    let reasons: Vec<String> = reasons.into_iter().map(Result::unwrap_err).collect();
    insta::assert_debug_snapshot!(reasons);
}
