//! Sites as a selector that names them.

use std::collections::BTreeMap;

use crate::backbone::Config;
use crate::text::counted;

/// `block.*.attn.{q,v} (24 modules)` for the paths of 24 modules.
pub fn selector(sites: &[String], config: &Config) -> String {
    let stacks = config.stacks();
    // The part of a path behind its block, with the blocks that have it.
    let mut behind: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    let mut others = Vec::new();
    for site in sites {
        let stack = stacks.iter().position(|stack| match config.block_of(site) {
            Some(block) => stack.blocks.contains(&block),
            None => false,
        });
        match (config.block_of(site), stack) {
            (Some(block), Some(stack)) => {
                let number = block - stacks[stack].blocks.start;
                let block_path = format!("{}block.{number}.", stacks[stack].path);
                let rest = site.strip_prefix(&block_path).unwrap_or_default();
                behind
                    .entry((stack, rest.to_owned()))
                    .or_default()
                    .push(number);
            }
            _ => others.push(site.clone()),
        }
    }
    // Modules of the same blocks share what stands before the last dot.
    let mut groups: BTreeMap<(usize, String, Vec<usize>), Vec<String>> = BTreeMap::new();
    for ((stack, rest), blocks) in behind {
        let (parent, leaf) = match rest.rsplit_once('.') {
            Some((parent, leaf)) => (format!(".{parent}"), leaf.to_owned()),
            None => (String::new(), rest),
        };
        groups
            .entry((stack, parent, blocks))
            .or_default()
            .push(leaf);
    }
    let group = |((stack, parent, blocks), leaves): ((usize, String, Vec<usize>), Vec<String>)| {
        let blocks = numbers(&blocks, stacks[stack].blocks.len());
        let leaves = match leaves.as_slice() {
            [one] if one.is_empty() => String::new(),
            [one] => format!(".{one}"),
            all => format!(".{{{}}}", all.join(",")),
        };
        format!("{}block{blocks}{parent}{leaves}", stacks[stack].path)
    };
    let groups: Vec<String> = groups.into_iter().map(group).chain(others).collect();
    format!("{} ({})", groups.join(", "), counted(sites.len(), "module"))
}

/// `.*` for all blocks, `[2..6]` for some that follow each other, `.{0,3}` for others.
fn numbers(blocks: &[usize], all: usize) -> String {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    match sorted.as_slice() {
        [one] if all > 1 => format!(".{one}"),
        whole if whole.len() == all => ".*".to_owned(),
        [first, .., last] if last - first + 1 == sorted.len() => format!("[{first}..{}]", last + 1),
        _ => {
            let listed: Vec<String> = sorted.iter().map(usize::to_string).collect();
            format!(".{{{}}}", listed.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_named_as_a_file_names_them() {
        let config = r#"{ "model_type": "bert", "num_hidden_layers": 4 }"#;
        let config = Config::parse(config).unwrap();
        let sites = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            selector(&paths, &config)
        };
        let all: Vec<String> = (0..4)
            .flat_map(|block| ["q", "v"].map(|name| format!("block.{block}.attn.{name}")))
            .collect();
        assert_eq!(selector(&all, &config), "block.*.attn.{q,v} (8 modules)");
        assert_eq!(
            sites(&["block.1.attn", "block.2.attn", "embeddings.word"]),
            "block[1..3].attn, embeddings.word (3 modules)"
        );
        assert_eq!(
            sites(&["block.0.ff.up", "block.3.ff.up"]),
            "block.{0,3}.ff.up (2 modules)"
        );
        assert_eq!(sites(&["block.3.ff.up"]), "block.3.ff.up (1 module)");
    }
}
