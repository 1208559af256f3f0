//! Turns files of examples into batches of tokens.
//!
//! In: the data set and task of a plan, a tokenizer. Out: [`Examples`], and [`Batch`]es of them. This
//! module knows no devices. It finds all mistakes in a file before training begins, and reports each with
//! its line.
//!
//! [`Batch`]: crate::graph::Batch

mod added_tokens;
mod answers;
mod batch;
mod bytes;
mod chat;
mod conll;
mod endless;
mod examples;
mod files;
mod filled;
mod json_lines;
mod labels;
mod lines;
mod noise;
mod objects;
mod packed;
mod parquet;
mod recognize;
mod rows;
mod sample;
mod summary;
mod table;
mod tokenizer_config;
mod tokens;
mod words;

pub use crate::task::{Encoded, Example};
pub use batch::{batch, groups, order, Prediction};
pub use examples::{check_few, empty_part, nothing_to_predict, Examples};
pub use files::{belongs, count_of, files_of};
pub use json_lines::json_value;
pub use labels::labels_in;
pub use noise::{Masking, Noising, Spans};
pub use objects::objects;
pub use recognize::{read_like, recognize, recognize_packed, UNKNOWN_FORMAT};
pub use rows::{warn_of_overlap, Extent, RowFindings};
pub use sample::{sample, Sample};
pub use summary::DataSummary;
pub use table::{visit, FileRows, RowPlace, Wanted};
pub use tokens::TextEncoder;
