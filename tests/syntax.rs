//! The grammar and the formatter: what the formatter writes means the same, and it and the plan never
//! panic, whatever is thrown at them.

use std::collections::BTreeMap;
use std::path::Path;

use deltarun::backbone::read_config;
use deltarun::plan::plan;
use deltarun::syntax::{format, parse};
use proptest::prelude::*;

/// Every sound pipeline in the repository.
fn pipelines() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["pipelines", "pipelines/quickstart", "tests/formatting"] {
        for entry in std::fs::read_dir(root.join(folder))
            .expect("the folder is there")
            .flatten()
        {
            let path = entry.path();
            if path.extension().is_some_and(|ending| ending == "delta") {
                found.push((
                    path.display().to_string(),
                    std::fs::read_to_string(&path).expect("it is text"),
                ));
            }
        }
    }
    assert!(found.len() >= 3);
    found
}

/// The tree without its places.
fn without_places(text: &str) -> String {
    let tree = format!("{:?}", parse(text).expect("it parses"));
    regex::Regex::new(r"Span \{ start: \d+, end: \d+ \}")
        .unwrap()
        .replace_all(&tree, "")
        .into_owned()
}

#[test]
fn formatting_keeps_the_meaning_and_is_idempotent() {
    for (name, text) in pipelines() {
        let once = format(&text).expect("it parses");
        assert_eq!(format(&once).expect("it parses"), once, "{name}");
        assert_eq!(without_places(&once), without_places(&text), "{name}");
        let comments = |text: &str| text.matches('#').count();
        assert_eq!(comments(&once), comments(&text), "{name}: comments");
    }
}

#[test]
fn the_pipelines_of_the_repository_are_in_canonical_form() {
    for (name, text) in pipelines()
        .into_iter()
        .filter(|(name, _)| !name.contains("tests/"))
    {
        assert_eq!(format(&text).expect("it parses"), text, "{name}");
    }
}

/// Names in quotes are a checkpoint's own: nothing in them is white space or a comment of ours.
#[test]
fn formatting_leaves_names_in_quotes_as_they_are() {
    let selection = r#"{"a,  b",  "c # d" , "e { f"} except { "g\"  h # i" , "j" }"#;
    let text = format!("pipeline p\n\nunfreeze some = {selection}  # why\n");
    let once = format(&text).expect("it parses");
    let formed = r#"{"a,  b", "c # d", "e { f"} except {"g\"  h # i", "j"}"#;
    assert_eq!(
        once,
        format!("pipeline p\n\nunfreeze some = {formed}  # why\n")
    );
}

#[test]
fn one_canonical_form() {
    let messy = include_str!("formatting/messy.delta");
    insta::assert_snapshot!(format(messy).expect("it parses"));
}

fn try_everything(text: &str) {
    let base = crate::common::fixture("");
    let find = |_: &str| Ok((base.join("bert_a"), read_config(&base.join("bert_a"))?));
    if let Ok(pipeline) = parse(text) {
        let _ = plan(&pipeline, &BTreeMap::new(), &base, &find);
        let formatted = format(text).expect("what parses can be formatted");
        assert_eq!(
            format(&formatted).expect("what is formatted parses"),
            formatted
        );
    }
}

/// A piece of a pipeline put in the place of another.
fn mutated() -> impl Strategy<Value = String> {
    let texts: Vec<String> = pipelines().into_iter().map(|(_, text)| text).collect();
    let token = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "**",
        "*",
        ".",
        ",",
        "=",
        "\"",
        "#",
        "\\",
        "%",
        "-1",
        "0",
        "1e400",
        "1e3",
        "99999999999999999999",
        "every",
        "random 2 of",
        "except",
        "expect",
        "block[last 9]",
        "block[3..1]",
        "{q,{v,k}}",
        "param",
        "stage",
        "lora",
        "houlsby",
        "\n",
        "é",
        "\u{0}",
        "head",
        "without = [biases]",
        "**.**.**",
    ]);
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        token,
        0..4u8,
    );
    (
        prop::sample::select(texts),
        prop::collection::vec(edit, 1..5),
    )
        .prop_map(|(mut text, edits)| {
            for (at, length, token, kind) in edits {
                let places: Vec<usize> = text
                    .char_indices()
                    .map(|(i, _)| i)
                    .chain([text.len()])
                    .collect();
                let start = *at.get(&places);
                let end = places
                    .iter()
                    .copied()
                    .find(|p| *p >= start + length.index(20))
                    .unwrap_or(text.len());
                match kind {
                    0 => text.replace_range(start..end, ""),
                    1 => text.insert_str(start, token),
                    2 => text.replace_range(start..end, token),
                    _ => {
                        let copy = text[start..end].to_owned();
                        text.insert_str(start, &copy);
                    }
                }
            }
            text
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_never_panic(text in mutated()) {
        try_everything(&text);
    }

    #[test]
    fn random_text_never_panics(text in "\\PC{0,200}") {
        try_everything(&text);
    }
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    for open in ["[", "{", "a(", "x = {"] {
        try_everything(&format!("param x = {}", open.repeat(20_000)));
    }
}
