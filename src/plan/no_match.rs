//! Suggestions for a selector that matches nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::selection::{matches, Modules};
use super::translate::{all_linear, selector_of, tail, Names};
use crate::backbone::{Module, Parameter, Site};
use crate::diagnostic::Problem;
use crate::syntax::ast::{Pattern, Segment, Selector};
use crate::text::{did_you_mean, quoted_list};

impl Modules<'_> {
    /// The problem of a selector whose pattern `missing` matches nothing. Its help has a selector that does match, where
    /// that can be guessed. `matched` has the paths that the other patterns match.
    pub(super) fn no_match(
        &self,
        selector: &Selector,
        patterns: &[Pattern],
        missing: &Pattern,
        matched: Vec<String>,
        noun: &str,
    ) -> Problem {
        let shown = show(missing);
        let message = format!("`{shown}` matches no {noun} of `{}`", self.location);
        let problem = Problem::new("delta::plan::no_match", message).at(selector.span, "here");
        let own = self.own_words(missing, noun);
        let help = own.or_else(|| self.in_our_words(patterns, matched, noun));
        problem.help(help.unwrap_or_else(|| match missing {
            Pattern::Path(path) => self.nearest(path),
            Pattern::Checkpoint(_) => self.nearest_stored(&shown),
        }))
    }

    /// What to write instead of words that PEFT, or people, have for more than a module.
    fn own_words(&self, pattern: &Pattern, noun: &str) -> Option<String> {
        let path = segments(pattern);
        let Some(Segment::Name(last)) = path.last() else {
            return None;
        };
        let is_module = noun == "module";
        match last.as_str() {
            "bias" | "biases" => {
                let mut parameters = self.tree.parameters();
                return Some(match parameters.any(Parameter::is_bias) {
                    false => "this backbone has no biases".to_owned(),
                    true if is_module => "`reparam` and `insert` take modules: write `unfreeze NAME = **.bias` for biases".to_owned(),
                    true => "write `**.bias`".to_owned(),
                });
            }
            "all" if !is_module => return Some("write `**` for everything".to_owned()),
            "all_linear" | "all-linear" | "all" | "linear" => {
                let all = all_linear(self.tree);
                let has_pooler = self.tree.module("pooler").is_some();
                let pooler = if has_pooler {
                    "; for a classifier, it also has `pooler`"
                } else {
                    ""
                };
                return Some(format!("PEFT's `all-linear` is `{all}` here{pooler}"));
            }
            "lm_head" | "classifier" | "score" => {
                return Some(format!(
                    "`{last}` is the head of a task: write `train = [head]` to train it"
                ));
            }
            _ => {}
        }
        // A parameter where a module belongs.
        let above = &path[..path.len() - 1];
        let is_there = |module: &Module| matches(above, &module.path);
        let is_parameter = is_module && matches!(last.as_str(), "weight");
        let does_match = is_parameter && self.tree.modules().iter().any(is_there);
        does_match.then(|| {
            let above = show(&Pattern::Path(above.to_vec()));
            format!("this takes modules, not their parameters: write `{above}`")
        })
    }

    /// What to write instead of a selector that has names of a checkpoint or of PEFT.
    fn in_our_words(
        &self,
        patterns: &[Pattern],
        matched: Vec<String>,
        noun: &str,
    ) -> Option<String> {
        let names = Names {
            own: self.config.family(),
            tree: self.tree,
            of_parameters: noun == "parameter",
        };
        let nodes = names.nodes();
        let mut all = matched;
        // The tails that a foreign name stands for, and patterns of our own names at other places.
        let mut said: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut deeper = Vec::new();
        for pattern in patterns {
            let path = segments(pattern);
            let of_pattern = names.meant(&path);
            if of_pattern.is_empty() || of_pattern.iter().all(|node| all.contains(node)) {
                continue;
            }
            let name = path.iter().rev().find_map(|segment| match segment {
                Segment::Name(name) if !self.is_part(name) => Some(name.as_str()),
                _ => None,
            });
            let tails = of_pattern.iter().map(|node| tail(node).to_owned());
            match name {
                Some(name) => said.entry(name.to_owned()).or_default().extend(tails),
                None => deeper.push(show(pattern)),
            }
            all.extend(of_pattern);
        }
        if said.is_empty() && deeper.is_empty() {
            return None;
        }
        let meant: Vec<String> = nodes
            .iter()
            .filter(|node| all.contains(node))
            .cloned()
            .collect();
        let write = selector_of(&meant, &nodes)?;
        let is = said.iter().map(|(name, tails)| {
            let tails = quoted_list(tails.iter().map(String::as_str));
            format!("`{name}` is {tails} here")
        });
        let lies = |pattern: &String| format!("`{pattern}` is not a whole path here");
        let said: Vec<String> = is.chain(deeper.iter().map(lies)).collect();
        Some(format!("{}: write `{write}`", said.join(", ")))
    }

    /// Whether a name is a part of a path of the module tree, or of its parameters.
    fn is_part(&self, name: &str) -> bool {
        let mut paths = self.tree.parameters().map(|parameter| &parameter.path);
        let is_there = |path: &str| path.split('.').any(|part| part == name);
        paths.any(|path| is_there(path)) || self.tree.modules().iter().any(|m| is_there(&m.path))
    }

    /// A suggestion for a quoted name of the checkpoint that does not exist.
    fn nearest_stored(&self, shown: &str) -> String {
        let modules = self.tree.modules().iter();
        let names: Vec<&str> = modules
            .map(|module| module.checkpoint_name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        let leaves = names.iter().filter_map(|name| name.rsplit('.').next());
        let leaves: BTreeSet<&str> = leaves.collect();
        match did_you_mean(shown, names) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "the checkpoint's names end in {}",
                quoted_list(leaves.into_iter())
            ),
        }
    }

    /// A suggestion for a pattern without a match: finds its longest beginning that matches something, and lists the
    /// nodes below that.
    fn nearest(&self, path: &[Segment]) -> String {
        let nodes: Vec<&str> = self
            .tree
            .modules()
            .iter()
            .map(|module| module.path.as_str())
            .chain(
                self.tree
                    .parameters()
                    .map(|parameter| parameter.path.as_str()),
            )
            .collect();
        let is_block = matches!(path.first(), Some(Segment::Name(name)) if name == "block");
        if is_block && self.config.decoder_layers.is_some() {
            return "write `encoder.block` or `decoder.block`, or `**.block` for both".to_owned();
        }
        // Behind `**`, any place could be meant: the layers' own names say most.
        if let [Segment::AnyDepth, Segment::Name(name)] = path {
            return self.nearest_layer(name, &nodes);
        }
        // The longest beginning that is there.
        let there = (0..path.len()).rev().find_map(|length| {
            let parent = match length {
                0 => Some(""),
                _ => nodes
                    .iter()
                    .find(|node| matches(&path[..length], node))
                    .copied(),
            };
            Some((length, parent?))
        });
        match there {
            Some((length, parent)) => self.nearest_below(parent, &path[length], &nodes),
            None => "run `deltarun plan` to see the module tree".to_owned(),
        }
    }

    /// A suggestion for the name of a layer at any place.
    fn nearest_layer(&self, name: &str, nodes: &[&str]) -> String {
        let layers = self.tree.modules().iter();
        let layers = layers.filter(|module| module.site == Site::Linear);
        let names: BTreeSet<&str> = layers
            .filter_map(|module| module.path.rsplit('.').next())
            .collect();
        let near = did_you_mean(
            name,
            nodes.iter().filter_map(|node| node.rsplit('.').next()),
        );
        let has = format!(
            "its linear layers are called {}",
            quoted_list(names.into_iter())
        );
        match near {
            Some(near) => format!("did you mean `{near}`? {has}"),
            None => format!("nothing here is called `{name}`: {has}"),
        }
    }

    /// A suggestion for a part of a path below a node that is there.
    fn nearest_below(&self, parent: &str, part: &Segment, nodes: &[&str]) -> String {
        let prefix = match parent {
            "" => String::new(),
            parent => format!("{parent}."),
        };
        let mut children: Vec<&str> = Vec::new();
        for node in nodes {
            let child = node
                .strip_prefix(&prefix)
                .and_then(|rest| rest.split('.').next());
            if let Some(child) = child.filter(|child| !children.contains(child)) {
                children.push(child);
            }
        }
        let is_fused = |child: &&str| {
            let module = self.tree.module(&format!("{prefix}{child}"));
            module.is_some_and(|module| module.site == Site::Fused)
        };
        children.retain(|child| !is_fused(child));
        let place = match parent {
            "" => "the backbone".to_owned(),
            parent => format!("`{parent}`"),
        };
        let has = format!("{place} has {}", quoted_list(children.iter().copied()));
        let near = match part {
            Segment::Name(name) => did_you_mean(name, children.iter().copied()),
            _ => None,
        };
        match near {
            Some(near) => format!("did you mean `{near}`? {has}"),
            None if children.is_empty() => format!("{place} has nothing below it"),
            None => has,
        }
    }
}

/// A pattern's parts. A quoted name has the same, written with dots.
fn segments(pattern: &Pattern) -> Vec<Segment> {
    match pattern {
        Pattern::Path(path) => path.clone(),
        Pattern::Checkpoint(names) => {
            let parts = names.iter().flat_map(|name| name.split('.'));
            let segment = |part: &str| match part {
                "*" => Segment::AnyName,
                name => Segment::Name(name.to_owned()),
            };
            parts.map(segment).collect()
        }
    }
}

fn show(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Checkpoint(names) => names.join(", "),
        Pattern::Path(path) => {
            let parts: Vec<&str> = path
                .iter()
                .map(|segment| match segment {
                    Segment::AnyDepth => "**",
                    Segment::Name(name) => name,
                    _ => "*",
                })
                .collect();
            parts.join(".")
        }
    }
}
