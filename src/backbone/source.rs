//! Where a backbone is: a directory, or a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiBuilder;

use super::Config;
use crate::diagnostic::Problem;

/// The directory of a backbone. `hf:organisation/name` is looked up in the local cache of the hub
/// and downloaded where it is not there yet; anything else is a path relative to `base`.
///
/// # Errors
/// No such directory, or a download that failed.
pub fn locate(name: &str, base: &Path) -> Result<PathBuf, Problem> {
    match name.strip_prefix("hf:") {
        Some(repository) => download(repository),
        None => Ok(base.join(name)),
    }
}

fn download(repository: &str) -> Result<PathBuf, Problem> {
    let failed = |e: hf_hub::api::sync::ApiError| {
        let message = format!("`hf:{repository}` could not be fetched from the hub: {e}");
        let help = "check the name and the network, or give the directory of a downloaded model";
        Problem::failure("delta::backbone::download", message).help(help)
    };
    let api = ApiBuilder::from_env().build().map_err(failed)?;
    let model = api.model(repository.to_owned());
    let config = model.get("config.json").map_err(failed)?;
    model.get("tokenizer.json").map_err(failed)?;
    if model.get("model.safetensors").is_err() {
        let index = model.get("model.safetensors.index.json").map_err(failed)?;
        let text = std::fs::read_to_string(&index).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        for shard in json["weight_map"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.values())
        {
            model
                .get(shard.as_str().unwrap_or_default())
                .map_err(failed)?;
        }
    }
    Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// Reads the `config.json` of a backbone.
///
/// # Errors
/// The directory or the file is missing, or [`Config::parse`] refuses it.
pub fn read_config(directory: &Path) -> Result<Config, Problem> {
    let path = directory.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|e| {
        let missing = !directory.exists();
        let message = match missing {
            true => format!("there is no backbone at `{}`", directory.display()),
            false => format!("`{}` cannot be read: {e}", path.display()),
        };
        Problem::new("delta::backbone::missing", message)
            .help("give the directory of a Hugging Face model, relative to the `.delta` file, or `hf:organisation/name`")
    })?;
    Config::parse(&text).map_err(|reason| {
        let message = format!("`{}` is not a backbone that deltarun knows: {reason}", path.display());
        Problem::new("delta::backbone::config", message)
            .help("use a backbone of a supported family; `docs/architecture.md` says how a family is added")
    })
}
