//! The integration tests, in one binary: each further one would link the whole library again. `cuda.rs` and `faults`
//! stand alone, because CI type-checks the one with a feature, and the other kills runs while nothing else is running.

mod common;

mod absorbed;
mod adalora;
mod adapters;
mod chat;
mod check;
mod checkpoints;
mod combine;
mod command_line;
mod configs;
mod counts;
mod definitions;
mod dfdx_cpu;
mod docs;
mod edges;
mod failures;
mod few;
mod frozen_blocks;
mod fuzz;
mod generation;
mod habits;
mod house;
mod inserts;
mod instruct;
mod kernels;
mod labels;
mod merge;
mod methods;
mod mistakes;
mod pairs;
mod parity;
mod peft_methods;
mod peft_python;
mod precision;
mod predict;
mod resume;
mod scripts;
mod selectors;
mod several;
mod syntax;
mod tags;
mod tokenizers;
mod trust;
mod wide;
