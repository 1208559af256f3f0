//! The command line's arguments and their help texts.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::init::{ImportOptions, InitOptions};
use super::jobs::{shard, ScriptOptions, SubmitOptions, SLURM};
use super::sweep::SweepOptions;
use crate::backbone::MatrixType;
use crate::run::{Integrity, Rule};
use crate::script::Shard;
use crate::task::Wishes;

/// Delta tuning (parameter-efficient fine-tuning) from a small declarative file.
#[derive(Parser)]
#[command(
    name = "deltarun",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Start here:
  deltarun pipelines/quickstart.delta          train a delta on the built-in example
  deltarun init reviews.csv                    draft a pipeline for a file of your own
  deltarun check FILE.delta                    find every mistake without running anything
  deltarun plan FILE.delta                     show what would be trained, and its cost
  deltarun eval runs/quickstart                evaluate a finished run
  echo '{\"text\": \"...\"}' | deltarun predict runs/quickstart

A run writes runs/NAME: the plan, a log, metrics, the delta, and a copy for PEFT.
docs/language.md explains the language.
Exit codes: 0 success, 1 failure, 2 mistake in the input, 130 interrupted."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunOptions,
}

impl Arguments {
    /// The format of error messages.
    pub fn format(&self) -> Format {
        match &self.command {
            Some(Command::Check(options)) => options.format,
            Some(Command::Plan(options)) => options.format,
            Some(Command::Eval(options)) => options.format,
            _ => Format::Text,
        }
    }

