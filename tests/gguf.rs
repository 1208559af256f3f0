//! GGUF files: their weights, logits and tokens by `tests/fixtures/make_gguf.py`; runs; what is refused.

use std::path::PathBuf;

use crate::common::place::Place;
use crate::common::{difference, fixture, json_fixture, plan_of, text_of, Expected};
use deltarun::backbone::{read_config, Checkpoint};
use deltarun::data::{batch, Prediction, TextEncoder};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::task::{Conversation, Encoder, Example, Target};
use serde_json::{json, Value};

fn file(name: &str) -> PathBuf {
    fixture("gguf").join(format!("{name}.gguf"))
}

/// Every type of block has the values of gguf's `dequantize`, to the bit, and the rows are in transformers' order.
#[test]
fn weights_are_those_that_the_blocks_stand_for() {
    for (name, count) in [
        ("blocks", 20),
        ("qwen2", 27),
        ("qwen3", 24),
        ("gemma", 20),
        ("gemma2", 24),
        ("gemma3", 80),
        ("usual", 24),
        ("factors", 21),
    ] {
        let expected = Expected::of_file(&fixture("gguf").join(format!("{name}.safetensors")));
        let found = Checkpoint::open_directory(&file(name)).unwrap();
        let weights = expected
            .names()
            .into_iter()
            .filter(|own| own.contains("weight") || own.contains("bias"));
        let mut seen = 0;
        // The one file ties its output to the embeddings.
        let is_tied = !matches!(name, "qwen2" | "factors");
        for weight in weights.filter(|own| !is_tied || own != "lm_head.weight") {
            let (values, shape) = found.read(&weight).unwrap();
            assert_eq!(
                (shape, &values),
                (expected.tensor(&weight).1, &expected.read(&weight)),
                "{name}: {weight}"
            );
            seen += 1;
        }
        assert_eq!(seen, count, "{name}");
    }
}

