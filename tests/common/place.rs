//! A folder with a pipeline, its backbone and data, to run the command in.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

/// A folder to work in.
pub struct Place {
    folder: TempDir,
}

/// A small pipeline.
pub const PIPELINE: &str = r#"pipeline small

backbone "backbone" { max_length = 32 }

data {
    train = tsv("train.tsv")
    dev = tsv("dev.tsv")
}

task classify {
    text = text
    label = label
    labels = [negative, positive]
}

reparam low_rank = lora { rank = 2, alpha = 4, dropout = 0.1 } on block.*.attn.{q,v}

stage tune {
    train = [low_rank, head]
    steps = 12
    batch = 8
    optimizer = adamw { lr = 1e-3 }
    evaluate = every 4 steps
}
"#;

const TEMPLATE: &str = "{% for m in messages %}{{ m.content }} {% if m.role == 'assistant' %}[SEP]{% endif %}{% endfor %}";

impl Place {
    /// A folder with the pipeline, its backbone and a few rows of the quickstart's data.
    pub fn new() -> Self {
        let place = Place {
            folder: TempDir::new().unwrap(),
        };
        let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart");
        std::fs::create_dir(place.path("backbone")).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(
                quickstart.join("backbone").join(file),
                place.path("backbone").join(file),
            )
            .unwrap();
        }
        for (file, rows) in [("train.tsv", 60), ("dev.tsv", 20)] {
            let text = std::fs::read_to_string(quickstart.join(file)).unwrap();
            let rows: Vec<&str> = text.lines().take(rows + 1).collect();
            place.write(file, (rows.join("\n") + "\n").as_bytes());
        }
        place.write("small.delta", PIPELINE.as_bytes());
        place
    }

    /// A place with rows for every task, and a backbone of each family.
    pub fn of_tasks() -> Self {
        let place = Place::new();
        let architectures = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures");
        for name in ["llama", "t5"] {
            std::fs::create_dir(place.path(name)).unwrap();
            for file in ["config.json", "model.safetensors", "tokenizer.json"] {
                std::fs::copy(
                    architectures.join(name).join(file),
                    place.path(name).join(file),
                )
                .unwrap();
            }
            let settings = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]", "chat_template": TEMPLATE});
            place.write(
                &format!("{name}/tokenizer_config.json"),
                settings.to_string().as_bytes(),
            );
        }
        let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
        let rows = table.lines().skip(1).take(8).map(|line| {
            let (text, label) = line.split_once('\t').unwrap();
            let (good, bad) = if label == "positive" { ("superb", "stale") } else { ("stale", "superb") };
            let words: Vec<&str> = text.split_whitespace().collect();
            let tags: Vec<&str> = words.iter().map(|word| if word.len() > 4 { "B-long" } else { "O" }).collect();
            json!({
                "text": text, "label": label, "score": words.len(), "both": [label, "seen"], "words": words, "tags": tags,
                "good": good, "bad": bad, "choices": ["superb", "stale"], "key": usize::from(good == "stale"),
            })
        });
        let rows: String = rows.map(|row| format!("{row}\n")).collect();
        place.write("rows.jsonl", rows.as_bytes());
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltarun"));
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs something that must succeed and gives its standard output.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of something that must fail with this exit code, the folder's own name taken out;
    /// nothing may be left behind.
    pub fn fail(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains("help:"), "no way out: {error}");
        let folder = self
            .folder
            .path()
            .canonicalize()
            .unwrap()
            .display()
            .to_string();
        // Paths of different lengths must not wrap the lines differently.
        let text = error
            .lines()
            .map(str::trim_end)
            .collect::<Vec<_>>()
            .join("\n");
        let joined = regex::Regex::new(r"\n  │ +|\n {8}")
            .unwrap()
            .replace_all(&text, " ")
            .into_owned();
        joined.replace(&folder, "PLACE")
    }

    pub fn runs(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("runs")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}
