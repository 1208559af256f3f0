//! Every operation's definition has the values and gradients of PyTorch, by `tests/fixtures/make_ops.py`; kernels are
//! held to the definitions (`tests/kernels`). Dropout and the projection of an intrinsic dimension draw at random,
//! and have no number of PyTorch's.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::{fixture, Expected};
use crate::kernels::beside::{close, value_and_gradients_with, Inputs, Op};
use deltarun::engine::{
    ops, Activation, Angles, Attending, AttentionShape, Device, Layout, Matrix, Scalar, Tensor,
};

/// Checks an operation, and notes that it was.
struct Cases {
    expected: Expected,
    seen: BTreeSet<String>,
}

impl Cases {
    fn case(&mut self, name: &str, op: &Op) {
        let mut inputs = Inputs {
            matrices: Vec::new(),
            vectors: Vec::new(),
        };
        let mut count = 0;
        while self
            .expected
            .names()
            .contains(&format!("{name}.input.{count}"))
        {
            let (values, shape) = self.expected.tensor(&format!("{name}.input.{count}"));
            match shape.as_slice() {
                &[rows, columns] => inputs.matrices.push((values, (rows, columns))),
                _ => inputs.vectors.push(values),
            }
            count += 1;
        }
        assert!(count > 0, "{name}");
        let factors = |_| self.expected.read(&format!("{name}.factors"));
        let (value, gradients) = value_and_gradients_with(&Device::DfdxCpu, &inputs, op, &factors);
        let of_torch = self.expected.read(&format!("{name}.value"));
        close(name, &value, &of_torch, 2e-6);
        assert_eq!(gradients.len(), count, "{name}");
        for (number, gradient) in gradients.iter().enumerate() {
            let key = format!("{name}.gradient.{number}");
            close(&key, gradient, &self.expected.read(&key), 5e-6);
        }
        self.seen.insert(name.to_owned());
    }

    /// The names of those that were not checked.
    fn left(&self) -> Vec<String> {
        let names = self.expected.names();
        let names = names.iter().filter_map(|name| name.strip_suffix(".value"));
        let left = names.filter(|name| !self.seen.contains(*name));
        left.map(str::to_owned).collect()
    }
}

fn layout(lengths: &[usize]) -> Layout {
    Layout::new(lengths.iter().copied(), vec![0; lengths.len()])
}

fn as_matrix(scalar: Scalar) -> Matrix {
    scalar.reshaped((1, 1))
}

#[test]
fn definitions_are_those_of_pytorch() {
    let mut cases = Cases {
        expected: Expected::of_file(&fixture("ops/expected.safetensors")),
        seen: BTreeSet::new(),
    };
    linear_and_norms(&mut cases);
    for (name, activation) in [
        ("gelu", Activation::Gelu),
        ("gelu_tanh", Activation::GeluTanh),
        ("relu", Activation::Relu),
        ("swish", Activation::Swish),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
    ] {
        cases.case(name, &|m, _| {
            ops::activate(m[0].clone(), activation).unwrap()
        });
    }
    attentions(&mut cases);
    rows_and_columns(&mut cases);
    cases.case("cross_entropy", &|m, _| {
        as_matrix(ops::cross_entropy(&m[0], &[2, 0, 4, 1], 6).unwrap())
    });
    cases.case("soft_cross_entropy", &|m, _| {
        // Classes weighted by 1, 2, 0.5, 1 and 3, and labels smoothed by 0.1.
        let weights = [1.0f32, 2.0, 0.5, 1.0, 3.0];
        let labels = [2, 0, 4, 1];
        let row = |label: usize| {
            let class = move |(class, weight): (usize, &f32)| {
                weight * (0.1 / 5.0 + if class == label { 0.9 } else { 0.0 })
            };
            weights.iter().enumerate().map(class).collect::<Vec<f32>>()
        };
        let shares: Vec<f32> = labels.iter().flat_map(|label| row(*label)).collect();
        as_matrix(ops::soft_cross_entropy(&m[0], &shares, 6.0).unwrap())
    });
    cases.case("token_losses", &|m, _| {
        ops::token_losses(&m[0], &output(&m[1], None), &[2, 0, 4, 1]).unwrap()
    });
    cases.case("token_losses_capped", &|m, _| {
        ops::token_losses(&m[0], &output(&m[1], Some(0.7)), &[2, 0, 4, 1]).unwrap()
    });
    cases.case("log_odds", &|m, _| {
        // Below 0, as logarithms of probabilities are.
        let below = ops::activate(m[0].clone(), Activation::Sigmoid).unwrap();
        ops::log_odds(&ops::scale(&below, -1.0).unwrap()).unwrap()
    });
    cases.case("squared_error", &|m, _| {
        as_matrix(ops::squared_error(&m[0], &[0.5, -1.0, 2.0], 4).unwrap())
    });
    assert!(cases.left().is_empty(), "{:?}", cases.left());
}

