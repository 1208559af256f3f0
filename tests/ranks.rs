//! One run on several processes, by MPI: the bits of one process, processes that die, and processes that differ.
//!
//!     cargo test --release --features mpi --test ranks

#[path = "common/place.rs"]
mod place;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use place::{Place, PIPELINE};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// `mpirun` with these processes of deltarun.
fn mpirun(place: &Place, ranks: usize, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args([
        "--allow-run-as-root",
        "--oversubscribe",
        "-n",
        &ranks.to_string(),
    ]);
    command.arg(env!("CARGO_BIN_EXE_deltarun")).args(arguments);
    command.args(["--threads", "1"]).current_dir(place.path(""));
    if arguments[0].ends_with(".delta") {
        command.arg("--quiet");
    }
    command
}

fn succeed(mut command: Command) {
    let output = command.output().expect("mpirun");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The files of a run but for times and memory.
fn results(place: &Place, run: &str) -> (Vec<u8>, Vec<Value>, Value) {
    let read = |name: &str| std::fs::read(place.path(run).join(name)).unwrap();
    let log = String::from_utf8(read("log.jsonl")).unwrap();
    let mut events: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    for event in &mut events {
        event.as_object_mut().unwrap().remove("seconds");
    }
    let mut metrics: Value = serde_json::from_slice(&read("metrics.json")).unwrap();
    metrics.as_object_mut().unwrap().remove("peak_memory");
    for stage in metrics["stages"].as_array_mut().unwrap() {
        stage.as_object_mut().unwrap().remove("seconds");
    }
    (read("delta.safetensors"), events, metrics)
}

/// A pipeline of a task and a delta, with a batch that no number of processes divides.
fn pipeline(backbone: &str, task: &str, delta: &str, train: &str) -> String {
    format!(
        "pipeline run\nbackbone \"{backbone}\" {{ max_length = 24 }}\n\
         data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\"), test = jsonl(\"rows.jsonl\") }}\n\
         task {task}\n{delta}\n\
         stage tune {{ train = [{train}], steps = 8, batch = 7, accumulate = 2, optimizer = adamw {{ lr = 1e-3 }}, evaluate = every 4 steps }}\n"
    )
}

const CLASSIFY: &str = "classify { text = text, label = label, labels = [negative, positive] }";

#[test]
fn any_number_of_processes_gives_the_bits_of_one() {
    let place = Place::of_tasks();
    let lora = "reparam low = lora { rank = 2, dropout = 0.1 } on **.{q,v}";
    for (backbone, task, delta, train) in [
        ("backbone", CLASSIFY, lora, "low, head"),
        ("backbone", CLASSIFY, "unfreeze biases = **.bias", "biases, head"),
        ("backbone", CLASSIFY, "reparam ada = adalora { rank = 4, target_rank = 2, warmup = 1, last = 2 } on **.{q,v}", "ada, head"),
        ("backbone", "tag { tokens = words, tags = tags }", lora, "low, head"),
        ("llama", "instruct { prompt = text, answer = good }", lora, "low"),
        ("llama", "prefer { prompt = text, chosen = good, rejected = bad, loss = dpo }", lora, "low"),
        ("t5", "seq2seq { source = text, target = good, metric = bleu, generate = { max_tokens = 3 } }", lora, "low"),
        // The activations below the last block are kept by the process that computes them.
        ("backbone", CLASSIFY, "insert top = pfeiffer { bottleneck = 4 } after block[last 1].ff", "top, head"),
    ] {
        place.write("run.delta", pipeline(backbone, task, delta, train).as_bytes());
        succeed(mpirun(&place, 1, &["run.delta", "--out", "ranks1"]));
        let one = results(&place, "ranks1");
        place.succeed(&["run.delta", "--quiet", "--out", "alone"]);
        assert!(results(&place, "alone") == one, "{task}, {delta}: mpirun -n 1");
        for ranks in [2, 3, 4] {
            let out = format!("ranks{ranks}");
            succeed(mpirun(&place, ranks, &["run.delta", "--out", &out]));
            assert!(results(&place, &out) == one, "{task}, {delta}: {ranks} processes");
            std::fs::remove_dir_all(place.path(&out)).unwrap();
        }
        for run in ["ranks1", "alone"] {
            std::fs::remove_dir_all(place.path(run)).unwrap();
        }
    }
}

/// Texts too are written by all processes, and shown once.
#[test]
fn eval_is_shared_and_what_processes_would_repeat_is_refused() {
    let place = Place::of_tasks();
    let rows = std::fs::read(place.path("rows.jsonl")).unwrap();
    place.write("rows.jsonl", &rows.repeat(3));
    let task =
        "seq2seq { source = text, target = good, metric = bleu, generate = { max_tokens = 3 } }";
    let lora = "reparam low = lora { rank = 2 } on **.{q,v}";
    place.write("run.delta", pipeline("t5", task, lora, "low").as_bytes());
    place.succeed(&["run.delta", "--quiet", "--out", "run"]);
    let output = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let mut alone = Command::new(env!("CARGO_BIN_EXE_deltarun"));
    alone.args(["eval", "run"]).current_dir(place.path(""));
    let alone = output(alone);
    assert!(alone.contains("bleu"), "{alone}");
    for ranks in [2, 3] {
        assert_eq!(output(mpirun(&place, ranks, &["eval", "run"])), alone);
    }
    let refused = mpirun(&place, 2, &["predict", "run"]).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("start the command by itself"), "{error}");
}

