//! Names that checkpoints and PEFT give to modules, in the words of the module tree.

use super::selection::matches;
use crate::backbone::family::{families, Family};
use crate::backbone::{Module, Site, Tree};
use crate::syntax::ast::Segment;

/// A node's path in two parts: the block, and what lies in it. `("encoder.block.3", "attn.q")`
fn split(path: &str) -> (&str, &str) {
    let Some(place) = path.find("block.") else {
        return ("", path);
    };
    let number = place + "block.".len();
    match path[number..].find('.') {
        Some(end) => (&path[..number + end], &path[number + end + 1..]),
        None => (path, ""),
    }
}

/// The part of a path that does not say which block it is in: `attn.q`.
pub(super) fn tail(path: &str) -> &str {
    split(path).1
}

/// Where names of another checkpoint come from.
pub(super) struct Names<'a> {
    /// The backbone's family.
    pub own: &'a Family,
    /// Its module tree.
    pub tree: &'a Tree,
    /// Whether parameters are named, and not only modules.
    pub of_parameters: bool,
}

impl Names<'_> {
    /// The modules and parameters, by their paths in the tree, which a pattern means that is written in the names of a
    /// checkpoint or of PEFT, or in a mixture of those and ours. The tree's own family decides, and others only where it
    /// does not know the names.
    pub fn meant(&self, pattern: &[Segment]) -> Vec<String> {
        let others = || {
            families()
                .iter()
                .filter(|family| family.name != self.own.name)
        };
        let mut found = self.in_family(self.own, pattern);
        if found.is_empty() {
            found = others()
                .flat_map(|family| self.in_family(family, pattern))
                .collect();
        }
        let mut order = self.nodes();
        order.retain(|node| found.contains(node));
        order
    }

    /// The paths of all modules and, if they are named, parameters.
    pub fn nodes(&self) -> Vec<String> {
        let modules = self.tree.modules().iter().map(|module| module.path.clone());
        let parameters = self
            .tree
            .parameters()
            .map(|parameter| parameter.path.clone());
        let parameters = parameters.filter(|_| self.of_parameters);
        modules.chain(parameters).collect()
    }

    fn in_family(&self, family: &Family, pattern: &[Segment]) -> Vec<String> {
        let nodes = self.nodes();
        let modules = self.tree.modules().iter();
        let found: Vec<String> = modules
            .flat_map(|module| self.at_module(family, module, pattern))
            .filter(|node| nodes.contains(node))
            .collect();
        // Names of one fused weight mean that weight.
        let fused = |path: &String| {
            let module = self.tree.module(path);
            module.is_some_and(|module| module.site == Site::Fused)
        };
        match found.iter().any(fused) {
            true => found.into_iter().filter(fused).collect(),
            false => found,
        }
    }

    /// What a pattern means at one module: the module, one of its parameters, or the part of the block that holds it.
    fn at_module(&self, family: &Family, module: &Module, pattern: &[Segment]) -> Vec<String> {
        let (block, tail) = split(&module.path);
        let holder = tail
            .rsplit_once('.')
            .map(|(parent, _)| format!("{block}.{parent}"));
        let mut found = Vec::new();
        let mut names = stored_names(family, module);
        // The description of a family lists the parts of a fused weight only.
        if module.site == Site::Fused && family.name == self.own.name {
            names.push(format!(
                "{}{}",
                family.base_model_prefix, module.checkpoint_name
            ));
        }
        for name in names {
            let mut ends = vec![Segment::AnyDepth];
            ends.extend_from_slice(pattern);
            if matches(&ends, &name) || is_mixed(pattern, &module.path, &name, true) {
                found.push(module.path.clone());
                continue;
            }
            for parameter in &module.parameters {
                let leaf = parameter.path.rsplit('.').next().unwrap_or_default();
                if let [inner @ .., Segment::Name(last)] = pattern {
                    let inner_ends = [&[Segment::AnyDepth], inner].concat();
                    let is_it =
                        matches(&inner_ends, &name) || is_mixed(inner, &module.path, &name, true);
                    if last == leaf && !inner.is_empty() && is_it {
                        found.push(match self.of_parameters {
                            true => parameter.path.clone(),
                            false => module.path.clone(),
                        });
                    }
                }
            }
            // Of `encoder.layer.0.attention.self.query`: `attention` and `attention.self`.
            let mut above = name.rmatch_indices('.').map(|(end, _)| &name[..end]);
            let is_above = above.any(|above| {
                !above.ends_with(|last: char| last.is_ascii_digit()) && matches(&ends, above)
            });
            if is_above || is_mixed(pattern, &module.path, &name, false) {
                found.extend(holder.clone().filter(|_| !block.is_empty()));
            }
        }
        found
    }
}

