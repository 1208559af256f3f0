//! Gates (UniPELT: Mao et al., arXiv 2110.07577, section 3.2). A gate multiplies a delta's change by
//! `G = mean over the tokens of σ(W x + b)`, one number for each sequence and module.

use super::{At, Init, NewParameter, Preposition};
use crate::backbone::{Module, Site};
use crate::engine::{ops, Activation, Layout, Matrix, Outcome, Tensor};

/// The parameters of a gate at a module, with the initial values of AdapterHub.
pub(crate) fn parameters(module: &Module, method: Preposition) -> Vec<NewParameter> {
    let width = match method {
        Preposition::After => module.output,
        _ => module.input,
    };
    vec![
        NewParameter::new("gate.weight", [1, width], Init::Normal(0.02)),
        NewParameter::new("gate.bias", [1], Init::ZEROS),
    ]
}

/// Whether a module can be gated. A gate needs whole sequences, which only modules inside a block have.
pub(crate) fn accepts(module: &Module) -> bool {
    let is_site = matches!(
        module.site,
        Site::Linear | Site::Fused | Site::Attention | Site::CrossAttention | Site::FeedForward
    );
    is_site && module.path.split('.').any(|part| part == "block")
}

/// G of every sequence, `(sequences, 1)`, from all of its rows `x (rows, in)`.
pub(crate) fn open(at: &At, x: &Matrix) -> Outcome<Matrix> {
    let rows = at.linear(["gate.weight", "gate.bias"], x)?; // (rows, 1)
    let rows = ops::activate(rows, Activation::Sigmoid)?;
    let (sequences, count) = (at.layout.sequences(), at.layout.rows());
    let mut shares = vec![0.0; sequences * count];
    for (sequence, range) in at.layout.ranges().enumerate() {
        let share = 1.0 / range.len() as f32;
        shares[sequence * count..][range].fill(share);
    }
    ops::matmul(&constant(x, shares, (sequences, count))?, &rows)
}

/// `G ⊙ y` with the gate of each row's sequence: `gates (sequences, 1)`, `y (rows, width)`.
pub(crate) fn weigh(gates: &Matrix, y: &Matrix, layout: &Layout) -> Outcome<Matrix> {
    let sequences = layout.ranges().enumerate();
    let of_row = sequences.flat_map(|(sequence, range)| range.map(move |_| sequence));
    let gates = ops::select_rows(gates, &of_row.collect::<Vec<_>>())?; // (rows, 1)
    let width = y.shape().1;
    let ones = constant(y, vec![1.0; width], (1, width))?;
    ops::multiply(&ops::matmul(&gates, &ones)?, y)
}

fn constant(like: &Matrix, values: Vec<f32>, shape: (usize, usize)) -> Outcome<Matrix> {
    Tensor::new(&like.device(), values, shape).map(Tensor::constant)
}
