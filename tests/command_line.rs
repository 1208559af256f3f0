//! The command itself, on the quickstart's tiny BERT and small data: what a run leaves, what goes wrong
//! at run time and how it says so, interruption, resumption, determinism.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

struct Place {
    folder: TempDir,
}

const PIPELINE: &str = r#"pipeline small

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

unfreeze biases = block.0.**.bias
insert adapters = houlsby { bottleneck = 4 } after block.1.{attn,ff}
reparam low_rank = lora { rank = 2, alpha = 4, dropout = 0.1 } on block.*.attn.{q,v}

stage tune {
    train = [low_rank, head]
    steps = 12
    batch = 8
    optimizer = adamw { lr = 1e-3 }
    evaluate = every 4 steps
}
"#;

/// The pipeline without the deltas that its stage does not train.
fn pipeline() -> String {
    PIPELINE
        .lines()
        .filter(|line| !line.starts_with("unfreeze") && !line.starts_with("insert"))
        .map(|line| format!("{line}\n"))
        .collect()
}

impl Place {
    /// A folder with the pipeline, its backbone and a few rows of the quickstart's data.
    fn new() -> Self {
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
        place.write("small.delta", pipeline().as_bytes());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltarun"));
        command.args(arguments).current_dir(self.folder.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs something that must succeed and gives its standard output.
    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The message of something that must fail with this exit code, the folder's own name taken out;
    /// nothing may be left behind.
    fn fail(&self, code: i32, arguments: &[&str]) -> String {
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
        let joined = fancy_regex::Regex::new(r"\n  │ +|\n {8}")
            .unwrap()
            .replace_all(&text, " ")
            .into_owned();
        joined.replace(&folder, "PLACE")
    }

    fn runs(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path("runs")) else {
            return Vec::new();
        };
        entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

#[test]
fn a_run_leaves_what_eval_predict_and_merge_accept() {
    let place = Place::new();
    let table = place.succeed(&["small.delta", "--quiet"]);
    assert!(
        table.contains("majority class") && table.contains("after stage tune"),
        "{table}"
    );
    let mut left: Vec<String> = std::fs::read_dir(place.path("runs/small"))
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "delta.safetensors",
            "log.jsonl",
            "manifest.yaml",
            "metrics.json",
            "peft",
            "pipeline.delta",
            "plan.yaml"
        ]
    );

    let metrics: serde_json::Value =
        serde_json::from_slice(&std::fs::read(place.path("runs/small/metrics.json")).unwrap())
            .unwrap();
    let accuracy = metrics["stages"][0]["dev"]["metrics"]["accuracy"]
        .as_f64()
        .unwrap();
    let evaluated = place.succeed(&["eval", "runs/small"]);
    assert!(
        evaluated.contains(&format!("accuracy {:.1} %", 100.0 * accuracy)),
        "{evaluated}"
    );

    place.write(
        "input.jsonl",
        b"{\"text\": \"the plot was superb .\"}\n{\"text\": \"the plot was dull .\"}\n",
    );
    let predicted = place.succeed(&["predict", "runs/small", "--input", "input.jsonl"]);
    let adapter = place.succeed(&[
        "predict",
        "runs/small/peft",
        "--backbone",
        "backbone",
        "--text",
        "text",
        "--input",
        "input.jsonl",
    ]);
    place.succeed(&["merge", "runs/small", "merged"]);
    assert!(
        place.path("merged/model.safetensors").exists()
            && place.path("merged/tokenizer.json").exists()
    );
    let logits = |text: &str| -> Vec<f64> {
        let lines = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines
            .flat_map(|line| {
                line["logits"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|x| x.as_f64().unwrap())
                    .collect::<Vec<_>>()
            })
            .collect()
    };
    let (ours, imported) = (logits(&predicted), logits(&adapter));
    assert_eq!(ours.len(), 4);
    for (a, b) in ours.iter().zip(&imported) {
        assert!((a - b).abs() < 1e-5, "{a} is not {b}");
    }
}

#[test]
fn the_same_bits_whatever_the_number_of_threads() {
    let place = Place::new();
    let mut found = Vec::new();
    for threads in ["1", "2", "3"] {
        let out = format!("out{threads}");
        place.succeed(&[
            "small.delta",
            "--quiet",
            "--out",
            &out,
            "--threads",
            threads,
        ]);
        found.push(std::fs::read(place.path(&out).join("delta.safetensors")).unwrap());
    }
    assert!(found[0] == found[1] && found[1] == found[2]);
    place.succeed(&["small.delta", "--quiet", "--out", "other", "--seed", "7"]);
    assert!(std::fs::read(place.path("other/delta.safetensors")).unwrap() != found[0]);
}

/// Starts a long run, waits for its first checkpoint or evaluation, and sends it a signal.
#[cfg(unix)]
fn stop(place: &Place, signal: &str) -> Option<i32> {
    let mut child = place.command(&["long.delta", "--quiet"]).spawn().unwrap();
    let log = place.path("runs/long.partial/log.jsonl");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    // The log is flushed with every checkpoint; before the first there is an empty file.
    while !log.exists() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    std::thread::sleep(std::time::Duration::from_millis(700));
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    child.wait().unwrap().code()
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let place = Place::new();
    let long = pipeline()
        .replace("steps = 12", "steps = 600")
        .replace("pipeline small", "pipeline long");
    let first = long[long.find("stage tune").unwrap()..]
        .replace("stage tune", "stage more")
        .replace("steps = 600", "steps = 30");
    place.write("long.delta", (long + &first).as_bytes());
    place.succeed(&["long.delta", "--quiet", "--out", "whole"]);

    assert_eq!(stop(&place, "-INT"), Some(130));
    assert_eq!(place.runs(), ["long.partial"]);
    assert!(place
        .path("runs/long.partial/checkpoint.safetensors")
        .exists());
    assert_eq!(stop(&place, "-KILL"), None);
    place.succeed(&["long.delta", "--quiet"]);
    let read = |name: &str| std::fs::read(place.path(name)).unwrap();
    assert!(read("whole/delta.safetensors") == read("runs/long/delta.safetensors"));
    let events = |name: &str| -> Vec<serde_json::Value> {
        let log = String::from_utf8(read(name)).unwrap();
        let mut events: Vec<serde_json::Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for event in &mut events {
            event.as_object_mut().unwrap().remove("seconds");
        }
        events
    };
    assert!(events("whole/log.jsonl").len() > 600);
    assert_eq!(events("whole/log.jsonl"), events("runs/long/log.jsonl"));
}

#[test]
fn an_existing_output_is_not_touched() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runs/small")).unwrap();
    insta::assert_snapshot!(place.fail(2, &["small.delta", "--quiet"]));
    assert_eq!(place.runs(), ["small"]);
}