/// Gradients that are too large to be sent group by group: the same bits for the same number of processes, and nearly
/// those of one.
#[test]
fn full_fine_tuning_gives_the_same_bits_for_the_same_number_of_processes() {
    let place = Place::of_tasks();
    place.write(
        "run.delta",
        pipeline("backbone", CLASSIFY, "unfreeze all = **", "all, head").as_bytes(),
    );
    place.succeed(&["run.delta", "--quiet", "--out", "alone"]);
    let losses = |run: &str| -> Vec<f64> {
        let (_, events, _) = results(&place, run);
        let losses = events.iter().filter_map(|event| event["loss"].as_f64());
        losses.collect()
    };
    for ranks in [2, 3] {
        for out in ["first", "second"] {
            succeed(mpirun(&place, ranks, &["run.delta", "--out", out]));
        }
        assert!(results(&place, "first") == results(&place, "second"));
        let (found, expected) = (losses("first"), losses("alone"));
        assert!(found.len() == 8 && expected.len() == 8);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
        for out in ["first", "second"] {
            std::fs::remove_dir_all(place.path(out)).unwrap();
        }
    }
}

/// A place with a run that takes a while and saves its state.
fn long_place() -> Place {
    let place = Place::new();
    let long = PIPELINE
        .replace("steps = 12", "steps = 900")
        .replace("every 4 steps", "every 100 steps")
        .replace("pipeline small", "pipeline long");
    let second = long[long.find("stage tune").unwrap()..]
        .replace("stage tune", "stage more")
        .replace("steps = 900", "steps = 30");
    place.write("long.delta", (long + &second).as_bytes());
    place
}

/// Ends the program within these seconds, or fails.
fn ends_within(mut child: std::process::Child, seconds: u64, what: &str) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > Duration::from_secs(seconds) {
            child.kill().unwrap();
            panic!("{what}: it hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// The numbers of the processes of deltarun that work in a place.
fn processes(place: &Place) -> Vec<u32> {
    let folder = place.path("").canonicalize().unwrap();
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_own = |number: &u32| {
        let link = |name: &str| std::fs::read_link(format!("/proc/{number}/{name}")).ok();
        let is_here = link("cwd").is_some_and(|cwd| cwd == folder);
        is_here && link("exe").is_some_and(|exe| exe.ends_with("deltarun"))
    };
    numbers.filter(is_own).collect()
}

/// A process that is killed ends all, with a message, and another number of processes goes on to the same bits.
#[test]
fn a_killed_process_ends_all_and_loses_nothing() {
    let place = long_place();
    place.succeed(&["long.delta", "--quiet", "--out", "whole"]);
    let mut random = ChaCha8Rng::seed_from_u64(3);
    let mut killed = 0;
    let kills = if std::env::var_os("DELTARUN_FAULTS").is_some() {
        30
    } else {
        6
    };
    for kill in 0..kills {
        let ranks = 2 + kill % 3;
        let mut command = mpirun(&place, ranks, &["long.delta"]);
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let started = Instant::now();
        while processes(&place).len() < ranks && started.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(random.random_range(0..900)));
        let all = processes(&place);
        if let Some(victim) = all.get(random.random_range(0..ranks)) {
            let status = Command::new("kill")
                .args(["-KILL", &victim.to_string()])
                .status();
            assert!(status.unwrap().success());
        }
        let output = ends_within(child, 10, &format!("kill {kill}"));
        if place.path("runs/long").exists() {
            assert!(
                results(&place, "runs/long") == results(&place, "whole"),
                "kill {kill}"
            );
            std::fs::remove_dir_all(place.path("runs/long")).unwrap();
            continue;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "kill {kill}: {error}");
        assert!(error.contains("mpirun"), "kill {kill}: {error}");
        killed += 1;
    }
    assert!(
        2 * killed >= kills,
        "only {killed} of {kills} runs were killed on their way"
    );
    succeed(mpirun(&place, 2, &["long.delta"]));
    assert!(results(&place, "runs/long") == results(&place, "whole"));
}

/// A process that differs from the first is named before anything is written, and so is a mistake of all, once.
#[test]
fn processes_that_differ_are_refused() {
    let place = Place::new();
    let other = Place::new();
    let here = place.path("").display().to_string();
    let there = other.path("").display().to_string();
    let program = env!("CARGO_BIN_EXE_deltarun");
    // The numbers of threads differ as well.
    let run = || {
        let mut command = Command::new("mpirun");
        command.args([
            "--allow-run-as-root",
            "--oversubscribe",
            "-n",
            "1",
            "-wdir",
            &here,
            program,
        ]);
        command.args([
            "small.delta",
            "--quiet",
            "--threads",
            "1",
            ":",
            "-n",
            "1",
            "-wdir",
            &there,
            program,
        ]);
        command.args(["small.delta", "--quiet", "--threads", "3"]);
        command.output().unwrap()
    };
    // The same files at other paths are the same.
    let output = run();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    place.succeed(&["small.delta", "--quiet", "--out", "alone"]);
    assert!(results(&place, "runs/small") == results(&place, "alone"));
    assert!(!other.path("runs").exists());
    std::fs::remove_dir_all(place.path("runs")).unwrap();

    let train = std::fs::read_to_string(other.path("train.tsv")).unwrap();
    assert!(train.contains("film"));
    other.write("train.tsv", train.replacen("film", "play", 1).as_bytes());
    let output = run();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(
        error.contains("process 1 differs from process 0 in `train`"),
        "{error}"
    );
    assert!(!place.path("runs/small.partial").exists() && !place.path("runs/small").exists());

    place.write(
        "wrong.delta",
        PIPELINE.replace("rank = 2", "rnk = 2").as_bytes(),
    );
    let output = mpirun(&place, 3, &["wrong.delta"]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert_eq!(error.matches("did you mean `rank`?").count(), 1, "{error}");
}
