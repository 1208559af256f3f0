//! Experiments: every script of `pipelines/study` in its smallest form, one that is killed, and bad ones.

use std::path::Path;
use std::time::Duration;

use crate::common::place::{Place, PIPELINE};

/// Every script, and what its smallest form must say.
const STUDY: [(&str, &[&str]); 11] = [
    ("ranking", &["full fine-tuning", "LoRA", "prompt"]),
    ("convergence", &["95 %", "adapter"]),
    ("size", &["LoRA", "prefix"]),
    ("simultaneous", &["PBA", "none"]),
    ("templates", &["16 per label", "all"]),
    ("sequential", &["adapter, bitfit, prompt"]),
    ("gap", &["train", "dev", "BitFit"]),
    ("scale", &["random modules", "last layer"]),
    ("memory", &["peak_mebibytes"]),
    ("intrinsic", &["SAID", "d90"]),
    ("transfer", &["reviews", "moods", "verdicts", "nothing"]),
];

fn study(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/study");
    folder.join(format!("{name}.rhai")).display().to_string()
}

#[test]
fn every_experiment_of_the_study_runs_and_leaves_a_page() {
    let place = Place::new();
    for (name, words) in STUDY {
        let text = place.succeed(&[&study(name), "--preset", "tiny", "--quiet"]);
        let page =
            std::fs::read_to_string(place.path(&format!("runs/{name}/{name}.html"))).unwrap();
        for word in words {
            assert!(text.contains(word), "{name}: no `{word}` in {text}");
        }
        assert!(
            page.contains("<table>") && page.ends_with("</body></html>\n"),
            "{name}"
        );
        let outside = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http"), "{name} needs the network");
    }
}