#[test]
fn an_unfinished_run_of_another_plan_is_not_touched() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runs/small.partial")).unwrap();
    place.write("runs/small.partial/manifest.yaml", b"other\n");
    insta::assert_snapshot!(place.fail(2, &["small.delta", "--quiet"]));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let place = Place::new();
    let text = pipeline()
        .replace("reparam", "unfreeze everything = **\nreparam")
        .replace("[low_rank, head]", "[low_rank, everything, head]")
        .replace(
            "adamw { lr = 1e-3 }",
            "sgd { lr = 1000, weight_decay = 1 }\n    clip = off",
        );
    // A first stage that is sound: its end is the last good checkpoint.
    let sound = "stage sound {\n    train = [low_rank, head]\n    steps = 2\n    optimizer = adamw { lr = 1e-3 }\n}\n\nstage tune";
    place.write("small.delta", text.replace("stage tune", sound).as_bytes());
    let message = place.fail(1, &["small.delta", "--quiet"]);
    let message = fancy_regex::Regex::new(r"step \d+: the loss is \S+,")
        .unwrap()
        .replace(&message, "step N: the loss is X,")
        .into_owned();
    insta::assert_snapshot!(message);
    assert!(place
        .path("runs/small.partial/checkpoint.safetensors")
        .exists());
}

type Spoil = fn(&Place);

