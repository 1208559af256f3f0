//! The order of the house: a folder imports those before it alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the ground up.
const ORDER: [&str; 25] = [
    "text",
    "pattern",
    "memory",
    "diagnostic",
    "terminal",
    "disk",
    "ranks",
    "hub",
    "syntax",
    "settings",
    "engine",
    "backbone",
    "delta",
    "task",
    "plan",
    "graph",
    "data",
    "generate",
    "peft",
    "train",
    "report",
    "run",
    "init",
    "script",
    "cli",
];

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        match entry.path() {
            path if path.is_dir() => files(&path, found),
            path if path.extension().is_some_and(|ending| ending == "rs") => found.push(path),
            _ => {}
        }
    }
}

/// The part of a path below `src` that is a folder, or a file of its own.
fn home(root: &Path, file: &Path) -> String {
    let below = file.strip_prefix(root).unwrap();
    let first = below
        .components()
        .next()
        .unwrap()
        .as_os_str()
        .to_string_lossy()
        .into_owned();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_go_down_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let import = regex::Regex::new(r"crate::(\w+)").unwrap();
    let rank = |name: &str| ORDER.iter().position(|known| *known == name);
    let mut all = Vec::new();
    files(&root, &mut all);
    let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut seen = 0;
    for file in all {
        let own = home(&root, &file);
        let Some(own_rank) = rank(&own) else {
            assert!(
                ["lib", "main"].contains(&own.as_str()),
                "`{own}` has no place in the order"
            );
            continue;
        };
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        let code: String = lines.map(|line| format!("{line}\n")).collect();
        let imported = import.captures_iter(&code);
        let mut imported: Vec<String> = imported.map(|found| found[1].to_owned()).collect();
        imported.sort();
        imported.dedup();
        seen += imported.len();
        for other in imported
            .into_iter()
            .filter(|other| rank(other) > Some(own_rank))
        {
            *found.entry((own.clone(), other)).or_default() += 1;
        }
    }
    assert!(seen > 300, "only {seen} imports were seen");
    assert!(found.is_empty(), "imports go up: {found:?}");
}

/// One home for each thing: nothing outside of its folder names a method or a task, or reads and writes safetensors.
#[test]
fn methods_tasks_and_safetensors_have_one_home() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&root, &mut all);
    for (home_of_it, what) in [
        ("delta", r"\bMethod::(?:[A-Z][a-z]|[$])"),
        ("task", r"\bTask::(?:[A-Z][a-z]|[$])"),
        ("backbone", r"\bsafetensors::\w"),
    ] {
        let pattern = regex::Regex::new(what).unwrap();
        let names_it = |file: &&PathBuf| {
            let text = std::fs::read_to_string(file).unwrap();
            pattern.is_match(&text)
        };
        let (inside, outside): (Vec<&PathBuf>, Vec<&PathBuf>) = all
            .iter()
            .filter(names_it)
            .partition(|file| home(&root, file) == home_of_it);
        assert!(!inside.is_empty(), "{what}");
        assert!(outside.is_empty(), "{what}: {outside:?}");
    }
}

/// Paths are resolved when layers are made (`graph/layers.rs`): a pass makes none.
#[test]
fn a_forward_pass_makes_no_paths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/graph");
    for file in [
        "forward",
        "attention",
        "logits",
        "rotary",
        "site",
        "optimizations/absorbed_keys",
    ] {
        let text = std::fs::read_to_string(root.join(file).with_extension("rs")).unwrap();
        let pass = text
            .split("impl Pass<'_>")
            .nth(1)
            .or(text.split("impl<'g> Pass<'g>").nth(1));
        let pass = pass.unwrap_or_else(|| panic!("{file} has a part of the pass"));
        for name in ["format!", "get(\"", ".to_owned()", "get_index_of"] {
            assert!(!pass.contains(name), "{file}: {name}");
        }
    }
}

/// A mistake's help knows every function and property that scripts have.
#[test]
fn scripts_are_helped_with_all_names() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/script");
    let registered = regex::Regex::new(r#"register_(fn|get)\(\s*"(\w+)""#).unwrap();
    let help = std::fs::read_to_string(folder.join("error.rs")).unwrap();
    let mut all = Vec::new();
    files(&folder, &mut all);
    let mut seen = 0;
    for file in all {
        let text = std::fs::read_to_string(&file).unwrap();
        for found in registered.captures_iter(&text) {
            seen += 1;
            if &found[2] == "sleep" {
                // rhai's own, which is refused.
                continue;
            }
            assert!(
                help.contains(&format!("    \"{}\",", &found[2])),
                "{}",
                &found[2]
            );
        }
    }
    assert!(seen > 30, "{seen}");
}
