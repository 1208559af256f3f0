//! Files of repositories of the Hugging Face hub: from its local cache, which Python's libraries share, or downloaded into
//! it.

use std::path::{Component, Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::diagnostic::Problem;
use crate::terminal::note;

/// What a path in the hub begins with.
const HUB: &str = "hf:";

/// The part of a name behind `hf:`.
pub fn in_hub(name: &str) -> Option<&str> {
    name.strip_prefix(HUB)
}

/// What other tools call a model of the hub, `organisation/name`, as deltarun calls it; None for any other name.
pub fn of_other_tools(name: &str) -> Option<String> {
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']);
    let is_of_hub = name.split('/').count() == 2 && name.split('/').all(is_plain);
    is_of_hub.then(|| format!("{HUB}{name}"))
}

/// The files that are downloaded after all others: a repository in the cache that has one of them is whole.
const WEIGHTS: [&str; 3] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
];

/// The repository of a model or an adapter.
pub struct Repository<'a> {
    name: &'a str,
    remote: ApiRepo,
    cached: CacheRepo,
}

impl<'a> Repository<'a> {
    /// The repository `organisation/name`. Nothing is downloaded yet.
    ///
    /// # Errors
    /// The hub's cache cannot be used.
    pub fn open(name: &'a str) -> Result<Self, Problem> {
        let api = ApiBuilder::from_env().build();
        let api = api.map_err(|e| not_downloaded(name, &e))?;
        Ok(Repository {
            name,
            remote: api.model(name.to_owned()),
            cached: Cache::from_env().model(name.to_owned()),
        })
    }

    /// The place of a file, which is downloaded if the cache lacks it.
    ///
    /// # Errors
    /// The download failed.
    pub fn get(&self, file: &str) -> Result<PathBuf, Problem> {
        let file = self.remote.get(file);
        file.map_err(|e| not_downloaded(self.name, &e))
    }

    /// Like [`Repository::get`], of a file that not every repository has. A repository that is whole in the cache is
    /// taken as it is if the hub does not say whether the file exists. Without a network, so is one that lacks its weights alone.
    ///
    /// # Errors
    /// The hub does not say whether the file exists, or the download failed.
    pub fn find(&self, file: &str) -> Result<Option<PathBuf>, Problem> {
        match self.remote.get(file) {
            Ok(path) => Ok(Some(path)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error)
                if self.has_any(&WEIGHTS)
                    || !is_answer(&error) && self.has_any(&["config.json"]) =>
            {
                let name = self.name;
                note(&format!("the Hub does not say whether `hf:{name}` has `{file}`, and the cached files have none: {error}"));
                Ok(None)
            }
            Err(error) => Err(not_downloaded(self.name, &error)),
        }
    }

    /// Whether the cache has one of these files.
    fn has_any(&self, files: &[&str]) -> bool {
        files.iter().any(|file| self.cached.get(file).is_some())
    }
}

/// Whether the hub answered at all.
fn is_answer(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => matches!(**error, ureq::Error::StatusCode(_)),
        ApiError::TooManyRetries(error) => is_answer(error),
        _ => false,
    }
}

/// Whether the hub says that a file does not exist.
fn is_absent(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => matches!(**error, ureq::Error::StatusCode(404)),
        ApiError::TooManyRetries(error) => is_absent(error),
        _ => false,
    }
}

fn not_downloaded(repository: &str, error: &ApiError) -> Problem {
    let message = format!("`hf:{repository}` could not be downloaded from the Hub: {error}");
    let help = "check the name and the network, or use the directory of a downloaded model";
    Problem::failure("delta::backbone::download", message).help(help)
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
