//! On a CUDA device, every operation is held to the same operation on the CPU, value and gradients, and a run to the
//! same run. `cargo test --release --features dfdx-cuda --test cuda -- --ignored`, with a toolkit and a card.
#![cfg(feature = "dfdx-cuda")]

use std::path::Path;
use std::process::Command;

use deltarun::engine::{
    backward, with_trace, Activation, Angles, Attending, AttentionShape, Backend, Dropout,
    Fastfood, Layout, Matrix, Recorder, Scalar, Trace, Vector, Weight,
};
use dfdx::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Shapes of matrices, then lengths of vectors.
type Shapes<'a> = (&'a [(usize, usize)], &'a [usize]);
type Results = Vec<(String, Vec<f32>)>;

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| random.random_range(-1.0..1.0f32))
        .collect()
}

/// The value of an operation, and the gradients of all its inputs of `Σ factors ⊙ value`.
fn results<D: Backend>(
    device: &D,
    (matrices, vectors): Shapes,
    operation: impl Fn(&[Matrix<D>], &[Vector<D>]) -> Result<Matrix<D>, D::Err>,
) -> Results {
    let recorder = Recorder::new();
    let matrices: Vec<_> = (10..)
        .zip(matrices)
        .map(|(seed, &(rows, columns))| {
            device.tensor_from_vec(random(seed, rows * columns), (rows, columns))
        })
        .collect();
    let vectors: Vec<_> = (50..)
        .zip(vectors)
        .map(|(seed, &length)| device.tensor_from_vec(random(seed, length), (length,)))
        .collect();
    let traced: Vec<_> = matrices.iter().map(|m| with_trace(m, &recorder)).collect();
    let traced_vectors: Vec<_> = vectors.iter().map(|v| with_trace(v, &recorder)).collect();
    let out = operation(&traced, &traced_vectors).expect("the operation");
    let (shape, value) = (*out.shape(), D::read(&out));
    let mut results = vec![("value".to_owned(), value.clone())];
    let factors = device.tensor_from_vec(random(99, value.len()), shape);
    let factors = with_trace(&factors, &Trace::off());
    let ones = |rows, columns| {
        let ones = device.tensor_from_vec(vec![1.0; rows * columns], (rows, columns));
        with_trace(&ones, &Trace::off())
    };
    let weighted = D::multiply(&out, &factors).expect("a product");
    let row = D::matmul(&ones(1, shape.0), &weighted).expect("sums of columns");
    let sum = D::matmul(&row, &ones(shape.1, 1)).expect("a sum");
    let mut gradients = backward(sum).expect("the backward pass");
    for (number, matrix) in matrices.iter().enumerate() {
        let gradient = D::read_gradient(&mut gradients, matrix).expect("a gradient");
        results.push((format!("gradient of matrix {number}"), gradient));
    }
    for (number, vector) in vectors.iter().enumerate() {
        let gradient = D::read_gradient(&mut gradients, vector).expect("a gradient");
        results.push((format!("gradient of vector {number}"), gradient));
    }
    results
}

fn cuda() -> Cuda {
    Cuda::try_seed_from_u64(0).expect("CUDA can be used")
}

fn compare(found: Results, expected: Results) {
    for ((what, found), (_, expected)) in found.iter().zip(&expected) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(1e-3f32, |a, b| a.max(b.abs()));
        let pairs = found.iter().zip(expected);
        // `f32::max` would drop what is no number.
        let worse = |worst: f32, error: f32| {
            if error > worst || error.is_nan() {
                error
            } else {
                worst
            }
        };
        let error = pairs.map(|(f, e)| (f - e).abs()).fold(0.0, worse);
        println!("{what}: {:.1e}", error / largest);
        assert!(error <= 1e-5 * largest, "{what}: {error} of {largest}");
    }
}

