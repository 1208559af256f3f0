//! `deltarun init` and `deltarun import`

use std::path::{Path, PathBuf};

use clap::Args;

use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::init::{draft, import, Draft};
use crate::terminal::print;

#[derive(Args)]
pub struct InitOptions {
    /// A file of examples: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, `.conll` or `.txt`, also packed by gzip
    pub data: PathBuf,
    /// The backbone: a directory, a GGUF file or `hf:organisation/name`; by default a small one that fits the task
    #[arg(long)]
    pub backbone: Option<String>,
    /// The file to write, instead of `NAME.delta` in this directory
    #[arg(long, value_name = "FILE.delta")]
    pub out: Option<PathBuf>,
}

/// Writes a `.delta` file for a file of examples.
pub(super) fn init(options: &InitOptions) -> Result<Ended, Problems> {
    let is_elsewhere = is_elsewhere(options.out.as_deref());
    let draft = draft(&options.data, options.backbone.as_deref(), is_elsewhere)?;
    write(&draft, options.out.as_deref())
}

#[derive(Args)]
pub struct ImportOptions {
    /// PEFT's `adapter_config.json`, or a YAML file of Axolotl, LLaMA-Factory or MLX-LM
    pub file: PathBuf,
    /// The backbone, instead of the model that the file names
    #[arg(long)]
    pub backbone: Option<String>,
    /// The file to write, instead of `NAME.delta` in this directory
    #[arg(long, value_name = "FILE.delta")]
    pub out: Option<PathBuf>,
}

/// Writes a `.delta` file for a configuration of another tool.
pub(super) fn import_file(options: &ImportOptions) -> Result<Ended, Problems> {
    let is_elsewhere = is_elsewhere(options.out.as_deref());
    let draft = import(&options.file, options.backbone.as_deref(), is_elsewhere)?;
    write(&draft, options.out.as_deref())
}

/// Whether a pipeline is written into another directory than this one.
fn is_elsewhere(out: Option<&Path>) -> bool {
    out.is_some_and(|out| disk::parent(out) != Path::new("."))
}

/// Writes a draft, and says what comes next.
fn write(draft: &Draft, out: Option<&Path>) -> Result<Ended, Problems> {
    let own = PathBuf::from(format!("{}.delta", draft.name));
    let out = out.unwrap_or(&own);
    if out.exists() {
        let message = format!("`{}` is there already", out.display());
        return Err(Problem::new("delta::init::exists", message)
            .help("name another file with `--out`, or remove this one")
            .into());
    }
    disk::replace(out, draft.text.as_bytes()).map_err(|e| disk::failed("written", out, &e))?;
    let file = out.display();
    print(&format!(
        "{}\nwrote {file}\nnext:\n  deltarun check {file}   find every mistake without running anything\n  deltarun plan {file}    show what would be trained, and its cost\n  deltarun {file}         train it\n",
        draft.found
    ));
    Ok(Ended::Done)
}