    /// The requested number of threads.
    pub fn threads(&self) -> Option<usize> {
        match &self.command {
            Some(Command::Plan(options)) => options.threads,
            Some(Command::Jobs(options)) => options.threads,
            Some(Command::Sweep(options)) => options.threads,
            Some(Command::Submit(options)) => options.script.threads,
            Some(Command::Profile(options)) => options.threads,
            Some(Command::Replay(options)) => options.device.threads,
            Some(Command::Eval(options)) => options.source.device.threads,
            Some(Command::Report(options)) => options.source.device.threads,
            Some(Command::Predict(options)) => options.source.device.threads,
            Some(Command::Generate(options)) => options.source.device.threads,
            Some(Command::Chat(options)) => options.source.device.threads,
            Some(_) => None,
            None => self.run.device.threads,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Write a small pipeline with its backbone and data into this folder, and run it
    Quickstart {
        /// The directory of the run, instead of `runs/quickstart`
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Show no progress
        #[arg(long)]
        quiet: bool,
    },
    /// Draft a pipeline for a file of examples
    Init(InitOptions),
    /// Turn a configuration of PEFT, Axolotl, LLaMA-Factory or MLX-LM into a pipeline
    Import(ImportOptions),
    /// List the methods, or show the settings of one
    Methods {
        /// The method
        name: Option<String>,
    },
    /// List the tasks with their metrics, or show the settings of one
    Tasks {
        /// The task
        name: Option<String>,
    },
    /// List the families of backbones
    Families,
    /// List the runs below a directory: results, sizes, the newest first
    Runs {
        /// The directory
        #[arg(default_value = "runs")]
        directory: PathBuf,
    },
    /// Show how two runs differ: their plans and their results
    Compare {
        /// A run's directory
        first: PathBuf,
        /// Another run's directory
        second: PathBuf,
    },
    /// Run a pipeline at the points of a grid of params: a script that is written beside it
    Sweep(SweepOptions),
    /// List the runs of a script without running them: which are finished, and the time and memory of the others
    Jobs(ScriptOptions),
    /// Write the files for Slurm that run a script's runs in an array of jobs, and then the script
    Submit(SubmitOptions),
    /// Find every mistake in a pipeline without running it
    Check(CheckOptions),
    /// Show the module tree with its deltas, the trained parameters, and the estimated memory and time
    Plan(PlanOptions),
    /// Run a few steps and show their time and memory, operation by operation
    Profile(ProfileOptions),
    /// Rewrite files in the canonical form
    Fmt {
        /// `.delta` files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change nothing; exit with 2 if a file is not in canonical form
        #[arg(long)]
        check: bool,
    },
    /// Repeat a finished run from its record, and report every figure and bit that differs
    Replay(ReplayOptions),
    /// Evaluate a finished run or an adapter saved by PEFT
    Eval(EvalOptions),
    /// Write a page about a finished run: curves, results of each label, wrong answers
    Report(ReportOptions),
    /// Predict with a finished run or an adapter saved by PEFT: rows in, answers out
    Predict(PredictOptions),
    /// Write texts with a run, an adapter or a backbone: prompts in, answers out
    Generate(GenerateOptions),
    /// Converse with a run, an adapter or a backbone that has a chat template
    Chat(ChatOptions),
    /// Combine several LoRA runs into one, by average, TIES or DARE
    Combine(CombineOptions),
    /// Write a run's LoRA as a GGUF file, for llama.cpp's `--lora` and Ollama's `ADAPTER`
    Export {
        /// The run's directory, or that of a LoRA saved by PEFT
        run: PathBuf,
        /// The file to write
        #[arg(value_name = "OUT.gguf")]
        out: PathBuf,
        /// The backbone's directory, if it has moved
        #[arg(long)]
        backbone: Option<String>,
        #[command(flatten)]
        integrity: IntegrityOptions,
    },
    /// Merge a run into its backbone: write a directory that transformers loads without PEFT, or a GGUF file
    Merge {
        /// The run's directory
        run: PathBuf,
        /// The directory to write, or a file that ends in `.gguf` for a run on a GGUF file
        out: PathBuf,
        /// The type of the matrices of a GGUF file: `f32`, `f16`, `bf16` or `q8_0`
        #[arg(long = "type", value_name = "TYPE", value_parser = matrix_type)]
        kind: Option<MatrixType>,
        /// The backbone's directory, if it has moved
        #[arg(long)]
        backbone: Option<String>,
        #[command(flatten)]
        integrity: IntegrityOptions,
    },
}

#[derive(Args)]
pub struct CombineOptions {
    /// Directories of runs, or of LoRAs saved by PEFT
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// The method: `average`, `ties` or `dare`
    #[arg(long, default_value = "average")]
    pub by: Rule,
    /// The weight of each run; equal weights by default
    #[arg(long, value_delimiter = ',', value_name = "WEIGHT,...")]
    pub weights: Option<Vec<f32>>,
    /// The share of each change that `ties` and `dare` keep; 0.2 by default
    #[arg(long)]
    pub density: Option<f32>,
    /// The rank of the result; by default the sum of the ranks for `average`, the largest rank otherwise
    #[arg(long)]
    pub rank: Option<usize>,
    /// The random seed of `dare`; 0 by default
    #[arg(long)]
    pub seed: Option<u64>,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The backbone's directory, if it is not where the runs recorded it
    #[arg(long)]
    pub backbone: Option<String>,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

#[derive(Args)]
pub struct PipelineOptions {
    /// A pipeline: a `.delta` file. `deltarun FILE`, without a command, also runs a `.rhai` script
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Set a param of the file; may be repeated
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Set params from a YAML file
    #[arg(long, value_name = "FILE.yaml")]
    pub params: Option<PathBuf>,
    /// The random seed; the same as `--set seed=N`
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

/// Whether files of earlier runs must be unchanged.
#[derive(Args)]
pub struct IntegrityOptions {
    /// Accept files of a run, its backbone or its data that changed since the run, and report each
    #[arg(long)]
    pub allow_changed: bool,
}

impl IntegrityOptions {
    pub fn integrity(&self) -> Integrity {
        match self.allow_changed {
            true => Integrity::Unchecked,
            false => Integrity::Checked,
        }
    }
}

/// The format of results and error messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object on standard output, including mistakes
    Json,
    /// Mistakes as annotations for GitHub workflows
    Github,
}

#[derive(Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// Check every row of the data, not only the first and last thousand of large files
    #[arg(long)]
    pub all_rows: bool,
    /// Read only the backbone's `config.json`: no tokenizer, no tensors, no data
    #[arg(long, conflicts_with = "all_rows")]
    pub config_only: bool,
    /// The output format of mistakes
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// Read only the backbone's `config.json`: no tokenizer, no tensors
    #[arg(long)]
    pub config_only: bool,
    /// The output format of the plan
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The number of threads to estimate for
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
    /// Estimate steps on up to this many processes as well, each with these threads
    #[arg(long, value_name = "N", value_parser = threads)]
    pub processes: Option<usize>,
}

#[derive(Args)]
pub struct ProfileOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// The stage to profile; the first one by default
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// The number of steps to measure
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// The number of threads
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct DeviceOptions {
    /// The device: `cpu`, `cuda` or `cuda:N`; `dfdx-cpu` runs the dfdx definitions without kernels, and is slow
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// The number of threads; it does not change the result
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// For a script: the preset of its params
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// For a script: another folder that its additions to pipelines may read from; may be repeated
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<PathBuf>,
    /// For a script: run a part of its runs, such as `2/4`; without a value, the part of this task of a Slurm array
    #[arg(long, value_name = "I/N", num_args = 0..=1, default_missing_value = SLURM, value_parser = shard)]
    pub shard: Option<Shard>,
    /// The run's directory, instead of `runs/NAME`
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Send the log's lines to a command as they come, one JSON object per line: docs/logging.md
    #[arg(long, value_name = "COMMAND")]
    pub on_event: Option<String>,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Show no progress
    #[arg(long)]
    pub quiet: bool,
}

/// A run to evaluate or to predict with.
#[derive(Args)]
pub struct SourceOptions {
    /// The directory of a run, of an adapter saved by PEFT, or of a model with a head; `hf:organisation/name` on the hub
    pub run: PathBuf,
    /// The backbone's directory, if it is not where the run recorded it
    #[arg(long)]
    pub backbone: Option<String>,
    /// For an adapter or a model: the columns or keys of the texts
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,...")]
    pub text: Option<Vec<String>>,
    /// For an adapter or a model: the column or key of the labels, or of the texts to write
    #[arg(long, value_name = "COLUMN")]
    pub label: Option<String>,
    /// For an encoder-decoder model: the text before every source
    #[arg(long, value_name = "TEXT")]
    pub source_prefix: Option<String>,
    #[command(flatten)]
    pub device: DeviceOptions,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

#[derive(Args)]
pub struct ReplayOptions {
    /// The run's directory
    pub run: PathBuf,
    /// The new run's directory; by default `RUN.replay`, which is removed if everything is the same
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Show no progress
    #[arg(long)]
    pub quiet: bool,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

#[derive(Args)]
pub struct ReportOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    /// The file to evaluate on instead of the run's dev set, of any format that `data` reads
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The page, instead of `report.html` in the run's directory
    #[arg(long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
}

#[derive(Args)]
pub struct EvalOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    /// The file to evaluate on instead of the run's dev set, of any format that `data` reads
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// The output format of the metrics
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Where lines come from and go to.
#[derive(Args)]
pub struct LineOptions {
    /// A file with the texts or prompts: JSON lines, or a format that `data` reads; by default JSON lines of standard input
    #[arg(long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// The file to write to: JSON lines, or a table if it ends in `.csv` or `.tsv`; standard output by default
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Args)]
pub struct PredictOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    #[command(flatten)]
    pub files: LineOptions,
}

#[derive(Args)]
pub struct GenerateOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    #[command(flatten)]
    pub files: LineOptions,
    #[command(flatten)]
    pub decoding: DecodingOptions,
}

