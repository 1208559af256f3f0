//! Tensors, the run-time tape, and every operation that a transformer and its deltas need.
//!
//! In: dfdx tensors. Out: dfdx tensors and gradients. It knows nothing of modules, plans or
//! files.
//!
//! Every operation is a method of [`Backend`] with a default: its **definition** in dfdx
//! operations, once for every device ([`definition`]). The definition is what CUDA runs, and the
//! oracle of the tests. The CPU overrides what is slow with kernels of its own ([`cpu`]).

mod angles;
pub mod cpu;
pub mod definition;
mod fastfood;
mod layout;
mod noise;
pub mod profile;
mod trace;
mod weight;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use dfdx::prelude::{Gradients, HasShape, Shape, Tensor};

pub use angles::Angles;
pub use cpu::Deferred;
pub use fastfood::Fastfood;
pub use layout::{Dropout, Layout};
pub use noise::mix;
pub use trace::{backward, with_trace, Recorder, Trace};
pub use weight::{Elements, Precision, Stored, Weight, WeightSource};

/// An activation `(rows, columns)` or a weight `(out, in)`.
pub type Matrix<D> = Tensor<(usize, usize), f32, D, Trace<D>>;
/// A bias, a weight.
pub type Vector<D> = Tensor<(usize,), f32, D, Trace<D>>;
/// A loss.
pub type Scalar<D> = Tensor<(), f32, D, Trace<D>>;

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

/// How an attention reads its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Heads of the queries; the columns of `q` are a multiple of it.
    pub heads: usize,
    /// Heads of keys and values, each for as many heads of the queries, one after the other.
    pub key_value_heads: usize,
    /// What scores are multiplied by before the softmax.
    pub scale: f32,
    /// Whether a position sees only itself and what is before it.
    pub causal: bool,
    /// Rows of `k` and `v` that stand before each sequence's own, seen by all of its positions.
    pub prefix: usize,
}

/// Which rows attend to which.
#[derive(Clone, Copy, Debug)]
pub struct Attending<'a> {
    /// The sequences of the queries.
    pub queries: &'a Layout,
    /// Those of their rows that there are queries of, in ascending order, of which one may occur several times; all
    /// where none are named.
    pub rows: Option<&'a [usize]>,
    /// The sequences of keys and values: those of the queries, or as many others (cross attention).
    pub keys: &'a Layout,
}

impl<'a> Attending<'a> {
    /// Every sequence to itself.
    pub fn within(layout: &'a Layout, rows: Option<&'a [usize]>) -> Self {
        Attending {
            queries: layout,
            rows,
            keys: layout,
        }
    }
}

/// A device that can run the graph: dfdx's operations, and the engine's own defined in them.
///
/// An operation that takes a tensor by value may put its result in the tensor's place.
pub trait Backend: dfdx::tensor_ops::Device<f32> {
    /// What the device keeps of a weight beside it; it is used until the weight changes.
    type Prepared: Default + Send + Sync;

    /// Whether the device, as it is here, has products of this precision.
    fn has(precision: Precision) -> bool {
        precision == Precision::F32
    }

    /// `x Wᵀ + b`: `x (rows, in)`, `weight (out, in)`, `bias (out)` → `(rows, out)`.
    /// What is not traced gets no gradient.
    fn linear(
        x: &Matrix<Self>,
        weight: &Weight<Self>,
        bias: Option<&Vector<Self>>,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::linear(x, &weight.matrix()?, bias)
    }

    /// `x W` with a frozen weight: `x (rows, out)`, `weight (out, in)` → `(rows, in)`.
    fn linear_transposed(
        x: &Matrix<Self>,
        weight: &Weight<Self>,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::matmul(x, &weight.matrix()?)
    }

    /// `y + scale · x Aᵀ Bᵀ`: `y (rows, out)`, `x (rows, in)`, `a (rank, in)`, `b (out, rank)`
    /// (Hu et al., arXiv 2106.09685, eq. 3).
    fn add_low_rank(
        y: Matrix<Self>,
        x: &Matrix<Self>,
        a: &Weight<Self>,
        b: &Weight<Self>,
        scale: f32,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::add_low_rank(&y, x, a, b, scale)
    }