fn linear_and_norms(cases: &mut Cases) {
    cases.case("linear", &|m, v| {
        ops::linear(&m[0], &m[1].clone().into(), Some(&v[0])).unwrap()
    });
    // As it is defined, with a gradient for the weight, which it has none of where that is frozen.
    cases.case("linear_transposed", &|m, _| {
        ops::matmul(&m[0], &m[1]).unwrap()
    });
    cases.case("add_low_rank", &|m, _| {
        let (a, b) = (m[2].clone().into(), m[3].clone().into());
        ops::add_low_rank(m[0].clone(), &m[1], &a, &b, 1.5).unwrap()
    });
    cases.case("layer_norm", &|m, v| {
        ops::layer_norm(&m[0], &v[0], &v[1], 1e-5).unwrap()
    });
    cases.case("rms_norm", &|m, v| {
        ops::rms_norm(&m[0], &v[0], 1e-5).unwrap()
    });
    let angles = Arc::new(Angles::new(&[1.0, 0.2, 0.03], 1.0, 4, 6));
    cases.case("rotary", &|m, _| {
        ops::rotary(m[0].clone(), &[0, 3, 1], &angles).unwrap()
    });
    let part = Arc::new(Angles::new(&[1.0, 0.2], 1.0, 4, 6));
    cases.case("rotary_of_a_part", &|m, _| {
        ops::rotary(m[0].clone(), &[0, 3, 1], &part).unwrap()
    });
}

fn output(weight: &Matrix, cap: Option<f32>) -> ops::Output {
    ops::Output {
        weight: weight.clone().into(),
        bias: None,
        cap,
    }
}

fn attentions(cases: &mut Cases) {
    let (own, others) = (layout(&[3, 1, 5]), layout(&[2, 6, 1]));
    let rows = [2, 3, 4, 8];
    let within = Attending::within(&own, None);
    let of_rows = Attending::within(&own, Some(&rows));
    let cross = Attending {
        keys: &others,
        ..within
    };
    let shape = |causal, prefix| AttentionShape {
        heads: 4,
        key_value_heads: 2,
        scale: 0.5,
        causal,
        prefix,
        window: None,
        cap: None,
    };
    let seeing = |window| AttentionShape {
        window: Some(window),
        ..shape(true, 0)
    };
    let capped = AttentionShape {
        cap: Some(0.3),
        ..shape(true, 0)
    };
    let around = AttentionShape {
        causal: false,
        ..seeing(2)
    };
    for (name, attending, shape) in [
        ("attention", within, shape(false, 0)),
        ("attention_causal", within, shape(true, 0)),
        ("attention_prefix", within, shape(true, 2)),
        ("attention_cross", cross, shape(false, 0)),
        ("attention_of_rows", of_rows, shape(false, 0)),
        ("attention_window", within, seeing(3)),
        ("attention_around", within, around),
        ("attention_capped", within, capped),
    ] {
        cases.case(name, &|m, _| {
            let bias = m.get(3);
            ops::attention(&m[0], &m[1], &m[2], attending, shape, bias, None).unwrap()
        });
    }
}

fn rows_and_columns(cases: &mut Cases) {
    cases.case("select_rows", &|m, _| {
        ops::select_rows(&m[0], &[3, 0, 3, 1]).unwrap()
    });
    cases.case("columns", &|m, _| ops::columns(&m[0], 2..5).unwrap());
    cases.case("join_columns", &|m, _| ops::join_columns(m).unwrap());
    cases.case("join_rows", &|m, _| ops::join_rows(m).unwrap());
    cases.case("matmul", &|m, _| ops::matmul(&m[0], &m[1]).unwrap());
    cases.case("multiply", &|m, _| ops::multiply(&m[0], &m[1]).unwrap());
    cases.case("scale_columns", &|m, v| {
        ops::scale_columns(&m[0], &v[0]).unwrap()
    });
    cases.case("add_row", &|m, v| {
        ops::add_row(m[0].clone(), &v[0]).unwrap()
    });
    cases.case("kronecker", &|m, _| ops::kronecker(&m[0], &m[1]).unwrap());
    // A vector without a gradient: what is zero carries one.
    cases.case("row_norms", &|m, _| {
        let norms = ops::row_norms(&m[0]).unwrap();
        let norms = norms.reshaped((norms.count(), 1));
        let zeros = Tensor::new(&m[0].device(), vec![0.0; 5], (1, 5)).unwrap();
        let none = ops::linear(&m[0], &zeros.constant().into(), None).unwrap();
        ops::add(none, &norms).unwrap()
    });
    cases.case("add", &|m, _| ops::add(m[0].clone(), &m[1]).unwrap());
    cases.case("reciprocal", &|m, _| ops::reciprocal(&m[0]).unwrap());
    cases.case("scale", &|m, _| ops::scale(&m[0], -0.7).unwrap());
}
