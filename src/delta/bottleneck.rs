//! The common part of adapters: `U f(D x)`, a projection to a narrow width and back.

use super::{At, Init, NewParameter};
use crate::backbone::Module;
use crate::engine::{ops, Activation, Matrix, Outcome};
use crate::settings::Fields;

/// Reads the inner width. The default is `hidden / reduction`.
pub(super) fn width(fields: &Fields, hidden: usize, reduction: usize) -> usize {
    let default = (hidden / reduction).max(1);
    fields.count("bottleneck", 1..=1_000_000).unwrap_or(default)
}

/// Reads f.
pub(super) fn activation(fields: &Fields, default: Activation) -> Activation {
    let activations = [
        ("swish", Activation::Swish),
        ("relu", Activation::Relu),
        ("gelu", Activation::Gelu),
        ("tanh", Activation::Tanh),
    ];
    fields.choice("activation", &activations).unwrap_or(default)
}

/// Checks that an inner width does not exceed the module's output width.
pub(super) fn check(width: usize, module: &Module) -> Result<(), String> {
    match width > module.output {
        true => Err(format!(
            "`bottleneck` is {width}, which exceeds the width {} of `{}`",
            module.output, module.path
        )),
        false => Ok(()),
    }
}

/// The parameters of D and U, with biases at 0.
pub(super) fn parameters(hidden: usize, width: usize, down: Init, up: Init) -> Vec<NewParameter> {
    vec![
        NewParameter::new("down.weight", [width, hidden], down),
        NewParameter::new("down.bias", [width], Init::ZEROS),
        NewParameter::new("up.weight", [hidden, width], up),
        NewParameter::new("up.bias", [hidden], Init::ZEROS),
    ]
}

/// `U f(D x)`: `x (rows, hidden)` → `(rows, hidden)`.
pub(super) fn apply(at: &At, x: &Matrix, activation: Activation) -> Outcome<Matrix> {
    let down = at.linear(["down.weight", "down.bias"], x)?; // (rows, bottleneck)
    at.linear(["up.weight", "up.bias"], &ops::activate(down, activation)?)
}