/// Name of the snapshot, and what is spoiled.
const SPOILED: &[(&str, Spoil)] = &[
    ("missing_file", |place| {
        std::fs::remove_file(place.path("dev.tsv")).unwrap()
    }),
    ("unknown_label", |place| {
        place.write(
            "train.tsv",
            b"text\tlabel\nfine\tpositive\nso so\tneutral\n",
        )
    }),
    ("wrong_width", |place| {
        place.write("train.tsv", b"text\tlabel\nfine\tpositive\nso so\n")
    }),
    ("not_utf8", |place| {
        place.write(
            "train.tsv",
            b"text\tlabel\nfine\tpositive\ncaf\xe9\tnegative\n",
        )
    }),
    ("empty_file", |place| place.write("train.tsv", b"")),
    ("only_a_header", |place| {
        place.write("train.tsv", b"text\tlabel\n")
    }),
    ("missing_column", |place| {
        place.write("train.tsv", b"sentence\tlabel\nfine\tpositive\n")
    }),
    ("unsupported_family", |place| {
        place.write("backbone/config.json", b"{\"model_type\": \"mamba\"}")
    }),
    ("config_not_json", |place| {
        place.write("backbone/config.json", b"{")
    }),
    ("missing_weights", |place| {
        std::fs::remove_file(place.path("backbone/model.safetensors")).unwrap()
    }),
    ("truncated_weights", |place| {
        let bytes = std::fs::read(place.path("backbone/model.safetensors")).unwrap();
        place.write("backbone/model.safetensors", &bytes[..bytes.len() / 2]);
    }),
    ("corrupt_weights", |place| {
        place.write("backbone/model.safetensors", &[255; 1000])
    }),
    ("weights_of_another_shape", |place| {
        let text = std::fs::read_to_string(place.path("backbone/config.json")).unwrap();
        place.write(
            "backbone/config.json",
            text.replace("\"intermediate_size\": 384", "\"intermediate_size\": 256")
                .as_bytes(),
        );
    }),
    ("weights_of_fewer_blocks", |place| {
        let text = std::fs::read_to_string(place.path("backbone/config.json")).unwrap();
        place.write(
            "backbone/config.json",
            text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4")
                .as_bytes(),
        );
    }),
    ("missing_tokenizer", |place| {
        std::fs::remove_file(place.path("backbone/tokenizer.json")).unwrap()
    }),
    ("tokenizer_of_another_backbone", |place| {
        let text = std::fs::read_to_string(place.path("backbone/tokenizer.json")).unwrap();
        place.write(
            "backbone/tokenizer.json",
            text.replace("\"plot\":", "\"plot\":9").as_bytes(),
        );
    }),
];

#[test]
fn every_spoiled_input_has_its_message_and_leaves_nothing() {
    for (name, spoil) in SPOILED {
        let place = Place::new();
        spoil(&place);
        insta::assert_snapshot!(*name, place.fail(2, &["small.delta", "--quiet"]));
        assert!(place.runs().is_empty(), "{name} left {:?}", place.runs());
    }
}

#[test]
fn check_finds_missing_files_and_columns_without_running() {
    let place = Place::new();
    assert!(place
        .succeed(&["check", "small.delta"])
        .contains("no mistakes"));
    place.write("dev.tsv", b"txt\tlabel\na\tpositive\n");
    insta::assert_snapshot!(place.fail(2, &["check", "small.delta"]));
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let config =
        std::fs::read_to_string(place.path("runs/small/peft/adapter_config.json")).unwrap();
    let predict = [
        "predict",
        "runs/small/peft",
        "--backbone",
        "backbone",
        "--input",
        "train.tsv",
    ];
    let cases = [
        (
            "adapter_missing_tensors",
            config.replace("\"query\"", "\"query\",\n    \"key\""),
        ),
        ("adapter_extra_tensors", config.replace("\"query\",", "")),
        ("adapter_wrong_rank", config.replace("\"r\": 2", "\"r\": 3")),
        (
            "adapter_of_another_kind",
            config.replace("\"LORA\"", "\"IA3\""),
        ),
        (
            "adapter_with_dora",
            config.replace("\"use_dora\": false", "\"use_dora\": true"),
        ),
    ];
    for (name, spoiled) in cases {
        assert_ne!(config, spoiled, "{name}");
        place.write("runs/small/peft/adapter_config.json", spoiled.as_bytes());
        insta::assert_snapshot!(name, place.fail(2, &predict));
    }
}

