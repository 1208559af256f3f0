//! deltarun: a small declarative language for delta tuning, and the interpreter that runs it.
//!
//! A pipeline goes through these steps. Each step is a folder with one entry point:
//!
//! 1. [`syntax::parse`] turns text into a tree in which every node knows its place in the text.
//! 2. [`plan::plan`] resolves names against the backbone's dimensions ([`backbone::read_config`]), types
//!    settings and checks everything. A [`plan::Plan`] is plain data.
//! 3. [`data::Examples::read`] turns files of examples into tokens.
//! 4. [`graph::Graph::load`] turns the plan and the backbone's weights into an executable graph. It runs on
//!    the tensors and operations of [`engine`], with the methods of [`delta`] at their sites.
//! 5. [`train::train`] runs the stages, step by step.
//! 6. [`run::run`] runs all of these steps and writes a directory with the results. [`peft`] writes and
//!    reads PEFT's format.
//!
//! [`ranks`] lets several processes share a run.
//!
//! [`script::run`] runs an experiment: a rhai script over pipelines.
//!
//! Every step reports errors as [`diagnostic::Problem`]s, which [`cli`] and [`report`] show.
#![warn(missing_docs)]

pub mod backbone;
pub mod cli;
pub mod data;
pub mod delta;
pub mod diagnostic;
pub mod disk;
pub mod generate;
pub mod graph;
pub mod hub;
pub mod init;
pub mod memory;
pub mod pattern;
pub mod peft;
pub mod plan;
pub mod ranks;
pub mod report;
pub mod run;
pub mod script;
pub mod settings;
pub mod syntax;
pub mod task;
pub mod terminal;
pub mod text;
pub mod train;

pub use deltarun_engine as engine;
