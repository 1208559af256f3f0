//! What reads text and bytes from outside, as plain functions over bytes: none of them may panic, abort, hang or take
//! memory out of proportion. `tests/fuzz.rs` drives them with mutations of real files, `cargo fuzz` with coverage.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use deltarun::backbone::{read_config, Checkpoint, Config};
use deltarun::data::{json_value, Extent, RowFindings, TextEncoder, Wanted};
use deltarun::diagnostic::Problems;
use deltarun::plan::{plan, FileFormat, FilePlan, Piece, Plan, TaskPlan};
use deltarun::run::{Integrity, Manifest};
use deltarun::task::Encoder;
use deltarun::{peft, script, syntax, text};

/// A target: its name, and what it does with bytes; the folder is its own to write to.
pub type Target = (&'static str, fn(&[u8], &Path));

/// All targets.
pub const TARGETS: [Target; 17] = [
    ("grammar", grammar),
    ("selectors", selectors),
    ("templates", templates),
    ("params", params),
    ("config", config),
    ("tokenizer_config", tokenizer_config),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("adapter_config", adapter_config),
    ("tsv", |bytes, folder| table(bytes, folder, FileFormat::Tsv)),
    ("csv", |bytes, folder| table(bytes, folder, FileFormat::Csv)),
    ("jsonl", |bytes, folder| {
        table(bytes, folder, FileFormat::Jsonl)
    }),
    ("json", |bytes, folder| {
        table(bytes, folder, FileFormat::Json)
    }),
    ("parquet", |bytes, folder| {
        table(bytes, folder, FileFormat::Parquet)
    }),
    ("predict_input", predict_input),
    ("rhai", rhai),
    ("stored_plan", stored_plan),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .find(|path| path.join("grammar").exists())
        .expect("the repository")
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

/// A file, from its text to a plan or to a report of all that is wrong.
fn grammar(bytes: &[u8], _: &Path) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let directory = fixture("bert_a");
    let found = match syntax::parse(text) {
        Err(problems) => problems,
        Ok(pipeline) => {
            let find = |_: &str| Ok((directory.clone(), read_config(&directory)?));
            let _ = syntax::format(text);
            plan(&pipeline, &BTreeMap::new(), &directory, &find)
                .err()
                .unwrap_or_default()
        }
    };
    let problems = Problems::in_source("fuzz.delta", text, found);
    let (report, json) = (problems.render(false), problems.to_json().to_string());
    let most = 8 * text.len() + 200_000;
    assert!(
        report.len() < most && json.len() < most,
        "{} and {} bytes",
        report.len(),
        json.len()
    );
}

fn selectors(bytes: &[u8], folder: &Path) {
    let selector = String::from_utf8_lossy(bytes);
    let text = format!("backbone \"b\"\nunfreeze a = {selector}\nreparam b = lora on {selector}\n");
    grammar(text.as_bytes(), folder);
}

fn templates(bytes: &[u8], _: &Path) {
    let _ = Piece::parse(&String::from_utf8_lossy(bytes));
}

fn params(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let _ = text::yaml(&text);
    let _ = syntax::parse_value(&text);
}

fn config(bytes: &[u8], _: &Path) {
    let text = String::from_utf8_lossy(bytes);
    let _ = (Config::parse(&text), Config::unknown_keys(&text));
}

fn tokenizer_config(bytes: &[u8], folder: &Path) {
    let backbone = fixture("tokenizers/bert_plain");
    for file in ["tokenizer.json", "config.json"] {
        std::fs::copy(backbone.join(file), folder.join(file)).expect("a folder to write to");
    }
    write(folder, "tokenizer_config.json", bytes);
    let config = read_config(&backbone).expect("a fixture");
    if let Ok(encoder) = TextEncoder::open(folder, 8, &config) {
        let _ = encoder.texts(&["a film".into()]);
        let _ = encoder.texts(&["so".into(), "good".into()]);
    }
}

fn safetensors(bytes: &[u8], folder: &Path) {
    let path = write(folder, "model.safetensors", bytes);
    if let Ok(file) = Checkpoint::open(&[path]) {
        for name in file.names() {
            let _ = file.read(name);
        }
        let _ = file.metadata("format");
    }
}

/// A model's file: its configuration, its tokenizer and its tensors.
fn gguf(bytes: &[u8], folder: &Path) {
    let path = write(folder, "model.gguf", bytes);
    if let Ok(file) = Checkpoint::open_directory(&path) {
        for name in file.names() {
            let _ = file.read(name);
        }
    }
    if let Ok(config) = read_config(&path) {
        if let Ok(encoder) = TextEncoder::open(&path, 8, &config) {
            let _ = encoder.texts(&["a film".into()]);
        }
    }
}

fn adapter_config(bytes: &[u8], folder: &Path) {
    let adapter = fixture("methods/rslora");
    let tensors = "adapter_model.safetensors";
    std::fs::copy(adapter.join(tensors), folder.join(tensors)).expect("a folder to write to");
    write(folder, "adapter_config.json", bytes);
    let config = read_config(&fixture("bert_a")).expect("a fixture");
    let _ = peft::import(folder, &config);
}

fn table(bytes: &[u8], folder: &Path, format: FileFormat) {
    let file = FilePlan::whole(format, write(folder, "table", bytes), Default::default());
    let _ = {
        let extent = Extent {
            at_each_end: 1000,
            encoded: 0,
        };
        RowFindings::check(&file, &task(), extent, None)
    };
}

fn task() -> TaskPlan {
    let text = "backbone \"b\"\ndata { dev = tsv(\"d\") }\ntask classify { text = text, label = label, labels = [negative, positive] }\n\
                stage s { train = [head], steps = 1, optimizer = adamw { lr = 1 } }\ndata d2 { train = tsv(\"t\") }";
    let text = text
        .replace("data { dev = tsv(\"d\") }", "data { train = tsv(\"d\") }")
        .replace("data d2 { train = tsv(\"t\") }", "");
    let directory = fixture("bert_a");
    let find = |_: &str| Ok((directory.clone(), read_config(&directory)?));
    let pipeline = syntax::parse(&text).expect("a sound pipeline");
    let plan = plan(&pipeline, &BTreeMap::new(), &directory, &find).expect("a sound pipeline");
    plan.tasks["task"].clone()
}

fn predict_input(bytes: &[u8], _: &Path) {
    for line in String::from_utf8_lossy(bytes).lines() {
        if let Ok(object) = serde_json::from_str(line) {
            let _ = json_value(&object, &Wanted::text("text"));
        }
    }
}

fn rhai(bytes: &[u8], folder: &Path) {
    static NEVER: AtomicBool = AtomicBool::new(false);
    // A script that runs nothing: there is no pipeline beside it.
    let path = write(folder, "script.rhai", bytes);
    let options = script::Options {
        set: BTreeMap::new(),
        preset: None,
        out: folder.join("out"),
        allowed: Vec::new(),
        integrity: Integrity::Checked,
        is_quiet: true,
        interrupted: &NEVER,
    };
    let _ = script::run(&path, &options);
}

fn stored_plan(bytes: &[u8], folder: &Path) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(plan) = Plan::from_yaml(&text) {
        let _ = (plan.hash(), plan.differences(&text));
    }
    write(folder, Manifest::FILE, bytes);
    let _ = Manifest::read(folder);
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a folder to write to");
    path
}
