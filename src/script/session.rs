//! One execution of a script: its params, and the files that it may reach.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rhai::{Array, Dynamic, Map};

use super::runner::Runner;
use super::Options;
use crate::diagnostic::{Problem, Problems};
use crate::plan::Overrides;
use crate::run::{Integrity, Shared, Source};
use crate::text::{did_you_mean, quoted_list};

/// What the functions of a script share.
pub(super) struct Session {
    /// The folder of the script.
    folder: PathBuf,
    set: Overrides,
    preset: Option<String>,
    integrity: Integrity,
    /// Params that the script asked for.
    known: RefCell<Option<BTreeSet<String>>>,
    /// What runs need of it, on any thread.
    pub runner: Runner,
}

impl Session {
    pub fn new(script: &Path, options: &Options<'static>) -> Result<Self, Problem> {
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
            folder,
            set: options.set.clone(),
            preset: options.preset.clone(),
            integrity: options.integrity,
            known: RefCell::new(None),
            runner: Runner {
                out: options.out.clone(),
                is_quiet: options.is_quiet,
                interrupted: options.interrupted,
                shared: Shared::default(),
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
                    let message = format!("the preset `{name}` sets `{key}`, which is no param");
                    return Err(Problem::new("delta::script::preset", message)
                        .help("give it a default, too"));
                }
                params.insert(key.clone(), value.clone());
            }
        }
        for (key, text) in &self.set {
            if let Some(param) = params.get_mut(key.as_str()) {
                *param = value(text, param).map_err(|wanted| {
                    let message = format!("`--set {key}={text}`: {wanted} is needed");
                    Problem::new("delta::script::param", message).help("write another value")
                })?;
            }
        }
        let names = defaults.keys().map(|key| key.to_string());
        *self.known.borrow_mut() = Some(names.collect());
        Ok(params)
    }

    /// Whether all that was set from outside was asked for.
    pub fn check_params(&self, name: &str, text: &str) -> Result<(), Problems> {
        let known = self.known.borrow().clone().unwrap_or_default();
        let unknown = self.set.keys().find(|key| !known.contains(*key));
        let Some(key) = unknown else {
            return Ok(());
        };
        let message = format!("the script has no param `{key}`");
        let problem = Problem::new("delta::script::param", message);
        let names = || known.iter().map(String::as_str);
        let problem = match did_you_mean(key, names()) {
            Some(near) => problem.help(format!("did you mean `{near}`?")),
            None => problem.help(format!("it has {}", quoted_list(names()))),
        };
        Err(Problems {
            source: Some((name.to_owned(), text.to_owned())),
            problems: vec![problem],
        })
    }

    /// A pipeline in the script's folder.
    pub fn source(&self, file: &str) -> Result<Source, Problem> {
        let path = self.folder.join(file);
        let inside = path
            .canonicalize()
            .map(|path| path.starts_with(&self.folder));
        match inside {
            Ok(true) => Ok(Source {
                integrity: self.integrity,
                ..Source::read(&path)?
            }),
            Ok(false) => Err(Problem::new(
                "delta::script::outside",
                format!("`{file}` is outside of the script's folder"),
            )
            .help("put the pipeline beside the script")),
            Err(e) => Err(Problem::new(
                "delta::script::file",
                format!("`{file}` cannot be read: {e}"),
            )
            .help("give a `.delta` file beside the script")),
        }
    }

    /// The path of something that the script leaves.
    pub fn output(&self, file: &str) -> Result<PathBuf, Problem> {
        let is_plain = Path::new(file).components().count() == 1 && !file.contains("..");
        match is_plain {
            true => Ok(self.runner.out.join(file)),
            false => Err(Problem::new(
                "delta::script::outside",
                format!("`{file}` is no plain file name"),
            )
            .help("pages go beside the script's runs: give a name alone")),
        }
    }
}

/// The value of a param that is set from outside, of the kind that its default has.
fn value(text: &str, default: &Dynamic) -> Result<Dynamic, &'static str> {
    let float = |text: &str| text.trim().parse::<f64>().map_err(|_| "a number");
    if default.is_array() {
        let items = default.read_lock::<Array>();
        let first = items.as_ref().and_then(|items| items.first());
        let unit = Dynamic::from(String::new());
        let parts = text.trim_matches(['[', ']']).split(',');
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