    /// Normalizes each row to mean 0 and variance 1, then `weight ⊙ x + bias`
    /// (Ba et al., arXiv 1607.06450).
    fn layer_norm(
        x: &Matrix<Self>,
        weight: &Vector<Self>,
        bias: &Vector<Self>,
        epsilon: f32,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::layer_norm(x, weight, bias, epsilon)
    }

    /// Divides each row by the root of its mean square, then `weight ⊙ x`
    /// (Zhang and Sennrich, arXiv 1910.07467).
    fn rms_norm(
        x: &Matrix<Self>,
        weight: &Vector<Self>,
        epsilon: f32,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::rms_norm(x, weight, epsilon)
    }

    /// Turns the columns `j` and `j + width / 2` of every head of `x (rows, heads · width)` by the angle of the
    /// row's position (Su et al., arXiv 2104.09864, in the order of columns of GPT-NeoX).
    fn rotary(
        x: Matrix<Self>,
        positions: &[usize],
        angles: &Arc<Angles>,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::rotary(&x, positions, angles)
    }

    /// An element-wise non-linearity.
    fn activate(x: Matrix<Self>, activation: Activation) -> Result<Matrix<Self>, Self::Err> {
        definition::activate(&x, activation)
    }

    /// `softmax(scale · q kᵀ + bias) v` of every sequence and head
    /// (Vaswani et al., arXiv 1706.03762, eq. 1): `q` and the result `(rows, heads · width)`, `k` and `v`
    /// `(rows, key-value heads · width)` with `shape.prefix` rows more for each sequence, before its own.
    /// `bias (2 · positions − 1, heads)` has in its row `positions − 1 + key − query` what is added to the score of
    /// a key by its distance (Raffel et al., arXiv 1910.10683, section 2.1); a prefix takes the first positions.
    fn attention(
        q: &Matrix<Self>,
        k: &Matrix<Self>,
        v: &Matrix<Self>,
        attending: Attending,
        shape: AttentionShape,
        bias: Option<&Matrix<Self>>,
        dropout: Option<Dropout>,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::attention(q, k, v, attending, shape, bias, dropout)
    }

    /// Sets elements to zero with the dropout's probability and scales the others up
    /// (Srivastava et al. 2014).
    fn dropout(
        x: Matrix<Self>,
        layout: &Layout,
        dropout: Dropout,
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::dropout(&x, layout, dropout)
    }

    /// Rows `indices` of `table (n, columns)`; an index may occur several times.
    fn select_rows(table: &Matrix<Self>, indices: &[usize]) -> Result<Matrix<Self>, Self::Err> {
        definition::select_rows(table, indices)
    }

    /// [`Backend::select_rows`] of a weight, which need not be in memory for it.
    fn look_up(table: &Weight<Self>, indices: &[usize]) -> Result<Matrix<Self>, Self::Err> {
        Self::select_rows(&table.matrix()?, indices)
    }

    /// Columns `range` of `x`.
    fn columns(x: &Matrix<Self>, range: Range<usize>) -> Result<Matrix<Self>, Self::Err> {
        definition::columns(x, range)
    }

    /// Matrices of as many rows each, side by side.
    fn join_columns(parts: &[Matrix<Self>]) -> Result<Matrix<Self>, Self::Err> {
        definition::join_columns(parts)
    }

    /// Matrices of as many columns each, one below the other.
    fn join_rows(parts: &[Matrix<Self>]) -> Result<Matrix<Self>, Self::Err> {
        definition::join_rows(parts)
    }

    /// `x y`: `x (n, k)`, `y (k, m)` → `(n, m)`, with a gradient for whichever is traced.
    fn matmul(x: &Matrix<Self>, y: &Matrix<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::matmul(x, y)
    }

    /// `x ⊙ y`, of one shape.
    fn multiply(x: &Matrix<Self>, y: &Matrix<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::multiply(x, y)
    }