#[test]
fn logits_are_those_of_transformers() {
    for name in [
        "blocks", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "usual", "factors",
    ] {
        let expected = Expected::of_file(&fixture("gguf").join(format!("{name}.safetensors")));
        let path = file(name);
        let text = format!(
            "backbone \"{}\"\ndata {{ test = text(\"t\") }}\ntask causal_lm {{ text = text }}\n",
            path.display()
        );
        let plan = plan_of(&text, &path);
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
        graph.activate(&plan, 0).unwrap();
        let tokens: Vec<u32> = expected
            .read("tokens")
            .iter()
            .map(|token| *token as u32)
            .collect();
        let example = Example {
            text: text_of(&tokens),
            decoder: Vec::new(),
            target: Target::None,
            cut: 0,
            others: Vec::new(),
        };
        let batch = batch(&[&example], &[0], 0, Prediction::default());
        let logits = graph.inference().logits(&batch).unwrap().read();
        let worst = difference(&logits, &expected.read("logits"), true);
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn texts_have_the_tokens_of_the_original_tokenizer() {
    let expected = json_fixture("gguf/tokens.json");
    let texts: Vec<String> = serde_json::from_value(expected["texts"].clone()).unwrap();
    for name in ["blocks", "qwen2", "pieces"] {
        let config = read_config(&file(name)).unwrap();
        let encoder = TextEncoder::open(&file(name), 128, &config).unwrap();
        for (text, tokens) in texts.iter().zip(expected[name].as_array().unwrap()) {
            let tokens: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
            let found = encoder.texts(std::slice::from_ref(text)).unwrap();
            assert_eq!(found.tokens, tokens, "{name}: {text:?}");
        }
    }
    let config = read_config(&file("blocks")).unwrap();
    let encoder = TextEncoder::open(&file("blocks"), 128, &config).unwrap();
    let messages = vec![json!({"role": "user", "content": "Hi"})];
    let marked = encoder
        .converse(
            &Conversation {
                messages,
                tools: None,
            },
            true,
        )
        .unwrap();
    assert_eq!(
        marked.text,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(encoder.end().as_deref(), Some("<|im_end|>"));
}

fn pipeline(backbone: &str, settings: &str, delta: &str) -> String {
    format!(
        "pipeline small\nbackbone \"{backbone}\" {{ max_length = 40, {settings} }}\n\
         data {{ train = jsonl(\"chat.jsonl\"), dev = jsonl(\"chat.jsonl\") }}\n\
         task instruct {{ prompt = q, answer = a }}\n\
         {delta}\n\
         stage tune {{ train = [low], steps = 30, batch = 4, optimizer = adamw {{ lr = 1e-2 }}, evaluate = every 10 steps, keep = last }}\n"
    )
}

const LORA: &str = "reparam low = lora { rank = 4 } on **.{q,v}";

fn place() -> Place {
    let place = Place::new();
    for name in [
        "blocks", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "usual", "factors", "pieces",
    ] {
        std::fs::copy(file(name), place.path(&format!("{name}.gguf"))).unwrap();
    }
    let rows = (0..8).map(|number| json!({"q": format!("the film {number}"), "a": "worth it"}));
    let rows: String = rows.map(|row| format!("{row}\n")).collect();
    place.write("chat.jsonl", rows.as_bytes());
    place
}

/// A LoRA learns on the blocks of a file; its run is evaluated, writes, and is merged into a directory of transformers.
#[test]
fn runs_train_on_the_blocks_of_a_file() {
    let place = place();
    for name in ["blocks", "qwen2"] {
        place.write(
            "small.delta",
            pipeline(&format!("{name}.gguf"), "dropout = off", LORA).as_bytes(),
        );
        let plan = place.succeed(&["plan", "small.delta"]);
        assert!(plan.contains("storage of the file: "), "{plan}");
        place.succeed(&["small.delta", "--quiet", "--out", name]);
        let log = std::fs::read_to_string(place.path(&format!("{name}/log.jsonl"))).unwrap();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let losses: Vec<f64> = lines
            .filter_map(|line| line["dev"]["loss"].as_f64())
            .collect();
        assert!(losses.last() < losses.first(), "{name}: {losses:?}");
        let merged = format!("{name}-merged");
        place.succeed(&["merge", name, &merged]);
        place.write("ask.jsonl", b"{\"q\": \"the film 3\"}\n");
        let written = |source: &str| {
            let options = [
                "--input",
                "ask.jsonl",
                "--max-tokens",
                "12",
                "--temperature",
                "0",
            ];
            place.succeed(&[&["generate", source], &options[..]].concat())
        };
        let of_run = written(name);
        assert!(of_run.contains("\"text\":"), "{of_run}");
        place.write(
            "ask.jsonl",
            b"{\"messages\": [{\"role\": \"user\", \"content\": \"the film 3\"}]}\n",
        );
        assert_eq!(written(&merged), of_run, "{name}");
        // Another file in its place is noticed.
        let other = if name == "blocks" { "qwen2" } else { "blocks" };
        std::fs::rename(place.path(&format!("{name}.gguf")), place.path("kept.gguf")).unwrap();
        std::fs::copy(file(other), place.path(&format!("{name}.gguf"))).unwrap();
        place.fail(2, &["eval", name]);
        std::fs::rename(place.path("kept.gguf"), place.path(&format!("{name}.gguf"))).unwrap();
    }
}

#[test]
fn what_a_file_does_not_allow_is_refused_by_name() {
    let place = place();
    let whole = std::fs::read(file("blocks")).unwrap();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let at = whole
            .windows(from.len())
            .position(|part| part == from.as_bytes())
            .unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    // The offset of the second tensor, which is the last number of its description.
    let overlapping = {
        let name = b"blk.0.attn_q.weight";
        let at = whole
            .windows(name.len())
            .position(|part| part == name)
            .unwrap();
        let offset = at + name.len() + 4 + 2 * 8 + 4;
        let mut bytes = whole.clone();
        bytes[offset..offset + 8].copy_from_slice(&32u64.to_le_bytes());
        bytes
    };
    for (bytes, settings, delta, wanted) in [
        (whole[..200].to_vec(), "", LORA, "the file is cut"),
        (
            whole[..whole.len() - 64].to_vec(),
            "",
            LORA,
            "does not lie in the file",
        ),
        (overlapping, "", LORA, "overlap"),
        (
            b"GGML, once".to_vec(),
            "",
            LORA,
            "does not begin with `GGUF`",
        ),
        (
            replaced("\x05\0\0\0\0\0\0\0llama", "\x05\0\0\0\0\0\0\0falco"),
            "",
            LORA,
            "the architecture `falco`",
        ),
        (
            replaced("smollm", "smolly"),
            "",
            LORA,
            "tokenizer = \"DIRECTORY\"",
        ),
        (
            replaced("llama.vocab_size", "llama.logit_size"),
            "",
            LORA,
            "`llama.logit_size`, which deltarun does not know",
        ),
        (
            whole.clone(),
            "storage = nf4",
            LORA,
            "stay as they are in it",
        ),
        (
            whole.clone(),
            "precision = bf16",
            LORA,
            "remove `precision`",
        ),
        (
            whole.clone(),
            "",
            "unfreeze low = **",
            "would round small updates away",
        ),
        (
            whole.clone(),
            "",
            "reparam low = dora { rank = 2 } on **.q",
            "is computed from whole weights",
        ),
    ] {
        place.write("x.gguf", &bytes);
        let settings = if settings.is_empty() {
            "dropout = off"
        } else {
            settings
        };
        place.write(
            "small.delta",
            pipeline("x.gguf", settings, delta).as_bytes(),
        );
        let error = place.fail(2, &["check", "small.delta"]);
        assert!(error.contains(wanted), "{wanted}: {error}");
    }
    // An unknown way to split words is no obstacle with a tokenizer from elsewhere.
    place.write("x.gguf", &replaced("smollm", "smolly"));
    std::fs::create_dir(place.path("words")).unwrap();
    let llama =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
    std::fs::copy(
        llama.join("tokenizer.json"),
        place.path("words/tokenizer.json"),
    )
    .unwrap();
    let text = pipeline("x.gguf", "tokenizer = \"words\"", LORA).replace(
        "instruct { prompt = q, answer = a }",
        "causal_lm { text = q }",
    );
    place.write("small.delta", text.as_bytes());
    place.succeed(&["small.delta", "--quiet", "--out", "run"]);
    place.succeed(&["eval", "run"]);
}

/// The log-probabilities of the next token of each prompt by a run or a model of ours.
fn ours(directory: &std::path::Path, prompts: &[&str]) -> Vec<Vec<f32>> {
    use deltarun::run::{open_run, InputSettings, Integrity};
    let found = open_run(
        directory,
        None,
        InputSettings::default(),
        Integrity::Checked,
        Device::Cpu,
    )
    .unwrap();
    let encoder = TextEncoder::of(&found.plan.backbone).unwrap();
    let next = |prompt: &&str| {
        let example = Example {
            text: encoder.texts(&[(*prompt).to_owned()]).unwrap(),
            decoder: Vec::new(),
            target: Target::None,
            cut: 0,
            others: Vec::new(),
        };
        let batch = batch(&[&example], &[0], 0, Prediction::default());
        let logits = found.graph.inference().logits(&batch).unwrap().read();
        let last = &logits[logits.len() - found.plan.backbone.config.vocabulary..];
        let highest = last.iter().fold(f32::MIN, |a, &b| a.max(b));
        let sum: f32 = last.iter().map(|logit| (logit - highest).exp()).sum();
        last.iter()
            .map(|logit| logit - highest - sum.ln())
            .collect()
    };
    prompts.iter().map(next).collect()
}

/// llama.cpp gives the log-probabilities of a run from its adapter beside the file, and from its merged file. Its products
/// round activations to 8 bits where weights are in blocks, so only a file in f32 is compared closely.
#[test]
#[ignore = "needs DELTARUN_PYTHON with xllamacpp"]
fn llama_cpp_reads_what_is_exported() {
    let python = std::env::var("DELTARUN_PYTHON").unwrap();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/llama_cpp.py");
    let place = place();
    let prompts = [
        "<|im_start|>assistant\nworth",
        "<|im_start|>user\nthe",
        "<|im_start|>user\nthe film",
        "the film was worth",
        "every dollar",
        "a masterpiece and",
        "lines",
    ];
    let judged = |model: &str, adapter: &str| -> Vec<Option<Vec<(usize, f32)>>> {
        let mut command = std::process::Command::new(&python);
        let adapter = if adapter == "-" {
            "-".into()
        } else {
            place.path(adapter)
        };
        let output = command
            .arg(&script)
            .arg(place.path(model))
            .arg(adapter)
            .args(prompts)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix("FOUND "));
        let line =
            line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)));
        serde_json::from_str(line).unwrap()
    };
    let worst = |ours: &[Vec<f32>], theirs: &[Option<Vec<(usize, f32)>>]| {
        assert!(theirs.iter().flatten().count() >= 3);
        let pairs = ours.iter().zip(theirs);
        let all = pairs.flat_map(|(ours, theirs)| {
            let theirs = theirs.iter().flatten();
            theirs.map(|(token, value)| (ours[*token] - value).abs())
        });
        all.fold(0.0f32, f32::max)
    };
    let deltas = "reparam low = lora { rank = 4, alpha = 12 } on **.attn.{q,k,v,o}\n\
                  reparam up = lora { rank = 2, scaling = rank_stabilized } on **.ff.{gate,up,down}";
    for name in [
        "blocks", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "usual", "factors",
    ] {
        let text = pipeline(&format!("{name}.gguf"), "dropout = off", deltas)
            .replace("train = [low]", "train = [low, up]");
        place.write("small.delta", text.as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", name]);
        let (adapter, merged) = (format!("{name}-lora.gguf"), format!("{name}-f32.gguf"));
        place.succeed(&["export", name, &adapter]);
        place.succeed(&["merge", name, &merged, "--type", "f32"]);
        let own = ours(&place.path(name), &prompts);
        let in_f32 = worst(&own, &judged(&merged, "-"));
        // llama.cpp reads GELU from a table in 16 bits (`findings/llama-cpp-gelu-f16.sh`).
        let most = match name.starts_with("gemma") || name == "usual" {
            true => 3e-3,
            false => 1e-4,
        };
        println!("{name}: {in_f32}");
        assert!(in_f32 < most, "{name}: {in_f32}");
        let model = format!("{name}.gguf");
        let (without, with) = (
            worst(&own, &judged(&model, "-")),
            worst(&own, &judged(&model, &adapter)),
        );
        assert!(
            with < 0.3 && without > 20.0 * with,
            "{name}: {with}, without the adapter {without}"
        );
    }
}

