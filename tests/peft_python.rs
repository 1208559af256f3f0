//! A LoRA trained here, loaded by PEFT itself; the merged model, loaded by transformers; and a cloze
//! without training beside transformers' masked language model. Needs Python with torch, transformers and peft: `DELTARUN_PYTHON` names it, and `.ci/run` sets it.

use std::path::Path;
use std::process::Command;

/// GPT-2's fused projections, every kind of rank, several LoRAs at one module.
const PLACES: [(&str, &str); 3] = [
    (
        "one",
        "reparam a = lora { rank = 4, alpha = 9 } on block.*.attn.{q,v}",
    ),
    (
        "many",
        "reparam a = lora { rank = 4, alpha = 9 } on block.*.attn.{q,v}\n\
         reparam b = lora { rank = 2, alpha = 3 } on block[last 1].attn.{q,o}\n\
         reparam c = lora { rank = 3, alpha = 1 } on block.0.ff.down",
    ),
    ("upper", "reparam a = lora on block[1..3].{attn.o,ff.up}"),
];

#[test]
fn peft_and_transformers_load_what_a_run_leaves() {
    let Some(python) = std::env::var_os("DELTARUN_PYTHON") else {
        println!(
            "skipped: DELTARUN_PYTHON is not set to a Python with torch, transformers and peft"
        );
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let backbone = root.join("pipelines/quickstart/backbone");
    let folder = tempfile::TempDir::new().unwrap();
    let run = |arguments: &[&str]| -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_deltarun"))
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let dev = std::fs::read_to_string(root.join("pipelines/quickstart/dev.tsv")).unwrap();
    let texts: Vec<&str> = dev
        .lines()
        .skip(1)
        .take(40)
        .filter_map(|line| line.split('\t').next())
        .collect();
    let input: String = texts
        .iter()
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect();
    std::fs::write(folder.path().join("input.jsonl"), input).unwrap();
    for (name, statements) in PLACES {
        let names: Vec<&str> = statements
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        let pipeline = std::fs::read_to_string(root.join("pipelines/quickstart.delta")).unwrap();
        let start = pipeline.find("freeze **").unwrap();
        let stage = format!(
            "stage tune {{\n train = [{}, head]\n steps = 60\n optimizer = adamw {{ lr = 3e-3 }}\n}}\n",
            names.join(", ")
        );
        let text = format!("{}{statements}\n{stage}", &pipeline[..start])
            .replace("param rank = 8\n", "")
            .replace(
                "\"quickstart/",
                &format!("\"{}/pipelines/quickstart/", root.display()),
            );
        std::fs::write(folder.path().join("p.delta"), text).unwrap();
        run(&["p.delta", "--quiet", "--out", name]);
        let merged = format!("{name}-merged");
        run(&["merge", name, &merged]);
        let predicted: String = run(&["predict", name, "--input", "input.jsonl"])
            .lines()
            .zip(&texts)
            .map(|(line, text)| {
                let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["text"] = serde_json::json!(text);
                line.to_string() + "\n"
            })
            .collect();
        std::fs::write(folder.path().join("predicted.jsonl"), predicted).unwrap();
        let output = Command::new(&python)
            .arg(root.join("tests/python/check_peft.py"))
            .arg(&backbone)
            .args([name, &merged, "predicted.jsonl"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let report = String::from_utf8_lossy(&output.stdout);
        println!("{name}: {report}");
        assert!(
            output.status.success(),
            "{name}: {report} {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn zero_shot_logits_are_those_of_transformers() {
    let Some(python) = std::env::var_os("DELTARUN_PYTHON") else {
        println!("skipped: DELTARUN_PYTHON is not set to a Python with torch and transformers");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::TempDir::new().unwrap();
    let quickstart = root.join("pipelines/quickstart");
    let text = format!(
        r#"
        pipeline zero
        backbone "{0}/backbone"
        data {{ dev = tsv("{0}/dev.tsv") }}
        task classify {{
            label = label
            labels = [negative, positive]
            template = "{{text}} so i {{mask}} it ."
            words = {{ negative = "hated", positive = "loved" }}
        }}
        "#,
        quickstart.display()
    );
    std::fs::write(folder.path().join("zero.delta"), text).unwrap();
    let run = |arguments: &[&str]| -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_deltarun"));
        let output = command
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let table = run(&["zero.delta", "--quiet"]);
    assert!(table.contains("zero-shot"), "{table}");
    let dev = std::fs::read_to_string(quickstart.join("dev.tsv")).unwrap();
    let texts: Vec<&str> = dev
        .lines()
        .skip(1)
        .filter_map(|line| line.split('\t').next())
        .collect();
    let input: String = texts
        .iter()
        .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
        .collect();
    std::fs::write(folder.path().join("input.jsonl"), input).unwrap();
    let mut predicted = String::new();
    for (line, text) in run(&["predict", "runs/zero", "--input", "input.jsonl"])
        .lines()
        .zip(&texts)
    {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        line["text"] = serde_json::json!(text);
        predicted += &(line.to_string() + "\n");
    }
    std::fs::write(folder.path().join("predicted.jsonl"), predicted).unwrap();
    let output = Command::new(&python)
        .arg(root.join("tests/python/check_cloze.py"))
        .arg(quickstart.join("backbone"))
        .args([
            "predicted.jsonl",
            "{text} so i [MASK] it .",
            "hated",
            "loved",
        ])
        .current_dir(folder.path())
        .output()
        .unwrap();
    println!("{table}{}", String::from_utf8_lossy(&output.stdout));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
