//! Finds a backbone in a directory or in a repository of the Hugging Face hub.

use std::path::{Path, PathBuf};

use super::family::HeadKind;
use super::{is_gguf, read_text, text_in_gguf, Config};
use crate::diagnostic::Problem;
use crate::hub::{in_hub, Repository};

/// Finds the directory of a backbone. `hf:organisation/name` is looked up in the local cache of the hub. Of
/// `config.json`, `tokenizer.json` and `tokenizer_config.json`, the missing files are downloaded. Any other name is a
/// path relative to `base`.
///
/// # Errors
/// A download failed.
pub fn locate(name: &str, base: &Path) -> Result<PathBuf, Problem> {
    let Some(repository) = in_hub(name) else {
        return Ok(base.join(name));
    };
    let repository = Repository::open(repository)?;
    repository.get("tokenizer.json")?;
    fetch_tokenizer_config(&repository)?;
    locate_config(name, base)
}

fn fetch_tokenizer_config(repository: &Repository) -> Result<(), Problem> {
    let config = repository.find("tokenizer_config.json")?;
    let config = config.and_then(|path| std::fs::read_to_string(path).ok());
    // Only without this key do the others count.
    if !config.is_some_and(|text| text.contains("\"added_tokens_decoder\"")) {
        repository.find("special_tokens_map.json")?;
        repository.find("added_tokens.json")?;
    }
    Ok(())
}

/// The directory of a saved adapter or model. `hf:organisation/name` is an adapter if its repository has an
/// `adapter_config.json`, and a model like that of [`locate`] otherwise. Any other name is a path, and is returned as it is.
///
/// # Errors
/// A download failed.
pub fn locate_saved(name: &str, path: &Path) -> Result<PathBuf, Problem> {
    let Some(repository) = in_hub(name) else {
        return Ok(path.to_owned());
    };
    let repository = Repository::open(repository)?;
    let Some(config) = repository.find("adapter_config.json")? else {
        return locate(name, Path::new(""));
    };
    if repository.find("tokenizer.json")?.is_some() {
        fetch_tokenizer_config(&repository)?;
    }
    repository.get("adapter_model.safetensors")?;
    Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// Like [`locate`], but downloads only `config.json`.
///
/// # Errors
/// A download failed.
pub fn locate_config(name: &str, base: &Path) -> Result<PathBuf, Problem> {
    let Some(repository) = in_hub(name) else {
        return Ok(base.join(name));
    };
    let config = Repository::open(repository)?.get("config.json")?;
    Ok(config.parent().map(Path::to_path_buf).unwrap_or_default())
}

/// Downloads the weights of `hf:organisation/name` into the directory that [`locate`] gave, unless the local
/// cache already has them. Does nothing for other names.
///
/// # Errors
/// A download failed.
pub fn fetch_weights(name: &str) -> Result<(), Problem> {
    let Some(repository) = in_hub(name) else {
        return Ok(());
    };
    let repository = Repository::open(repository)?;
    if repository.find("model.safetensors")?.is_some() {
        return Ok(());
    }
    let index = repository.get("model.safetensors.index.json")?;
    let text = std::fs::read_to_string(index).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let shards = json["weight_map"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.values());
    shards
        .filter_map(|shard| shard.as_str())
        .try_for_each(|shard| repository.get(shard).map(drop))
}

/// The problem of a place that is a file, should be a GGUF file, or has one in it.
fn no_directory(place: &Path) -> Option<Problem> {
    let is_named_gguf = |path: &Path| {
        path.extension()
            .is_some_and(|own| own.eq_ignore_ascii_case("gguf"))
    };
    let refused = |message: String, help: &str| {
        Some(Problem::new("delta::backbone::missing", message).help(help))
    };
    let shown = place.display();
    if is_named_gguf(place) && !place.exists() {
        let help = "check the path; it is relative to the directory of the `.delta` file";
        return refused(format!("there is no file `{shown}`"), help);
    }
    if place.is_file() && !is_gguf(place) {
        let help = "name a GGUF file, whose name ends in `.gguf`, or the directory of a Hugging Face model";
        return refused(format!("`{shown}` is a file"), help);
    }
    if !place.is_dir() || place.join("config.json").exists() {
        return None;
    }
    let mut files = std::fs::read_dir(place)
        .ok()?
        .flatten()
        .map(|entry| entry.path());
    let file = files.find(|path| is_named_gguf(path))?;
    let help = format!("name the file in it: `backbone \"{}\"`", file.display());
    refused(format!("`{shown}` has no `config.json`"), &help)
}

/// Reads the `config.json` of a backbone.
///
/// # Errors
/// The directory or the file is missing, or [`Config::parse`] refuses it.
pub fn read_config(directory: &Path) -> Result<Config, Problem> {
    let path = directory.join("config.json");
    let text = match text_in_gguf(&path) {
        Some(found) => found?.ok_or_else(|| std::io::ErrorKind::NotFound.into()),
        None => match no_directory(directory) {
            Some(problem) => return Err(problem),
            None => std::fs::read_to_string(&path),
        },
    };
    let text = text.map_err(|e: std::io::Error| {
        let missing = !directory.exists();
        let message = match missing {
            true => format!("there is no backbone at `{}`", directory.display()),
            false => format!("`{}` cannot be read: {e}", path.display()),
        };
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        Problem::new("delta::backbone::missing", message)
            .help(format!("write the directory of a Hugging Face model, relative to the `.delta` file, or a model on the Hub as `hf:organisation/{name}` or `hf:{name}`"))
    })?;
    Config::parse(&text).map_err(|reason| {
        let message = format!("deltarun does not support the model of `{}`: {reason}", path.display());
        Problem::new("delta::backbone::config", message)
            .help("use a model of a supported family with a standard `config.json`; `docs/architecture.md` explains how to add a family")
    })
}

/// The head of transformers' class that a model was saved from, if `config.json` names a class that its family has.
pub fn saved_head(directory: &Path, config: &Config) -> Option<HeadKind> {
    let text = read_text(&directory.join("config.json")).ok()?;
    let json: serde_json::Value = serde_json::from_str(&text).ok()?;
    let class = json["architectures"].get(0)?.as_str()?;
    let heads = &config.family().heads;
    let kinds = [HeadKind::Classify, HeadKind::Tag, HeadKind::LanguageModel];
    let has = |kind: &HeadKind| {
        heads
            .of(*kind)
            .is_some_and(|head| class.ends_with(&head.class))
    };
    kinds.into_iter().find(has)
}
