//! What the plan says of a precision.

use std::path::Path;

use crate::common::{fixture, plan_of};
use deltarun::data::DataSummary;
use deltarun::engine::Precision;
use deltarun::report::{describe, Assumptions};

/// Instructions for bfloat16 that run at a fraction of f32's rate: the plan says so before anything runs.
#[test]
fn a_precision_that_is_slower_here_is_told() {
    let plan = |precision: &str| {
        let text = format!(
            r#"
            backbone "{}" {{ precision = {precision} }}
            data {{ train = tsv("train.tsv") }}
            task classify {{ text = sentence, label = label, labels = ["0", "1"] }}
            reparam a = lora on **.attn.{{q,v}}
            stage tune {{ train = [a, head], steps = 1, optimizer = sgd {{ lr = 1 }} }}
            "#,
            fixture("bert_a").display()
        );
        plan_of(&text, Path::new("."))
    };
    let note = |precision: &str, rates: [f64; 2]| {
        let setting = Assumptions {
            data: &DataSummary::default(),
            threads: 2,
            processes: 1,
        };
        let text = describe(
            &plan(precision),
            &[],
            &setting,
            |precision| match precision {
                Precision::Bf16 => rates[0],
                Precision::F32 => rates[1],
            },
        );
        let start = text.find("note: ").map(|start| text[start..].to_owned());
        start.unwrap_or_default()
    };
    assert_eq!(
        note("bf16", [170e9, 340e9]),
        "note: this processor multiplies more slowly in bfloat16 than in f32 (170 against\n      340 GFLOP/s): remove `precision = bf16`\n"
    );
    assert_eq!(note("bf16", [450e9, 230e9]), "");
    assert_eq!(note("bf16", [330e9, 340e9]), "");
    assert_eq!(note("f32", [170e9, 340e9]), "");
}
