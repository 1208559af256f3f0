//! Names that checkpoints and PEFT give to modules, in the words of the module tree.

use std::collections::BTreeSet;

use crate::backbone::family::{families, Family};
use crate::backbone::{Site, Tree};

/// The part of a module's path that does not say which block it is in: `attn.q` of `encoder.block.N.attn.q`.
fn tail(path: &str) -> &str {
    path.rsplit_once("block.N.").map_or(path, |(_, tail)| tail)
}

/// What a name of a checkpoint or of PEFT stands for: the ends of paths of this tree (`q_proj` is `attn.q`), or the part
/// of them that holds such modules (`self_attn` is `attn`). Empty if it is no such name. The tree's own family decides,
/// and others only where it does not know the name.
pub(super) fn translated(name: &str, own: &Family, tree: &Tree) -> Vec<String> {
    let of_own = in_family(name, own, tree);
    if !of_own.is_empty() {
        return of_own;
    }
    let others = families().iter().filter(|family| family.name != own.name);
    let all = others.flat_map(|family| in_family(name, family, tree));
    all.collect::<BTreeSet<String>>().into_iter().collect()
}

fn in_family(name: &str, family: &Family, tree: &Tree) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (path, entry) in &family.modules {
        let names = entry.name.iter().chain(&entry.gated).chain(&entry.copies);
        for stored in names {
            let parts: Vec<&str> = stored.split('.').collect();
            let tail = tail(path);
            match parts.iter().position(|part| *part == name) {
                Some(place) if place + 1 == parts.len() => found.insert(tail.to_owned()),
                // A part of a block that holds modules.
                Some(place)
                    if path.contains("block.N.")
                        && parts[place + 1..].iter().all(|part| *part != "N") =>
                {
                    match tail.rsplit_once('.') {
                        Some((parent, _)) => found.insert(parent.to_owned()),
                        None => false,
                    }
                }
                _ => false,
            };
        }
    }
    let is_there = |tail: &String| {
        let (whole, inner) = (format!(".{tail}"), format!(".{tail}."));
        tree.modules().iter().any(|module| {
            module.path == *tail || module.path.ends_with(&whole) || module.path.contains(&inner)
        })
    };
    found.into_iter().filter(is_there).collect()
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
