//! Every operation's definition has the values and gradients of PyTorch, by `tests/fixtures/make_ops.py`; kernels are
//! held to the definitions (`tests/kernels`). Dropout and the projection of an intrinsic dimension draw at random,
//! and have no number of PyTorch's.

#[allow(dead_code)]
#[path = "kernels/beside.rs"]
mod beside;
mod common;

use std::collections::BTreeSet;

use beside::{close, value_and_gradients_with, Inputs, Op};
use common::{fixture, Expected};
use deltarun::engine::{
    definition, with_trace, Activation, Angles, Attending, AttentionShape, Layout, Matrix, Trace,
};
use dfdx::prelude::*;

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
        let (value, gradients) = value_and_gradients_with(&inputs, op, &factors);
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

fn as_matrix(scalar: deltarun::engine::Scalar<Cpu>) -> Matrix<Cpu> {
    scalar.try_reshape_like(&(1, 1)).unwrap()
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
            definition::activate(&m[0], activation).unwrap()
        });
    }
    attentions(&mut cases);
    rows_and_columns(&mut cases);
    cases.case("cross_entropy", &|m, _| {
        as_matrix(definition::cross_entropy(&m[0], &[2, 0, 4, 1], 6).unwrap())
    });
    cases.case("squared_error", &|m, _| {
        as_matrix(definition::squared_error(&m[0], &[0.5, -1.0, 2.0], 4).unwrap())
    });
    assert!(cases.left().is_empty(), "{:?}", cases.left());
}

fn linear_and_norms(cases: &mut Cases) {
    cases.case("linear", &|m, v| {
        definition::linear(&m[0], &m[1], Some(&v[0])).unwrap()
    });
    cases.case("linear_transposed", &|m, _| {
        definition::matmul(&m[0], &m[1]).unwrap()
    });
    cases.case("add_low_rank", &|m, _| {
        let (a, b) = (m[2].clone().into(), m[3].clone().into());
        definition::add_low_rank(&m[0], &m[1], &a, &b, 1.5).unwrap()
    });
    cases.case("layer_norm", &|m, v| {
        definition::layer_norm(&m[0], &v[0], &v[1], 1e-5).unwrap()
    });
    cases.case("rms_norm", &|m, v| {
        definition::rms_norm(&m[0], &v[0], 1e-5).unwrap()
    });
    let angles = Angles::new(&[1.0, 0.2, 0.03], 1.0, 4);
    cases.case("rotary", &|m, _| {
        definition::rotary(&m[0], &[0, 3, 1], &angles).unwrap()
    });
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
    };
    for (name, attending, shape) in [
        ("attention", within, shape(false, 0)),
        ("attention_causal", within, shape(true, 0)),
        ("attention_prefix", within, shape(true, 2)),
        ("attention_cross", cross, shape(false, 0)),
        ("attention_of_rows", of_rows, shape(false, 0)),
    ] {
        cases.case(name, &|m, _| {
            let bias = m.get(3);
            definition::attention(&m[0], &m[1], &m[2], attending, shape, bias, None).unwrap()
        });
    }
}

fn rows_and_columns(cases: &mut Cases) {
    cases.case("select_rows", &|m, _| {
        definition::select_rows(&m[0], &[3, 0, 3, 1]).unwrap()
    });
    cases.case("columns", &|m, _| definition::columns(&m[0], 2..5).unwrap());
    cases.case("join_columns", &|m, _| definition::join_columns(m).unwrap());
    cases.case("join_rows", &|m, _| definition::join_rows(m).unwrap());
    cases.case("matmul", &|m, _| definition::matmul(&m[0], &m[1]).unwrap());
    cases.case("multiply", &|m, _| {
        definition::multiply(&m[0], &m[1]).unwrap()
    });
    cases.case("scale_columns", &|m, v| {
        definition::scale_columns(&m[0], &v[0]).unwrap()
    });
    cases.case("add_row", &|m, v| {
        definition::add_row(&m[0], &v[0]).unwrap()
    });
    cases.case("kronecker", &|m, _| {
        definition::kronecker(&m[0], &m[1]).unwrap()
    });
    // A vector without a gradient: what is zero carries one.
    cases.case("row_norms", &|m, _| {
        let norms = definition::row_norms(&m[0]).unwrap();
        let rows = norms.shape().0;
        let norms = norms.try_reshape_like(&(rows, 1)).unwrap();
        let zeros: Tensor<(usize, usize), f32, Cpu> = Cpu::default().zeros_like(&(1, 5));
        let zeros = with_trace(&zeros, &Trace::off());
        let none = definition::linear(&m[0], &zeros, None).unwrap();
        definition::add(&none, &norms).unwrap()
    });
    cases.case("add", &|m, _| definition::add(&m[0], &m[1]).unwrap());
    cases.case("scale", &|m, _| definition::scale(&m[0], -0.7).unwrap());
}
