//! What a parameter is.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// A parameter that a pipeline has beside its backbone's own: which delta or head it belongs to, and its name there.
/// It is shown, stored and ordered as its dotted path.
#[derive(Clone, Debug)]
pub struct ParameterId {
    path: Arc<str>,
    owner: Owner,
    /// Where its name begins in the path.
    name_start: usize,
}

/// Whose a parameter is.
#[derive(Clone, Debug)]
enum Owner {
    /// A delta's, at one of its sites or for all of them.
    Delta {
        name: Arc<str>,
        site: Option<Arc<str>>,
    },
    /// The head's of a task.
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

    /// `DELTA.NAME`: one that all sites of a delta share, or what it unfreezes, whose name is a path of the backbone.
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

    /// What stands before its name: `DELTA.SITE`.
    pub fn module(&self) -> &str {
        &self.path[..self.name_start - 1]
    }

    /// The delta that it belongs to, if it is no head's.
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
