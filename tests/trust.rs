//! What a run's directory promises: one process at a time, the same run whatever the file's comments, and files
//! that are what the run left.

use std::fs;

use crate::common::place::{Place, PIPELINE};

fn finished() -> Place {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    place
}

/// Stops a run after its first stage, by a second stage whose loss is no number.
fn unfinished(place: &Place) -> String {
    let second = PIPELINE[PIPELINE.find("stage tune").unwrap()..]
        .replace("stage tune", "stage broken")
        .replace(
            "adamw { lr = 1e-3 }",
            "sgd { lr = 1000, weight_decay = 1 }\n    clip = off",
        )
        .replace("[low_rank, head]", "[low_rank, everything, head]");
    let text = PIPELINE.replace("reparam", "unfreeze everything = **\nreparam") + second.as_str();
    place.write("small.delta", text.as_bytes());
    place.fail(1, &["small.delta", "--quiet"]);
    text
}

#[test]
fn a_second_run_into_the_same_directory_is_told_of_the_first() {
    let place = Place::new();
    let long = PIPELINE.replace("steps = 12", "steps = 100000");
    place.write("small.delta", long.as_bytes());
    let mut first = place.command(&["small.delta", "--quiet"]).spawn().unwrap();
    while !place.path("runs/small.partial/manifest.yaml").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let message = place.fail(2, &["small.delta", "--quiet"]);
    let process = format!("process {}", first.id());
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(message.contains("delta::run::locked"), "{message}");
    assert!(message.contains(&process), "{message}");
    // A lock goes with the process that held it.
    place.write("small.delta", PIPELINE.as_bytes());
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(
        message.contains("`stages.tune.length.steps` was 100000 and is now 12"),
        "{message}"
    );
}

#[test]
fn what_the_file_means_makes_the_run_and_not_how_it_is_written() {
    let place = Place::new();
    let text = unfinished(&place);
    let log = fs::read(place.path("runs/small.partial/log.jsonl")).unwrap();
    let other = format!("# a comment\n\n{text}\n\n\n").replace("lr = 1e-3", "lr =   0.001");
    place.write("small.delta", other.as_bytes());
    let message = place.fail(1, &["small.delta", "--seed", "42"]);
    assert!(message.contains("broken: 12 steps"), "{message}");
    assert!(
        !message.contains("tune: 12 steps"),
        "it began again: {message}"
    );
    assert!(log.starts_with(b"{"));
    place.write(
        "small.delta",
        other.replace("dropout = 0.1", "dropout = 0.2").as_bytes(),
    );
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(
        message.contains("low_rank.change.method.method.dropout` was 0.1 and is now 0.2"),
        "{message}"
    );
}

#[test]
fn a_log_that_lost_its_end_is_said_and_not_filled_up() {
    let place = Place::new();
    unfinished(&place);
    let log = place.path("runs/small.partial/log.jsonl");
    let text = fs::read_to_string(&log).unwrap();
    let first = text.lines().next().unwrap().len() + 1;
    fs::write(&log, &text[..first]).unwrap();
    let message = place.fail(1, &["small.delta", "--quiet"]);
    assert!(message.contains("is truncated"), "{message}");
    assert!(!fs::read(&log).unwrap().contains(&0));
}

#[test]
fn data_and_backbone_that_changed_since_a_run_began_are_named() {
    let place = Place::new();
    unfinished(&place);
    let dev = fs::read_to_string(place.path("dev.tsv")).unwrap();
    place.write("dev.tsv", (dev.clone() + "good .\tpositive\n").as_bytes());
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(message.contains("dev.tsv` changed"), "{message}");
    let message = place.fail(1, &["small.delta", "--quiet", "--allow-changed"]);
    assert!(
        message.contains("dev.tsv` changed") && message.contains("not_a_number"),
        "{message}"
    );
    place.write("dev.tsv", dev.as_bytes());
    flip(&place, "backbone/tokenizer.json", |text| {
        text.replacen("\"lowercase\"", "\"lowercase\" ", 1)
    });
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(
        message.contains("the backbone's `tokenizer.json` changed"),
        "{message}"
    );
}

fn flip(place: &Place, file: &str, change: impl Fn(String) -> String) {
    let path = place.path(file);
    let old = fs::read_to_string(&path).unwrap();
    let new = change(old.clone());
    assert_ne!(old, new, "{file}");
    fs::write(path, new).unwrap();
}

