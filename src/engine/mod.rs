//! Tensors, the tape, and every operation that a transformer and its deltas need.
//!
//! In: elements, and operations on them. Out: elements and gradients. The engine knows nothing of modules, plans or
//! files, and its users name no kernel. The [`Device`] of a tensor is known at run time; it selects the kernels and
//! decides how the groups of a batch share it.
#![warn(missing_docs)]

mod cpu;
#[cfg(feature = "dfdx-cuda")]
mod cuda;
mod definition;
mod device;
mod gradient;
mod layout;
mod noise;
pub mod ops;
pub mod profile;
mod storage;
mod svd;
mod tape;
mod tensor;
mod weight;

pub use cpu::{
    copies_of_a_weight, measure_limits, measure_rate, uses_amx, Deferred, Limits, Semaphore,
};
pub use device::{Device, Error, Outcome};
pub use layout::Layout;
pub use noise::mix;
pub use ops::{Activation, Angles, Attending, AttentionShape, Dropout, Fastfood, KeyValues};
pub use storage::{Coded, Storage};
pub use svd::Svd;
pub use tape::{backward, Gradients, Trace, Variable};
pub use tensor::Tensor;
pub use weight::{Elements, Precision, Stored, Weight, WeightSource};

/// The packed forms that a device keeps beside a weight; they are used until the weight changes.
pub use cpu::products::Prepared;

/// The number of elements of a tensor in each dimension.
pub use dfdx::prelude::Shape;

/// An activation `(rows, columns)` or a weight `(out, in)`.
pub type Matrix = Variable<(usize, usize)>;
/// A bias, or the weight of a norm.
pub type Vector = Variable<(usize,)>;
/// A loss.
pub type Scalar = Variable<()>;
