//! The targets of `fuzz/targets.rs` with mutations of real files, from a fixed seed: no panic, nothing that takes
//! 5 seconds, no more than 100 MB beside the input. `DELTARUN_FUZZ=600` spends as many seconds on each target.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use targets::TARGETS;

/// Inputs of each target in the bounded form.
const INPUTS: usize = 400;

/// What numbers and words are replaced by.
const WORDS: [&str; 30] = [
    "0",
    "-1",
    "1e309",
    "9999999999999999999",
    "NaN",
    "null",
    "true",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    "\n",
    "\t",
    "\u{feff}",
    "é",
    "\u{0}",
    ":",
    "=",
    "#",
    "..",
    "**",
    "random 3 of",
    "except",
    "{mask}",
    "&a",
    "*a",
    "!!binary",
    "fn f() { f() }",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Real inputs of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let files: &[&str] = match target {
        "grammar" => &[
            "pipelines/quickstart.delta",
            "pipelines/study/sst2/cloze.delta",
            "tests/formatting/messy.delta",
        ],
        "config" => &[
            "tests/fixtures/bert_a/config.json",
            "tests/fixtures/gpt2/config.json",
            "tests/fixtures/roberta/config.json",
        ],
        "tokenizer_config" => &["tests/fixtures/tokenizers/bert_left/tokenizer_config.json"],
        "safetensors" => &["tests/fixtures/methods/ia3/adapter_model.safetensors"],
        "gguf" => &[
            "tests/fixtures/gguf/pieces.gguf",
            "tests/fixtures/gguf/qwen2.gguf",
        ],
        "json" => &["tests/fixtures/rows.json"],
        "parquet" => &["tests/fixtures/rows.parquet"],
        "adapter_config" => &[
            "tests/fixtures/methods/rslora/adapter_config.json",
            "tests/fixtures/methods/prefix/adapter_config.json",
        ],
        "tsv" => &["pipelines/quickstart/dev.tsv"],
        "rhai" => &["pipelines/study/gap.rhai", "pipelines/study/ranking.rhai"],
        _ => &[],
    };
    let texts: &[&str] = match target {
        "selectors" => &["block[last 2].attn.{q,v} except block.0.* expect 3", "random 3 of block.*.ff.up", "\"*.query\"", "**"],
        "templates" => &["{text} It was {mask}.", "{cls} {soft} {text.lower} {segment 1} {mask} {sep}"],
        "params" => &["rank: 8\nlr: 1e-3\nname: x\n", "a: [1, 2]\nb: {c: d}\n", "every 3 epochs"],
        "csv" => &["text,label\n\"a \"\"b\"\", c\",positive\nd,negative\n"],
        "jsonl" | "predict_input" => &["{\"text\": \"a\", \"label\": \"positive\", \"id\": 3}\n{\"text\": 5, \"label\": \"negative\"}\n"],
        "rhai" => &["let a = [1, 2]; for x in a { print(table([\"a\"], [#{ a: x }])); }", "grid(#{ a: [1, 2] }); mean([1.0]);"],
        "stored_plan" => &[include_str!("fixtures/run_0_1_0/plan.yaml"), include_str!("fixtures/run_0_1_0/manifest.yaml")],
        _ => &[],
    };
    let read = |file: &&str| {
        let bytes = std::fs::read(root().join(file)).unwrap();
        bytes[..bytes.len().min(8000)].to_vec()
    };
    let texts = texts.iter().map(|text| text.as_bytes().to_vec());
    files.iter().map(read).chain(texts).collect()
}

fn mutated(seeds: &[Vec<u8>], random: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let length = bytes.len().max(1);
        let place = random.random_range(0..length).min(bytes.len());
        let end = (place + random.random_range(0..40usize)).min(bytes.len());
        match random.random_range(0..8) {
            0 if !bytes.is_empty() => {
                bytes[place.min(length - 1)] ^= 1 << random.random_range(0..8)
            }
            1 => drop(bytes.drain(place..end)),
            2 => {
                let part = bytes[place..end].repeat(random.random_range(1..200));
                bytes.splice(place..place, part);
            }
            3 => {
                let word =
                    WORDS[random.random_range(0..WORDS.len())].repeat(random.random_range(1..4));
                bytes.splice(place..end, word.bytes());
            }
            4 => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..other.len());
                bytes.splice(place.., other[from..].iter().copied());
            }
            5 => {
                // A number is replaced by another one.
                let is_digit = |byte: &u8| byte.is_ascii_digit();
                let start = bytes[place..]
                    .iter()
                    .position(is_digit)
                    .map_or(place, |at| at + place);
                let rest = bytes[start..].iter().position(|byte| !is_digit(byte));
                let stop = rest.map_or(bytes.len(), |rest| start + rest);
                bytes.splice(start..stop, WORDS[random.random_range(0..5)].bytes());
            }
            6 => bytes.truncate(place),
            _ => {
                let deep = ["[", "{", "(", "{{"][random.random_range(0..4)]
                    .repeat(random.random_range(1..3000));
                bytes.splice(place..place, deep.bytes());
            }
        }
        bytes.truncate(1 << 20);
    }
    bytes
}

/// The most memory that the process has had, in bytes.
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<usize>().ok());
    1024 * kilobytes.unwrap_or(0)
}

#[test]
fn nothing_from_outside_panics_hangs_or_takes_memory() {
    let spent = std::env::var("DELTARUN_FUZZ")
        .ok()
        .and_then(|seconds| seconds.parse().ok());
    let chosen = std::env::var("DELTARUN_TARGET").ok();
    for (name, target) in TARGETS {
        if chosen.as_ref().is_some_and(|chosen| chosen != name) {
            continue;
        }
        let seeds = seeds(name);
        let mut random = ChaCha8Rng::seed_from_u64(42);
        let folder = tempfile::tempdir().unwrap();
        let (started, before) = (Instant::now(), peak());
        let mut inputs = 0;
        loop {
            let is_over = match spent {
                Some(seconds) => started.elapsed() > Duration::from_secs(seconds),
                None => inputs == INPUTS,
            };
            if is_over {
                break;
            }
            let bytes = mutated(&seeds, &mut random);
            // What is found is there to be looked at.
            std::fs::write(folder.path().join("input"), &bytes).unwrap();
            let began = Instant::now();
            let outcome = std::panic::catch_unwind(|| target(&bytes, folder.path()));
            let took = began.elapsed();
            if outcome.is_err() || took > Duration::from_secs(5) {
                let kept = std::env::temp_dir().join(format!("deltarun-fuzz-{name}"));
                std::fs::write(&kept, &bytes).unwrap();
                panic!(
                    "{name}, input {inputs}: {took:?}; it is in {}",
                    kept.display()
                );
            }
            inputs += 1;
        }
        let grown = peak().saturating_sub(before);
        println!(
            "{name}: {inputs} inputs in {:?}, {} MB",
            started.elapsed(),
            grown >> 20
        );
        assert!(grown < 100 << 20, "{name} took {} MB", grown >> 20);
    }
}
