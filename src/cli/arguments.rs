//! The arguments, and how they are explained.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::run::{Integrity, Rule};

/// Delta tuning (parameter-efficient fine-tuning) from a small declarative file.
#[derive(Parser)]
#[command(
    name = "deltarun",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "\
Start here:
  deltarun pipelines/quickstart.delta          train a delta on the built-in example
  deltarun check FILE.delta                    find mistakes without running anything
  deltarun plan FILE.delta                     see what would be trained, and what it costs
  deltarun eval runs/quickstart                evaluate a finished run
  echo '{\"text\": \"...\"}' | deltarun predict runs/quickstart

A run leaves runs/NAME: the plan, a log, metrics, the delta, and a copy for PEFT.
The language is explained in docs/language.md.
Exit codes: 0 success, 1 a failure, 2 a mistake in the input, 130 interrupted."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunOptions,
}

impl Arguments {
    /// How what is wrong is to be written.
    pub fn format(&self) -> Format {
        match &self.command {
            Some(Command::Check(options)) => options.format,
            Some(Command::Plan(options)) => options.format,
            Some(Command::Eval(options)) => options.format,
            _ => Format::Text,
        }
    }

    /// The number of threads that was asked for.
    pub fn threads(&self) -> Option<usize> {
        match &self.command {
            Some(Command::Plan(options)) => options.threads,
            Some(Command::Profile(options)) => options.threads,
            Some(Command::Replay(options)) => options.device.threads,
            Some(Command::Eval(options)) => options.source.device.threads,
            Some(Command::Predict(options)) => options.source.device.threads,
            Some(_) => None,
            None => self.run.device.threads,
        }
    }
}

#[derive(Subcommand)]
pub enum Command {
    /// Find every mistake of a pipeline without running it
    Check(CheckOptions),
    /// Show the module tree with what sits where, trained parameters, estimated memory and time
    Plan(PlanOptions),
    /// Run a few steps and show where their time and memory go, operation by operation
    Profile(ProfileOptions),
    /// Rewrite files in the one canonical form
    Fmt {
        /// `.delta` files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Change nothing; exit with 2 if a file is not in canonical form
        #[arg(long)]
        check: bool,
    },
    /// Run a finished run again from what it recorded, and say whether every figure and bit is the same
    Replay(ReplayOptions),
    /// Evaluate a finished run, or an adapter saved by PEFT
    Eval(EvalOptions),
    /// Predict with a finished run, or an adapter saved by PEFT: JSON lines in, JSON lines out
    Predict(PredictOptions),
    /// Make one run of several with LoRAs: their average, TIES or DARE
    Combine(CombineOptions),
    /// Fold a run into its backbone: a directory that transformers loads without PEFT
    Merge {
        /// The directory that a run left
        run: PathBuf,
        /// The directory to write
        out: PathBuf,
        /// The backbone's directory, if it has moved
        #[arg(long)]
        backbone: Option<String>,
        #[command(flatten)]
        integrity: IntegrityOptions,
    },
}