/// Changes one bit in the middle of a file.
fn flip_bit(place: &Place, file: &str) {
    let mut bytes = fs::read(place.path(file)).unwrap();
    let middle = bytes.len() - 100;
    bytes[middle] ^= 1;
    fs::write(place.path(file), bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_not_gone_on_from() {
    let place = Place::new();
    unfinished(&place);
    flip_bit(&place, "runs/small.partial/checkpoint.safetensors");
    let message = place.fail(1, &["small.delta", "--quiet"]);
    assert!(
        message.contains("delta::run::checkpoint") && message.contains("damaged"),
        "{message}"
    );
}

#[test]
fn every_file_of_a_finished_run_is_held_to_its_record() {
    let place = finished();
    let asks: [&[&str]; 3] = [
        &["eval", "runs/small"],
        &["merge", "runs/small", "merged"],
        &["small.delta", "--quiet", "--out", "next"],
    ];
    let next = PIPELINE
        .replace("reparam", "# begins from the other\nreparam")
        .replacen(
            "on block.*.attn.{q,v}",
            "on block.*.attn.{q,v} from \"runs/small\"",
            1,
        );
    place.write("small.delta", next.as_bytes());
    let save = |file: &str| fs::read(place.path(file)).unwrap();
    for file in ["runs/small/delta.safetensors", "runs/small/plan.yaml"] {
        let old = save(file);
        match file.ends_with("yaml") {
            true => flip(&place, file, |text| {
                text.replacen("alpha: 4", "alpha: 5", 1)
            }),
            false => flip_bit(&place, file),
        }
        for ask in asks {
            let message = place.fail(2, ask);
            assert!(
                message.contains("has changed since the run wrote it"),
                "{ask:?}: {message}"
            );
            assert!(message.contains("--allow-changed"), "{ask:?}: {message}");
        }
        let output = place.run(&["eval", "runs/small", "--allow-changed"]);
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && notes.contains("has changed since the run wrote it"),
            "{notes}"
        );
        place.write(file, &old);
    }
    for file in ["backbone/tokenizer.json", "backbone/config.json"] {
        let old = save(file);
        flip(&place, file, |text| text + "\n");
        let message = place.fail(2, &["eval", "runs/small"]);
        assert!(
            message.contains("differs from when this run was trained"),
            "{message}"
        );
        place.write(file, &old);
    }
    place.succeed(&["eval", "runs/small"]);
}

/// What no file of ours could say is refused in words, not by a panic or an abort.
#[test]
fn a_plan_from_outside_is_checked() {
    let place = finished();
    let plan = fs::read_to_string(place.path("runs/small/plan.yaml")).unwrap();
    for (old, new, word) in [
        ("family: bert", "family: nobody", "family"),
        ("rank: 2", "rank: 9999999999", "rank"),
        ("heads: 4", "heads: 0", "dimension"),
        ("heads: 4", "heads: 7", "heads"),
        ("norm_epsilon: 1e-12", "norm_epsilon: .nan", "finite"),
        ("norm_epsilon: 1e-12", "norm_epsilon: -1", "epsilon"),
        ("block.0.attn.q", "block.9.attn.q", "block.9.attn.q"),
        ("max_length: 32", "max_length: 99999", "max_length"),
        (
            "name: small",
            "name: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[x",
            "nested",
        ),
    ] {
        assert!(plan.contains(old), "{old}\n{plan}");
        place.write(
            "runs/small/plan.yaml",
            plan.replacen(old, new, 1).as_bytes(),
        );
        let message = place.fail(2, &["eval", "runs/small", "--allow-changed"]);
        assert!(
            message.contains("plan.yaml` cannot be read"),
            "{new}: {message}"
        );
        assert!(message.contains(word), "{new}: {message}");
    }
}

#[test]
fn a_run_can_be_replayed_to_the_same_bits() {
    let place = finished();
    let said = place.succeed(&["replay", "runs/small", "--quiet"]);
    assert!(
        said.contains("delta.safetensors") && !said.contains("other"),
        "{said}"
    );
    assert!(!place.path("runs/small.replay").exists());
    // A figure that the run did not come to is found.
    let metrics = fs::read_to_string(place.path("runs/small/metrics.json")).unwrap();
    let changed = metrics.replacen("\"steps\": 12", "\"steps\": 13", 1);
    assert_ne!(metrics, changed);
    place.write("runs/small/metrics.json", changed.as_bytes());
    let message = place.fail(2, &["replay", "runs/small", "--quiet"]);
    assert!(
        message.contains("has changed since the run wrote it"),
        "{message}"
    );
    let message = place.fail(1, &["replay", "runs/small", "--quiet", "--allow-changed"]);
    assert!(message.contains("1 figure"), "{message}");
}

/// SIGTERM and SIGHUP stop a run as Ctrl-C does: at the end of a step, with a checkpoint.
#[cfg(unix)]
#[test]
fn signals_stop_a_run_at_a_checkpoint() {
    for signal in ["-TERM", "-HUP", "-INT"] {
        let place = Place::new();
        let long = PIPELINE.replace("steps = 12", "steps = 100000");
        place.write("small.delta", long.as_bytes());
        let mut command = place.command(&["small.delta", "--quiet"]);
        // Under `nohup`, these tests' own processes would ignore the signal.
        // SAFETY: setting a signal's disposition is allowed between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let mut run = command.spawn().unwrap();
        while !place.path("runs/small.partial/log.jsonl").exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        let kill = std::process::Command::new("kill")
            .args([signal, &run.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(run.wait().unwrap().code(), Some(130), "{signal}");
        assert!(
            place
                .path("runs/small.partial/checkpoint.safetensors")
                .exists(),
            "{signal}"
        );
    }
}

/// `nohup` keeps a run from ending with its terminal.
#[cfg(unix)]
#[test]
fn a_run_under_nohup_goes_on() {
    let place = Place::new();
    let long = PIPELINE.replace("steps = 12", "steps = 300");
    place.write("small.delta", long.as_bytes());
    let command = format!(
        "trap '' HUP; exec {} small.delta --quiet",
        env!("CARGO_BIN_EXE_deltarun")
    );
    let mut run = std::process::Command::new("sh")
        .args(["-c", &command])
        .current_dir(place.path(""))
        .spawn()
        .unwrap();
    while !place.path("runs/small.partial/log.jsonl").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill")
        .args(["-HUP", &run.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
    assert_eq!(run.wait().unwrap().code(), Some(0));
}

/// A directory that is not a run's is refused, and nothing in it is touched.
#[test]
fn a_directory_of_somebody_else_is_left_as_it_is() {
    let place = Place::new();
    fs::create_dir_all(place.path("runs/small.partial")).unwrap();
    for file in ["lock", "plan.yaml", "mine"] {
        place.write(&format!("runs/small.partial/{file}"), b"mine");
    }
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(
        message.contains("is not an unfinished run, but contains `mine`"),
        "{message}"
    );
    for file in ["lock", "plan.yaml", "mine"] {
        assert_eq!(
            fs::read(place.path(&format!("runs/small.partial/{file}"))).unwrap(),
            b"mine"
        );
    }
}

/// A template may have in it what YAML has a meaning for.
#[test]
fn a_plan_with_signs_of_yaml_in_its_texts_opens() {
    let place = Place::new();
    let text = PIPELINE
        .replace("    text = text\n", "")
        .replace("labels = [negative, positive]", "labels = [negative, positive]\n    template = \"{text} so [[: *{mask}* - &a\"\n    words = { negative = \"hated\", positive = \"loved\" }")
        .replace("[low_rank, head]", "[low_rank]");
    place.write("small.delta", text.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    place.succeed(&["eval", "runs/small"]);
}

/// Runs that 0.1.0 left open, with a word about what is not known of them; one that it began is not gone on with.
#[test]
fn runs_of_0_1_0_open_or_are_refused_by_their_version() {
    let place = Place::new();
    let old = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/run_0_1_0");
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/quickstart/dev.tsv");
    let output = place.run(&["eval", old, "--backbone", "backbone", "--data", data]);
    let said = String::from_utf8(output.stdout).unwrap();
    // What the binary of 0.1.0 printed.
    for figure in [
        "400 examples",
        "accuracy 50.5 %",
        "f1 0.5308",
        "loss 0.7212",
        "matthews 0.0101",
    ] {
        assert!(said.contains(figure), "{figure}: {said}");
    }
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(notes.contains("deltarun 0.1.0"), "{notes}");
    assert!(notes.contains("recorded no hashes"), "{notes}");
    fs::create_dir_all(place.path("runs/small.partial")).unwrap();
    fs::copy(
        format!("{old}/manifest.yaml"),
        place.path("runs/small.partial/manifest.yaml"),
    )
    .unwrap();
    let message = place.fail(2, &["small.delta", "--quiet"]);
    assert!(
        message.contains("was started by deltarun 0.1.0"),
        "{message}"
    );
}

/// Half of a run's files are not what it left, or what it read: `eval` says it before it gives a figure.
#[test]
fn eval_says_what_changed() {
    let place = Place::new();
    place.write("small.delta", PIPELINE.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    place.succeed(&["eval", "runs/small"]);
    let dev = fs::read(place.path("dev.tsv")).unwrap();
    place.write("dev.tsv", &[&dev[..], b"one more\tpositive\n"].concat());
    let message = place.fail(2, &["eval", "runs/small"]);
    assert!(
        message.contains("dev.tsv` has changed since the run read it"),
        "{message}"
    );
    place.succeed(&["eval", "runs/small", "--allow-changed"]);
    place.succeed(&["eval", "runs/small", "--data", "train.tsv"]);
    place.write("dev.tsv", &dev);
    let adapter = "runs/small/peft/adapter_model.safetensors";
    let mut bytes = fs::read(place.path(adapter)).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    place.write(adapter, &bytes);
    let message = place.fail(2, &["eval", "runs/small"]);
    assert!(
        message.contains("adapter_model.safetensors` has changed"),
        "{message}"
    );
}

/// A delta is for the backbone that it was trained on, and that is its configuration and tokenizer as well.
#[test]
fn a_delta_is_not_taken_for_a_changed_backbone() {
    let place = Place::new();
    place.write("small.delta", PIPELINE.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    let from = PIPELINE
        .replace("pipeline small", "pipeline more")
        .replace("attn.{q,v}", "attn.{q,v} from \"runs/small\"");
    assert!(from.contains("from \"runs"), "{from}");
    place.write("more.delta", from.as_bytes());
    place.succeed(&["check", "more.delta"]);
    for (file, old, new) in [
        (
            "config.json",
            "\"num_attention_heads\": 4",
            "\"num_attention_heads\": 2",
        ),
        (
            "config.json",
            "\"hidden_act\": \"gelu\"",
            "\"hidden_act\": \"relu\"",
        ),
        ("tokenizer.json", "\"acting\":7", "\"actign\":7"),
    ] {
        let path = format!("backbone/{file}");
        let text = fs::read_to_string(place.path(&path)).unwrap();
        let changed = text.replacen(old, new, 1);
        assert!(changed != text, "{old}");
        place.write(&path, changed.as_bytes());
        for command in [["check", "more.delta"], ["more.delta", "--quiet"]] {
            let message = place.fail(2, &command);
            assert!(
                message.contains("other_backbone")
                    && message.contains(&format!("`{file}` changed since")),
                "{message}"
            );
        }
        place.write(&path, text.as_bytes());
    }
}

/// A kill between the last rename and the removal of the lock leaves both: whoever opens the run next removes them.
#[test]
fn a_finished_run_keeps_no_lock() {
    let place = Place::new();
    place.write("small.delta", PIPELINE.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    for file in ["lock", "checkpoint.safetensors"] {
        place.write(&format!("runs/small/{file}"), b"1");
    }
    place.succeed(&["eval", "runs/small"]);
    for file in ["lock", "checkpoint.safetensors"] {
        assert!(
            !place.path(&format!("runs/small/{file}")).exists(),
            "{file}"
        );
    }
}

/// A path that no record can hold is the user's mistake, and no bug of ours.
#[cfg(unix)]
#[test]
fn a_path_that_is_not_utf8_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let folder = place.path("").join(std::ffi::OsStr::from_bytes(b"\xff"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("small.delta"), PIPELINE).unwrap();
    let mut command = place.command(&["check"]);
    let output = command.arg(folder.join("small.delta")).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains("is not UTF-8"), "{message}");
}

/// Figures that go through a file come back to the bit: with an ulp less, a tie of two evaluations is none.
#[test]
fn figures_come_back_from_files_to_the_bit() {
    for whole in 1..200u32 {
        for part in 0..=whole {
            let figure = f64::from(part) / f64::from(whole);
            let json = serde_json::to_string(&figure).unwrap();
            let yaml = serde_yaml::to_string(&figure).unwrap();
            assert_eq!(serde_json::from_str::<f64>(&json).unwrap(), figure);
            assert_eq!(serde_yaml::from_str::<f64>(&yaml).unwrap(), figure);
            let (figure, json) = (
                figure as f32,
                serde_json::to_string(&(figure as f32)).unwrap(),
            );
            assert_eq!(serde_json::from_str::<f32>(&json).unwrap(), figure);
        }
    }
}

/// A pooler that the checkpoint lacks is drawn and trained whole with the head: PEFT would drop a LoRA on it.
#[test]
fn a_delta_on_a_pooler_that_the_checkpoint_lacks_is_refused() {
    let place = Place::new();
    let on_pooler = PIPELINE.replace("block.*.attn.{q,v}", "{block.*.attn.{q,v},pooler}");
    assert_ne!(on_pooler, PIPELINE);
    place.write("small.delta", on_pooler.as_bytes());
    place.succeed(&["check", "small.delta"]);
    let weights = place.path("backbone/model.safetensors");
    let file = deltarun::backbone::Checkpoint::open_directory(&place.path("backbone")).unwrap();
    let kept = file
        .names()
        .into_iter()
        .filter(|name| !name.contains("pooler"));
    let tensors: std::collections::BTreeMap<String, (Vec<f32>, Vec<usize>)> = kept
        .map(|name| (name.to_owned(), file.read(name).unwrap()))
        .collect();
    deltarun::backbone::write_tensors(&weights, &tensors, None).unwrap();
    let message = place.fail(2, &["check", "small.delta"]);
    assert!(
        message.contains("changes `pooler`, which the checkpoint lacks"),
        "{message}"
    );
    place.write(
        "small.delta",
        on_pooler
            .replace("pooler}", "pooler} except pooler")
            .as_bytes(),
    );
    place.succeed(&["check", "small.delta"]);
}