/// A test that an operation, written once, is the same on both devices.
macro_rules! same {
    ($name:ident, $matrices:expr, $vectors:expr, |$D:ident, $m:ident, $v:ident| $operation:expr) => {
        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn $name() {
            fn run<$D: Backend>(device: &$D) -> Results {
                results(device, (&$matrices, &$vectors), |$m, $v| $operation)
            }
            let device = cuda();
            compare(run(&device), run(&Cpu::default()));
        }
    };
}

fn layout() -> Layout {
    Layout::new([5, 1, 9], vec![1, 2, 3])
}

const ROWS: usize = 15;

fn dropout() -> Dropout {
    Dropout {
        probability: 0.3,
        site: 7,
    }
}

fn shape(causal: bool, prefix: usize) -> AttentionShape {
    AttentionShape {
        heads: 2,
        key_value_heads: 2,
        scale: 0.5,
        causal,
        prefix,
    }
}

fn weight<D: Backend>(matrix: &Matrix<D>) -> Weight<D> {
    matrix.clone().into()
}

same!(linear, [(ROWS, 33), (17, 33)], [17], |D, m, v| D::linear(
    &m[0],
    &weight(&m[1]),
    Some(&v[0])
));
same!(linear_transposed, [(ROWS, 17)], [], |D, m, _v| {
    let frozen = m[0].device().tensor_from_vec(random(1, 17 * 33), (17, 33));
    D::linear_transposed(&m[0], &with_trace(&frozen, &Trace::off()).into())
});
same!(
    low_rank,
    [(ROWS, 17), (ROWS, 33), (4, 33), (17, 4)],
    [],
    |D, m, _v| { D::add_low_rank(m[0].clone(), &m[1], &weight(&m[2]), &weight(&m[3]), 0.5) }
);
same!(layer_norm, [(ROWS, 33)], [33, 33], |D, m, v| D::layer_norm(
    &m[0], &v[0], &v[1], 1e-5
));
same!(rms_norm, [(ROWS, 33)], [33], |D, m, v| D::rms_norm(
    &m[0], &v[0], 1e-5
));
same!(rotary, [(ROWS, 24)], [], |D, m, _v| {
    let angles = std::sync::Arc::new(Angles::new(&[1.0, 0.3, 0.02], 0.9, ROWS));
    D::rotary(m[0].clone(), &(0..ROWS).collect::<Vec<_>>(), &angles)
});
/// The same of non-linearities.
macro_rules! same_activations {
    ($($name:ident: $activation:ident),*) => {
        $(same!($name, [(ROWS, 33)], [], |D, m, _v| {
            D::activate(m[0].clone(), Activation::$activation)
        });)*
    };
}