    /// Every row of `x (rows, columns)` times `factors (columns)`.
    fn scale_columns(x: &Matrix<Self>, factors: &Vector<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::scale_columns(x, factors)
    }

    /// `x (rows, columns)` with `row (columns)` added to each row.
    fn add_row(x: &Matrix<Self>, row: &Vector<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::add_row(x, row)
    }

    /// The Kronecker product `x ⊗ y`: `x (l, m)`, `y (k, n)` → `(l k, m n)`.
    fn kronecker(x: &Matrix<Self>, y: &Matrix<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::kronecker(x, y)
    }

    /// `P z` as a matrix of `shape`: `z (1, dimension)` → `(out, in)`.
    fn project(
        z: &Matrix<Self>,
        projection: Fastfood,
        shape: (usize, usize),
    ) -> Result<Matrix<Self>, Self::Err> {
        definition::project(z, projection, shape)
    }

    /// The Euclidean norm of every row, without a gradient: `(rows, columns)` → `(rows)`.
    fn row_norms(x: &Matrix<Self>) -> Result<Vector<Self>, Self::Err> {
        definition::row_norms(x)
    }

    /// `x + y`, of one shape.
    fn add(x: Matrix<Self>, y: &Matrix<Self>) -> Result<Matrix<Self>, Self::Err> {
        definition::add(&x, y)
    }

    /// `factor · x`.
    fn scale(x: &Matrix<Self>, factor: f32) -> Result<Matrix<Self>, Self::Err> {
        definition::scale(x, factor)
    }

    /// `Σ −log softmax(logits)[label] / total` over the rows of `logits (rows, classes)`.
    /// `total` is the number of rows of the whole batch, of which these may be a part.
    fn cross_entropy(
        logits: &Matrix<Self>,
        labels: &[usize],
        total: usize,
    ) -> Result<Scalar<Self>, Self::Err> {
        definition::cross_entropy(logits, labels, total)
    }

    /// `Σ (predicted − target)² / total` over the rows of `predicted (rows, 1)`.
    fn squared_error(
        predicted: &Matrix<Self>,
        targets: &[f32],
        total: usize,
    ) -> Result<Scalar<Self>, Self::Err> {
        definition::squared_error(predicted, targets, total)
    }

    /// The tensor's elements, row by row.
    fn read<S: Shape, T>(tensor: &Tensor<S, f32, Self, T>) -> Vec<f32> {
        tensor.as_vec()
    }

    /// The same, where they lie if the host can see them there.
    fn view<S: Shape>(tensor: &Tensor<S, f32, Self>) -> Cow<'_, [f32]> {
        Cow::Owned(Self::read(tensor))
    }

    /// The gradient of `parameter` (zeros where nothing flowed into it).
    fn read_gradient<S: Shape>(
        gradients: &mut Gradients<f32, Self>,
        parameter: &Tensor<S, f32, Self>,
    ) -> Result<Vec<f32>, Self::Err> {
        gradients.get_or_alloc_mut(parameter)?;
        Ok(gradients.get(parameter).as_vec())
    }

    /// Changes the elements of a parameter.
    fn update<S: Shape>(
        tensor: &mut Tensor<S, f32, Self>,
        change: impl FnOnce(&mut [f32]),
    ) -> Result<(), Self::Err> {
        let mut values = Self::read(tensor);
        change(&mut values);
        *tensor = tensor
            .device()
            .try_tensor_from_vec(values, *tensor.shape())?;
        Ok(())
    }

    /// What a parameter is known by where parts of its gradient are computed after the pass; nothing
    /// on a device that leaves none.
    fn address<S: Shape>(_: &Tensor<S, f32, Self>) -> Option<usize> {
        None
    }

    /// How many rows a group of sequences should have. A constant of the device, never of the
    /// number of threads: the order in which gradients are summed depends on it.
    const GROUP_ROWS: usize = usize::MAX;

    /// Whether it is worth it to leave out the keys and values of a sequence where a single row asks.
    fn absorbs_keys() -> bool {
        false
    }
}

#[cfg(feature = "dfdx-cuda")]
impl Backend for dfdx::tensor::Cuda {
    type Prepared = ();
}
