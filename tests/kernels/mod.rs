//! Every CPU kernel is held to its definition in dfdx operations: the value, and the gradient of every
//! input, for odd sizes, one row, sequences of length 1, and extreme values.

pub mod beside;

use std::sync::Arc;

use beside::{close, compare, factors, own, value_and_gradients, Inputs, Op, Random};
use deltarun::engine::{
    ops, Activation, Angles, Attending, AttentionShape, Device, Dropout, Fastfood, Layout, Matrix,
    Precision, Scalar, Tensor, Vector, Weight,
};
use proptest::prelude::*;

fn layout(lengths: &[usize]) -> Layout {
    Layout::new(
        lengths.iter().copied(),
        (1..=lengths.len() as u64).collect(),
    )
}

/// A gradient that several operations add to, with kernels and without, one that is taken over in place, and a result
/// that nothing uses.
#[test]
fn results_that_are_used_several_times() {
    let inputs = Inputs {
        matrices: vec![Random::new(5).matrix(3, 7, 1.0)],
        vectors: vec![],
    };
    let op: &Op = &|m, _| {
        let y = ops::scale(&m[0], 2.0).unwrap();
        ops::scale(&y, 5.0).unwrap(); // used by nothing
        let tanh = ops::activate(ops::scale(&y, 0.5).unwrap(), Activation::Tanh).unwrap();
        let one = Tensor::new(&y.device(), vec![3.0], (1, 1)).unwrap();
        let product = ops::kronecker(&tanh, &one.constant()).unwrap(); // without a kernel
        let gelu = ops::activate(tanh, Activation::Gelu).unwrap();
        let sum = ops::add(ops::add(gelu, &product).unwrap(), &y).unwrap();
        ops::add(sum, &y).unwrap()
    };
    compare(&inputs, op, 1e-6);
}

/// At 0, which random values all but never are, the formulas that dfdx differentiates have their kinks.
#[test]
fn derivatives_at_zero() {
    use Activation::*;
    let inputs = Inputs {
        matrices: vec![(vec![0.0, -0.0], (1, 2))],
        vectors: vec![],
    };
    let slopes = [
        (Gelu, 0.5),
        (GeluTanh, 0.5),
        (Relu, 0.0),
        (Swish, 0.5),
        (Tanh, 1.0),
        (Sigmoid, 0.25),
    ];
    for (activation, slope) in slopes {
        let op: &Op = &|m, _| ops::activate(m[0].clone(), activation).unwrap();
        let expected: Vec<f32> = factors(2).iter().map(|factor| slope * factor).collect();
        for device in [Device::Cpu, Device::DfdxCpu] {
            let (_, gradients) = value_and_gradients(&device, &inputs, op);
            let what = format!("{activation:?} on {device:?}");
            close(&what, &gradients[0], &expected, 1e-6);
        }
    }
}

/// Products with a frozen weight and with its transpose.
fn compare_frozen(seed: u64, rows: usize, input: usize, out: usize) {
    let mut random = Random::new(seed);
    let values = random.values(out * input, 1.0);
    let weight = |x: &Matrix| -> Weight {
        let weight = Tensor::new(&x.device(), values.clone(), (out, input));
        weight.unwrap().constant().into()
    };
    let mut inputs = |columns: usize| Inputs {
        matrices: vec![random.matrix(rows, columns, 1.0)],
        vectors: vec![],
    };
    compare(
        &inputs(input),
        &|m, _| ops::linear(&m[0], &weight(&m[0]), None).unwrap(),
        2e-5,
    );
    compare(
        &inputs(out),
        &|m, _| ops::linear_transposed(&m[0], &weight(&m[0])).unwrap(),
        2e-5,
    );
}