/// The full names that a family's checkpoints have for a module, with the number of its block.
fn stored_names(family: &Family, module: &Module) -> Vec<String> {
    let (block, tail) = split(&module.path);
    let number = block.rsplit('.').next().unwrap_or_default();
    let is_its = |path: &&String| match block.is_empty() {
        true => **path == module.path,
        // Other families have no stacks, or others.
        false => path.rsplit_once("block.N.").is_some_and(|(stack, own)| {
            own == tail
                && (stack.is_empty() || block.starts_with(stack) || !block.contains("coder."))
        }),
    };
    let entries = family.modules.iter().filter(|(path, _)| is_its(path));
    let names =
        entries.flat_map(|(_, entry)| entry.name.iter().chain(&entry.gated).chain(&entry.copies));
    let full = |name: &String| {
        let numbered = name
            .split('.')
            .map(|part| if part == "N" { number } else { part });
        format!(
            "{}{}",
            family.base_model_prefix,
            numbered.collect::<Vec<_>>().join(".")
        )
    };
    names.map(full).collect()
}

/// Whether a pattern is half in our words: it ends in a name of the checkpoint (`is_whole`), or in that of a part which
/// holds it, and the names before that stand in our path in this order.
fn is_mixed(pattern: &[Segment], path: &str, name: &str, is_whole: bool) -> bool {
    let Some((Segment::Name(last), before)) = pattern.split_last() else {
        return false;
    };
    let mut stored = name.rsplit('.');
    let is_last = match is_whole {
        true => stored.next() == Some(last),
        false => stored.skip(1).any(|part| part == last),
    };
    if !is_last || last.chars().all(|letter| letter.is_ascii_digit()) {
        return false;
    }
    let stored: Vec<&str> = name.split('.').collect();
    let mut ours = path.split('.');
    let mut names = before.iter().filter_map(|segment| match segment {
        Segment::Name(name) => Some(name.as_str()),
        _ => None,
    });
    let mut has_ours = false;
    names.all(|part| {
        let mut rest = ours.clone();
        if rest.any(|own| own == part) {
            (ours, has_ours) = (rest, true);
            return true;
        }
        // A number is that of a block, and so is one of ours.
        stored.contains(&part) && !part.chars().all(|letter| letter.is_ascii_digit())
    }) && (has_ours
        || before
            .iter()
            .all(|segment| !matches!(segment, Segment::Name(_))))
}

/// The shortest selector of these nodes that the words of the tree allow, if they are regular enough for one.
pub(super) fn selector_of(meant: &[String], nodes: &[String]) -> Option<String> {
    let mut groups: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    let mut tails: Vec<&str> = Vec::new();
    for path in meant {
        let (_, tail) = split(path);
        if !tails.contains(&tail) {
            tails.push(tail);
        }
    }
    for tail in tails {
        let of_tail = meant.iter().filter(|path| split(path).1 == tail);
        let blocks: Vec<&str> = of_tail.map(|path| split(path).0).collect();
        match groups.iter_mut().find(|(known, _)| *known == blocks) {
            Some((_, tails)) => tails.push(tail),
            None => groups.push((blocks, vec![tail])),
        }
    }
    let pieces: Option<Vec<String>> = groups
        .iter()
        .map(|(blocks, tails)| {
            let behind = joined_tails(tails);
            match blocks.as_slice() {
                [""] => Some(behind),
                [block] => Some(format!("{block}.{behind}")),
                blocks => Some(format!("{}.{behind}", place_of(blocks, tails, nodes)?)),
            }
        })
        .collect();
    Some(match pieces?.as_slice() {
        [] => return None,
        [one] => one.clone(),
        several => format!("{{{}}}", several.join(",")),
    })
}