#[test]
fn another_backbone_is_refused() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let weights = place.path("backbone/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    insta::assert_snapshot!(place.fail(2, &["eval", "runs/small"]));
}

#[test]
fn bad_lines_of_predict_are_named() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    for (name, line) in [
        ("predict_not_json", "fine\n"),
        ("predict_wrong_key", "{\"txt\": \"fine\"}\n"),
    ] {
        place.write(
            "input.jsonl",
            format!("{{\"text\": \"fine\"}}\n{line}").as_bytes(),
        );
        let arguments = [
            "predict",
            "runs/small",
            "--input",
            "input.jsonl",
            "--output",
            "out.jsonl",
        ];
        insta::assert_snapshot!(name, place.fail(2, &arguments));
        assert!(!place.path("out.jsonl").exists());
    }
}

#[test]
fn arguments_have_their_messages() {
    let place = Place::new();
    insta::assert_snapshot!("no_file", place.fail(2, &[]));
    insta::assert_snapshot!("no_such_file", place.fail(2, &["none.delta"]));
    insta::assert_snapshot!(
        "no_such_device",
        place.fail(2, &["small.delta", "--device", "tpu"])
    );
    insta::assert_snapshot!("not_a_run", place.fail(2, &["eval", "backbone"]));
    insta::assert_snapshot!(
        "set_without_value",
        place.fail(2, &["check", "small.delta", "--set", "rank"])
    );
    place.write("params.yaml", b"rank: [1\n");
    let message = place.fail(2, &["check", "small.delta", "--params", "params.yaml"]);
    assert!(message.contains("params.yaml"), "{message}");
}

#[test]
fn the_plan_shows_what_is_trained() {
    let place = Place::new();
    let text = place.succeed(&["plan", "small.delta", "--threads", "2"]);
    // The estimate of the time depends on the machine.
    let text = fancy_regex::Regex::new(r"\d+ ms a step")
        .unwrap()
        .replace_all(&text, "N ms a step")
        .into_owned();
    insta::assert_snapshot!(text);
}

