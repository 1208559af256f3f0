//! The command itself, on the quickstart's tiny BERT and small data: what a run leaves, and what it accepts.

use std::path::Path;

use crate::common::json_fixture;
use crate::common::place::{Place, PIPELINE};
use serde_json::Value;

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
    for option in ["--text", "--source-prefix"] {
        let message = place.fail(
            2,
            &[
                "predict",
                "runs/small",
                option,
                "text",
                "--input",
                "input.jsonl",
            ],
        );
        assert!(message.contains(option), "{message}");
    }
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
fn the_plan_shows_what_is_trained() {
    let place = Place::new();
    let text = place.succeed(&["plan", "small.delta", "--threads", "2"]);
    // The estimate of the time depends on the machine.
    let text = regex::Regex::new(r"\d+\.\d ms per step")
        .unwrap()
        .replace_all(&text, "N ms per step")
        .into_owned();
    insta::assert_snapshot!(text);
}

/// A step of 48 texts of 16 tokens has 3 groups of 256 rows: 2 processes compute 2 of them at most, 4 compute one each.
#[test]
fn the_plan_estimates_steps_on_several_processes() {
    let place = Place::new();
    place.write(
        "wide.delta",
        PIPELINE.replace("batch = 8", "batch = 48").as_bytes(),
    );
    let text = place.succeed(&["plan", "wide.delta", "--threads", "1", "--processes", "8"]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let found = regex::Regex::new(
        r"and ([\d.]+) ms per step.*processes 2: ([\d.]+) ms, 4: ([\d.]+) ms, 8: ([\d.]+) ms per step; more than 4 gain little\. A step has 3 groups",
    )
    .unwrap();
    let found = found.captures(&text).unwrap_or_else(|| panic!("{text}"));
    let [one, two, four, eight] = [1, 2, 3, 4].map(|n| found[n].parse::<f64>().unwrap());
    assert!((two - one * 2.0 / 3.0).abs() < 0.11, "{text}");
    assert!((four - one / 3.0).abs() < 0.11 && eight == four, "{text}");
}

/// A rate so small that no prediction changes: each evaluation has the same accuracy and a lower loss.
#[test]
fn of_equal_scores_the_one_with_less_loss_is_kept() {
    let place = Place::new();
    let text = PIPELINE.replace("lr = 1e-3", "lr = 1e-7");
    place.write("small.delta", text.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    let metrics = std::fs::read_to_string(place.path("runs/small/metrics.json")).unwrap();
    let metrics: Value = serde_json::from_str(&metrics).unwrap();
    let log = std::fs::read_to_string(place.path("runs/small/log.jsonl")).unwrap();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let dev: Vec<Value> = lines
        .map(|line| line["dev"].clone())
        .filter(Value::is_object)
        .collect();
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(
        dev.len() > 2 && dev.iter().all(|one| one["accuracy"] == dev[0]["accuracy"]),
        "{log}"
    );
    assert!(
        number(&dev[dev.len() - 1]["loss"]) < number(&dev[0]["loss"]),
        "{log}"
    );
    assert_eq!(
        metrics["stages"][0]["kept_step"],
        metrics["stages"][0]["steps"]
    );
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
        let text = PIPELINE.replace(
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
    let text = PIPELINE;
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
        PIPELINE.replace("    text = text\n", &task)
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

/// A delta that begins as that of a finished run: the same predictions without a step, and refused where
/// the run, its delta or its backbone is another one.
#[test]
fn a_delta_goes_on_from_another_run() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let declared = "on block.*.attn.{q,v}";
    assert!(PIPELINE.contains(declared), "{PIPELINE}");
    let from = |run: &str| PIPELINE.replace(declared, &format!("{declared} from \"{run}\""));
    let head_only = from("runs/small").replace("train = [low_rank, head]", "train = [head]");
    place.write("other.delta", head_only.as_bytes());
    place.succeed(&["other.delta", "--quiet", "--out", "runs/other"]);
    let delta = |run: &str| {
        let path = place.path(run).join("delta.safetensors");
        let bytes = std::fs::read(path).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let of_delta = tensors.tensors().into_iter();
        let of_delta = of_delta.filter(|(name, _)| name.starts_with("low_rank."));
        let mut all: Vec<(String, Vec<u8>)> = of_delta
            .map(|(name, view)| (name, view.data().to_vec()))
            .collect();
        all.sort();
        all
    };
    assert!(!delta("runs/small").is_empty());
    assert!(
        delta("runs/small") == delta("runs/other"),
        "it was in place, and not trained"
    );

    let refused = |text: String| {
        place.write("other.delta", text.as_bytes());
        place.fail(2, &["other.delta", "--quiet", "--out", "runs/third"])
    };
    insta::assert_snapshot!("origin_that_is_no_run", refused(from("runs")));
    let renamed = from("runs/small").replace("low_rank", "low_rnk");
    insta::assert_snapshot!("origin_without_the_delta", refused(renamed));
    let other = from("runs/small").replace("attn.{q,v}", "attn.{q,k}");
    insta::assert_snapshot!("origin_with_another_delta", refused(other));
    let changed = std::fs::read(place.path("backbone/model.safetensors")).unwrap();
    let mut changed: Vec<u8> = changed;
    *changed.last_mut().unwrap() ^= 1;
    place.write("backbone/model.safetensors", &changed);
    insta::assert_snapshot!("origin_on_another_backbone", refused(from("runs/small")));
}

/// A backbone without weights and tokenizer is named as such, and enough for `--config-only`.
#[test]
fn check_says_what_the_backbone_lacks_unless_it_is_to_read_its_config_alone() {
    let place = Place::new();
    std::fs::remove_file(place.path("backbone/model.safetensors")).unwrap();
    std::fs::remove_file(place.path("backbone/tokenizer.json")).unwrap();
    let stage = |number: usize| {
        format!("stage s{number} {{\n    train = [low_rank, head]\n    steps = 1\n    optimizer = adamw {{ lr = 1e-3 }}\n}}\n")
    };
    let text = format!("{PIPELINE}{}", (0..19).map(stage).collect::<String>());
    place.write("small.delta", text.as_bytes());
    let said = place.succeed(&["check", "small.delta", "--config-only"]);
    assert!(said.contains("not checked: the tokenizer"), "{said}");
    let said = place.succeed(&["plan", "small.delta", "--config-only"]);
    assert!(said.contains("block[0..3].attn.q"), "{said}");
    assert!(said.contains("not read: the tokenizer"), "{said}");
    // A label word needs the tokenizer, but for what it says of shapes.
    let words = text.replace(
        "task classify {",
        "task classify {\n    template = \"{text} {mask}\"\n    words = { negative = \"bad\", positive = \"good\" }\n",
    );
    let words = words.replace("    text = text\n", "");
    place.write("words.delta", words.as_bytes());
    let said = place.succeed(&["plan", "words.delta", "--config-only"]);
    assert!(said.contains("not read"), "{said}");
    place.fail(2, &["plan", "words.delta"]);
    let message = place.fail(2, &["check", "small.delta"]);
    for missing in ["tokenizer.json", "model.safetensors"] {
        assert!(
            message.contains(&format!("has no `{missing}`")),
            "{message}"
        );
    }
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
        PIPELINE
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
    // One that reads the language model's head, which the weights say more of, waits for them just the same.
    let cloze = PIPELINE
        .replace("pipeline small", "pipeline cloze")
        .replace("    text = text\n", "    template = \"{text} so i {mask} it .\"\n    words = { negative = \"hated\", positive = \"loved\" }\n")
        .replace("[low_rank, head]", "[low_rank]")
        .replace("\"backbone\"", "\"hf:some/bert\"");
    place.write("cloze.delta", cloze.as_bytes());
    for file in ["small.delta", "cloze.delta"] {
        assert!(run(&["check", file]).status.success(), "{file}");
        let missing = run(&[file, "--quiet"]);
        let message = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert_eq!(missing.status.code(), Some(1), "{message}");
        assert!(
            message.contains("hf:some/bert") && message.contains("help:"),
            "{message}"
        );
    }
    // A T5 whose head may be its own: what is trained is known when the weights are there.
    let t5 = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/architectures/t5");
    let repository = place.path("cache/hub/models--some--t5");
    std::fs::create_dir_all(repository.join("refs")).unwrap();
    std::fs::create_dir_all(repository.join("snapshots/abc")).unwrap();
    std::fs::write(repository.join("refs/main"), "abc").unwrap();
    for file in ["config.json", "tokenizer.json"] {
        let place = repository.join("snapshots/abc").join(file);
        std::fs::copy(Path::new(t5).join(file), place).unwrap();
    }
    let own = "backbone \"hf:some/t5\" { max_length = 32 }\n\
               data { train = tsv(\"train.tsv\") }\n\
               task seq2seq { source = text, target = label }\n\
               stage tune { train = [head], steps = 2, optimizer = adamw { lr = 1e-3 } }\n";
    place.write("own.delta", own.as_bytes());
    place.write("local.delta", own.replace("hf:some/t5", t5).as_bytes());
    let unfrozen = own.replace("train = [head]", "train = [words]");
    let unfrozen = unfrozen.replace("stage", "unfreeze words = lm_head.weight\nstage");
    place.write("unfrozen.delta", unfrozen.as_bytes());
    for file in ["own.delta", "unfrozen.delta"] {
        assert!(run(&["check", file]).status.success(), "{file}");
        assert_eq!(run(&[file, "--quiet"]).status.code(), Some(1), "{file}");
    }
    // Other mistakes are said before anything is downloaded.
    place.write(
        "wrong.delta",
        own.replace("steps = 2", "stepz = 2").as_bytes(),
    );
    assert_eq!(run(&["wrong.delta", "--quiet"]).status.code(), Some(2));
    // The weights that are here say that there is nothing to train; without a look at them, it is not said.
    assert!(run(&["check", "local.delta", "--config-only"])
        .status
        .success());
    assert_eq!(run(&["check", "local.delta"]).status.code(), Some(2));
    std::fs::copy(
        place.path("backbone/model.safetensors"),
        snapshot.join("model.safetensors"),
    )
    .unwrap();
    for file in ["small.delta", "cloze.delta"] {
        assert!(run(&[file, "--quiet"]).status.success(), "{file}");
    }
}

/// PEFT stores no text before sources: an adapter's README has it, and `eval` is told it.
#[test]
fn an_adapter_of_a_task_with_a_prefix_is_told_it() {
    let place = Place::new();
    let backbone = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/architectures/t5");
    let text = format!(
        r#"
        backbone "{backbone}" {{ max_length = 32 }}
        data {{ train = tsv("train.tsv"), dev = tsv("dev.tsv") }}
        task seq2seq {{ source = text, target = label, prefix = "good : " }}
        reparam delta = lora {{ rank = 2 }} on **.attn.q
        stage tune {{ train = [delta], steps = 4, batch = 8, optimizer = adamw {{ lr = 1e-3 }} }}
        "#
    );
    place.write("t5.delta", text.as_bytes());
    place.succeed(&["t5.delta", "--quiet", "--out", "run"]);
    let readme = std::fs::read_to_string(place.path("run/peft/README.md")).unwrap();
    assert!(readme.contains("begin with `good : `"), "{readme}");
    let loss = |arguments: &[&str]| {
        let common = ["--data", "dev.tsv", "--format", "json"];
        let text = place.succeed(&[&["eval"], arguments, &common].concat());
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["metrics"]["loss"].as_f64().unwrap()
    };
    let adapter = ["run/peft", "--backbone", backbone, "--text", "text,label"];
    let told = loss(&[&adapter[..], &["--source-prefix", "good : "]].concat());
    assert!((loss(&["run"]) - told).abs() < 1e-5);
    assert!((loss(&adapter) - told).abs() > 1e-3);
}

/// What is trained in a decoder alone, or above it, is evaluated as it is trained: nothing begins in the middle of two
/// stacks.
#[test]
fn a_decoder_that_is_trained_alone_is_evaluated_from_its_beginning() {
    let place = Place::new();
    let backbone = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/architectures/t5");
    for (name, statement, train) in [
        ("head", "", "head"),
        (
            "decoder",
            "reparam delta = lora { rank = 2 } on decoder.block[last 1].cross.q",
            "delta, head",
        ),
    ] {
        let text = format!(
            r#"
            backbone "{backbone}" {{ max_length = 32 }}
            data {{ train = tsv("train.tsv"), dev = tsv("dev.tsv") }}
            task classify {{ text = text, label = label, labels = [negative, positive], metric = loss }}
            {statement}
            stage tune {{ train = [{train}], epochs = 2, batch = 8, optimizer = adamw {{ lr = 1e-3 }}, keep = last }}
            "#
        );
        place.write("t5.delta", text.as_bytes());
        place.succeed(&["t5.delta", "--quiet", "--out", name]);
        let metrics = std::fs::read_to_string(place.path(name).join("metrics.json")).unwrap();
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
        let stages = metrics["stages"].as_array().unwrap();
        let in_training = stages[0]["dev"]["metrics"]["loss"].as_f64().unwrap();
        let text = place.succeed(&["eval", name, "--data", "dev.tsv", "--format", "json"]);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let alone = json["metrics"]["loss"].as_f64().unwrap();
        assert!(
            (in_training - alone).abs() < 1e-6,
            "{name}: {in_training} {alone}"
        );
    }
}

/// Published protocols are ready but for weights and data: their files are sound for a model of the family, and the plan
/// tells what a step takes.
#[test]
fn published_protocols_are_planned_from_a_configuration() {
    let place = Place::new();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, model) in [
        ("metamath", "llama-3.2-1b-instruct"),
        ("t5_text_to_text", "t5-small"),
    ] {
        let published = json_fixture(&format!("published/{model}.json"));
        std::fs::create_dir(place.path(model)).unwrap();
        place.write(
            &format!("{model}/config.json"),
            published["config"].to_string().as_bytes(),
        );
        let path = root.join(format!("pipelines/published/{file}.delta"));
        let path = path.to_str().unwrap();
        let model = format!("model={}", place.path(model).display());
        place.succeed(&["check", path, "--config-only", "--set", &model]);
        let plan = place.succeed(&["plan", path, "--config-only", "--set", &model]);
        assert!(plan.contains("per step"), "{plan}");
    }
}

/// `quickstart` needs no file: it writes its own, leaves those that are there, and gives the run of the repository's.
#[test]
fn the_quickstart_is_in_the_binary() {
    let place = Place::new();
    let text = place.succeed(&["quickstart", "--quiet"]);
    assert!(text.contains("test accuracy"), "{text}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart.delta");
    place.succeed(&[root.to_str().unwrap(), "--quiet", "--out", "own"]);
    let delta = |run: &str| std::fs::read(place.path(run).join("delta.safetensors")).unwrap();
    assert!(delta("runs/quickstart") == delta("own"));
    let changed = std::fs::read_to_string(place.path("quickstart.delta")).unwrap();
    let changed = changed.replace("seed = 42", "seed = 43");
    place.write("quickstart.delta", changed.as_bytes());
    let error = place.fail(2, &["quickstart", "--quiet"]);
    assert!(error.contains("runs/quickstart"), "{error}");
    place.succeed(&["quickstart", "--quiet", "--out", "again"]);
    let kept = std::fs::read_to_string(place.path("quickstart.delta")).unwrap();
    assert_eq!(kept, changed);
}

/// `--on-event` gets the lines of the log, in their order, and no run depends on who reads them.
#[cfg(unix)]
#[test]
fn events_are_those_of_the_log() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet", "--on-event", "cat > events.jsonl"]);
    let log = std::fs::read(place.path("runs/small/log.jsonl")).unwrap();
    assert!(log == std::fs::read(place.path("events.jsonl")).unwrap() && !log.is_empty());
    let output = place.run(&[
        "small.delta",
        "--quiet",
        "--out",
        "deaf",
        "--on-event",
        "exit 3",
    ]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let delta = |run: &str| std::fs::read(place.path(run).join("delta.safetensors")).unwrap();
    assert!(delta("deaf") == delta("runs/small"));
    place.write("s.rhai", b"print(1);");
    let error = place.fail(2, &["s.rhai", "--on-event", "cat"]);
    assert!(error.contains("only to pipelines"), "{error}");
}
