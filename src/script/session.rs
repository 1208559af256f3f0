//! One execution of a script: its params, and the files that it may reach.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rhai::{Array, Dynamic, Map};

use super::rehearsal::Rehearsal;
use super::runner::Runner;
use super::Options;
use crate::diagnostic::Problem;
use crate::run::{whole, Confined, Integrity, Shared, Source};
use crate::settings::Overrides;
use crate::text::{did_you_mean, quoted_list};

/// What the functions of a script share.
pub(super) struct Session {
    /// The folder of the script.
    folder: PathBuf,
    set: Overrides,
    preset: Option<String>,
    integrity: Integrity,
    /// Where pipelines may read, whatever is added to them.
    allowed: Vec<PathBuf>,
    started: Instant,
    in_runs: Cell<Duration>,
    /// Params that the script declared; none before it has.
    known: RefCell<Option<BTreeSet<String>>>,
    /// What runs need of it, on any thread.
    pub runner: Runner,
}

impl Session {
    /// With a `rehearsal`, the script is only read.
    pub fn new(
        script: &Path,
        options: &Options<'static>,
        rehearsal: Option<Rehearsal>,
    ) -> Result<Self, Problem> {
        let folder = script.parent().unwrap_or(Path::new(""));
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let folder = folder.canonicalize().map_err(|e| {
            Problem::failure(
                "delta::script::folder",
                format!("`{}`: {e}", folder.display()),
            )
        })?;
        Ok(Session {
            allowed: allowed(&folder, options),
            folder,
            set: options.set.clone(),
            preset: options.preset.clone(),
            integrity: options.integrity,
            started: Instant::now(),
            in_runs: Cell::default(),
            known: RefCell::new(None),
            runner: Runner {
                out: options.out.clone(),
                is_quiet: options.is_quiet,
                interrupted: options.interrupted,
                shared: Shared {
                    integrity: options.integrity,
                    ..Shared::default()
                },
                warned: Default::default(),
                rehearsal,
            },
        })
    }

    pub fn is_interrupted(&self) -> bool {
        self.runner.is_interrupted()
    }

    /// The script's params: its defaults, a preset's, those that are set from outside.
    pub fn params(&self, defaults: &Map, presets: &Map) -> Result<Map, Problem> {
        let mut params = defaults.clone();
        if let Some(name) = &self.preset {
            let preset = presets
                .get(name.as_str())
                .and_then(|preset| preset.read_lock::<Map>());
            let Some(preset) = preset else {
                let known = quoted_list(presets.keys().map(|key| key.as_str()));
                let message = format!("the script has no preset `{name}`");
                return Err(
                    Problem::new("delta::script::preset", message).help(format!("it has {known}"))
                );
            };
            for (key, value) in preset.iter() {
                if !defaults.contains_key(key) {
                    let message = format!("the preset `{name}` sets `{key}`, which is not a param");
                    return Err(Problem::new("delta::script::preset", message)
                        .help("add a default for it to `params(#{ ... })`"));
                }
                params.insert(key.clone(), value.clone());
            }
        }
        for (key, text) in &self.set {
            if let Some(param) = params.get_mut(key.as_str()) {
                *param = value(text, param).map_err(|wanted| {
                    let message = format!("`--set {key}={text}` needs {wanted}");
                    Problem::new("delta::script::param", message).help("set a value of that type")
                })?;
            }
        }
        let names = defaults.keys().map(|key| key.to_string());
        *self.known.borrow_mut() = Some(names.collect());
        self.check_params()?;
        Ok(params)
    }

