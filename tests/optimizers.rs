//! Steps of the optimizers, by `tests/fixtures/make_optimizers.py`.

use std::collections::BTreeMap;

use crate::common::{config, difference, fixture, imported_graph, json_fixture, Expected};
use deltarun::delta::ParameterId;
use deltarun::peft::import;
use deltarun::plan::Optimizer;
use deltarun::train::optimizer::Stepper;
use serde_json::Value;

/// LoRA+ and rates of their own for deltas and head move parameters as PEFT and PyTorch do.
#[test]
fn rates_of_parameters_are_those_of_peft() {
    let expected = json_fixture("optimizers.json");
    let directory = fixture("qwen3");
    let of_head = [("head".to_owned(), 0.05)];
    let cases = [
        ("lora_plus", 2e-3, Some(16.0), BTreeMap::new()),
        ("rates", 3e-3, None, of_head.into()),
    ];
    for (name, lr, lora_plus, rates) in cases {
        let imported = import(&directory.join("adapter"), &config(&directory)).unwrap();
        let (mut plan, mut graph) = imported_graph(&directory, imported);
        let stage = &mut plan.stages[0];
        let Optimizer::AdamW { lr: own, .. } = &mut stage.optimizer else {
            panic!("{:?}", stage.optimizer);
        };
        *own = lr;
        (stage.lora_plus, stage.rates) = (lora_plus, rates);
        let (stage, batches) = (&plan.stages[0], Expected::open(&directory));
        let mut stepper = Stepper::new(stage.optimizer);
        let mut losses = Vec::new();
        for step in 0..10 {
            let (loss, gradients) = graph.gradients(&[batches.batch(step % 4)]).unwrap();
            losses.push(loss);
            stepper.begin();
            let update = |id: &ParameterId, values: &mut [f32], gradient: &[f32], columns| {
                stepper.update(id.path(), values, gradient, columns, plan.rate(stage, id));
            };
            graph.update(&gradients, update).unwrap();
        }
        let of_peft: Vec<f32> = serde_json::from_value(expected[name].clone()).unwrap();
        let worst = difference(&losses, &of_peft, false);
        assert!(worst < 1e-4, "{name}: {worst}, {losses:?} {of_peft:?}");
    }
}

fn lists(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn steps_are_those_of_transformers_and_of_the_paper() {
    let text = std::fs::read_to_string(fixture("optimizers.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let columns: Vec<usize> = serde_json::from_value(expected["columns"].clone()).unwrap();
    let optimizers = [
        (
            "adafactor",
            Optimizer::Adafactor {
                lr: 0.01,
                scale_parameter: false,
                threshold: 1.0,
                decay: 0.8,
                weight_decay: 0.1,
            },
        ),
        (
            "adafactor_scaled",
            Optimizer::Adafactor {
                lr: 0.1,
                scale_parameter: true,
                threshold: 0.5,
                decay: 0.7,
                weight_decay: 0.0,
            },
        ),
        (
            "lion",
            Optimizer::Lion {
                lr: 0.01,
                betas: (0.9, 0.99),
                weight_decay: 0.1,
            },
        ),
    ];
    for (name, optimizer) in optimizers {
        let mut stepper = Stepper::new(optimizer);
        let mut parameters = lists(&expected["start"]);
        let steps = expected["steps"][name].as_array().unwrap();
        assert_eq!(steps.len(), 4);
        for (number, step) in steps.iter().enumerate() {
            let gradients = lists(&expected["gradients"][number]);
            stepper.begin();
            for (place, (values, gradient)) in parameters.iter_mut().zip(&gradients).enumerate() {
                let key = place.to_string();
                stepper.update(&key, values, gradient, columns[place], optimizer.lr());
            }
            for (found, expected) in parameters.iter().zip(lists(step)) {
                let worst = difference(found, &expected, false);
                assert!(worst < 1e-6, "{name}, step {number}: {worst}");
            }
        }
    }
}