#[test]
fn three_formats_give_the_same_run() {
    let place = Place::new();
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .skip(1)
        .map(|line| line.split('\t').collect())
        .collect();
    let csv: String = rows
        .iter()
        .map(|row| format!("\"{}\",{}\n", row[0], row[1]))
        .collect();
    let jsonl: String = rows
        .iter()
        .map(|row| serde_json::json!({ "text": row[0], "label": row[1] }).to_string() + "\n")
        .collect();
    place.write("train.csv", format!("text,label\n{csv}").as_bytes());
    place.write("train.jsonl", jsonl.as_bytes());
    let mut found = Vec::new();
    for format in ["tsv", "csv", "jsonl"] {
        let text = pipeline().replace(
            "tsv(\"train.tsv\")",
            &format!("{format}(\"train.{format}\")"),
        );
        place.write("small.delta", text.as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", format]);
        found.push(std::fs::read(place.path(format).join("delta.safetensors")).unwrap());
    }
    assert!(found[0] == found[1] && found[1] == found[2]);
}

#[test]
fn pairs_and_numbers_are_trained_and_predicted() {
    let place = Place::new();
    let rows: String = (0..40)
        .map(|i| {
            format!(
                "the plot was superb .\tthe cast was dull .\t{}\n",
                f64::from(i % 5)
            )
        })
        .collect();
    place.write("train.tsv", format!("a\tb\tscore\n{rows}").as_bytes());
    place.write("dev.tsv", format!("a\tb\tscore\n{rows}").as_bytes());
    let task = "task regress {\n    text = [a, b]\n    label = score\n    metric = spearman\n}\n";
    let text = pipeline();
    let (start, end) = (
        text.find("task classify").unwrap(),
        text.find("reparam").unwrap(),
    );
    place.write(
        "small.delta",
        format!("{}{task}\n{}", &text[..start], &text[end..]).as_bytes(),
    );
    let table = place.succeed(&["small.delta", "--quiet"]);
    assert!(table.contains("dev spearman"), "{table}");
    place.write(
        "input.jsonl",
        b"{\"a\": \"the plot\", \"b\": \"was dull\"}\n",
    );
    let predicted = place.succeed(&["predict", "runs/small", "--input", "input.jsonl"]);
    let line: serde_json::Value = serde_json::from_str(predicted.trim()).unwrap();
    assert!(
        line["value"].as_f64().is_some_and(f64::is_finite),
        "{predicted}"
    );
}

/// A cloze: trained, stored with its template, and refused where its words or texts do not fit.
#[test]
fn a_cloze_is_trained_and_its_mistakes_are_named() {
    let place = Place::new();
    let cloze = |words: &str| {
        let task = format!("    template = \"{{text}} so i {{mask}} it .\"\n    words = {words}\n");
        pipeline().replace("    text = text\n", &task)
    };
    place.write(
        "small.delta",
        cloze("{ negative = \"hated\", positive = \"loved\" }").as_bytes(),
    );
    place.succeed(&["small.delta", "--quiet"]);
    place.write("input.jsonl", b"{\"text\": \"the plot was superb .\"}\n");
    let predicted = place.succeed(&["predict", "runs/small", "--input", "input.jsonl"]);
    assert!(predicted.contains("positive"), "{predicted}");

    place.write(
        "small.delta",
        cloze("{ negative = \"not dull\", positive = \"loved\" }").as_bytes(),
    );
    insta::assert_snapshot!(
        "label_word_of_two_tokens",
        place.fail(2, &["check", "small.delta"])
    );
    place.write(
        "small.delta",
        cloze("{ negative = \"loved\", positive = \"loved\" }").as_bytes(),
    );
    insta::assert_snapshot!("label_word_twice", place.fail(2, &["check", "small.delta"]));
    place.write(
        "small.delta",
        cloze("{ negative = \"hated\", positive = \"loved\" }").as_bytes(),
    );
    place.write(
        "train.tsv",
        b"text\tlabel\nfine\tpositive\nso [MASK] so\tnegative\n",
    );
    insta::assert_snapshot!(
        "mask_in_a_text",
        place.fail(2, &["small.delta", "--quiet", "--out", "other"])
    );
    // A text that is too long is cut; the template is not.
    let long = format!("text\tlabel\n{}\tpositive\n", "dull ".repeat(100));
    place.write("train.tsv", long.as_bytes());
    place.succeed(&["small.delta", "--quiet", "--out", "other"]);
}

/// Checking a file of twenty stages takes no time: it is far below the bound even when the machine is
/// busy, so this asserts work, not speed: no weight may be read.
#[test]
fn check_reads_no_weights() {
    let place = Place::new();
    std::fs::remove_file(place.path("backbone/model.safetensors")).unwrap();
    std::fs::remove_file(place.path("backbone/tokenizer.json")).unwrap();
    let stage = |number: usize| {
        format!("stage s{number} {{\n    train = [low_rank, head]\n    steps = 1\n    optimizer = adamw {{ lr = 1e-3 }}\n}}\n")
    };
    let text = pipeline() + &(0..19).map(stage).collect::<String>();
    place.write("small.delta", text.as_bytes());
    place.succeed(&["check", "small.delta"]);
}

/// `hf:organisation/name` is found in the hub's local cache; the weights are asked for by a run only.
#[test]
fn a_backbone_of_the_hub_is_taken_from_the_local_cache() {
    let place = Place::new();
    let repository = place.path("cache/hub/models--some--bert");
    let snapshot = repository.join("snapshots/abc");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(repository.join("refs/main"), "abc").unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(place.path("backbone").join(file), snapshot.join(file)).unwrap();
    }
    place.write(
        "small.delta",
        pipeline()
            .replace("\"backbone\"", "\"hf:some/bert\"")
            .as_bytes(),
    );
    let run = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command
            .env("HF_HOME", place.path("cache"))
            .env("HF_ENDPOINT", "http://127.0.0.1:1")
            .output()
            .unwrap()
    };
    assert!(run(&["check", "small.delta"]).status.success());
    let missing = run(&["small.delta", "--quiet"]);
    let message = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert_eq!(missing.status.code(), Some(1), "{message}");
    assert!(
        message.contains("hf:some/bert") && message.contains("help:"),
        "{message}"
    );
    std::fs::copy(
        place.path("backbone/model.safetensors"),
        snapshot.join("model.safetensors"),
    )
    .unwrap();
    assert!(run(&["small.delta", "--quiet"]).status.success());
}