/// A pattern of blocks: all, all of a stack, or some by their numbers.
fn place_of(blocks: &[&str], tails: &[&str], nodes: &[String]) -> Option<String> {
    let has_tail = |tail: &str| tails.contains(&tail);
    let all: Vec<&str> = nodes
        .iter()
        .map(|node| split(node))
        .filter(|(_, tail)| *tail == tails[0])
        .map(|(block, _)| block)
        .collect();
    let ends: Vec<String> = tails.iter().map(|tail| format!(".{tail}")).collect();
    let is_elsewhere = |node: &String| {
        let (block, tail) = split(node);
        let is_named = has_tail(tail) || ends.iter().any(|end| node.ends_with(end));
        is_named && !(has_tail(tail) && blocks.contains(&block))
    };
    if !nodes.iter().any(is_elsewhere) {
        return Some("**".to_owned());
    }
    let stack = blocks[0].rsplit_once("block.")?.0;
    let numbers: Vec<usize> = blocks
        .iter()
        .map(|block| {
            block
                .strip_prefix(stack)?
                .strip_prefix("block.")?
                .parse()
                .ok()
        })
        .collect::<Option<_>>()?;
    let of_stack = all
        .iter()
        .filter(|block| block.starts_with(&format!("{stack}block.")))
        .count();
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    Some(match numbers.len() == of_stack {
        true => format!("{stack}block.*"),
        false if last + 1 - first == numbers.len() => {
            format!("{stack}block[{first}..{}]", last + 1)
        }
        false => {
            let numbers: Vec<String> = numbers.iter().map(usize::to_string).collect();
            format!("{stack}block.{{{}}}", numbers.join(","))
        }
    })
}

/// `attn.{q,v}` or `{attn.q,ff.up}`.
fn joined_tails(tails: &[&str]) -> String {
    if let [one] = tails {
        return (*one).to_owned();
    }
    let parted: Option<Vec<(&str, &str)>> =
        tails.iter().map(|tail| tail.rsplit_once('.')).collect();
    match parted {
        Some(parts) if parts.iter().all(|(parent, _)| *parent == parts[0].0) => {
            let leaves: Vec<&str> = parts.iter().map(|(_, leaf)| *leaf).collect();
            format!("{}.{{{}}}", parts[0].0, leaves.join(","))
        }
        _ => format!("{{{}}}", tails.join(",")),
    }
}

/// The linear layers of the blocks, as a selector: what PEFT calls `all-linear`.
pub(super) fn all_linear(tree: &Tree) -> String {
    let mut parts: Vec<(String, Vec<String>)> = Vec::new();
    for module in tree
        .modules()
        .iter()
        .filter(|module| module.site == Site::Linear)
    {
        let Some((_, behind)) = module.path.split_once("block.") else {
            continue;
        };
        let Some((_, tail)) = behind.split_once('.') else {
            continue;
        };
        let Some((parent, leaf)) = tail.rsplit_once('.') else {
            continue;
        };
        let place = match parts.iter().position(|(known, _)| known == parent) {
            Some(place) => place,
            None => {
                parts.push((parent.to_owned(), Vec::new()));
                parts.len() - 1
            }
        };
        if !parts[place].1.iter().any(|known| known == leaf) {
            parts[place].1.push(leaf.to_owned());
        }
    }
    let part =
        |(parent, leaves): (String, Vec<String>)| format!("{parent}.{{{}}}", leaves.join(","));
    let parts: Vec<String> = parts.into_iter().map(part).collect();
    format!("**.block.*.{{{}}}", parts.join(","))
}
