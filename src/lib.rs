//! deltarun: a small declarative language for delta tuning, and the interpreter that runs it.
//!
//! A pipeline goes through these steps, each a folder with one door:
//!
//! 1. [`syntax::parse`]: text becomes a tree in which every node has its place.
//! 2. [`plan::plan`]: names are resolved against the backbone's dimensions ([`backbone::read_config`]),
//!    settings are typed, everything is checked. A [`plan::Plan`] is plain data.
//! 3. [`data::Examples::read`]: files of examples become tokens.
//! 4. [`graph::Graph::load`]: the plan and the backbone's weights become something that runs, on the
//!    tensors and operations of [`engine`], with the methods of [`delta`] at their sites.
//! 5. [`train::train`]: stages of steps.
//! 6. [`run::run`]: all of that, and a directory with the results; [`peft`] writes and reads PEFT's
//!    format.
//!
//!
//! [`script::run`] runs an experiment: a rhai script over pipelines.
//!
//! What is wrong at any step is a [`diagnostic::Problem`]; [`cli`] and [`report`] show it.
#![warn(missing_docs)]

pub mod backbone;
pub mod cli;
pub mod data;
pub mod delta;
pub mod diagnostic;
pub mod disk;
pub mod graph;
pub mod memory;
pub mod pattern;
pub mod peft;
pub mod plan;
pub mod report;
pub mod run;
pub mod script;
pub mod settings;
pub mod syntax;
pub mod terminal;
pub mod text;
pub mod train;

pub use deltarun_engine as engine;
