//! `deltarun quickstart`: the first pipeline, from inside the binary.

use std::path::{Path, PathBuf};

use clap::Parser;

use super::arguments::Arguments;
use super::{commands, Ended};
use crate::diagnostic::Problems;
use crate::disk;
use crate::terminal::say;

/// The files of the pipeline, by their paths from the current folder.
const FILES: [(&str, &[u8]); 7] = [
    (PIPELINE, include_bytes!("../../pipelines/quickstart.delta")),
    (
        "quickstart/train.tsv",
        include_bytes!("../../pipelines/quickstart/train.tsv"),
    ),
    (
        "quickstart/dev.tsv",
        include_bytes!("../../pipelines/quickstart/dev.tsv"),
    ),
    (
        "quickstart/test.tsv",
        include_bytes!("../../pipelines/quickstart/test.tsv"),
    ),
    (
        "quickstart/backbone/config.json",
        include_bytes!("../../pipelines/quickstart/backbone/config.json"),
    ),
    (
        "quickstart/backbone/tokenizer.json",
        include_bytes!("../../pipelines/quickstart/backbone/tokenizer.json"),
    ),
    (
        "quickstart/backbone/model.safetensors",
        include_bytes!("../../pipelines/quickstart/backbone/model.safetensors"),
    ),
];

const PIPELINE: &str = "quickstart.delta";

/// Writes the files that are not there yet, and runs the pipeline.
pub(super) fn quickstart(out: Option<PathBuf>, is_quiet: bool) -> Result<Ended, Problems> {
    for (name, content) in FILES {
        let path = Path::new(name);
        if path.exists() {
            continue;
        }
        let folder = disk::parent(path);
        std::fs::create_dir_all(folder).map_err(|e| disk::failed("made", folder, &e))?;
        disk::replace(path, content).map_err(|e| disk::failed("written", path, &e))?;
    }
    say(&format!(
        "the pipeline is `{PIPELINE}`: read it, change it, and run it with `deltarun {PIPELINE} --out runs/NAME`"
    ));
    let quiet = is_quiet.then_some("--quiet");
    let mut options = Arguments::parse_from(["deltarun", PIPELINE].into_iter().chain(quiet)).run;
    options.out = out;
    commands::run(&options)
}
