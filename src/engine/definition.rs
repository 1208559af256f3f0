//! What every operation means, in dfdx operations, for any device.
//!
//! dfdx panics where two run-time shapes disagree, so shapes are asserted here with both of them
//! named; the plan has made sure that a user's file cannot get this far with a wrong one.

mod attention;

use dfdx::prelude::*;

use super::{
    Activation, Angles, Backend, Dropout, Fastfood, Layout, Matrix, Scalar, Vector, Weight,
};

pub use attention::attention;

type Outcome<T, D> = Result<T, <D as HasErr>::Err>;

/// See [`Backend::linear`].
pub fn linear<D: Backend>(
    x: &Matrix<D>,
    weight: &Matrix<D>,
    bias: Option<&Vector<D>>,
) -> Outcome<Matrix<D>, D> {
    let (rows, columns) = *x.shape();
    let (out, input) = *weight.shape();
    assert_eq!(
        columns, input,
        "linear: x is {rows}x{columns}, weight {out}x{input}"
    );
    let (_, weight_trace) = weight.clone().split_tape();
    let product = if weight_trace.is_on() {
        let transposed = weight.clone().try_permute::<_, Axes2<1, 0>>()?; // (in, out)
        x.clone().try_matmul(transposed)? // (rows, out)
    } else {
        frozen_product(x, weight)?
    };
    match bias {
        Some(bias) => {
            assert_eq!(bias.shape().0, out, "linear: bias and weight disagree");
            product.try_add(
                bias.clone()
                    .try_broadcast_like::<_, Axis<0>>(&(rows, out))?,
            )
        }
        None => Ok(product),
    }
}

/// See [`Backend::add_low_rank`].
pub fn add_low_rank<D: Backend>(
    y: &Matrix<D>,
    x: &Matrix<D>,
    a: &Weight<D>,
    b: &Weight<D>,
    factor: f32,
) -> Outcome<Matrix<D>, D> {
    let low = linear(x, &a.matrix()?, None)?; // (rows, rank)
    let change = linear(&scale(&low, factor)?, &b.matrix()?, None)?; // (rows, out)
    add(y, &change)
}

/// `x Wᵀ` for a weight that gets no gradient: its backward pass is one product, where dfdx's
/// `matmul` always computes two.
fn frozen_product<D: Backend>(x: &Matrix<D>, weight: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    let (weight, _) = weight.clone().split_tape();
    let (x, mut trace) = x.clone().split_tape();
    let transposed = weight.clone().try_permute::<_, Axes2<1, 0>>()?;
    let product = x.clone().try_matmul(transposed)?; // (rows, out)
    let (x_slot, product_slot) = (x.ghost(), product.ghost());
    let device = x.device().clone();
    trace.add_backward_op(move |gradients| {
        gradients.get_or_alloc_mut(&product_slot)?;
        let upstream = gradients.get(&product_slot); // (rows, out)
        let mut flow = upstream.try_matmul(weight)?; // (rows, in)
        let length = flow.shape().num_elements();
        // velocity ← 1·velocity + (0 + 1·flow), with a learning rate of 0: the only kernel of
        // dfdx that adds a tensor to a gradient buffer on every device.
        let add = SgdConfig {
            lr: 0.0,
            momentum: Some(Momentum::Classic(1.0)),
            weight_decay: Some(WeightDecay::L2(1.0)),
        };
        let zeros = Storage::<f32>::try_alloc_len(&device, length)?;
        add.try_update(&mut flow, gradients.get_or_alloc_mut(&x_slot)?, &zeros)
    });
    Ok(product.put_tape(trace))
}

