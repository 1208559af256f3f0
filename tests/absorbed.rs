//! Keys and values left out where one row asks: the same logits and gradients as with them.

use crate::common::{classifier, fixture, plan_of, Expected};
use deltarun::delta::ParameterId;
use deltarun::engine::Device;
use deltarun::graph::optimizations::absorbed_keys;
use deltarun::graph::Graph;
use deltarun::plan::Plan;
use std::collections::BTreeMap;

type Results = (Vec<Vec<f32>>, BTreeMap<ParameterId, Vec<f32>>);

fn results(plan: &Plan, backbone: &str) -> Results {
    let mut graph = Graph::load(plan, Device::Cpu).unwrap();
    graph.activate(plan, 0).unwrap();
    let batches = [Expected::open(&fixture(backbone)).batch(0)];
    let (_, gradients) = graph.gradients(&batches).unwrap();
    (graph.logits(&batches).unwrap(), gradients)
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(1e-3f32, |a, b| a.max(b.abs()));
    for (found, expected) in found.iter().zip(expected) {
        let is_close = (found - expected).abs() < 2e-5 * largest;
        assert!(
            is_close,
            "{what}: {found} is not {expected} (largest {largest})"
        );
    }
}

/// (IA)³ on the keys begins as factors of 1: it changes nothing but that there are keys.
const WITH_KEYS: &str = "reparam keyed = ia3 on block[last 1].attn.k";

#[test]
fn mixed_inputs_give_what_mixed_values_give() {
    let tops = [
        "reparam top = lora { rank = 2 } on block.*.attn.{q,v}",
        "reparam top = dora { rank = 2 } on block[last 1].attn.{q,v}",
        "reparam top = ia3 on block[last 1].attn.v",
        "unfreeze top = **.bias",
        "unfreeze top = block[last 1].{attn.{q,v,o},ff}.**",
        "insert top = houlsby { bottleneck = 2 } after block.*.{attn,ff}",
    ];
    for (backbone, labels) in [("bert_a", 2), ("roberta", 3), ("gpt2", 3)] {
        for top in tops {
            let directory = fixture(backbone);
            let without = classifier(&directory, labels, top, "top, head");
            assert_eq!(absorbed_keys::check(&without, 0, true), Ok(()));
            let statements = format!("{WITH_KEYS}\n{top}");
            let with = classifier(&directory, labels, &statements, "keyed, top, head");
            assert!(absorbed_keys::check(&with, 0, true).is_err());
            let (logits, gradients) = results(&without, backbone);
            let (expected_logits, expected) = results(&with, backbone);
            close("logits", &logits.concat(), &expected_logits.concat());
            for (key, gradient) in &gradients {
                close(
                    &format!("{backbone}, {top}: {key}"),
                    gradient,
                    &expected[key],
                );
            }
        }
    }
}

#[test]
fn the_plan_says_why_keys_are_needed() {
    let reason = |dropout: &str, statement: &str, task: &str| {
        let text = format!(
            r#"
            backbone "{}" {{ dropout = {dropout} }}
            data {{ train = tsv("train.tsv") }}
            {task}
            {statement}
            stage tune {{ train = [top], steps = 1, optimizer = sgd {{ lr = 1 }} }}
            "#,
            fixture("bert_a").display()
        );
        absorbed_keys::check(&plan_of(&text, std::path::Path::new(".")), 0, true)
    };
    let task = r#"task classify { text = sentence, label = label, labels = ["0", "1"] }"#;
    let lora = "reparam top = lora on **.attn.{q,v}";
    assert_eq!(reason("off", lora, task), Ok(()));
    let reasons: Vec<String> = [
        reason("0.1", lora, task),
        reason("off", lora, "task masked_lm { text = sentence }"),
        reason("off", "reparam top = lora on **.attn.k", task),
        reason(
            "off",
            "reparam top = lora { dropout = 0.1 } on **.attn.v",
            task,
        ),
        reason(
            "off",
            "insert top = prefix { tokens = 2 } before **.attn",
            task,
        ),
        reason("off", "unfreeze top = **.attn.k.weight", task),
        reason(
            "off",
            "insert top = pfeiffer { gate = on } after **.ff",
            task,
        ),
    ]
    .into_iter()
    .map(Result::unwrap_err)
    .collect();
    insta::assert_debug_snapshot!(reasons);
}