/// A merged file is read back as the run, in each type as closely as the type is; what cannot be written is refused.
#[test]
fn merged_files_are_read_back() {
    let place = place();
    let prompts = ["the film was", "worth every dollar"];
    // The data of the second file begins at multiples of 64 bytes.
    for name in ["qwen2", "gemma3", "usual", "factors", "blocks"] {
        let text = pipeline(&format!("{name}.gguf"), "dropout = off", LORA);
        place.write("small.delta", text.as_bytes());
        let _ = std::fs::remove_dir_all(place.path("run"));
        place.succeed(&["small.delta", "--quiet", "--out", "run"]);
        let own = ours(&place.path("run"), &prompts).concat();
        for (kind, most) in [("f32", 1e-4), ("bf16", 0.1), ("f16", 0.02), ("q8_0", 0.2)] {
            let merged = format!("{name}-{kind}.gguf");
            place.succeed(&["merge", "run", &merged, "--type", kind]);
            let found = ours(&place.path(&merged), &prompts).concat();
            let worst = difference(&found, &own, false);
            assert!(worst < most, "{name}, {kind}: {worst}");
        }
    }
    place.succeed(&["export", "run", "lora.gguf"]);
    for (arguments, wanted) in [
        (&["export", "run", "lora.gguf"][..], "is there already"),
        (&["export", "run", "lora.bin"], "does not end in `.gguf`"),
        (
            &["merge", "run", "out", "--type", "f16"],
            "`--type` belongs to a GGUF file",
        ),
    ] {
        let error = place.fail(2, arguments);
        assert!(error.contains(wanted), "{error}");
    }
    for (delta, wanted) in [
        (
            "insert low = prefix { tokens = 2 } before **.attn",
            "its deltas are no LoRA",
        ),
        (
            "insert low = houlsby { bottleneck = 4 } after **.ff",
            "it cannot be a GGUF adapter",
        ),
        (
            "reparam low = lora { rank = 2 } on embeddings.word",
            "llama.cpp has no LoRA at the table",
        ),
    ] {
        place.write(
            "small.delta",
            pipeline("blocks.gguf", "dropout = off", delta).as_bytes(),
        );
        place.succeed(&["small.delta", "--quiet", "--out", "other"]);
        let error = place.fail(2, &["export", "other", "other.gguf"]);
        assert!(
            error.contains(wanted.trim_start_matches("it ")),
            "{delta}: {error}"
        );
        std::fs::remove_dir_all(place.path("other")).unwrap();
    }
}
