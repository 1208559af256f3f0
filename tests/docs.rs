//! Every `.delta` sample of the README and the docs is a pipeline without mistakes. A sample that leaves
//! out its backbone, data, task or stages gets ordinary ones.

use std::path::Path;

const BACKBONE: &str = "backbone \"quickstart/backbone\"\n";
const DATA: &str = "data { train = tsv(\"train.tsv\"), dev = tsv(\"dev.tsv\") }\n";
const TASK: &str =
    "task classify { text = sentence, label = label, labels = [negative, positive] }\n";

/// The samples of a Markdown file, each with the line that it begins on.
fn samples(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line.trim() == "```delta" {
            let sample: String = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| line.trim() != "```")
                .map(|line| format!("{line}\n"))
                .collect();
            found.push((number + 1, sample));
        }
    }
    found
}

fn has(sample: &str, statement: &str) -> bool {
    sample.lines().any(|line| line.starts_with(statement))
}

/// The sample with what it leaves out.
fn complete(sample: &str) -> String {
    let mut text = String::new();
    for (statement, ordinary) in [("backbone", BACKBONE), ("data", DATA), ("task", TASK)] {
        if !has(sample, statement) {
            text.push_str(ordinary);
        }
    }
    // The files of a fixture stand for a model's.
    let file = crate::common::fixture("gguf/blocks.gguf");
    let file = format!("backbone \"{}\" {{ max_length = 128", file.display());
    text.push_str(&sample.replace(
        "backbone \"SmolLM2-135M-Instruct.Q4_1.gguf\" { max_length = 384",
        &file,
    ));
    if !has(sample, "stage") && !sample.contains("template =") {
        let names = sample.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let keyword = words.next()?;
            ["insert", "reparam", "unfreeze"]
                .contains(&keyword)
                .then(|| words.next())
                .flatten()
        });
        let train: Vec<&str> = names.chain(["head"]).collect();
        text.push_str(&format!(
            "stage s {{ train = [{}], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}\n",
            train.join(", ")
        ));
    }
    text
}

/// The README's example runs where the repository was cloned, as it stands: with its data.
#[test]
fn the_example_of_the_readme_is_sound_as_it_stands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let samples = samples(&readme);
    assert_eq!(samples.len(), 1);
    let source = deltarun::run::Source {
        name: "reviews.delta".to_owned(),
        text: samples[0].1.clone(),
        base: root.to_owned(),
        overrides: Default::default(),
        integrity: Default::default(),
        confined: None,
        config_only: false,
    };
    let checked = source
        .checked_plan(usize::MAX)
        .unwrap_or_else(|problems| panic!("{}", problems.render(false)));
    assert!(
        checked.warnings.problems.is_empty(),
        "{}",
        checked.warnings.render(false)
    );
    assert!(checked.rows > 1000);
}

/// Who copies the README's example gets a classifier, and not a coin.
#[test]
fn the_example_of_the_readme_learns() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let place = tempfile::tempdir().unwrap();
    let sample = samples(&readme)[0]
        .1
        .replace("pipelines/", &format!("{}/pipelines/", root.display()));
    std::fs::write(place.path().join("reviews.delta"), sample).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_deltarun"))
        .args(["reviews.delta", "--quiet"])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = std::fs::read_to_string(place.path().join("runs/reviews/metrics.json")).unwrap();
    let metrics: serde_json::Value = serde_json::from_str(&text).unwrap();
    let accuracy = metrics["stages"][0]["dev"]["metrics"]["accuracy"]
        .as_f64()
        .unwrap();
    // Half of the reviews are positive; ten seeds gave 83 to 90 %.
    assert!(accuracy > 0.75, "{accuracy}");
}

#[test]
fn every_sample_is_a_sound_pipeline() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().flatten();
    let files: Vec<_> = docs.map(|entry| entry.path()).collect();
    let mut count = 0;
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|ending| ending == "md"))
    {
        for (line, sample) in samples(&std::fs::read_to_string(file).unwrap()) {
            println!("{}:{line}", file.display());
            crate::common::plan_of(&complete(&sample), &root.join("pipelines"));
            count += 1;
        }
    }
    assert!(count >= 10, "only {count} samples were found");
}

/// Every command line of the README and the docs is one that `deltarun` reads: it fails for want of files, not of options.
#[test]
fn every_command_of_the_docs_is_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = std::fs::read_dir(root.join("docs")).unwrap().flatten();
    let mut files: Vec<_> = docs.map(|entry| entry.path()).collect();
    files.push(root.join("README.md"));
    files.retain(|file| file.extension().is_some_and(|ending| ending == "md"));
    let place = tempfile::tempdir().unwrap();
    let mut count = 0;
    for file in &files {
        let text = std::fs::read_to_string(file).unwrap();
        let blocks = text.split("```").skip(1).step_by(2);
        for line in blocks.flat_map(str::lines) {
            // What a pipe sends to it, a comment behind it and a result in a file do not belong to the command.
            let line = line.rsplit(" | ").next().unwrap_or(line);
            let Some(line) = line.strip_prefix("deltarun ") else {
                continue;
            };
            let line = line.split(" #").next().unwrap_or(line);
            let line = line.split(" > ").next().unwrap_or(line);
            let parts = line.split('"').enumerate();
            let words = parts.flat_map(|(number, part)| match number % 2 {
                0 => part.split_whitespace().collect(),
                _ => vec![part],
            });
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_deltarun"))
                .args(words)
                .stdin(std::process::Stdio::null())
                .current_dir(place.path())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                !said.contains("Usage:"),
                "{}: {line}\n{said}",
                file.display()
            );
            assert!(
                !said.contains("neither a command"),
                "{}: {line}\n{said}",
                file.display()
            );
            count += 1;
        }
    }
    assert!(count >= 20, "only {count} commands were found");
}
