//! `deltarun init`

use std::path::{Path, PathBuf};

use clap::Args;

use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::init::draft;
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
    let parent = options.out.as_deref().map(disk::parent);
    let is_elsewhere = parent.is_some_and(|parent| parent != Path::new("."));
    let draft = draft(&options.data, options.backbone.as_deref(), is_elsewhere)?;
    let out = options.out.clone();
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{}.delta", draft.name)));
    if out.exists() {
        let message = format!("`{}` is there already", out.display());
        return Err(Problem::new("delta::init::exists", message)
            .help("name another file with `--out`, or remove this one")
            .into());
    }
    disk::replace(&out, draft.text.as_bytes()).map_err(|e| disk::failed("written", &out, &e))?;
    let file = out.display();
    print(&format!(
        "{}\nwrote {file}\nnext:\n  deltarun check {file}   find every mistake without running anything\n  deltarun plan {file}    show what would be trained, and its cost\n  deltarun {file}         train it\n",
        draft.found
    ));
    Ok(Ended::Done)
}