#[derive(Args)]
pub struct CombineOptions {
    /// Directories that runs left, or that PEFT saved LoRAs in
    #[arg(required = true, num_args = 2..)]
    pub runs: Vec<PathBuf>,
    /// `average`, `ties` or `dare`
    #[arg(long, default_value = "average")]
    pub by: Rule,
    /// How much each run counts; the same for all if absent
    #[arg(long, value_delimiter = ',', value_name = "WEIGHT,...")]
    pub weights: Option<Vec<f32>>,
    /// The share of each change that `ties` and `dare` keep
    #[arg(long, default_value_t = 0.2)]
    pub density: f32,
    /// The rank of the result; if absent, the sum of the ranks for `average`, else the largest
    #[arg(long)]
    pub rank: Option<usize>,
    /// What `dare` draws from
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The directory to write
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// The backbone's directory, if it is not where the runs say
    #[arg(long)]
    pub backbone: Option<String>,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

#[derive(Args)]
pub struct PipelineOptions {
    /// A pipeline: a `.delta` file; to be run, an experiment, too: a `.rhai` script
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Set a param of the file; several may be set
    #[arg(long = "set", value_name = "NAME=VALUE")]
    pub set: Vec<String>,
    /// Set params from a YAML file
    #[arg(long, value_name = "FILE.yaml")]
    pub params: Option<PathBuf>,
    /// What everything random is drawn from; the same as `--set seed=N`
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

/// Whether files of earlier runs must be what those runs left.
#[derive(Args)]
pub struct IntegrityOptions {
    /// Take files of a run, its backbone or its data although they changed since; each is said
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

/// How a result and what is wrong are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Text,
    /// One JSON object on standard output, mistakes among it
    Json,
    /// Mistakes as annotations of GitHub's workflows
    Github,
}

#[derive(Args)]
pub struct CheckOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// Look at every row of the data, not at the first and the last thousand of large files
    #[arg(long)]
    pub all_rows: bool,
    /// Read the backbone's `config.json` alone: no tokenizer, no tensors, no data
    #[arg(long, conflicts_with = "all_rows")]
    pub config_only: bool,
    /// How mistakes are written
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Args)]
pub struct PlanOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// Read the backbone's `config.json` alone: no tokenizer, no tensors
    #[arg(long)]
    pub config_only: bool,
    /// How the plan is written
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Threads to estimate for
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct ProfileOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// The stage; the first one if absent
    #[arg(long, value_name = "NAME")]
    pub stage: Option<String>,
    /// Steps to measure
    #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,
    /// Threads
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct DeviceOptions {
    /// Where to compute: `cpu`, `cuda` or `cuda:N`; `dfdx-cpu` has no kernels, and is slow: each operation as it is defined
    #[arg(long, default_value = "cpu")]
    pub device: String,
    /// Threads; the result does not depend on it
    #[arg(long, value_name = "N", value_parser = threads)]
    pub threads: Option<usize>,
}

#[derive(Args)]
pub struct RunOptions {
    #[command(flatten)]
    pub pipeline: PipelineOptions,
    /// For a script: which of its presets of params
    #[arg(long, value_name = "NAME")]
    pub preset: Option<String>,
    /// For a script: a folder beside its own that what it adds to pipelines may read; several may be given
    #[arg(long, value_name = "DIR")]
    pub allow: Vec<PathBuf>,
    /// The directory of the run, instead of `runs/NAME`
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub device: DeviceOptions,
    /// Show no progress
    #[arg(long)]
    pub quiet: bool,
}

/// A run to ask.
#[derive(Args)]
pub struct SourceOptions {
    /// The directory that a run left, or that PEFT saved an adapter in
    pub run: PathBuf,
    /// The backbone's directory, if it is not where the run says
    #[arg(long)]
    pub backbone: Option<String>,
    /// For an adapter: the columns, or keys, with the texts
    #[arg(long, value_delimiter = ',', value_name = "COLUMN,...")]
    pub text: Option<Vec<String>>,
    /// For an adapter of an encoder and a decoder: what stands before every source
    #[arg(long, value_name = "TEXT")]
    pub source_prefix: Option<String>,
    #[command(flatten)]
    pub device: DeviceOptions,
    #[command(flatten)]
    pub integrity: IntegrityOptions,
}

#[derive(Args)]
pub struct ReplayOptions {
    /// The directory that a run left
    pub run: PathBuf,
    /// Where to run it; without it `RUN.replay`, which is removed when all is the same
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
pub struct EvalOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    /// A file to evaluate instead of the run's dev set: `.tsv`, `.csv` or `.jsonl`
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// How the metrics are written
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

#[derive(Args)]
pub struct PredictOptions {
    #[command(flatten)]
    pub source: SourceOptions,
    /// JSON lines with the texts; standard input if absent
    #[arg(long, value_name = "FILE.jsonl")]
    pub input: Option<PathBuf>,
    /// Where to write; standard output if absent
    #[arg(long, value_name = "FILE.jsonl")]
    pub output: Option<PathBuf>,
}

/// Threads that a process may start: more than any machine has processors.
const MOST_THREADS: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if (1..=MOST_THREADS).contains(&threads) => Ok(threads),
        _ => Err(format!("a whole number from 1 to {MOST_THREADS} is needed")),
    }
}
