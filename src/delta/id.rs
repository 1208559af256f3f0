//! Identifies the parameters of deltas and heads.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Identifies a parameter of a delta or a head by its owner and its name there. We show, store and order ids by their
/// dotted paths.
#[derive(Clone, Debug)]
pub struct ParameterId {
    path: Arc<str>,
    owner: Owner,
    /// Where its name begins in the path.
    name_start: usize,
}

/// The owner of a parameter.
#[derive(Clone, Debug)]
enum Owner {
    /// A delta. Without a site, all sites share the parameter.
    Delta {
        name: Arc<str>,
        site: Option<Arc<str>>,
    },
    /// The head of a task.
    Head,
}

impl ParameterId {
    /// `DELTA.SITE.NAME`
    pub fn at_site(delta: &str, site: &str, name: &str) -> Self {
        let module = format!("{delta}.{site}");
        let owner = Owner::Delta {
            name: delta.into(),
            site: Some(site.into()),
        };
        ParameterId::of(&module, name, owner)
    }

    /// `DELTA.NAME`: a parameter that all sites of a delta share, or one that the delta unfreezes. An unfrozen
    /// parameter has its path in the backbone as its name.
    pub fn of_delta(delta: &str, name: &str) -> Self {
        let owner = Owner::Delta {
            name: delta.into(),
            site: None,
        };
        ParameterId::of(delta, name, owner)
    }

    /// `TASK.PATH`
    pub fn of_head(task: &str, path: &str) -> Self {
        ParameterId::of(task, path, Owner::Head)
    }

    fn of(module: &str, name: &str, owner: Owner) -> Self {
        ParameterId {
            path: format!("{module}.{name}").into(),
            owner,
            name_start: module.len() + 1,
        }
    }

    /// The dotted path.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its name at its site, or in its delta or head.
    pub fn name(&self) -> &str {
        &self.path[self.name_start..]
    }

    /// The path without the name, such as `DELTA.SITE`.
    pub fn module(&self) -> &str {
        &self.path[..self.name_start - 1]
    }

    /// The delta that it belongs to, unless it belongs to a head.
    pub fn delta(&self) -> Option<&str> {
        match &self.owner {
            Owner::Delta { name, .. } => Some(name),
            Owner::Head => None,
        }
    }

    /// The site that it is at, if it belongs to one.
    pub fn site(&self) -> Option<&str> {
        match &self.owner {
            Owner::Delta { site, .. } => site.as_deref(),
            Owner::Head => None,
        }
    }
}

impl fmt::Display for ParameterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl Borrow<str> for ParameterId {
    fn borrow(&self) -> &str {
        &self.path
    }
}

impl PartialEq for ParameterId {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for ParameterId {}

impl PartialOrd for ParameterId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ParameterId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.path.cmp(&other.path)
    }
}

impl std::hash::Hash for ParameterId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}
