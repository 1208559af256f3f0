//! The settings of blocks: values with the file's params put in, read one by one with their types.
//!
//! In: blocks of the syntax tree. Out: typed values, and a diagnostic for each that is wrong or that nobody reads. It
//! knows nothing of methods or plans; both read their settings through it.

mod fields;
mod scope;
pub(crate) mod synonyms;

pub use fields::{Fields, Problems};
pub use scope::{Overrides, Scope};
