//! Every operation that a transformer and its deltas need. Each has a folder with its interface (`mod.rs`), its
//! definition in dfdx (`definition.rs`) and its kernel for the CPU (`cpu.rs`).
//!
//! An operation that takes a variable by value may overwrite its elements with the result.

mod activation;
mod arithmetic;
mod attention;
mod dropout;
mod linear;
mod loss;
mod low_rank;
mod matmul;
pub(super) mod norm;
mod projection;
mod rotary;
mod rows;

pub(super) use activation::ERFC;
pub use activation::{activate, Activation};
pub use arithmetic::{add, add_row, multiply, reciprocal, scale, scale_columns};
pub use attention::{attend_kept, attention, Attending, AttentionShape, KeyValues};
pub use dropout::{dropout, Dropout};
pub use linear::{linear, linear_transposed};
pub use loss::{
    cap, cross_entropy, linear_cross_entropy, log_odds, soft_cross_entropy, squared_error,
    token_losses, Output,
};
pub use low_rank::add_low_rank;
pub use matmul::{kronecker, matmul};
pub use norm::{layer_norm, rms_norm, row_norms};
pub use projection::{project, Fastfood};
pub use rotary::{rotary, Angles};
pub use rows::{columns, join_columns, join_rows, look_up, select_rows};
