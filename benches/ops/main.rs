//! Every CPU kernel on the shapes of a MiniLM and a BERT-base, a group of 256 rows at a time, forward and
//! with its backward pass:
//!
//! ```sh
//! cargo bench --bench ops
//! cargo bench --bench ops -- attention
//! ```

use criterion::{criterion_group, criterion_main, BatchSize, Criterion, Throughput};
use deltarun::engine::{
    backward, ops, Activation, Attending, AttentionShape, Device, Layout, Matrix, Precision,
    Tensor, Trace, Vector, Weight,
};

/// Rows of a group, as `cpu::GROUP_ROWS` has it.
const ROWS: usize = 256;

fn plain(shape: (usize, usize)) -> Tensor<(usize, usize)> {
    let values = (0..shape.0 * shape.1).map(|i| (i % 97) as f32 / 97.0 - 0.5);
    Tensor::new(&Device::Cpu, values.collect(), shape).expect("the CPU has memory")
}

fn vector(length: usize) -> Vector {
    let tensor = Tensor::new(&Device::Cpu, vec![0.5; length], (length,));
    tensor.expect("the CPU has memory").constant()
}

/// Times an operation on matrices of these shapes: forward alone, then with its backward pass.
fn both(
    bench: &mut Criterion,
    name: &str,
    shapes: &[(usize, usize)],
    products: usize,
    op: impl Fn(&[Matrix]) -> Matrix,
) {
    let inputs: Vec<_> = shapes.iter().map(|shape| plain(*shape)).collect();
    let traced =
        |trace: &Trace| -> Vec<Matrix> { inputs.iter().map(|input| input.on(trace)).collect() };
    let mut group = bench.benchmark_group(name);
    if products > 0 {
        group.throughput(Throughput::Elements(2 * products as u64));
    }
    group.bench_function("forward", |b| {
        b.iter_batched(
            || traced(&Trace::off()),
            |inputs| op(&inputs),
            BatchSize::SmallInput,
        )
    });
    group.bench_function("forward and backward", |b| {
        b.iter_batched(
            || traced(&Trace::on()),
            |inputs| backward(op(&inputs)).expect("the CPU has memory"),
            BatchSize::SmallInput,
        )
    });
    group.finish();
}

fn frozen(shape: (usize, usize), precision: Precision) -> Weight {
    Weight::from(plain(shape).constant()).in_precision(precision)
}

fn linear(bench: &mut Criterion) {
    for (model, hidden, inner) in [("minilm", 384, 1536), ("base", 768, 3072)] {
        for (input, out) in [(hidden, hidden), (hidden, inner), (inner, hidden)] {
            for (kind, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
                if !Device::Cpu.has(precision) {
                    continue;
                }
                let (weight, bias) = (frozen((out, input), precision), vector(out));
                let name = format!("linear {kind} {model} {input} to {out}");
                both(bench, &name, &[(ROWS, input)], ROWS * input * out, |m| {
                    ops::linear(&m[0], &weight, Some(&bias)).expect("the CPU has memory")
                });
            }
        }
    }
}

fn low_rank(bench: &mut Criterion) {
    let shapes = [(ROWS, 384), (ROWS, 384), (8, 384), (384, 8)];
    both(bench, "low rank 8", &shapes, 2 * ROWS * 384 * 8, |m| {
        let y = ops::scale(&m[0], 1.0).expect("the CPU has memory");
        let (a, b) = (m[2].clone().into(), m[3].clone().into());
        ops::add_low_rank(y, &m[1], &a, &b, 2.0).expect("the CPU has memory")
    });
}

fn attention(bench: &mut Criterion) {
    for length in [16, 64, 128] {
        let sequences = ROWS / length;
        let layout = Layout::new(vec![length; sequences], (0..sequences as u64).collect());
        let shape = AttentionShape {
            heads: 12,
            key_value_heads: 12,
            scale: 0.18,
            causal: false,
            prefix: 0,
            window: None,
            cap: None,
        };
        let attending = Attending::within(&layout, None);
        let name = format!("attention of {length}");
        both(
            bench,
            &name,
            &[(ROWS, 384); 3],
            2 * ROWS * length * 384,
            |m| {
                let all = ops::attention(&m[0], &m[1], &m[2], attending, shape, None, None);
                all.expect("the CPU has memory")
            },
        );
    }
}

fn rows(bench: &mut Criterion) {
    let (gain, bias) = (vector(384), vector(384));
    both(bench, "layer norm", &[(ROWS, 384)], 0, |m| {
        ops::layer_norm(&m[0], &gain, &bias, 1e-12).expect("the CPU has memory")
    });
    for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Swish] {
        let name = format!("activation {activation:?}");
        both(bench, &name, &[(ROWS, 1536)], 0, |m| {
            let x = ops::scale(&m[0], 1.0).expect("the CPU has memory");
            ops::activate(x, activation).expect("the CPU has memory")
        });
    }
}

criterion_group!(ops, linear, low_rank, attention, rows);
criterion_main!(ops);
