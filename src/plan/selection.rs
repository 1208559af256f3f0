//! Matches selectors against the module tree.

use rand::seq::IndexedRandom;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::backbone::{Config, Module, Parameter, Site, Stack, Tree};
use crate::diagnostic::Problem;
use crate::settings::Scope;
use crate::syntax::ast::{Pattern, Segment, Selection, Selector};
use crate::text::{counted, quoted_list};

/// The modules and parameters that selectors can name.
pub struct Modules<'a> {
    /// The module tree.
    pub tree: &'a Tree,
    /// Parameters of the language-model head. A selector must name the head explicitly, because `**` means
    /// the backbone only.
    pub head: &'a [Parameter],
    /// The dimensions.
    pub config: &'a Config,
    /// The backbone's name or path in the file, for messages.
    pub location: &'a str,
    /// The params, for numbers in selectors.
    pub scope: &'a Scope,
    /// The seed that `random` draws from.
    pub seed: u64,
}

/// The most parts that a path may have. Real paths have at most five.
const LONGEST_PATH: usize = 32;

/// The most patterns that the choices (`{a,b}`) of one selector may multiply to.
const MOST_PATTERNS: usize = 4096;

impl Modules<'_> {
    /// The modules that a selection names, in the order of the tree.
    ///
    /// # Errors
    /// An alternative matches nothing, or the number of matches is not the one after `expect`.
    pub fn modules(&self, selection: &Selection) -> Result<Vec<&Module>, Problem> {
        let all: Vec<&Module> = self.tree.modules().iter().collect();
        self.select(
            selection,
            &all,
            "module",
            |module| module.path.clone(),
            |module, pattern| match pattern {
                Pattern::Checkpoint(names) => names.iter().any(|name| self.is_named(module, name)),
                Pattern::Path(path) => {
                    let literal = matches!(path.last(), Some(Segment::Name(_)));
                    (literal || module.site != Site::Fused) && matches(path, &module.path)
                }
            },
        )
    }

    /// The parameters that a selection names, either directly or by a module above them.
    ///
    /// # Errors
    /// As for [`Modules::modules`].
    pub fn parameters(&self, selection: &Selection) -> Result<Vec<&Parameter>, Problem> {
        let all: Vec<&Parameter> = self.tree.parameters().chain(self.head).collect();
        self.select(
            selection,
            &all,
            "parameter",
            |parameter| parameter.path.clone(),
            |parameter, pattern| match pattern {
                Pattern::Checkpoint(names) => {
                    let source = &parameter.source.name;
                    let stem = source
                        .rsplit_once('.')
                        .map_or(source.as_str(), |(stem, _)| stem);
                    let is_it =
                        |name: &String| self.is_called(source, name) || self.is_called(stem, name);
                    names.iter().any(is_it)
                }
                Pattern::Path(path) => {
                    let is_head = self.head.iter().any(|head| head.path == parameter.path);
                    let may = !is_head || matches!(path.first(), Some(Segment::Name(_)));
                    may && ancestors(&parameter.path).any(|node| matches(path, node))
                }
            },
        )
    }

    fn is_named(&self, module: &Module, name: &str) -> bool {
        let fused_exists = || {
            self.tree.modules().iter().any(|other| {
                other.site == Site::Fused && other.checkpoint_name == module.checkpoint_name
            })
        };
        !module.checkpoint_name.is_empty()
            && self.is_called(&module.checkpoint_name, name)
            && (module.site == Site::Fused || !fused_exists())
    }

    /// Whether a name in the checkpoint is the quoted one or ends in its parts; the quoted one may have the family's
    /// prefix. `*` in it stands for one part.
    fn is_called(&self, name: &str, quoted: &str) -> bool {
        let prefix = &self.config.family().base_model_prefix;
        let same = |quoted: &str| {
            let (parts, wanted): (Vec<_>, Vec<_>) =
                (name.split('.').collect(), quoted.split('.').collect());
            // As in `target_modules`, the end of a name is enough.
            parts.len() >= wanted.len()
                && parts[parts.len() - wanted.len()..]
                    .iter()
                    .zip(&wanted)
                    .all(|(part, wanted)| *wanted == "*" || part == wanted)
        };
        same(quoted) || quoted.strip_prefix(prefix.as_str()).is_some_and(same)
    }

    fn select<'t, T: Copy + 't>(
        &self,
        selection: &Selection,
        all: &[T],
        noun: &str,
        path: impl Fn(&T) -> String,
        is_match: impl Fn(&T, &Pattern) -> bool,
    ) -> Result<Vec<T>, Problem> {
        let mut chosen = self.one(&selection.selector, all, noun, &path, &is_match)?;
        for exception in &selection.exceptions {
            let removed = self.one(exception, all, noun, &path, &is_match)?;
            let removed: Vec<String> = removed.iter().map(&path).collect();
            chosen.retain(|node| !removed.contains(&path(node)));
        }
        if chosen.is_empty() {
            let message = format!("the `except` of this selection leaves no {noun}");
            return Err(Problem::new("delta::plan::empty_selection", message)
                .at(selection.span, "here")
                .help("narrow the `except`, or remove it"));
        }
        if let Some(expected) = &selection.expected {
            let count = self.scope.amount(expected)?;
            if chosen.len() != count {
                let names: Vec<String> = chosen.iter().map(&path).collect();
                let message = format!(
                    "this selection matches {}, but `expect` requires {count}",
                    counted(chosen.len(), noun)
                );
                return Err(Problem::new("delta::plan::expect", message)
                    .at(selection.span, format!("matches {}", chosen.len()))
                    .at(expected.span, format!("expects {count}"))
                    .help(format!(
                        "adjust `expect` or the selection, which matches {}",
                        quoted_list(names.iter().map(String::as_str))
                    )));
            }
        }
        Ok(chosen)
    }

    fn one<T: Copy>(
        &self,
        selector: &Selector,
        all: &[T],
        noun: &str,
        path: impl Fn(&T) -> String,
        is_match: impl Fn(&T, &Pattern) -> bool,
    ) -> Result<Vec<T>, Problem> {
        let patterns = self.expand(selector)?;
        let is_empty = |pattern: &&Pattern| !all.iter().any(|node| is_match(node, pattern));
        if let Some(missing) = patterns.iter().find(is_empty) {
            let is_matched = |node: &&T| patterns.iter().any(|pattern| is_match(node, pattern));
            let matched = all.iter().filter(is_matched).map(&path).collect();
            return Err(self.no_match(selector, &patterns, missing, matched, noun));
        }
        let mut chosen: Vec<T> = all
            .iter()
            .filter(|node| patterns.iter().any(|pattern| is_match(node, pattern)))
            .copied()
            .collect();
        if let Some(amount) = &selector.random {
            let count = self.scope.amount(amount)?;
            if count == 0 || count > chosen.len() {
                let message = format!(
                    "`random` cannot draw {count} from {}",
                    counted(chosen.len(), noun)
                );
                return Err(Problem::new("delta::plan::random", message)
                    .at(selector.span, "here")
                    .help(format!("draw from 1 to {}", chosen.len())));
            }
            let mut random = ChaCha8Rng::seed_from_u64(self.seed);
            let drawn: Vec<String> = chosen
                .choose_multiple(&mut random, count)
                .map(&path)
                .collect();
            chosen.retain(|node| drawn.contains(&path(node)));
        }
        Ok(chosen)
    }

    /// Expands a selector into patterns without choices and ranges. The caller requires that each match something.
    fn expand(&self, selector: &Selector) -> Result<Vec<Pattern>, Problem> {
        let path = match &selector.pattern {
            Pattern::Checkpoint(names) => {
                let each = |name: &String| Pattern::Checkpoint(vec![name.clone()]);
                return Ok(names.iter().map(each).collect());
            }
            Pattern::Path(path) => path,
        };
        let mut expanded = Vec::new();
        self.expand_path(path, Vec::new(), selector, &mut expanded)?;
        Ok(expanded.into_iter().map(Pattern::Path).collect())
    }

    fn expand_path(
        &self,
        rest: &[Segment],
        done: Vec<Segment>,
        selector: &Selector,
        out: &mut Vec<Vec<Segment>>,
    ) -> Result<(), Problem> {
        if out.len() >= MOST_PATTERNS {
            let message = format!("this selector expands to more than {MOST_PATTERNS} patterns");
            return Err(Problem::new("delta::plan::selector", message)
                .at(selector.span, "here")
                .help("use `*` instead of long choices in braces"));
        }
        if rest.len() + done.len() > LONGEST_PATH {
            let message = format!("this selector has more than {LONGEST_PATH} parts");
            return Err(Problem::new("delta::plan::selector", message)
                .at(selector.span, "here")
                .help("write a path of the module tree: `deltarun plan` shows it"));
        }
        let Some((segment, rest)) = rest.split_first() else {
            out.push(done);
            return Ok(());
        };
        let next = |more: Vec<Segment>, out: &mut Vec<Vec<Segment>>| {
            let mut done = done.clone();
            for segment in more {
                // `**.**` means the same as `**`, but would cost more to match.
                if segment != Segment::AnyDepth || done.last() != Some(&Segment::AnyDepth) {
                    done.push(segment);
                }
            }
            self.expand_path(rest, done, selector, out)
        };
        match segment {
            Segment::Choice(paths) => {
                for path in paths {
                    let mut inner = Vec::new();
                    self.expand_path(path, Vec::new(), selector, &mut inner)?;
                    for path in inner {
                        next(path, out)?;
                    }
                }
                Ok(())
            }
            Segment::Range(name, start, end) => {
                let start = self.scope.amount(start)?;
                let end = match end {
                    Some(end) => self.scope.amount(end)?,
                    None => start + 1,
                };
                self.numbered(name, (start, end), &done, selector, |path| next(path, out))
            }
            Segment::Last(name, count) => {
                let count = self.scope.amount(count)?;
                for (parent, layers) in self.stacks_below(&done) {
                    let first = layers.checked_sub(count);
                    let first = first.ok_or_else(|| self.out_of_range(name, &parent, selector))?;
                    self.numbered(name, (first, layers), &parent, selector, |segments| {
                        let path = [parent.as_slice(), &segments].concat();
                        self.expand_path(rest, path, selector, out)
                    })?;
                }
                Ok(())
            }
            other => next(vec![other.clone()], out),
        }
    }

    /// The paths of the stacks that a path leads to, with their numbers of blocks. `**` and `*` lead to each stack by
    /// its name, because an encoder and a decoder may have different numbers of blocks.
    fn stacks_below(&self, path: &[Segment]) -> Vec<(Vec<Segment>, usize)> {
        let stacks = self.config.stacks();
        let is_any = matches!(path, [Segment::AnyDepth | Segment::AnyName]);
        if stacks.len() == 1 || !is_any {
            return vec![(path.to_vec(), self.layers_below(path))];
        }
        let named = |stack: &Stack| {
            let name = Segment::Name(stack.path.trim_end_matches('.').to_owned());
            (vec![name], stack.blocks.len())
        };
        stacks.iter().map(named).collect()
    }

    fn numbered(
        &self,
        name: &str,
        (start, end): (usize, usize),
        parent: &[Segment],
        selector: &Selector,
        mut each: impl FnMut(Vec<Segment>) -> Result<(), Problem>,
    ) -> Result<(), Problem> {
        if start >= end || end > self.layers_below(parent) {
            return Err(self.out_of_range(name, parent, selector));
        }
        (start..end).try_for_each(|number| {
            each(vec![
                Segment::Name(name.to_owned()),
                Segment::Name(number.to_string()),
            ])
        })
    }

    /// The number of blocks in the stack that a path names, or in the taller stack if it names none.
    fn layers_below(&self, parent: &[Segment]) -> usize {
        let is_named = |stack: &&Stack| {
            let is_its = |segment: &Segment| match segment {
                Segment::Name(name) => stack.path.strip_suffix('.') == Some(name),
                _ => false,
            };
            parent.iter().any(is_its)
        };
        let stacks = self.config.stacks();
        let named = stacks.iter().find(is_named);
        let count = |stack: &Stack| stack.blocks.len();
        named
            .map(count)
            .or(stacks.iter().map(count).max())
            .unwrap_or(0)
    }

    fn out_of_range(&self, name: &str, parent: &[Segment], selector: &Selector) -> Problem {
        let layers = self.layers_below(parent);
        let message = format!(
            "`{}` has only {}, and this range goes beyond them",
            self.location,
            counted(layers, "block")
        );
        Problem::new("delta::plan::range", message)
            .at(selector.span, "here")
            .help(format!(
                "stay between `{name}[0]` and `{name}[{}]`; a range excludes its end",
                layers - 1
            ))
    }
}

/// A path and all its ancestors, from the top.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let ends = path
        .match_indices('.')
        .map(|(end, _)| end)
        .chain(std::iter::once(path.len()));
    ends.map(|end| &path[..end])
}

pub(super) fn matches(pattern: &[Segment], path: &str) -> bool {
    let parts: Vec<&str> = path.split('.').collect();
    matches_parts(pattern, &parts)
}

fn matches_parts(pattern: &[Segment], parts: &[&str]) -> bool {
    match pattern.split_first() {
        None => parts.is_empty(),
        Some((Segment::AnyDepth, rest)) => {
            (0..=parts.len()).any(|skipped| matches_parts(rest, &parts[skipped..]))
        }
        Some((segment, rest)) => match parts.split_first() {
            None => false,
            Some((part, others)) => {
                let fits = match segment {
                    Segment::Name(name) => name == part,
                    _ => true,
                };
                fits && matches_parts(rest, others)
            }
        },
    }
}