    /// Checks, before anything runs, that the script declared every param and preset that was named from outside.
    ///
    /// # Errors
    /// It did not declare one.
    pub fn check_params(&self) -> Result<(), Problem> {
        if let (Some(name), None) = (&self.preset, &*self.known.borrow()) {
            let message = format!("the script has no preset `{name}`");
            return Err(Problem::new("delta::script::preset", message).help(
                "remove `--preset`, or declare it in the script with `params(#{ ... }, #{ ... })`",
            ));
        }
        let known = self.known.borrow().clone().unwrap_or_default();
        let unknown = self.set.keys().find(|key| !known.contains(*key));
        let Some(key) = unknown else {
            return Ok(());
        };
        let message = format!("the script has no param `{key}`");
        let problem = Problem::new("delta::script::param", message);
        let names = || known.iter().map(String::as_str);
        Err(match did_you_mean(key, names()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None if known.is_empty() => problem
                .help("remove `--set`, or declare the param in the script with `params(#{ ... })`"),
            None => problem.help(format!("it has {}", quoted_list(names()))),
        })
    }

    /// Whether the script computes for longer than anybody waits, its runs aside.
    pub fn has_taken_too_long(&self) -> bool {
        self.started.elapsed().saturating_sub(self.in_runs.get()) > LONGEST
    }

    /// Does what takes its time: running, evaluating, merging.
    pub fn work<T>(&self, what: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = what();
        self.in_runs.set(self.in_runs.get() + started.elapsed());
        done
    }

    /// A pipeline in the script's folder.
    pub fn source(&self, file: &str) -> Result<Source, Problem> {
        let path = self.folder.join(file);
        let inside = path
            .canonicalize()
            .map(|path| path.starts_with(&self.folder));
        match inside {
            Ok(true) => {
                let source = Source::read(&path)?;
                Ok(Source {
                    integrity: self.integrity,
                    confined: Some(Confined {
                        text: source.text.clone(),
                        folders: self.allowed.clone(),
                    }),
                    ..source
                })
            }
            Ok(false) => Err(Problem::new(
                "delta::script::outside",
                format!("`{file}` is outside the script's folder"),
            )
            .help("move the pipeline into the script's folder")),
            Err(e) => Err(Problem::new(
                "delta::script::file",
                format!("`{file}` cannot be read: {e}"),
            )
            .help("name a `.delta` file in the script's folder")),
        }
    }

    /// The path of something that the script leaves.
    pub fn output(&self, file: &str) -> Result<PathBuf, Problem> {
        let is_plain = Path::new(file).components().count() == 1 && !file.contains("..");
        match is_plain {
            true => Ok(self.runner.out.join(file)),
            false => Err(Problem::new(
                "delta::script::outside",
                format!("`{file}` is not a plain file name"),
            )
            .help("use a name without folders: pages are saved beside the script's runs")),
        }
    }
}

/// The folders that pipelines of a script may read: its own, that of its runs, and those that the caller allows.
fn allowed(folder: &Path, options: &Options<'static>) -> Vec<PathBuf> {
    let others = options.allowed.iter().chain([&options.out]);
    let whole = others.map(|path| whole(path));
    std::iter::once(folder.to_owned()).chain(whole).collect()
}

/// The longest that a script computes beside its runs.
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// The value of a param that is set from outside, of the kind that its default has.
fn value(text: &str, default: &Dynamic) -> Result<Dynamic, &'static str> {
    let float = |text: &str| text.trim().parse::<f64>().map_err(|_| "a number");
    if default.is_array() {
        let items = default.read_lock::<Array>();
        let first = items.as_ref().and_then(|items| items.first());
        let unit = Dynamic::from(String::new());
        let text = text.trim();
        let inner = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        let inner = inner.unwrap_or(text);
        let parts = inner.split(',').filter(|_| !inner.trim().is_empty());
        let values: Result<Array, _> = parts
            .map(|part| value(part.trim(), first.unwrap_or(&unit)))
            .collect();
        return values.map(Dynamic::from);
    }
    if default.is_int() {
        let number = text.trim().parse::<i64>().map_err(|_| "a whole number");
        return number.map(Dynamic::from);
    }
    if default.is_float() {
        return float(text).map(Dynamic::from);
    }
    if default.is_bool() {
        let truth = text.trim().parse::<bool>().map_err(|_| "`true` or `false`");
        return truth.map(Dynamic::from);
    }
    Ok(Dynamic::from(text.to_owned()))
}
