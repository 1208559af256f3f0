//! Training.
pub mod optimizer;
pub mod schedule;
