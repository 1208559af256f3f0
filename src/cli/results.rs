//! What becomes of finished runs: a file for llama.cpp, a merged model, one run of several.

use std::path::{Path, PathBuf};

use super::arguments::CombineOptions;
use super::Ended;
use crate::backbone::MatrixType;
use crate::diagnostic::{Problem, Problems};
use crate::engine::Device;
use crate::run::{self, open_run, InputSettings, Integrity, Loaded};
use crate::terminal::print;

/// Opens a finished run, or a LoRA that PEFT saved.
fn open(directory: &Path, backbone: Option<&str>, integrity: Integrity) -> Result<Loaded, Problem> {
    open_run(
        directory,
        backbone,
        InputSettings::default(),
        integrity,
        Device::Cpu,
    )
}

/// `deltarun export`
pub(super) fn export(
    directory: &Path,
    out: &Path,
    backbone: Option<&str>,
    integrity: Integrity,
) -> Result<Ended, Problems> {
    let loaded = open(directory, backbone, integrity)?;
    run::export_gguf(&loaded.plan, &loaded.graph, out)?;
    let shown = out.display();
    print(&format!(
        "{shown}\n  llama.cpp: llama-cli -m MODEL.gguf --lora {shown}\n  Ollama: `ADAPTER {shown}` in a Modelfile, after `FROM MODEL.gguf`\n"
    ));
    Ok(Ended::Done)
}

/// `deltarun merge`
pub(super) fn merge(
    directory: &Path,
    out: &Path,
    kind: Option<MatrixType>,
    backbone: Option<&str>,
    integrity: Integrity,
) -> Result<Ended, Problems> {
    let loaded = open(directory, backbone, integrity)?;
    let is_file = out
        .extension()
        .is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    match (is_file, kind) {
        (true, kind) => {
            let kind = kind.unwrap_or(MatrixType::F16);
            run::merge_gguf(&loaded.plan, &loaded.graph, out, kind)?;
        }
        (false, None) => run::merge(&loaded.plan, &loaded.graph, out)?,
        (false, Some(_)) => {
            let message = format!(
                "`--type` belongs to a GGUF file, and `{}` is a directory",
                out.display()
            );
            return Err(Problem::new("delta::cli::type", message)
                .help("leave out `--type`, or name a file that ends in `.gguf`")
                .into());
        }
    }
    print(&format!("{}\n", out.display()));
    Ok(Ended::Done)
}

pub(super) fn combine(options: &CombineOptions) -> Result<Ended, Problems> {
    let (backbone, integrity) = (options.backbone.as_deref(), options.integrity.integrity());
    let open = |run: &PathBuf| open(run, backbone, integrity);
    let runs = options
        .runs
        .iter()
        .map(open)
        .collect::<Result<Vec<_>, _>>()?;
    let combination = run::Combination {
        rule: options.by,
        weights: options.weights.clone(),
        density: options.density,
        rank: options.rank,
        seed: options.seed,
    };
    run::combine(&runs, &combination, Device::Cpu, &options.out)?;
    print(&format!("{}\n", options.out.display()));
    Ok(Ended::Done)
}
