//! Steps of the optimizers, by `tests/fixtures/make_optimizers.py`.

use crate::common::{difference, fixture};
use deltarun::plan::Optimizer;
use deltarun::train::optimizer::Stepper;
use serde_json::Value;

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