/// A script that catches a mistake has its sentence, and one that wants a figure which a run lacks is told so.
#[test]
fn mistakes_have_their_sentences_in_scripts() {
    let place = Place::new();
    place.write(
        "catch.rhai",
        br#"
        try { pipeline("small.delta").set(#{ rank: 3 }).run(); } catch(e) { print("caught: " + e); }
        let run = pipeline("small.delta").run();
        try { run.test } catch(e) { print(`caught: ${e}`); }
    "#,
    );
    let text = place.succeed(&["catch.rhai", "--quiet"]);
    let caught: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("caught"))
        .collect();
    assert_eq!(caught.len(), 2, "{text}");
    assert!(caught[0].contains("`rank`"), "{text}");
    assert_eq!(caught[1], "caught: the run has no test set");
}

const GRID: &str = r#"
let runs = [];
for point in grid(#{ lr: [1e-3, 3e-3], seed: [1, 2] }) { runs.push(pipeline("grid.delta").set(point)); }
let rows = [];
for run in run_all(runs) { rows.push(#{ lr: run.params["lr"], accuracy: run.value, steps: run.steps }); }
let page = page("Grid");
page.table(["lr", "mean", "deviation", "n"], group(rows, ["lr"], "accuracy"));
page.save("grid.html");
print(table(["lr", "accuracy", "steps"], rows));
"#;

fn grid_place() -> Place {
    let place = Place::new();
    let text = PIPELINE.replace("pipeline small", "pipeline small\n\nparam lr = 1e-3");
    let text = text
        .replace("lr = 1e-3 }", "lr = lr }")
        .replace("steps = 12", "steps = 60");
    place.write("grid.delta", text.as_bytes());
    place.write("grid.rhai", GRID.as_bytes());
    place
}

/// A script that is killed and started again leaves what it would have left, and repeats no run.
#[test]
fn a_killed_script_goes_on_to_the_same_report() {
    let whole = grid_place();
    let expected = whole.succeed(&["grid.rhai", "--quiet", "--threads", "1"]);
    let page = |place: &Place| std::fs::read(place.path("runs/grid/grid.html")).unwrap();

    let killed = grid_place();
    let mut child = killed
        .command(&["grid.rhai", "--quiet", "--threads", "1"])
        .spawn()
        .unwrap();
    let finished = || -> Vec<_> {
        let entries = std::fs::read_dir(killed.path("runs/grid"))
            .into_iter()
            .flatten()
            .flatten();
        let complete = entries.filter(|entry| entry.path().join("metrics.json").exists());
        let complete = complete.filter(|e| !e.file_name().to_string_lossy().ends_with(".partial"));
        complete
            .map(|entry| {
                let metrics = entry.path().join("metrics.json");
                (
                    entry.file_name(),
                    metrics.metadata().unwrap().modified().unwrap(),
                )
            })
            .collect()
    };
    while finished().is_empty() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = finished();
    assert!(!before.is_empty());
    let found = killed.succeed(&["grid.rhai", "--quiet", "--threads", "1"]);
    let last_line = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(last_line(&found), last_line(&expected));
    assert_eq!(page(&killed), page(&whole));
    let after = finished();
    assert_eq!(after.len(), 4);
    assert!(
        before.iter().all(|run| after.contains(run)),
        "a finished run was repeated"
    );
}

/// The sample of the documentation.
#[test]
fn the_sample_runs() {
    let docs = include_str!("../docs/scripts.md");
    let sample = docs
        .split("```rhai\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let place = grid_place();
    let pipeline = std::fs::read(place.path("grid.delta")).unwrap();
    place.write("sst2.delta", &pipeline);
    place.write("rates.rhai", sample.as_bytes());
    let text = place.succeed(&["rates.rhai", "--preset", "small", "--quiet"]);
    assert!(
        text.contains("deviation") && text.contains("rates.html"),
        "{text}"
    );
}

const BAD: [(&str, &str); 21] = [
    ("syntax", "let x = ;"),
    ("unknown_function", "pipelin(\"small.delta\");"),
    ("unknown_variable", "print(missing);"),
    ("endless_loop", "let x = 0; loop { x += 1; }"),
    ("missing_file", "pipeline(\"nothing.delta\").run();"),
    ("page_outside", "page(\"x\").save(\"../x.html\");"),
    (
        "unknown_param_of_a_pipeline",
        "let p = pipeline(\"small.delta\");\np.set(#{ rnak: 3 }).run();",
    ),
    (
        "field_that_the_data_lacks",
        "pipeline(\"cloze.delta\").set(#{ template: \"{txt} {mask} .\" }).run();",
    ),
    (
        "word_of_two_tokens",
        "pipeline(\"cloze.delta\").set(#{ word: \"superb charming\" }).run();",
    ),
    (
        "template_without_a_mask",
        "pipeline(\"cloze.delta\").set(#{ template: \"{text} .\" }).run();",
    ),
    (
        "rows_without_a_column",
        "print(table([\"a\"], [#{ b: 1 }]));",
    ),
    ("import", "import \"other\" as other;"),
    (
        "path_outside",
        "pipeline(\"small.delta\").add(`data other { train = tsv(\"/etc/hostname\", columns = [text]) }\n\
         stage more { train = [head], data = other, steps = 1, optimizer = adamw { lr = 1e-3 } }`).run();",
    ),
    ("huge_grid", "let a = []; a.pad(10000, 0);\ngrid(#{ a: a, b: a, c: a });"),
    ("huge_list", "let a = [];\na.pad(1000000000, 0);"),
    ("sleep", "sleep(1000000);"),
    ("near_function", "pipline(\"small.delta\").run();"),
    ("wrong_arguments", "pipeline(7).run();"),
    ("unknown_property", "let m = #{ a: 1 };\nprint(m.b);"),
    ("unknown_property_of_a_pipeline", "print(pipeline(\"small.delta\").accuracy);"),
    ("beyond_all_axes", "page(\"p\").plot(#{}, [#{ name: \"a\", points: [[1e300, 0], [-1e300, 1]] }]);"),
];

const CLOZE: &str = r#"
param template = "{text} so i {mask} it ."
param word = "hated"
backbone "backbone"
data { dev = tsv("dev.tsv") }
task classify {
    label = label
    labels = [negative, positive]
    template = template
    words = { negative = word, positive = "loved" }
}
"#;

#[test]
fn every_bad_script_has_its_message() {
    let place = Place::new();
    place.write("cloze.delta", CLOZE.as_bytes());
    for (name, script) in BAD {
        place.write("bad.rhai", script.as_bytes());
        insta::assert_snapshot!(
            format!("script_{name}"),
            place.fail(2, &["bad.rhai", "--quiet"])
        );
    }
    std::fs::create_dir(place.path("inner")).unwrap();
    place.write("inner/bad.rhai", b"pipeline(\"../small.delta\").run();");
    let message = place.fail(2, &["inner/bad.rhai", "--quiet"]);
    insta::assert_snapshot!("script_file_outside", message);
}

#[test]
fn params_come_from_presets_and_from_outside() {
    let place = Place::new();
    let script = "let p = params(#{ steps: 5, rates: [1e-3] }, #{ small: #{ steps: 2 } });\n\
                  print(`${p.steps} ${p.rates}`);";
    place.write("p.rhai", script.as_bytes());
    assert_eq!(place.succeed(&["p.rhai"]), "5 [0.001]\n");
    assert_eq!(
        place.succeed(&["p.rhai", "--preset", "small"]),
        "2 [0.001]\n"
    );
    let set = ["p.rhai", "--set", "steps=7", "--set", "rates=0.1,0.2"];
    assert_eq!(place.succeed(&set), "7 [0.1, 0.2]\n");
    insta::assert_snapshot!(
        "script_unknown_preset",
        place.fail(2, &["p.rhai", "--preset", "smal"])
    );
    insta::assert_snapshot!(
        "script_unknown_param",
        place.fail(2, &["p.rhai", "--set", "step=7"])
    );
    insta::assert_snapshot!(
        "script_wrong_param",
        place.fail(2, &["p.rhai", "--set", "steps=x"])
    );
}

/// `sweep` writes a script that runs by itself, goes on with it, and names the best point.
#[test]
fn a_sweep_is_a_script_that_names_the_best_point() {
    let place = Place::new();
    let text = PIPELINE
        .replace(
            "pipeline small\n",
            "pipeline small\nparam lr = 1e-3\nparam rank = 2\n",
        )
        .replace("lr = 1e-3 }", "lr = lr }")
        .replace("rank = 2, alpha", "rank = rank, alpha")
        .replace("steps = 12", "steps = 120");
    place.write("small.delta", text.as_bytes());
    let arguments = [
        "sweep",
        "small.delta",
        "--over",
        "lr=1e-9..1e-2,2",
        "seed=1,2",
        "--over",
        "rank=2",
        "--quiet",
    ];
    let told = place.succeed(&arguments);
    let script = std::fs::read_to_string(place.path("small_sweep.rhai")).unwrap();
    assert!(
        script.contains("lr: [1.0e-9, 1.0e-2], seed: [1, 2], rank: [2]"),
        "{script}"
    );
    // Both seeds of a point are a row; a rate at which nothing is learned is not the best.
    let best = "the best: deltarun small.delta --set lr=0.01 --set rank=2";
    assert!(
        told.contains("accuracy on dev") && told.contains(best),
        "{told}"
    );
    let rows = told.lines().filter(|line| {
        line.trim_start().starts_with("0.01")
            || line.contains("1e-9")
            || line.contains("0.000000001")
    });
    assert_eq!(rows.count(), 2, "{told}");
    assert!(place.path("runs/small_sweep/small_sweep.html").exists());
    let again = place.succeed(&arguments);
    assert_eq!(told, again);
    assert_eq!(told, place.succeed(&["small_sweep.rhai", "--quiet"]));
    let jobs = place.succeed(&["jobs", "small_sweep.rhai"]);
    assert_eq!(jobs.matches("finished").count(), 4, "{jobs}");
    let other = place.fail(2, &["sweep", "small.delta", "--over", "lr=1e-3"]);
    assert!(other.contains("is another sweep"), "{other}");
    let unknown = place.run(&["sweep", "small.delta", "--over", "lr=0..1,3"]);
    let said = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        unknown.status.code() == Some(2) && said.contains("two numbers above 0"),
        "{said}"
    );
}

/// A run is known by its tokenizer as well; what a script is told that it does not know is refused.
#[test]
fn scripts_know_what_their_runs_read() {
    let place = Place::new();
    place.write("s.rhai", b"print(pipeline(\"small.delta\").run().value);");
    let runs = || {
        place.succeed(&["s.rhai", "--quiet"]);
        place.succeed(&["runs"]).lines().count()
    };
    let first = runs();
    assert_eq!(runs(), first);
    let tokenizer = place.path("backbone/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let words = json["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (words["film"].clone(), words["plot"].clone());
    (words["film"], words["plot"]) = (b, a);
    std::fs::write(&tokenizer, json.to_string()).unwrap();
    assert!(runs() > first);

    let said = place.fail(2, &["s.rhai", "--preset", "nosuch"]);
    assert!(said.contains("no preset `nosuch`"), "{said}");
    place.write(
        "p.rhai",
        b"let p = params(#{ names: [\"a\"] }); print(p.names.len());",
    );
    for (given, count) in [("[]", "0"), ("a,b", "2"), ("[a, b, c]", "3")] {
        let set = format!("names={given}");
        assert_eq!(place.succeed(&["p.rhai", "--set", &set]).trim(), count);
    }
    place.write("m.rhai", b"mean(\"x\");");
    let said = place.fail(2, &["m.rhai"]);
    assert!(said.contains("`mean` does not take a string"), "{said}");
}