/// Wide enough for several panels, or for tile registers, with a form for each direction and with one for both.
#[test]
fn linear_of_a_wide_frozen_weight() {
    for (rows, input, out) in [(1, 193, 200), (120, 250, 387), (37, 520, 1030)] {
        compare_frozen(7, rows, input, out);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn linear(seed: u64, rows in 1..40usize, input in 1..70usize, out in 1..70usize, with_bias: bool) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, input, 1.0), random.matrix(out, input, 1.0)],
            vectors: vec![random.values(out, 1.0)],
        };
        let bias = |v: &[Vector]| with_bias.then(|| v[0].clone());
        compare(
            &inputs,
            &|m, v| ops::linear(&m[0], &m[1].clone().into(), bias(v).as_ref()).unwrap(),
            2e-5,
        );
    }

    #[test]
    fn linear_of_a_frozen_weight(seed: u64, rows in 1..40usize, input in 1..70usize, out in 1..70usize) {
        compare_frozen(seed, rows, input, out);
    }

    #[test]
    #[ignore = "needs a processor with AVX512-BF16"]
    fn linear_in_16_bits_on_avx512_bf16(seed: u64, rows in 1..40usize, input in 1..70usize, out in 1..70usize) {
        let mut random = Random::new(seed);
        let round = |(values, shape): (Vec<f32>, _)| {
            let rounded = values.iter().map(|x| half::bf16::from_f32(*x).to_f32());
            (rounded.collect::<Vec<f32>>(), shape)
        };
        let weight = round(random.matrix(out, input, 1.0));
        let inputs = Inputs {
            matrices: vec![round(random.matrix(rows, input, 1.0))],
            vectors: vec![random.values(out, 1.0)],
        };
        let frozen = |precision| {
            let (values, shape) = weight.clone();
            let matrix = Tensor::new(&Device::Cpu, values, shape).unwrap().constant();
            Weight::from(matrix).in_precision(precision)
        };
        let op = |precision| move |m: &[Matrix], v: &[Vector]| {
            ops::linear(&m[0], &frozen(precision), Some(&v[0])).unwrap()
        };
        // What flows back is rounded as well: its error is that of bfloat16s, 2⁻⁹ of each term.
        let (f32_op, bf16_op) = (op(Precision::F32), op(Precision::Bf16));
        let (exact, exact_gradients) = value_and_gradients(&Device::Cpu, &inputs, &f32_op);
        let (value, gradients) = value_and_gradients(&Device::Cpu, &inputs, &bf16_op);
        close("the value", &value, &exact, 1e-4);
        close("the gradient", &gradients[0], &exact_gradients[0], 5e-2);
    }

    #[test]
    fn low_rank(seed: u64, rows in 1..40usize, input in 1..70usize, out in 1..70usize, rank in 1..20usize, is_shared: bool) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![
                random.matrix(rows, out, 1.0),
                random.matrix(rows, input, 1.0),
                random.matrix(rank, input, 1.0),
                random.matrix(out, rank, 1.0),
            ],
            vectors: vec![],
        };
        let weights = |m: &[Matrix]| [m[2].clone().into(), m[3].clone().into()];
        compare(
            &inputs,
            &|m, _| {
                // What is added to in place is a result of its own; a copy of it keeps what it was.
                let y = ops::scale(&m[0], 2.0).unwrap();
                let copy = is_shared.then(|| y.clone());
                let [a, b] = weights(m);
                let sum = ops::add_low_rank(y, &m[1], &a, &b, 0.7).unwrap();
                copy.map_or(sum.clone(), |copy| ops::multiply(&sum, &copy).unwrap())
            },
            2e-4,
        );
    }

    #[test]
    fn layer_norm(seed: u64, rows in 1..20usize, hidden in 2..70usize, scale in prop::sample::select(vec![1e-2f32, 1.0, 1e3])) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, hidden, scale)],
            vectors: vec![random.values(hidden, 1.0), random.values(hidden, 1.0)],
        };
        compare(
            &inputs,
            &|m, v| ops::layer_norm(&m[0], &v[0], &v[1], 1e-5).unwrap(),
            1e-4,
        );
    }

    #[test]
    fn rms_norm(seed: u64, rows in 1..20usize, hidden in 2..70usize, scale in prop::sample::select(vec![1e-2f32, 1.0, 1e3])) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, hidden, scale)],
            vectors: vec![random.values(hidden, 1.0)],
        };
        compare(
            &inputs,
            &|m, v| ops::rms_norm(&m[0], &v[0], 1e-5).unwrap(),
            1e-4,
        );
    }

    /// Whose input is kept as normalized rows; where the rows are changed afterwards, they are no longer those.
    #[test]
    fn low_rank_of_normalized_rows(seed: u64, rows in 1..40usize, hidden in 2..70usize, rank in 1..20usize, is_changed: bool) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![
                random.matrix(rows, hidden, 1.0),
                random.matrix(rank, hidden, 1.0),
                random.matrix(hidden, rank, 1.0),
                random.matrix(rows, hidden, 1.0),
            ],
            vectors: vec![random.values(hidden, 1.0), random.values(hidden, 1.0)],
        };
        let op = |m: &[Matrix], v: &[Vector]| {
            let mut x = ops::layer_norm(&m[0], &v[0], &v[1], 1e-5).unwrap();
            if is_changed {
                x = ops::add(x, &m[3]).unwrap();
            }
            let y = ops::multiply(&x, &m[3]).unwrap();
            ops::add_low_rank(y, &x, &m[1].clone().into(), &m[2].clone().into(), 0.7).unwrap()
        };
        compare(&inputs, &op, 2e-4);
    }

    #[test]
    fn activations(seed: u64, is_own: bool, rows in 1..20usize, columns in 1..70usize, scale in prop::sample::select(vec![1.0f32, 10.0, 80.0])) {
        let mut random = Random::new(seed);
        let inputs = Inputs { matrices: vec![random.matrix(rows, columns, scale)], vectors: vec![] };
        use Activation::*;
        for activation in [Gelu, GeluTanh, Relu, Swish, Tanh, Sigmoid] {
            compare(
                &inputs,
                &|m, _| ops::activate(if is_own { own(&m[0]) } else { m[0].clone() }, activation).unwrap(),
                1e-5,
            );
        }
    }

    #[test]
    fn attention(
        seed: u64,
        lengths in prop::collection::vec((1..20usize, 1..20usize), 1..5),
        is_cross: bool,
        is_biased: bool,
        key_value_heads in 1..4usize,
        group in 1..4usize,
        width in 1..10usize,
        causal: bool,
        prefix in 0..4usize,
        drop: bool,
        scale in prop::sample::select(vec![1.0f32, 6.0]),
        window in prop::option::of(1..8usize),
        cap in prop::option::of(0.5..3.0f32),
    ) {
        let mut random = Random::new(seed);
        let window = window.filter(|_| !is_cross);
        let heads = key_value_heads * group;
        let (of_queries, of_keys): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
        let (queries, causal) = (layout(&of_queries), causal && !is_cross);
        let keys = if is_cross { layout(&of_keys) } else { queries.clone() };
        let rows = queries.rows();
        let key_rows = keys.rows() + keys.sequences() * prefix;
        let distances = 2 * (prefix + queries.longest().max(keys.longest())) - 1;
        let mut inputs = |queries: usize| {
            let of_keys = (key_rows, key_value_heads * width);
            let shapes = [(queries, heads * width), of_keys, of_keys, (distances, heads)];
            Inputs {
                matrices: shapes.map(|(rows, columns)| random.matrix(rows, columns, scale)).into(),
                vectors: vec![],
            }
        };
        let of_all = inputs(rows);
        let scale = 1.0 / (width as f32).sqrt();
        let shape = AttentionShape { heads, key_value_heads, scale, causal, prefix, window, cap };
        let dropout = drop.then_some(Dropout { probability: 0.3, place: 5 });
        let bias = |m: &[Matrix]| is_biased.then(|| m[3].clone());
        let attending = Attending { queries: &queries, rows: None, keys: &keys };
        compare(
            &of_all,
            &|m, _| ops::attention(&m[0], &m[1], &m[2], attending, shape, bias(m).as_ref(), dropout).unwrap(),
            5e-5,
        );
        // Some rows alone, of some sequences none, some several times.
        let mut random = Random::new(seed ^ 1);
        let asks = |row: usize| if row == 0 { 2 } else { random.below(3).saturating_sub(row % 2) };
        let counts: Vec<usize> = (0..rows).map(asks).collect();
        let asking: Vec<usize> = (0..rows).flat_map(|row| std::iter::repeat_n(row, counts[row])).collect();
        let attending = Attending { rows: Some(&asking), ..attending };
        compare(
            &inputs(asking.len()),
            &|m, _| ops::attention(&m[0], &m[1], &m[2], attending, shape, bias(m).as_ref(), dropout).unwrap(),
            5e-5,
        );
    }

    #[test]
    fn attention_of_long_sequences(
        seed: u64,
        length in 250..300usize,
        causal: bool,
        window in prop::option::of(200..280usize),
        cap in prop::option::of(0.5..3.0f32),
    ) {
        // Weights of so many keys are computed again in the backward pass.
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: [(length, 8), (length, 8), (length, 8), (2 * length - 1, 2)]
                .map(|(rows, columns)| random.matrix(rows, columns, 1.0))
                .into(),
            vectors: vec![],
        };
        let layout = layout(&[length]);
        let shape = AttentionShape { heads: 2, key_value_heads: 2, scale: 0.5, causal, prefix: 0, window, cap };
        let attending = Attending::within(&layout, None);
        compare(
            &inputs,
            &|m, _| ops::attention(&m[0], &m[1], &m[2], attending, shape, Some(&m[3]), None).unwrap(),
            5e-5,
        );
    }

    #[test]
    fn rotary(seed: u64, rows in 1..20usize, heads in 1..5usize, pairs in 1..9usize, rest in 0..3usize, is_shared: bool) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, heads * (2 * pairs + rest), 1.0)],
            vectors: vec![],
        };
        let angles = Arc::new(Angles::new(&random.values(pairs, 1.0), 0.9, 2 * rows, 2 * pairs + rest));
        let positions: Vec<usize> = (0..rows).map(|row| (row * 7) % (2 * rows)).collect();
        compare(
            &inputs,
            &|m, _| {
                let x = if is_shared { m[0].clone() } else { own(&m[0]) };
                ops::rotary(x, &positions, &angles).unwrap()
            },
            1e-6,
        );
    }

    #[test]
    fn rows_and_columns(seed: u64, lengths in prop::collection::vec(1..9usize, 1..5), columns in 3..40usize) {
        let mut random = Random::new(seed);
        let rows: usize = lengths.iter().sum();
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, columns, 1.0), random.matrix(rows, columns, 1.0)],
            vectors: vec![random.values(columns, 1.0)],
        };
        let layout = layout(&lengths);
        let dropout = Dropout { probability: 0.4, place: 9 };
        let indices: Vec<usize> = (0..rows + 2).map(|i| (i * 7) % rows).collect();
        let all: [&Op; 13] = [
            &|m, _| ops::add(own(&m[0]), &m[1]).unwrap(),
            &|m, _| ops::add(m[0].clone(), &m[1]).unwrap(),
            &|m, v| ops::add_row(own(&m[0]), &v[0]).unwrap(),
            &|m, _| ops::scale(&m[0], 1.7).unwrap(),
            &|m, _| ops::dropout(own(&m[0]), &layout, dropout).unwrap(),
            &|m, _| ops::select_rows(&m[0], &indices).unwrap(),
            &|m, _| ops::columns(&m[0], 1..3).unwrap(),
            // Also of values that are used elsewhere.
            &|m, _| ops::add(ops::columns(&m[0], 1..3).unwrap(), &ops::columns(&m[0], 0..2).unwrap()).unwrap(),
            &|m, v| ops::scale_columns(&m[0], &v[0]).unwrap(),
            &|m, _| ops::multiply(&m[0], &m[1]).unwrap(),
            &|m, _| ops::multiply(&m[0], &m[0]).unwrap(),
            &|m, _| ops::join_columns(m).unwrap(),
            &|m, _| ops::join_rows(m).unwrap(),
        ];
        for op in all {
            compare(&inputs, op, 1e-6);
        }
    }

    #[test]
    fn matmul(seed: u64, rows in 1..30usize, depth in 1..30usize, columns in 1..30usize) {
        let mut random = Random::new(seed);
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, depth, 1.0), random.matrix(depth, columns, 1.0)],
            vectors: vec![],
        };
        compare(&inputs, &|m, _| ops::matmul(&m[0], &m[1]).unwrap(), 2e-5);
        let one: &Op = &|m, _| ops::matmul(&m[0].detached(), &m[1]).unwrap();
        compare(&inputs, one, 2e-5);
    }

    #[test]
    fn projections(seed: u64, dimension in 1..40usize, rows in 1..20usize, columns in 1..20usize) {
        let inputs = Inputs { matrices: vec![Random::new(seed).matrix(1, dimension, 1.0)], vectors: vec![] };
        let projection = Fastfood { dimension, length: rows * columns, seed };
        compare(
            &inputs,
            &|m, _| ops::project(&m[0], projection, (rows, columns)).unwrap(),
            1e-5,
        );
    }

    #[test]
    fn losses(seed: u64, rows in 1..20usize, classes in 2..12usize, scale in prop::sample::select(vec![1.0f32, 30.0])) {
        let mut random = Random::new(seed);
        let inputs = Inputs { matrices: vec![random.matrix(rows, classes, scale)], vectors: vec![] };
        let labels: Vec<usize> = (0..rows).map(|row| (row * 5 + seed as usize % 7) % classes).collect();
        let as_matrix = |loss: Scalar| loss.reshaped((1, 1));
        compare(
            &inputs,
            &|m, _| as_matrix(ops::cross_entropy(&m[0], &labels, rows + 3).unwrap()),
            1e-5,
        );
    }
}

