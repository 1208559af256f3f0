//! Element-wise non-linearities.

mod cpu;
mod definition;

use super::super::definition::run_definition;
use super::super::profile::{self, Op};
use super::super::{Device, Matrix, Outcome};

pub(crate) use definition::ERFC;

/// An element-wise non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x Φ(x)` with the normal distribution's Φ (Hendrycks and Gimpel, arXiv 1606.08415).
    Gelu,
    /// The same with Φ approximated by tanh, as GPT-2 has it (`gelu_new`).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `x σ(x)`, also called SiLU.
    Swish,
    /// Hyperbolic tangent.
    Tanh,
    /// `σ(x) = 1 / (1 + exp(−x))`.
    Sigmoid,
}

impl Activation {
    /// The activation that transformers and AdapterHub call `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "relu" => Activation::Relu,
            "swish" | "silu" => Activation::Swish,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }
}

/// An element-wise non-linearity.
///
/// # Errors
/// The device fails, for example for want of memory.
pub fn activate(x: Matrix, activation: Activation) -> Outcome<Matrix> {
    match x.device() {
        Device::Cpu => {
            let count = x.count();
            let kernel = || cpu::activate(x, activation);
            Ok(profile::forward(Op::Activation, count, kernel))
        }
        device => run_definition!(device, |x| definition::activate(&x, activation)),
    }
}
