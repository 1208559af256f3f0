//! On a CUDA device, every operation is held to the same operation on the CPU, value and gradients, and a run to the
//! same run. `cargo test --release --features dfdx-cuda --test cuda -- --ignored`, with a toolkit and a card.
#![cfg(feature = "dfdx-cuda")]

use std::path::Path;
use std::process::Command;

use deltarun::engine::{
    backward, ops, Activation, Angles, Attending, AttentionShape, Device, Dropout, Fastfood,
    Layout, Matrix, Outcome, Scalar, Tensor, Trace, Vector, Weight,
};
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
fn results(
    device: &Device,
    (matrices, vectors): Shapes,
    operation: impl Fn(&[Matrix], &[Vector]) -> Outcome<Matrix>,
) -> Results {
    let trace = Trace::on();
    let matrices: Vec<_> = (10..)
        .zip(matrices)
        .map(|(seed, &(rows, columns))| {
            let values = random(seed, rows * columns);
            Tensor::new(device, values, (rows, columns)).expect("a matrix")
        })
        .collect();
    let vectors: Vec<_> = (50..)
        .zip(vectors)
        .map(|(seed, &length)| {
            Tensor::new(device, random(seed, length), (length,)).expect("a vector")
        })
        .collect();
    let traced: Vec<_> = matrices.iter().map(|m| m.on(&trace)).collect();
    let traced_vectors: Vec<_> = vectors.iter().map(|v| v.on(&trace)).collect();
    let out = operation(&traced, &traced_vectors).expect("the operation");
    let value = out.read();
    let mut results = vec![("value".to_owned(), value.clone())];
    let factors = Tensor::new(device, random(99, value.len()), out.shape()).expect("factors");
    let weighted = ops::multiply(&out, &factors.constant()).expect("a product");
    let mut gradients = backward(weighted).expect("the backward pass");
    for (number, matrix) in matrices.iter().enumerate() {
        let gradient = gradients.take(matrix);
        results.push((format!("gradient of matrix {number}"), gradient));
    }
    for (number, vector) in vectors.iter().enumerate() {
        let gradient = gradients.take(vector);
        results.push((format!("gradient of vector {number}"), gradient));
    }
    results
}

