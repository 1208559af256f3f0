//! Runs that are killed, or whose disk fails, at every call that changes a file: the same command then goes on to
//! the same bits. `shim.c` kills and fails; it is compiled here and loaded into the process.
//!
//! A part of the calls is tried; `DELTARUN_FAULTS=all` tries all of them, and more random moments.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

#[path = "../common/place.rs"]
mod place;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Duration;

use place::{Place, PIPELINE};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// `kill -9` in a shell's exit status is a signal here.
const KILLED: Option<i32> = None;

fn is_whole() -> bool {
    std::env::var_os("DELTARUN_FAULTS").is_some()
}

/// Two stages of a few steps: a start, a checkpoint at each stage's end, a finish.
fn place() -> Place {
    let place = Place::new();
    let text = PIPELINE.replace("steps = 12", "steps = 3");
    let second = text[text.find("stage tune").unwrap()..].replace("stage tune", "stage more");
    place.write("small.delta", (text.clone() + &second).as_bytes());
    place
}

/// Compiled once for all tests, which run side by side.
fn shim() -> PathBuf {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(compile_shim).clone()
}

fn compile_shim() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("faults_shim_{}.so", std::process::id()));
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/faults/shim.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w", "-o"])
        .args([library.as_os_str(), source.as_ref()])
        .args(["-ldl"])
        .status()
        .expect("a C compiler is needed to build deltarun");
    assert!(status.success());
    library
}

/// Runs of tasks that keep more than a delta: a reference of pairs, texts that are written, tags of words.
const TASKS: [(&str, &str, &str); 3] = [
    ("llama", "instruct { prompt = text, answer = good, metric = exact_match, generate = { max_tokens = 2 } }", "low"),
    ("llama", "prefer { prompt = text, chosen = good, rejected = bad, loss = dpo }", "low"),
    ("backbone", "tag { tokens = words, tags = tags }", "low, head"),
];

fn place_of((backbone, task, train): (&str, &str, &str)) -> Place {
    let place = Place::of_tasks();
    let text = format!(
        "pipeline small\nbackbone \"{backbone}\" {{ max_length = 24 }}\n\
         data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }}\n\
         task {task}\n\
         reparam low = lora {{ rank = 2, dropout = 0.1 }} on **.{{q,v}}\n\
         stage tune {{ train = [{train}], steps = 2, batch = 4, optimizer = adamw {{ lr = 1e-3 }}, evaluate = every 1 steps }}\n"
    );
    place.write("small.delta", text.as_bytes());
    place
}

struct Faults {
    place: Place,
    shim: PathBuf,
    /// The delta of a run without faults.
    expected: Vec<u8>,
    /// The calls of such a run.
    calls: usize,
}

impl Faults {
    fn new(place: Place) -> Self {
        let mut faults = Faults {
            place,
            shim: shim(),
            expected: Vec::new(),
            calls: 0,
        };
        let report = faults.place.path("report");
        let output = faults
            .command("whole")
            .env("FAULT_REPORT", &report)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        faults.calls = std::fs::read_to_string(report).unwrap().parse().unwrap();
        faults.expected = faults.delta("whole");
        assert!(faults.calls > 50, "the shim sees {} calls", faults.calls);
        faults
    }

    fn command(&self, out: &str) -> Command {
        let mut command = self
            .place
            .command(&["small.delta", "--quiet", "--out", out]);
        command.env("LD_PRELOAD", &self.shim);
        command.env("FAULT_DIR", self.place.path(""));
        command
    }

    fn fault(&self, out: &str, at: usize, errno: Option<i32>) -> Output {
        let mut command = self.command(out);
        command.env("FAULT_AT", at.to_string());
        if let Some(errno) = errno {
            command.env("FAULT_ERRNO", errno.to_string());
        }
        command.output().unwrap()
    }

    fn delta(&self, out: &str) -> Vec<u8> {
        std::fs::read(self.place.path(out).join("delta.safetensors")).unwrap()
    }

    /// The same command without a fault ends in the same bits, and nothing else is left of the way there.
    fn goes_on(&self, out: &str, what: &str) {
        if !self.place.path(out).exists() {
            let output = self.place.run(&["small.delta", "--quiet", "--out", out]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{what}: {error}");
            assert!(!error.contains("note:"), "{what}: {error}");
        }
        assert!(self.delta(out) == self.expected, "{what}: other bits");
        assert!(
            !self.place.path(&format!("{out}.partial")).exists(),
            "{what}"
        );
        // Its record holds: it can be asked.
        self.place.succeed(&["eval", out]);
        std::fs::remove_dir_all(self.place.path(out)).unwrap();
    }

    fn tried(&self, every: usize) -> impl Iterator<Item = usize> {
        let step = if is_whole() { 1 } else { every };
        (1..=self.calls).step_by(step)
    }
}

#[test]
fn a_kill_at_any_call_loses_nothing() {
    let faults = Faults::new(place());
    for at in faults.tried(5) {
        let output = faults.fault("out", at, None);
        assert_eq!(output.status.code(), KILLED, "call {at}: {output:?}");
        faults.goes_on("out", &format!("killed at call {at} of {}", faults.calls));
    }
}

#[test]
fn a_kill_at_any_call_of_any_task_loses_nothing() {
    for task in TASKS {
        let faults = Faults::new(place_of(task));
        for at in faults.tried(9) {
            let output = faults.fault("out", at, None);
            assert_eq!(output.status.code(), KILLED, "call {at}: {output:?}");
            faults.goes_on(
                "out",
                &format!("{}: killed at call {at} of {}", task.1, faults.calls),
            );
        }
    }
}

/// Lets the disk fail at some calls, with one of the errors or, if everything is tried, with each.
fn let_the_disk_fail(faults: &Faults, every: usize) {
    for (number, at) in faults.tried(every).enumerate() {
        let all = [libc::ENOSPC, libc::EIO, libc::EACCES];
        let chosen = match is_whole() {
            true => &all[..],
            false => &all[number % 3..][..1],
        };
        for errno in chosen {
            let output = faults.fault("out", at, Some(*errno));
            let what = format!("error {errno} at call {at} of {}", faults.calls);
            let error = String::from_utf8_lossy(&output.stderr);
            // What only tidies up may fail unseen.
            if !output.status.success() {
                assert_eq!(output.status.code(), Some(1), "{what}: {error}");
                assert!(error.contains("help:"), "{what}: {error}");
                assert!(!error.contains("internal error"), "{what}: {error}");
            }
            faults.goes_on("out", &what);
        }
    }
}

#[test]
fn a_disk_that_fails_at_any_call_is_said_and_loses_nothing() {
    let_the_disk_fail(&Faults::new(place()), 7);
    for task in TASKS {
        let_the_disk_fail(&Faults::new(place_of(task)), 13);
    }
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let faults = Faults::new(place());
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let mut killed = 0;
    while killed < if is_whole() { 100 } else { 8 } {
        let mut child = faults
            .place
            .command(&["small.delta", "--quiet", "--out", "out"])
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        if faults.place.path("out").exists() || random.random_bool(0.3) {
            faults.goes_on("out", &format!("kill {killed}"));
        }
    }
}
