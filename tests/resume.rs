//! Determinism, interruption, resumption, and a loss that is no number.

use std::process::Command;

use crate::common::place::{Place, PIPELINE};

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
    std::thread::sleep(std::time::Duration::from_millis(300));
    let status = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success());
    child.wait().unwrap().code()
}

/// Ctrl-C of a terminal reaches all processes of a command, and an event's reader is not one of them: it gets all events.
#[cfg(unix)]
#[test]
fn an_interrupted_run_tells_all_its_events() {
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    let long = PIPELINE.replace("steps = 12", "steps = 100000");
    place.write(
        "long.delta",
        long.replace("pipeline small", "pipeline long").as_bytes(),
    );
    let mut child = place
        .command(&["long.delta", "--quiet", "--on-event", "cat > events.jsonl"])
        .process_group(0)
        .spawn()
        .unwrap();
    let events = place.path("events.jsonl");
    while std::fs::metadata(&events).map_or(0, |found| found.len()) < 5_000 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let group = format!("-{}", child.id());
    let status = Command::new("kill").args(["-INT", "--", &group]).status();
    assert!(status.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let log = std::fs::read(place.path("runs/long.partial/log.jsonl")).unwrap();
    assert!(log == std::fs::read(events).unwrap());
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let place = Place::new();
    let long = PIPELINE
        .replace("steps = 12", "steps = 1200")
        .replace("pipeline small", "pipeline long");
    let first = long[long.find("stage tune").unwrap()..]
        .replace("stage tune", "stage more")
        .replace("steps = 1200", "steps = 30");
    place.write("long.delta", (long + first.as_str()).as_bytes());
    place.succeed(&["long.delta", "--quiet", "--out", "whole"]);

    assert_eq!(stop(&place, "-INT"), Some(130));
    assert_eq!(place.runs(), ["long.partial"]);
    // To look at an unfinished run takes nothing from it.
    let checkpoint = || std::fs::read(place.path("runs/long.partial/checkpoint.safetensors"));
    let before = checkpoint().unwrap();
    assert!(place.succeed(&["runs", "runs"]).contains("interrupted"));
    let unfinished = "runs/long.partial";
    for command in [
        &["compare", unfinished, "whole"][..],
        &["replay", unfinished],
        &["eval", unfinished],
        &["long.delta", "--out", unfinished],
    ] {
        place.fail(2, command);
        assert!(checkpoint().unwrap() == before, "{command:?}");
    }
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

/// So does a run of another task: with the reference of its pairs, with texts that it writes.
#[cfg(unix)]
#[test]
fn an_interrupted_run_of_any_task_goes_on_to_the_same_bits() {
    for (backbone, task) in [
        ("llama", "instruct { prompt = text, answer = good }"),
        ("llama", "prefer { prompt = text, chosen = good, rejected = bad, loss = dpo }"),
        ("llama", "choose { prompt = text, answers = choices, label = key }"),
        ("backbone", "tag { tokens = words, tags = tags }"),
        ("t5", "seq2seq { source = text, target = good, metric = bleu, generate = { max_tokens = 3 } }"),
    ] {
        let place = crate::common::place::Place::of_tasks();
        let head = if task.starts_with("tag") { ", head" } else { "" };
        let text = format!(
            "pipeline long\nbackbone \"{backbone}\" {{ max_length = 24 }}\n\
             data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }}\n\
             task {task}\n\
             reparam low = lora {{ rank = 2, dropout = 0.1 }} on **.{{q,v}}\n\
             stage tune {{ train = [low{head}], steps = 1600, batch = 4, optimizer = adamw {{ lr = 1e-3 }}, evaluate = every 400 steps }}\n"
        );
        place.write("long.delta", text.as_bytes());
        place.succeed(&["long.delta", "--quiet", "--out", "whole"]);
        assert_eq!(stop(&place, "-INT"), Some(130), "{task}");
        assert_eq!(place.runs(), ["long.partial"], "{task}");
        place.succeed(&["long.delta", "--quiet"]);
        let read = |name: &str| std::fs::read(place.path(name)).unwrap();
        assert!(read("whole/delta.safetensors") == read("runs/long/delta.safetensors"), "{task}");
    }
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint() {
    let place = Place::new();
    let text = PIPELINE
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
    let message = regex::Regex::new(r"step \d+: the loss is \S+,")
        .unwrap()
        .replace(&message, "step N: the loss is X,")
        .into_owned();
    insta::assert_snapshot!(message);
    assert!(place
        .path("runs/small.partial/checkpoint.safetensors")
        .exists());
}

/// What the first model made of the pairs is in the checkpoint; pairs that changed meanwhile are refused, whatever is accepted.
#[cfg(unix)]
#[test]
fn pairs_that_changed_have_no_reference() {
    let place = Place::of_tasks();
    let text = "pipeline long\nbackbone \"llama\" { max_length = 24 }\n\
                data { train = jsonl(\"pairs.jsonl\"), dev = jsonl(\"pairs.jsonl\") }\n\
                task prefer { prompt = prompt, chosen = chosen, rejected = rejected }\n\
                reparam low = lora on **.q\n\
                stage tune { train = [low], steps = 100000, batch = 2, optimizer = adamw { lr = 1e-4 } }\n";
    place.write("long.delta", text.as_bytes());
    let pair = "{\"prompt\": \"a film\", \"chosen\": \" fine\", \"rejected\": \" dull\"}\n";
    place.write("pairs.jsonl", pair.repeat(4).as_bytes());
    assert_eq!(stop(&place, "-INT"), Some(130));
    place.write("pairs.jsonl", pair.repeat(5).as_bytes());
    let said = place.fail(2, &["long.delta", "--quiet", "--allow-changed"]);
    assert!(said.contains("on other inputs"), "{said}");
}
