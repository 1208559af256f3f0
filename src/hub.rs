//! Files of repositories of the Hugging Face hub: from its local cache, which Python's libraries share, or downloaded into
//! it.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use hf_hub::{Repo, RepoType};

use crate::diagnostic::Problem;

/// What a path in the hub begins with.
const HUB: &str = "hf:";

/// The part of a name behind `hf:`.
pub fn in_hub(name: &str) -> Option<&str> {
    name.strip_prefix(HUB)
}

/// A function that gets a file of a model's repository.
///
/// # Errors
/// The hub's cache cannot be used.
pub fn model_files(
    repository: &str,
) -> Result<impl Fn(&str) -> Result<PathBuf, Problem> + use<'_>, Problem> {
    let failed = move |e: ApiError| {
        let message = format!("`hf:{repository}` could not be downloaded from the Hub: {e}");
        let help = "check the name and the network, or use the directory of a downloaded model";
        Problem::failure("delta::backbone::download", message).help(help)
    };
    let api = ApiBuilder::from_env().build().map_err(failed)?;
    let model = api.model(repository.to_owned());
    Ok(move |file: &str| model.get(file).map_err(failed))
}

/// Where a data file is: `hf:organisation/name/PATH` is a file of a data set of the hub, and any other path is its own.
///
/// # Errors
/// The path names no file of a data set, or a download failed.
pub fn local(path: &Path) -> Result<PathBuf, Problem> {
    let name = path.to_string_lossy();
    let Some(place) = in_hub(&name) else {
        return Ok(path.to_owned());
    };
    let mut parts = place.splitn(3, '/');
    let parts = (parts.next(), parts.next(), parts.next());
    let is_plain = Path::new(place)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let (Some(owner), Some(name), Some(file), true) = (parts.0, parts.1, parts.2, is_plain) else {
        let message = format!("`hf:{place}` names no file of a data set");
        return Err(Problem::new("delta::data::hub", message).help(
            "write the file's path after the data set, as its page shows it: `parquet(\"hf:stanfordnlp/sst2/data/train-00000-of-00001.parquet\")`",
        ));
    };
    let failed = |e: ApiError| {
        let message = format!("`hf:{place}` could not be downloaded from the Hub: {e}");
        Problem::failure("delta::data::download", message)
            .help("check the path and the network, or name a file that you downloaded")
    };
    let api = ApiBuilder::from_env().build().map_err(failed)?;
    let repository = Repo::new(format!("{owner}/{name}"), RepoType::Dataset);
    api.repo(repository).get(file).map_err(failed)
}
