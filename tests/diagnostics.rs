//! The diagnostics of a run, and whether `check` finds each before it.

/// Every diagnostic of what runs a plan: `check` finds it, or it cannot, for this reason.
#[test]
fn check_finds_what_needs_no_run() {
    const FOUND: &str = "";
    const WEIGHTS: &str = "needs the weights' values";
    const OTHER: &str = "is of another command, or of an adapter";
    const OUTPUT: &str = "is about the output of a run, which a check has none of";
    const TRAINING: &str = "is about a loss";
    const DEVICE: &str = "is about the device that a run computes on";
    const NOTE: &str = "stops nothing, and a check says it as well or has nothing to say of it";
    let known = [
        ("backbone::long", FOUND),
        ("backbone::unknown_key", FOUND),
        ("cli::not_utf8", FOUND),
        ("cli::script", FOUND),
        ("cli::unreadable", FOUND),
        ("data::no_dev", FOUND),
        ("data::no_mask", FOUND),
        ("engine::device", DEVICE),
        ("graph::no_task", FOUND),
        ("graph::singular", WEIGHTS),
        ("graph::unknown_tensor", OTHER),
        ("graph::untrained_head", FOUND),
        ("graph::wrong_shape", OTHER),
        ("run::cannot_merge", OTHER),
        ("run::changed", OTHER),
        ("run::checkpoint", OUTPUT),
        ("run::columns", OTHER),
        ("run::combine", OTHER),
        ("run::exists", OUTPUT),
        ("run::foreign", OUTPUT),
        ("run::gguf", OTHER),
        ("run::locked", OUTPUT),
        ("run::manifest", OTHER),
        ("run::merged_differs", OTHER),
        ("run::no_backbone", OTHER),
        ("run::no_head", OTHER),
        ("run::no_training", OTHER),
        ("run::listener", OTHER),
        ("run::not_a_run", OTHER),
        ("run::origin", FOUND),
        ("run::other_backbone", WEIGHTS),
        ("run::other_input", OUTPUT),
        ("run::other_plan", OUTPUT),
        ("run::other_version", OUTPUT),
        ("run::precision", DEVICE),
        ("run::profile", OTHER),
        ("run::ranks", "is about the processes that share a run"),
        ("run::reads", OTHER),
        ("run::reference", FOUND),
        ("run::unfinished", OTHER),
        ("run::unreadable", OTHER),
        ("script::outside", FOUND),
        ("train::collapse", NOTE),
        ("train::not_a_number", TRAINING),
        ("train::not_finite", TRAINING),
        ("train::steps", FOUND),
        ("train::warmup", FOUND),
        ("weights::unfrozen", FOUND),
        ("weights::untied", FOUND),
    ];
    let code = regex::Regex::new(r#""delta::(\w+::\w+)""#).unwrap();
    let mut found = std::collections::BTreeSet::new();
    for folder in ["run", "graph", "train"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(folder);
        for file in std::fs::read_dir(folder).unwrap().flatten() {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            found.extend(code.captures_iter(&text).map(|found| found[1].to_owned()));
        }
    }
    let known: std::collections::BTreeSet<String> =
        known.iter().map(|(code, _)| (*code).to_owned()).collect();
    assert_eq!(
        found, known,
        "a new diagnostic: does `check` find it, or why not?"
    );
}
