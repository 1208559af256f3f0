//! A script's runs by several processes: listed, run in parts, side by side, and as Slurm would run them.

use std::path::PathBuf;

use crate::common::place::{Place, PIPELINE};

/// Four runs that depend on nothing, and one that depends on the best of them.
const SCRIPT: &str = r#"
let runs = [];
for point in grid(#{ lr: [1e-3, 3e-3], seed: [1, 2] }) { runs.push(pipeline("grid.delta").set(point)); }
let rows = [];
let best = ();
for run in run_all(runs) {
    rows.push(#{ lr: run.params["lr"], accuracy: run.value, steps: run.steps });
    if best == () || run.value > best.value { best = run; }
}
let long = pipeline("grid.delta").set(#{ lr: best.params["lr"], seed: 3 }).run();
rows.push(#{ lr: long.params["lr"], accuracy: long.value, steps: long.steps });
let page = page("Grid");
page.table(["lr", "mean", "deviation", "n"], group(rows, ["lr"], "accuracy"));
page.save("grid.html");
print(table(["lr", "accuracy", "steps"], rows));
"#;

fn place() -> Place {
    let place = Place::new();
    let text = PIPELINE.replace("pipeline small", "pipeline small\n\nparam lr = 1e-3");
    let text = text
        .replace("lr = 1e-3 }", "lr = lr }")
        .replace("steps = 12", "steps = 20");
    place.write("grid.delta", text.as_bytes());
    place.write("grid.rhai", SCRIPT.as_bytes());
    place
}

fn page(place: &Place) -> Vec<u8> {
    std::fs::read(place.path("runs/grid/grid.html")).unwrap()
}

/// The directories of finished runs.
fn finished(place: &Place) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path("runs/grid")).unwrap();
    let runs = entries.flatten().map(|entry| entry.path());
    runs.filter(|run| run.join("metrics.json").exists())
        .collect()
}

#[test]
fn runs_are_listed_without_being_run() {
    let place = place();
    let listed = place.succeed(&["jobs", "grid.rhai"]);
    assert!(listed.contains("4 of 4 runs open"), "{listed}");
    assert!(
        listed.contains("further runs depend on their results"),
        "{listed}"
    );
    assert!(!listed.contains("accuracy"), "the script printed: {listed}");
    assert!(!place.path("runs").exists(), "a list leaves nothing");
    place.succeed(&["grid.rhai", "--quiet"]);
    let listed = place.succeed(&["jobs", "grid.rhai"]);
    assert!(listed.contains("0 of 5 runs open"), "{listed}");
    assert!(!listed.contains("further"), "{listed}");
    for command in ["jobs", "submit"] {
        let error = place.fail(2, &[command, "grid.delta"]);
        assert!(error.contains("run it: `deltarun grid.delta`"), "{error}");
    }
    // What is wrong with a pipeline is said before anything runs.
    place.write("wrong.rhai", br#"pipeline("none.delta").run();"#);
    let error = place.fail(2, &["jobs", "wrong.rhai"]);
    assert!(error.contains("none.delta"), "{error}");
}

#[test]
fn parts_of_a_script_leave_what_the_script_leaves() {
    let (whole, parts) = (place(), place());
    whole.succeed(&["grid.rhai", "--quiet"]);
    parts.succeed(&["grid.rhai", "--shard", "1/3"]);
    assert_eq!(finished(&parts).len(), 2);
    assert!(!parts.path("runs/grid/grid.html").exists());
    for part in ["2/3", "3/3"] {
        parts.succeed(&["grid.rhai", "--shard", part, "--quiet"]);
    }
    assert_eq!(finished(&parts).len(), 4);
    parts.succeed(&["grid.rhai", "--quiet"]);
    assert_eq!(finished(&parts).len(), 5);
    assert!(page(&parts) == page(&whole));
    let refused = |arguments: &[&str], words: &str| {
        let output = parts.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(words), "{error}");
    };
    for wrong in ["0/3", "4/3", "1", "a/b"] {
        refused(
            &["grid.rhai", "--shard", wrong],
            "write a part such as `2/4`",
        );
    }
    refused(&["grid.rhai", "--shard"], "no task of a Slurm array");
    let error = parts.fail(2, &["grid.delta", "--shard", "1/2"]);
    assert!(error.contains("applies only to scripts"), "{error}");
}

/// Three processes at one directory share the runs by their locks, and each leaves the whole page.
#[test]
fn several_processes_share_a_directory() {
    let (whole, shared) = (place(), place());
    whole.succeed(&["grid.rhai", "--quiet"]);
    let start = || {
        let mut command = shared.command(&["grid.rhai", "--quiet", "--threads", "1"]);
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(finished(&shared).len(), 5);
    assert!(page(&shared) == page(&whole));
}

/// A run that is measured alone waits for another process, as all runs do.
#[test]
fn runs_that_are_measured_alone_are_shared_as_well() {
    let place = place();
    place.write(
        "alone.rhai",
        br#"print(pipeline("grid.delta").run_alone().steps);"#,
    );
    let start = || {
        let mut command = place.command(&["alone.rhai", "--quiet", "--threads", "1"]);
        command.spawn().unwrap()
    };
    let children: Vec<_> = (0..3).map(|_| start()).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let listed = place.succeed(&["jobs", "alone.rhai"]);
    assert!(listed.contains("0 of 1 run open"), "{listed}");
}

/// A mistake is a mistake wherever it is in a script, and a script that needs more of a run is none.
#[test]
fn mistakes_behind_a_run_are_found_by_the_list() {
    let place = place();
    place.write(
        "typo.rhai",
        br#"let run = pipeline("grid.delta").run(); pipeline("none.delta").run();"#,
    );
    let error = place.fail(2, &["jobs", "typo.rhai"]);
    assert!(error.contains("none.delta"), "{error}");
    place.write(
        "merge.rhai",
        br#"let run = pipeline("grid.delta").run(); print(run.merge());"#,
    );
    let listed = place.succeed(&["jobs", "merge.rhai"]);
    assert!(listed.contains("1 of 1 run open"), "{listed}");
    assert!(listed.contains("further runs"), "{listed}");
}

/// The files that `submit` writes, run by a shell as Slurm would run them.
#[cfg(unix)]
#[test]
fn files_for_slurm_run_the_parts_and_then_the_script() {
    let (whole, submitted) = (place(), place());
    whole.succeed(&["grid.rhai", "--quiet"]);
    let odd = submitted.succeed(&["submit", "grid.rhai", "--out", "my runs/100 %"]);
    assert!(
        odd.contains("--parsable 'my runs/100 %/array.sbatch'"),
        "{odd}"
    );
    let odd = std::fs::read_to_string(submitted.path("my runs/100 %/array.sbatch")).unwrap();
    assert!(odd.contains("/my runs/100 %%/slurm-%A_%a.txt\"\n"), "{odd}");
    let shown = submitted.succeed(&[
        "submit",
        "grid.rhai",
        "--tasks",
        "3",
        "--option=--partition=long",
    ]);
    assert!(
        shown.contains("sbatch --parsable runs/grid/array.sbatch"),
        "{shown}"
    );
    assert!(
        shown.contains("--dependency=afterany:${id%%;*} runs/grid/report.sbatch"),
        "{shown}"
    );
    let array = std::fs::read_to_string(submitted.path("runs/grid/array.sbatch")).unwrap();
    for line in [
        "#SBATCH --array=0-2",
        "#SBATCH --requeue",
        "#SBATCH --partition=long",
        "#SBATCH --mem=",
        "#SBATCH --time=",
    ] {
        assert!(array.contains(line), "{array}");
    }
    let run = |file: &str, task: Option<usize>| {
        let mut shell = std::process::Command::new("sh");
        shell
            .arg(submitted.path("runs/grid").join(file))
            .current_dir(submitted.path(""));
        shell.env("SLURM_CPUS_PER_TASK", "1");
        if let Some(task) = task {
            // A user may number tasks with a step.
            shell.env("SLURM_ARRAY_TASK_ID", (3 + 2 * task).to_string());
            shell.env("SLURM_ARRAY_TASK_STEP", "2");
            shell.env("SLURM_ARRAY_TASK_MIN", "3");
            shell.env("SLURM_ARRAY_TASK_COUNT", "3");
        }
        let output = shell.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    (0..3).for_each(|task| run("array.sbatch", Some(task)));
    assert_eq!(finished(&submitted).len(), 4);
    run("report.sbatch", None);
    assert!(page(&submitted) == page(&whole));
}