#[derive(Args)]
pub struct ChatOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    /// The system's message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    #[command(flatten)]
    pub decoding: DecodingOptions,
}

/// How tokens are chosen, instead of as the backbone's `generation_config.json` says; else the most probable one.
#[derive(Args)]
pub struct DecodingOptions {
    /// The most tokens of an answer; 256 by default
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// No token ends an answer before it has N tokens
    #[arg(long, value_name = "N")]
    pub min_tokens: Option<u32>,
    /// Draw tokens from logits divided by this; 0 takes the most probable token
    #[arg(long, value_name = "X", value_parser = number::<0, 100>)]
    pub temperature: Option<f32>,
    /// Draw among the N most probable tokens
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Draw among the most probable tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = number::<0, 1>)]
    pub top_p: Option<f32>,
    /// Draw among tokens with at least this share of the highest probability
    #[arg(long, value_name = "P", value_parser = number::<0, 1>)]
    pub min_p: Option<f32>,
    /// Divide the logits of tokens that occurred by this
    #[arg(long, value_name = "X", value_parser = number::<0, 100>)]
    pub repetition_penalty: Option<f32>,
    /// Search with this many beams
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub beams: Option<u32>,
    /// The power of its length by which a beam's score is divided
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub length_penalty: Option<f32>,
    /// End an answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// The seed of draws; 0 by default
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl DecodingOptions {
    pub fn wishes(&self) -> Wishes {
        Wishes {
            max_tokens: self.max_tokens.map(|count| count as usize),
            min_tokens: self.min_tokens.map(|count| count as usize),
            temperature: self.temperature,
            top_k: self.top_k.map(|count| count as usize),
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            beams: self.beams.map(|count| count as usize),
            length_penalty: self.length_penalty,
            stop: self.stop.clone(),
            seed: self.seed,
        }
    }
}

/// A number from `LOW` to `HIGH`.
fn number<const LOW: u32, const HIGH: u32>(text: &str) -> Result<f32, String> {
    let range = LOW as f32..=HIGH as f32;
    let number = text.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("expected a number from {LOW} to {HIGH}"))
}

/// The most threads that a process may start: more than any machine has processors.
const MOST_THREADS: usize = 1024;

/// The type of a GGUF file's matrices.
fn matrix_type(text: &str) -> Result<MatrixType, String> {
    let known = MatrixType::ALL.iter().find(|(name, _)| *name == text);
    let names = MatrixType::ALL.map(|(name, _)| name).join(", ");
    known
        .map(|(_, kind)| *kind)
        .ok_or_else(|| format!("it is one of {names}"))
}

pub fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MOST_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("expected a whole number from 1 to {MOST_THREADS}")),
    }
}