/// See [`Backend::layer_norm`].
pub fn layer_norm<D: Backend>(
    x: &Matrix<D>,
    weight: &Vector<D>,
    bias: &Vector<D>,
    epsilon: f32,
) -> Outcome<Matrix<D>, D> {
    let shape = *x.shape();
    let mean = x.clone().try_mean::<_, Axis<1>>()?; // (rows)
    let centered = x
        .clone()
        .try_sub(mean.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
    let variance = centered.clone().try_square()?.try_mean::<_, Axis<1>>()?; // (rows)
    let inverse = variance.try_add(epsilon)?.try_sqrt()?.try_recip()?;
    let normal = centered.try_mul(inverse.try_broadcast_like::<_, Axis<1>>(&shape)?)?;
    normal
        .try_mul(weight.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)?
        .try_add(bias.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`Backend::rms_norm`].
pub fn rms_norm<D: Backend>(
    x: &Matrix<D>,
    weight: &Vector<D>,
    epsilon: f32,
) -> Outcome<Matrix<D>, D> {
    let shape = *x.shape();
    let square = x.clone().try_square()?.try_mean::<_, Axis<1>>()?; // (rows)
    let inverse = square.try_add(epsilon)?.try_sqrt()?.try_recip()?;
    x.clone()
        .try_mul(inverse.try_broadcast_like::<_, Axis<1>>(&shape)?)?
        .try_mul(weight.clone().try_broadcast_like::<_, Axis<0>>(&shape)?)
}

/// See [`Backend::rotary`]: `x ⊙ cos + rotate_half(x) ⊙ sin`, where a matrix rotates the halves of every head.
pub fn rotary<D: Backend>(
    x: &Matrix<D>,
    positions: &[usize],
    angles: &Angles,
) -> Outcome<Matrix<D>, D> {
    let (shape, width) = (*x.shape(), angles.width());
    assert_eq!(shape.0, positions.len(), "rotary: a position for each row");
    assert_eq!(
        shape.1 % width,
        0,
        "rotary: heads do not divide the columns"
    );
    let heads = (shape.0 * (shape.1 / width), width);
    let table = |part: fn(&(f32, f32)) -> f32| {
        let rows = positions.iter().flat_map(|&position| {
            let half = angles.at(position).iter().map(part);
            let both: Vec<f32> = half.clone().chain(half).collect();
            std::iter::repeat_n(both, shape.1 / width).flatten()
        });
        x.device().try_tensor_from_vec(rows.collect(), heads)
    };
    let (cosines, sines) = (table(|turn| turn.0)?, table(|turn| turn.1)?);
    let pairs = width / 2;
    let half_turn = (0..width * width).map(|i| match (i / width, i % width) {
        (from, to) if from == to + pairs => -1.0,
        (from, to) if from + pairs == to => 1.0,
        _ => 0.0,
    });
    let half_turn = half_turn.collect();
    let half_turn = x.device().try_tensor_from_vec(half_turn, (width, width))?;
    let x = x.clone().try_reshape_like(&heads)?;
    let turned = x.clone().try_matmul(half_turn)?.try_mul(sines)?;
    x.try_mul(cosines)?
        .try_add(turned)?
        .try_reshape_like(&shape)
}

/// See [`Backend::activate`].
pub fn activate<D: Backend>(x: &Matrix<D>, activation: Activation) -> Outcome<Matrix<D>, D> {
    match activation {
        Activation::Gelu => gelu(x),
        Activation::GeluTanh => {
            let cube = x.clone().try_powi(3)?.try_mul(0.044715f32)?;
            let inner = cube.try_add(x.clone())?.try_mul(0.797_884_6f32)?; // √(2/π)
            inner
                .try_tanh()?
                .try_add(1.0f32)?
                .try_mul(0.5f32)?
                .try_mul(x.clone())
        }
        Activation::Relu => x.clone().try_relu(),
        Activation::Swish => x.clone().try_sigmoid()?.try_mul(x.clone()),
        Activation::Tanh => x.clone().try_tanh(),
        Activation::Sigmoid => x.clone().try_sigmoid(),
    }
}

/// `x Φ(x) = max(x, 0) − ½ |x| erfc(|x| / √2)`, with erfc by Abramowitz and Stegun 7.1.26
/// (absolute error 1.5e-7), and max(x, 0) as ½ (x + |x|): dfdx takes the derivatives of `relu` and `abs` at 0
/// as 0, so this one has Φ(0) = ½ there. dfdx's own `accurate_gelu` has a wrong derivative.
fn gelu<D: Backend>(x: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    let [p, a] = ERFC;
    let size = x.clone().try_abs()?;
    let z = size.clone().try_mul(std::f32::consts::FRAC_1_SQRT_2)?;
    let t = z.clone().try_mul(p[0])?.try_add(1.0f32)?.try_recip()?;
    let mut polynomial = t.clone().try_mul(a[4])?.try_add(a[3])?;
    for coefficient in [a[2], a[1], a[0]] {
        polynomial = polynomial.try_mul(t.clone())?.try_add(coefficient)?;
    }
    let gauss = z.try_square()?.try_negate()?.try_exp()?;
    let erfc = polynomial.try_mul(t)?.try_mul(gauss)?;
    let tail = erfc.try_mul(size.clone())?.try_mul(0.5f32)?;
    let positive_part = size.try_add(x.clone())?.try_mul(0.5f32)?;
    positive_part.try_sub(tail)
}

/// Abramowitz and Stegun 7.1.26: p, and the polynomial's coefficients a₁ … a₅.
pub(super) const ERFC: [[f32; 5]; 2] = [
    [0.327_591_1, 0.0, 0.0, 0.0, 0.0],
    [
        0.254_829_6,
        -0.284_496_72,
        1.421_413_8,
        -1.453_152_1,
        1.061_405_4,
    ],
];

/// See [`Backend::dropout`].
pub fn dropout<D: Backend>(
    x: &Matrix<D>,
    layout: &Layout,
    dropout: Dropout,
) -> Outcome<Matrix<D>, D> {
    let shape = *x.shape();
    let factors = layout.dropout_factors(dropout, shape.1);
    x.clone()
        .try_mul(x.device().try_tensor_from_vec(factors, shape)?)
}

/// See [`Backend::select_rows`].
pub fn select_rows<D: Backend>(table: &Matrix<D>, indices: &[usize]) -> Outcome<Matrix<D>, D> {
    let device = table.device().clone();
    let indices = device.try_tensor_from_vec(indices.to_vec(), (indices.len(),))?;
    table.clone().try_gather(indices)
}

/// See [`Backend::columns`]: rows of the transpose. dfdx's own `slice` would overwrite what else flows back into
/// `x`, where it has to add to it.
pub fn columns<D: Backend>(x: &Matrix<D>, range: std::ops::Range<usize>) -> Outcome<Matrix<D>, D> {
    let shape = (x.shape().0, range.len());
    let transposed = x.clone().try_permute::<_, Axes2<1, 0>>()?;
    select_rows(&transposed, &range.collect::<Vec<_>>())?
        .try_permute::<_, Axes2<1, 0>>()?
        .try_reshape_like(&shape)
}

/// See [`Backend::join_columns`]: the parts' transposes are stacked, and the whole is transposed.
pub fn join_columns<D: Backend>(parts: &[Matrix<D>]) -> Outcome<Matrix<D>, D> {
    let transposed = |part: &Matrix<D>| part.clone().try_permute::<_, Axes2<1, 0>>();
    let (first, rest) = parts.split_first().expect("there is a part to join");
    let mut joined = transposed(first)?;
    for part in rest {
        joined = (joined, transposed(part)?).try_concat_along(Axis::<0>)?;
    }
    let shape = (joined.shape().1, joined.shape().0);
    joined
        .try_permute::<_, Axes2<1, 0>>()?
        .try_reshape_like(&shape)
}

/// See [`Backend::join_rows`].
pub fn join_rows<D: Backend>(parts: &[Matrix<D>]) -> Outcome<Matrix<D>, D> {
    let (first, rest) = parts.split_first().expect("there is a part to join");
    let mut joined = first.clone();
    for part in rest {
        joined = (joined, part.clone()).try_concat_along(Axis::<0>)?;
    }
    Ok(joined)
}

/// See [`Backend::matmul`].
pub fn matmul<D: Backend>(x: &Matrix<D>, y: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    assert_eq!(x.shape().1, y.shape().0, "matmul: shapes disagree");
    x.clone().try_matmul(y.clone())
}

/// See [`Backend::multiply`].
pub fn multiply<D: Backend>(x: &Matrix<D>, y: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    assert_eq!(x.shape(), y.shape(), "multiply: shapes disagree");
    x.clone().try_mul(y.clone())
}

/// See [`Backend::scale_columns`].
pub fn scale_columns<D: Backend>(x: &Matrix<D>, factors: &Vector<D>) -> Outcome<Matrix<D>, D> {
    let shape = *x.shape();
    assert_eq!(shape.1, factors.shape().0, "scale columns: shapes disagree");
    let factors = factors.clone().try_broadcast_like::<_, Axis<0>>(&shape)?;
    x.clone().try_mul(factors)
}

/// See [`Backend::add_row`].
pub fn add_row<D: Backend>(x: &Matrix<D>, row: &Vector<D>) -> Outcome<Matrix<D>, D> {
    let shape = *x.shape();
    assert_eq!(shape.1, row.shape().0, "add row: shapes disagree");
    let row = row.clone().try_broadcast_like::<_, Axis<0>>(&shape)?;
    x.clone().try_add(row)
}

/// See [`Backend::kronecker`]: an outer product of all elements, put in order.
pub fn kronecker<D: Backend>(x: &Matrix<D>, y: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    let ((l, m), (k, n)) = (*x.shape(), *y.shape());
    let column = x.clone().try_reshape_like(&(l * m, 1))?;
    let row = y.clone().try_reshape_like(&(1, k * n))?;
    column
        .try_matmul(row)? // (l m, k n)
        .try_reshape_like(&(l, m, k, n))?
        .try_permute::<_, Axes4<0, 2, 1, 3>>()? // (l, k, m, n)
        .try_reshape_like(&(l * k, m * n))
}

/// See [`Backend::project`]: all blocks at once, H as a matrix.
pub fn project<D: Backend>(
    z: &Matrix<D>,
    projection: Fastfood,
    shape: (usize, usize),
) -> Outcome<Matrix<D>, D> {
    assert_eq!(
        z.shape(),
        &(1, projection.dimension),
        "project: shapes disagree"
    );
    assert_eq!(
        shape.0 * shape.1,
        projection.length,
        "project: shapes disagree"
    );
    let device = z.device().clone();
    let width = projection.width();
    let (mut signs, mut order, mut gaussians) = (Vec::new(), Vec::new(), Vec::new());
    for (number, block) in projection.blocks().enumerate() {
        signs.extend(block.signs);
        order.extend(block.order.into_iter().map(|from| number * width + from));
        gaussians.extend(block.gaussians);
    }
    let blocks = (signs.len() / width, width);
    let all = |rows: Matrix<D>| rows.try_reshape_like(&(blocks.0 * width, 1));
    let hadamard = (0..width * width).map(|i| match ((i / width) & (i % width)).count_ones() % 2 {
        0 => 1.0,
        _ => -1.0,
    });
    let hadamard = device.try_tensor_from_vec(hadamard.collect(), (width, width))?;
    let padded = match width - projection.dimension {
        0 => z.clone(),
        more => {
            let zeros = device.try_tensor_from_vec(vec![0.0; more], (1, more))?;
            join_columns(&[z.clone(), zeros.put_tape(super::Trace::off())])?
        }
    };
    let mixed = select_rows(&padded, &vec![0; blocks.0])?
        .try_mul(device.try_tensor_from_vec(signs, blocks)?)?
        .try_matmul(hadamard.clone())?; // blocks
    let projected = select_rows(&all(mixed)?, &order)?
        .try_reshape_like(&blocks)?
        .try_mul(device.try_tensor_from_vec(gaussians, blocks)?)?
        .try_matmul(hadamard)?; // blocks
    let kept: Vec<usize> = (0..projection.length).collect();
    select_rows(&all(projected)?, &kept)?.try_reshape_like(&shape)
}

/// See [`Backend::row_norms`].
pub fn row_norms<D: Backend>(x: &Matrix<D>) -> Outcome<Vector<D>, D> {
    let (x, _) = x.clone().split_tape();
    let norms = x.try_square()?.try_sum::<(usize,), Axis<1>>()?.try_sqrt()?;
    Ok(norms.put_tape(super::Trace::off()))
}

/// See [`Backend::add`].
pub fn add<D: Backend>(x: &Matrix<D>, y: &Matrix<D>) -> Outcome<Matrix<D>, D> {
    assert_eq!(x.shape(), y.shape(), "add: shapes disagree");
    x.clone().try_add(y.clone())
}

/// See [`Backend::scale`].
pub fn scale<D: Backend>(x: &Matrix<D>, factor: f32) -> Outcome<Matrix<D>, D> {
    x.clone().try_mul(factor)
}

/// See [`Backend::cross_entropy`].
pub fn cross_entropy<D: Backend>(
    logits: &Matrix<D>,
    labels: &[usize],
    total: usize,
) -> Outcome<Scalar<D>, D> {
    let (rows, classes) = *logits.shape();
    assert_eq!(
        rows,
        labels.len(),
        "cross entropy: logits and labels disagree"
    );
    let device = logits.device().clone();
    let (values, trace) = logits.clone().split_tape();
    let highest = values.clone().try_max::<(usize,), Axis<1>>()?;
    let shifted = values
        .put_tape(trace)
        .try_sub(highest.try_broadcast_like::<_, Axis<1>>(&(rows, classes))?)?;
    let log_sum = shifted
        .clone()
        .try_exp()?
        .try_sum::<(usize,), Axis<1>>()?
        .try_ln()?;
    let mut one_hot = vec![0.0; rows * classes];
    for (row, &label) in labels.iter().enumerate() {
        one_hot[row * classes + label] = 1.0;
    }
    let one_hot = device.try_tensor_from_vec(one_hot, (rows, classes))?;
    let chosen = shifted.try_mul(one_hot)?.try_sum::<(usize,), Axis<1>>()?;
    log_sum
        .try_sub(chosen)?
        .try_sum()?
        .try_mul(1.0 / total as f32)
}

/// See [`Backend::squared_error`].
pub fn squared_error<D: Backend>(
    predicted: &Matrix<D>,
    targets: &[f32],
    total: usize,
) -> Outcome<Scalar<D>, D> {
    let shape = *predicted.shape();
    assert_eq!(
        shape,
        (targets.len(), 1),
        "squared error: one column expected"
    );
    let targets = predicted
        .device()
        .try_tensor_from_vec(targets.to_vec(), shape)?;
    let difference = predicted.clone().try_sub(targets)?;
    difference
        .try_square()?
        .try_sum()?
        .try_mul(1.0 / total as f32)
}