/// The loss of logits that are never in memory together is that of logits that are, with and without a bias.
#[test]
fn a_loss_without_logits() {
    for (rows, input, classes) in [(1, 5, 3), (3, 16, 70), (65, 33, 1030), (130, 8, 40)] {
        let mut random = Random::new(rows as u64);
        let labels: Vec<usize> = (0..rows).map(|row| (7 * row) % classes).collect();
        let weight = random.matrix(classes, input, 1.0);
        let weight = Tensor::new(&Device::Cpu, weight.0, (classes, input)).unwrap();
        let inputs = Inputs {
            matrices: vec![random.matrix(rows, input, 2.0)],
            vectors: vec![],
        };
        let bias = Tensor::new(&Device::Cpu, random.values(classes, 1.0), (classes,));
        let bias = bias.unwrap().constant();
        for (bias, cap) in [(None, None), (Some(&bias), None), (Some(&bias), Some(1.5))] {
            let of = |whole: bool| {
                value_and_gradients(&Device::Cpu, &inputs, &|m, _| {
                    let weight = Weight::from(weight.clone().constant());
                    let output = ops::Output {
                        weight,
                        bias: bias.cloned(),
                        cap,
                    };
                    let loss = match whole {
                        true => {
                            ops::cross_entropy(&output.logits(&m[0]).unwrap(), &labels, rows + 3)
                        }
                        false => ops::linear_cross_entropy(&m[0], &output, &labels, rows + 3),
                    };
                    loss.unwrap().reshaped((1, 1))
                })
            };
            let (whole, parts) = (of(true), of(false));
            close("loss", &parts.0, &whole.0, 1e-6);
            close("gradient", &parts.1[0], &whole.1[0], 1e-6);
        }
    }
}

#[test]
fn a_nan_stays_one() {
    let x = Tensor::new(&Device::Cpu, vec![f32::NAN, 1.0], (1, 2)).unwrap();
    let x = x.constant();
    for activation in [
        Activation::Gelu,
        Activation::Relu,
        Activation::Swish,
        Activation::Tanh,
    ] {
        assert!(ops::activate(x.clone(), activation).unwrap().read()[0].is_nan());
    }
    let shape = AttentionShape {
        heads: 1,
        key_value_heads: 1,
        scale: 0.5,
        causal: false,
        prefix: 0,
        window: None,
        cap: None,
    };
    let layout = layout(&[1]);
    let attending = Attending::within(&layout, None);
    let y = ops::attention(&x, &x, &x, attending, shape, None, None).unwrap();
    assert!(y.read()[0].is_nan());
}