fn cuda() -> Device {
    Device::cuda(0).expect("CUDA can be used")
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
    ($name:ident, $matrices:expr, $vectors:expr, |$m:ident, $v:ident| $operation:expr) => {
        #[test]
        #[ignore = "needs an NVIDIA GPU"]
        fn $name() {
            let run =
                |device: &Device| results(device, (&$matrices, &$vectors), |$m, $v| $operation);
            compare(run(&cuda()), run(&Device::Cpu));
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
        place: 7,
    }
}

fn shape(causal: bool, prefix: usize) -> AttentionShape {
    AttentionShape {
        heads: 2,
        key_value_heads: 2,
        scale: 0.5,
        causal,
        prefix,
        window: None,
        cap: None,
    }
}

fn weight(matrix: &Matrix) -> Weight {
    matrix.clone().into()
}

same!(linear, [(ROWS, 33), (17, 33)], [17], |m, v| ops::linear(
    &m[0],
    &weight(&m[1]),
    Some(&v[0])
));
same!(linear_transposed, [(ROWS, 17)], [], |m, _v| {
    let frozen = Tensor::new(&m[0].device(), random(1, 17 * 33), (17, 33))?;
    ops::linear_transposed(&m[0], &frozen.constant().into())
});
same!(
    low_rank,
    [(ROWS, 17), (ROWS, 33), (4, 33), (17, 4)],
    [],
    |m, _v| { ops::add_low_rank(m[0].clone(), &m[1], &weight(&m[2]), &weight(&m[3]), 0.5) }
);
same!(layer_norm, [(ROWS, 33)], [33, 33], |m, v| ops::layer_norm(
    &m[0], &v[0], &v[1], 1e-5
));
same!(rms_norm, [(ROWS, 33)], [33], |m, v| ops::rms_norm(
    &m[0], &v[0], 1e-5
));
same!(rotary, [(ROWS, 24)], [], |m, _v| {
    let angles = std::sync::Arc::new(Angles::new(&[1.0, 0.3, 0.02], 0.9, ROWS, 6));
    ops::rotary(m[0].clone(), &(0..ROWS).collect::<Vec<_>>(), &angles)
});
/// The same of non-linearities.
macro_rules! same_activations {
    ($($name:ident: $activation:ident),*) => {
        $(same!($name, [(ROWS, 33)], [], |m, _v| {
            ops::activate(m[0].clone(), Activation::$activation)
        });)*
    };
}

same_activations!(gelu: Gelu, gelu_tanh: GeluTanh, relu: Relu, swish: Swish, tanh: Tanh, sigmoid: Sigmoid);
same!(
    attention,
    [(ROWS, 16), (ROWS, 16), (ROWS, 16)],
    [],
    |m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        ops::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), None, None)
    }
);
same!(
    attention_with_all,
    [(ROWS, 16), (ROWS + 6, 16), (ROWS + 6, 16)],
    [],
    |m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        let dropout = Some(dropout());
        ops::attention(
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
    |m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, Some(&[0, 4, 5, 12]));
        ops::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), None, None)
    }
);
same!(
    attention_by_distance,
    [(ROWS, 16), (ROWS, 16), (ROWS, 16), (2 * ROWS - 1, 2)],
    [],
    |m, _v| {
        let layout = layout();
        let attending = Attending::within(&layout, None);
        let bias = Some(&m[3]);
        ops::attention(&m[0], &m[1], &m[2], attending, shape(false, 0), bias, None)
    }
);
same!(dropped, [(ROWS, 33)], [], |m, _v| ops::dropout(
    m[0].clone(),
    &layout(),
    dropout()
));
same!(select_rows, [(ROWS, 33)], [], |m, _v| ops::select_rows(
    &m[0],
    &[3, 0, 3, 14]
));
same!(columns, [(ROWS, 33)], [], |m, _v| ops::columns(
    &m[0],
    4..29
));
same!(join_columns, [(ROWS, 3), (ROWS, 8)], [], |m, _v| {
    ops::join_columns(&[m[0].clone(), m[1].clone()])
});
same!(join_rows, [(3, 8), (5, 8)], [], |m, _v| ops::join_rows(&[
    m[0].clone(),
    m[1].clone()
]));
same!(multiply, [(ROWS, 33), (ROWS, 33)], [], |m, _v| {
    ops::multiply(&m[0], &m[1])
});
same!(scale_columns, [(ROWS, 33)], [33], |m, v| {
    ops::scale_columns(&m[0], &v[0])
});
same!(add_row, [(ROWS, 33)], [33], |m, v| ops::add_row(
    m[0].clone(),
    &v[0]
));
same!(kronecker, [(3, 4), (5, 6)], [], |m, _v| ops::kronecker(
    &m[0], &m[1]
));
same!(project, [(1, 20)], [], |m, _v| ops::project(
    &m[0],
    Fastfood {
        dimension: 20,
        length: 108,
        seed: 3
    },
    (12, 9)
));
same!(add, [(ROWS, 33), (ROWS, 33)], [], |m, _v| ops::add(
    m[0].clone(),
    &m[1]
));
same!(reciprocal, [(ROWS, 33)], [], |m, _v| ops::reciprocal(&m[0]));
same!(scale, [(ROWS, 33)], [], |m, _v| ops::scale(&m[0], -1.5));

/// A loss as a matrix of one element.
fn one(loss: Scalar) -> Outcome<Matrix> {
    Ok(loss.reshaped((1, 1)))
}

same!(cross_entropy, [(ROWS, 7)], [], |m, _v| {
    let labels: Vec<usize> = (0..ROWS).map(|row| row % 7).collect();
    one(ops::cross_entropy(&m[0], &labels, 20)?)
});
same!(soft_cross_entropy, [(ROWS, 7)], [], |m, _v| {
    one(ops::soft_cross_entropy(&m[0], &random(6, ROWS * 7), 20.0)?)
});
same!(token_losses, [(ROWS, 6), (7, 6)], [], |m, _v| {
    let labels: Vec<usize> = (0..ROWS).map(|row| row % 7).collect();
    let output = ops::Output {
        weight: m[1].clone().into(),
        bias: None,
        cap: Some(0.7),
    };
    ops::token_losses(&m[0], &output, &labels)
});
same!(squared_error, [(ROWS, 1)], [], |m, _v| one(
    ops::squared_error(&m[0], &random(5, ROWS), 20)?
));

#[test]
#[ignore = "needs an NVIDIA GPU"]
fn row_norms() {
    let run = |device: &Device| -> Results {
        let x = Tensor::new(device, random(1, ROWS * 33), (ROWS, 33)).expect("a matrix");
        let norms = ops::row_norms(&x.constant()).expect("norms");
        vec![("value".to_owned(), norms.read())]
    };
    compare(run(&cuda()), run(&Device::Cpu));
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