same_activations!(gelu: Gelu, gelu_tanh: GeluTanh, relu: Relu, swish: Swish, tanh: Tanh, sigmoid: Sigmoid);
same!(
    attention,
    [(ROWS, 16), (ROWS, 16), (ROWS, 16)],
    [],
    |D, m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        D::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), None, None)
    }
);
same!(
    attention_with_all,
    [(ROWS, 16), (ROWS + 6, 16), (ROWS + 6, 16)],
    [],
    |D, m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        let dropout = Some(dropout());
        D::attention(
            &m[0],
            &m[1],
            &m[2],
            attending,
            shape(true, 2),
            None,
            dropout,
        )
    }
);
same!(
    attention_of_rows,
    [(4, 16), (ROWS, 16), (ROWS, 16)],
    [],
    |D, m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, Some(&[0, 4, 5, 12]));
        D::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), None, None)
    }
);
same!(
    attention_by_distance,
    [(ROWS, 16), (ROWS, 16), (ROWS, 16), (2 * ROWS - 1, 2)],
    [],
    |D, m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        let bias = Some(&m[3]);
        D::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), bias, None)
    }
);
same!(dropped, [(ROWS, 33)], [], |D, m, _v| D::dropout(
    m[0].clone(),
    &layout(),
    dropout()
));
same!(select_rows, [(ROWS, 33)], [], |D, m, _v| D::select_rows(
    &m[0],
    &[3, 0, 3, 14]
));
same!(columns, [(ROWS, 33)], [], |D, m, _v| D::columns(
    &m[0],
    4..29
));
same!(join_columns, [(ROWS, 3), (ROWS, 8)], [], |D, m, _v| {
    D::join_columns(&[m[0].clone(), m[1].clone()])
});
same!(join_rows, [(3, 8), (5, 8)], [], |D, m, _v| D::join_rows(&[
    m[0].clone(),
    m[1].clone()
]));
same!(multiply, [(ROWS, 33), (ROWS, 33)], [], |D, m, _v| {
    D::multiply(&m[0], &m[1])
});
same!(scale_columns, [(ROWS, 33)], [33], |D, m, v| {
    D::scale_columns(&m[0], &v[0])
});
same!(add_row, [(ROWS, 33)], [33], |D, m, v| D::add_row(
    &m[0], &v[0]
));
same!(kronecker, [(3, 4), (5, 6)], [], |D, m, _v| D::kronecker(
    &m[0], &m[1]
));
same!(project, [(1, 20)], [], |D, m, _v| D::project(
    &m[0],
    Fastfood {
        dimension: 20,
        length: 108,
        seed: 3
    },
    (12, 9)
));
same!(add, [(ROWS, 33), (ROWS, 33)], [], |D, m, _v| D::add(
    m[0].clone(),
    &m[1]
));
same!(scale, [(ROWS, 33)], [], |D, m, _v| D::scale(&m[0], -1.5));

/// A loss as a matrix of one element.
fn one<D: Backend>(loss: Scalar<D>) -> Result<Matrix<D>, D::Err> {
    loss.try_reshape_like(&(1, 1))
}

same!(cross_entropy, [(ROWS, 7)], [], |D, m, _v| {
    let labels: Vec<usize> = (0..ROWS).map(|row| row % 7).collect();
    one(D::cross_entropy(&m[0], &labels, 20)?)
});
same!(squared_error, [(ROWS, 1)], [], |D, m, _v| one(
    D::squared_error(&m[0], &random(5, ROWS), 20)?
));

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn row_norms() {
    let device = cuda();
    fn run<D: Backend>(device: &D) -> Results {
        let x = device.tensor_from_vec(random(1, ROWS * 33), (ROWS, 33));
        let norms = D::row_norms(&with_trace(&x, &Trace::off())).expect("norms");
        vec![("value".to_owned(), D::read(&norms))]
    }
    compare(run(&device), run(&Cpu::default()));
}

/// The losses that a run noted.
fn losses(device: &str, out: &Path) -> Vec<f64> {
    let status = Command::new(env!("CARGO_BIN_EXE_deltarun"))
        .args([
            "pipelines/quickstart.delta",
            "--quiet",
            "--device",
            device,
            "--out",
        ])
        .arg(out)
        .status()
        .expect("deltarun");
    assert!(status.success(), "{device}");
    let log = std::fs::read_to_string(out.join("log.jsonl")).expect("the log");
    let lines = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    lines
        .filter_map(|line: serde_json::Value| line["loss"].as_f64())
        .collect()
}

/// Of the quickstart: as long as rounding has not led it elsewhere, and about the same in the end.
#[test]
#[ignore = "needs an NVIDIA GPU"]
fn a_run_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let [found, expected] =
        ["cuda", "cpu"].map(|device| losses(device, &folder.path().join(device)));
    assert_eq!(found.len(), expected.len());
    let pairs: Vec<_> = found.iter().zip(&expected).collect();
    println!("first: {:?}, last: {:?}", &pairs[..5], pairs.last());
    for (found, expected) in &pairs[..20] {
        assert!(
            (*found - *expected).abs() <= 1e-4 * expected.abs(),
            "{found} is not {expected}"
        );
    }
}
