//! `deltarun predict` as a filter: answers as lines come, pairs them with their lines, keeps what came before a bad
//! one, and touches no file that it was not given.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use crate::common::place::Place;
use serde_json::{json, Value};

fn finished() -> Place {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    place
}

fn answers(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn predict(place: &Place, input: &str) -> (Vec<Value>, String, Option<i32>) {
    place.write("input.jsonl", input.as_bytes());
    let output = place.run(&["predict", "runs/small", "--input", "input.jsonl"]);
    let answers = answers(&String::from_utf8(output.stdout).unwrap());
    (
        answers,
        String::from_utf8(output.stderr).unwrap(),
        output.status.code(),
    )
}

#[test]
fn an_answer_carries_the_id_or_the_number_of_its_line() {
    let place = finished();
    let input =
        "\u{feff}{\"text\": \"one\"}\n\n{\"text\": \"two\", \"id\": \"b-7\"}\n   \n{\"text\": 5}\n";
    let (answers, error, code) = predict(&place, input);
    assert_eq!(code, Some(0), "{error}");
    let ids: Vec<&Value> = answers.iter().map(|answer| &answer["id"]).collect();
    assert_eq!(ids, [&json!(1), &json!("b-7"), &json!(5)]);
    // A number is read as it is where the run was trained.
    let (texts, _, _) = predict(&place, "{\"text\": \"5\"}\n");
    assert_eq!(texts[0]["logits"], answers[2]["logits"]);
}

#[test]
fn what_came_before_a_bad_line_is_kept() {
    let place = finished();
    let good = "{\"text\": \"fine\"}\n".repeat(3);
    for (bad, said) in [
        ("{\"text\": null}\n", "line 4: `text` is null"),
        ("{\"text\": [1]}\n", "line 4: `text` is a list"),
        ("fine\n", "line 4: the line is not a JSON object"),
        ("{\"txt\": \"fine\"}\n", "line 4: the object has no `text`"),
    ] {
        let (answers, error, code) = predict(&place, &format!("{good}{bad}{good}"));
        assert_eq!((answers.len(), code), (3, Some(2)), "{error}");
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("rename `text` to `text`"), "{error}");
        place.fail(
            2,
            &[
                "predict",
                "runs/small",
                "--input",
                "input.jsonl",
                "--output",
                "out.jsonl",
            ],
        );
        let kept = fs::read_to_string(place.path("out.jsonl")).unwrap();
        assert_eq!(kept.lines().count(), 3);
        fs::remove_file(place.path("out.jsonl")).unwrap();
    }
}

/// An answer comes before the next line is written: nothing waits for more.
#[test]
fn each_line_is_answered_as_it_comes() {
    let place = finished();
    let mut child = place
        .command(&["predict", "runs/small"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for number in 1..=3 {
        writeln!(input, "{{\"text\": \"fine\"}}").unwrap();
        let mut answer = String::new();
        output.read_line(&mut answer).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&answer).unwrap()["id"],
            number
        );
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

/// A reader that goes away is no failure, anywhere.
#[cfg(unix)]
#[test]
fn a_broken_pipe_is_no_error() {
    let place = finished();
    let lines = "{\"text\": \"fine\"}\n".repeat(5000);
    place.write("input.jsonl", lines.as_bytes());
    for arguments in [
        &["predict", "runs/small", "--input", "input.jsonl"][..],
        &["plan", "small.delta"],
        &["check", "small.delta"],
        &["eval", "runs/small"],
        &["small.delta", "--quiet", "--out", "again"],
    ] {
        let mut child = place
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        assert!(!error.contains("internal"), "{arguments:?}: {error}");
    }
    assert!(place.path("again/delta.safetensors").exists());
}

#[test]
fn no_file_is_touched_but_the_output() {
    let place = finished();
    place.write("a.jsonl", b"{\"text\": \"fine\"}\n");
    place.write("a.writing", b"mine");
    let predict = |input: &str, output: &str| {
        place.run(&[
            "predict",
            "runs/small",
            "--input",
            input,
            "--output",
            output,
        ])
    };
    assert!(predict("a.jsonl", "b.jsonl").status.success());
    assert_eq!(fs::read(place.path("a.writing")).unwrap(), b"mine");
    let message = place.fail(
        2,
        &[
            "predict",
            "runs/small",
            "--input",
            "a.jsonl",
            "--output",
            "./a.jsonl",
        ],
    );
    assert!(
        message.contains("is both the input and the output"),
        "{message}"
    );
    assert_eq!(
        fs::read(place.path("a.jsonl")).unwrap(),
        b"{\"text\": \"fine\"}\n"
    );
}

#[cfg(unix)]
#[test]
fn paths_that_are_not_utf8_work() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = finished();
    let name = OsStr::from_bytes(b"caf\xe9.jsonl");
    fs::write(place.path("").join(name), "{\"text\": \"fine\"}\n").unwrap();
    let output = place
        .command(&["predict", "runs/small", "--input"])
        .arg(name)
        .arg("--output")
        .arg(OsStr::from_bytes(b"\xff.jsonl"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(place
        .path("")
        .join(OsStr::from_bytes(b"\xff.jsonl"))
        .exists());
    let moved = place.path("").join(OsStr::from_bytes(b"run\xe9"));
    fs::rename(place.path("runs/small"), &moved).unwrap();
    let output = place.command(&["eval"]).arg(&moved).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Rows of a table are answered as JSON lines are, with the right label beside the answer; a table is written by its ending.
#[test]
fn tables_are_read_and_written() {
    let place = finished();
    let table = "id,text,label\n7,\"the film, they say, was superb\",positive\n8,the plot was dull,negative\n";
    place.write("in.csv", table.as_bytes());
    let lines = place.succeed(&["predict", "runs/small", "--input", "in.csv"]);
    let of_table = answers(&lines);
    let (of_lines, _, _) = predict(
        &place,
        "{\"id\": \"7\", \"text\": \"the film, they say, was superb\"}\n{\"id\": \"8\", \"text\": \"the plot was dull\"}\n",
    );
    assert_eq!(of_table.len(), 2);
    for ((found, expected), gold) in of_table.iter().zip(&of_lines).zip(["positive", "negative"]) {
        assert_eq!(found["gold"], gold);
        for key in ["id", "label", "logits"] {
            assert_eq!(found[key], expected[key]);
        }
    }
    // Packed, without numbers of its own: its lines count.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed
        .write_all(b"text\tother\nthe plot was dull\tx\n")
        .unwrap();
    place.write("in.tsv.gz", &packed.finish().unwrap());
    let arguments = [
        "predict",
        "runs/small",
        "--input",
        "in.tsv.gz",
        "--output",
        "out.csv",
    ];
    place.succeed(&arguments);
    let written = fs::read_to_string(place.path("out.csv")).unwrap();
    let mut reader = csv::Reader::from_reader(written.as_bytes());
    let header: Vec<String> = reader
        .headers()
        .unwrap()
        .iter()
        .map(str::to_owned)
        .collect();
    assert_eq!(
        header,
        [
            "id",
            "label",
            "probabilities.negative",
            "probabilities.positive",
            "logits"
        ]
    );
    let row = reader.records().next().unwrap().unwrap();
    assert_eq!(
        (&row[0], &row[1]),
        ("2", of_table[1]["label"].as_str().unwrap())
    );
    let logits: Value = serde_json::from_str(&row[4]).unwrap();
    assert_eq!(logits, of_table[1]["logits"]);
    place.write("wrong.csv", b"txt\nfine\n");
    let error = place.fail(2, &["predict", "runs/small", "--input", "wrong.csv"]);
    assert!(
        error.contains("line 2: the object has no `text`"),
        "{error}"
    );
    // JSON lists have their values as they are; answers of other keys, and lists in TSV, are no rows of one table.
    place.write(
        "in.json",
        b"[{\"id\": 7, \"text\": \"null\"}, {\"id\": 8, \"text\": \"[1]\"}]",
    );
    let list = answers(&place.succeed(&["predict", "runs/small", "--input", "in.json"]));
    let (lines, _, _) = predict(
        &place,
        "{\"id\": 7, \"text\": \"null\"}\n{\"id\": 8, \"text\": \"[1]\"}\n",
    );
    assert_eq!(list, lines);
    place.write(
        "keys.jsonl",
        b"{\"text\": \"fine\"}\n{\"text\": \"fine\", \"label\": \"positive\"}\n",
    );
    let error = place.fail(
        1,
        &[
            "predict",
            "runs/small",
            "--input",
            "keys.jsonl",
            "--output",
            "keys.csv",
        ],
    );
    assert!(
        error.contains("`gold`, which the first line lacks"),
        "{error}"
    );
    let error = place.fail(
        2,
        &[
            "predict",
            "runs/small",
            "--input",
            "in.json",
            "--output",
            "out.parquet",
        ],
    );
    assert!(error.contains("not written as `.parquet`"), "{error}");
}

/// A file is read as the run read its own: without a header, in its encoding. Broken letters are not guessed over.
#[test]
fn files_are_read_as_the_run_read_its_own() {
    let place = Place::new();
    let table = fs::read_to_string(place.path("train.tsv")).unwrap();
    let rows: String = table
        .lines()
        .skip(1)
        .map(|line| {
            let (text, label) = line.split_once('\t').unwrap();
            format!("{label},\"caf\u{e9} {}\"\n", text.replace('"', ""))
        })
        .collect();
    let latin = |text: &str| text.chars().map(|letter| letter as u8).collect::<Vec<u8>>();
    place.write("head.csv", &latin(&rows));
    let text = crate::common::place::PIPELINE
        .replace(
            "tsv(\"train.tsv\")",
            "csv(\"head.csv\", columns = [label, text], encoding = \"latin-1\")",
        )
        .replace("tsv(\"dev.tsv\")", "split(train, 20%)");
    place.write("small.delta", text.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    // Its only letter beyond ASCII is far behind.
    let late = format!(
        "{}negative,caf\u{e9}\n",
        "positive,a superb film\n".repeat(4000)
    );
    place.write("late.csv", &latin(&late));
    let found = place.succeed(&["eval", "runs/small", "--data", "late.csv"]);
    assert!(found.contains("4001 examples"), "{found}");
    let predicted = place.succeed(&["predict", "runs/small", "--input", "head.csv"]);
    assert_eq!(predicted.lines().count(), rows.lines().count());
    // What is UTF-8 stays so, also if it is packed, whatever its name is.
    let utf8 = "positive,caf\u{e9} superb\n";
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(utf8.as_bytes()).unwrap();
    place.write("utf8.csv", utf8.as_bytes());
    place.write("packed.csv", &packed.finish().unwrap());
    let logits = |file: &str| {
        answers(&place.succeed(&["predict", "runs/small", "--input", file]))[0]["logits"].clone()
    };
    place.write(
        "line.jsonl",
        json!({ "text": "caf\u{e9} superb" }).to_string().as_bytes(),
    );
    assert_eq!(logits("utf8.csv"), logits("line.jsonl"));
    assert_eq!(logits("packed.csv"), logits("line.jsonl"));
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(b"\n{\"text\": \"superb\"}\n").unwrap();
    place.write("packed.jsonl", &packed.finish().unwrap());
    let packed = answers(&place.succeed(&["predict", "runs/small", "--input", "packed.jsonl"]));
    assert_eq!(packed[0]["id"], 2);
    // A run on UTF-8 refuses what is none.
    let place = finished();
    let mut broken = format!("text\tlabel\n{}", "caf\u{e9}\tpositive\n".repeat(50)).into_bytes();
    broken.extend(b"\xff\tnegative\n");
    place.write("broken.tsv", &broken);
    let error = place.fail(2, &["eval", "runs/small", "--data", "broken.tsv"]);
    assert!(error.contains("line 52: the text is not UTF-8"), "{error}");
}

/// A merged model is evaluated by its own directory, and by a file without a stage, as the run that it came from.
#[test]
fn a_merged_model_is_evaluated_as_its_run() {
    let place = finished();
    place.succeed(&["merge", "runs/small", "merged"]);
    let metrics = |arguments: &[&str]| {
        let text = place.succeed(&[&["eval", "--format", "json"], arguments].concat());
        let json: Value = serde_json::from_str(&text).unwrap();
        json["metrics"].clone()
    };
    let near = |found: &Value, wanted: &Value| {
        let (found, wanted) = (found.as_object().unwrap(), wanted.as_object().unwrap());
        assert_eq!(found.len(), wanted.len());
        for (name, value) in found {
            let apart = (value.as_f64().unwrap() - wanted[name].as_f64().unwrap()).abs();
            assert!(apart < 1e-4, "{name}: {found:?} {wanted:?}");
        }
    };
    let run = metrics(&["runs/small"]);
    near(&metrics(&["merged", "--data", "dev.tsv"]), &run);
    // Other columns, and numbers for names, as data sets of the hub have them.
    let dev = fs::read_to_string(place.path("dev.tsv")).unwrap();
    let dev = dev.replace("text\tlabel", "sentence\tfeeling");
    let dev = dev
        .replace("\tnegative", "\t0")
        .replace("\tpositive", "\t1");
    place.write("other.tsv", dev.as_bytes());
    let columns = ["--text", "sentence", "--label", "feeling"];
    near(
        &metrics(&[&["merged", "--data", "other.tsv"], &columns[..]].concat()),
        &run,
    );
    let said = place.fail(2, &["eval", "runs/small", "--label", "label"]);
    assert!(said.contains("a run records what it reads"), "{said}");
    let file = "backbone \"merged\" { max_length = 32 }\n\
                data { dev = tsv(\"dev.tsv\") }\n\
                task classify { text = text, label = label, labels = [negative, positive] }\n";
    place.write("measure.delta", file.as_bytes());
    place.succeed(&["measure.delta", "--quiet"]);
    near(&metrics(&["runs/measure"]), &run);
    let file = file.replace("negative, positive", "good, bad, middling");
    place.write("measure.delta", file.as_bytes());
    let said = place.fail(2, &["check", "measure.delta"]);
    assert!(said.contains("2 outputs, but the task needs 3"), "{said}");
}

/// Answers that were given before the command was stopped, by a signal or for good, are in `PATH.partial`.
#[cfg(unix)]
#[test]
fn what_was_answered_before_a_stop_is_kept() {
    let place = finished();
    for (signal, output, code) in [
        ("TERM", "answers.jsonl", Some(130)),
        ("TERM", "answers.csv", Some(130)),
        ("KILL", "answers.jsonl", None),
        ("KILL", "answers.csv", None),
    ] {
        place.write(output, b"from before");
        let mut child = place
            .command(&["predict", "runs/small", "--output", output])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        writeln!(input, "{{\"text\": \"fine\", \"id\": \"first\"}}").unwrap();
        let partial = place.path(&format!("{output}.partial"));
        let written = || fs::read_to_string(&partial).unwrap_or_default();
        while !written().ends_with('\n') || !written().contains("first") {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let kill = std::process::Command::new("kill")
            .args([format!("-{signal}"), child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert_eq!(ended.status.code(), code, "{signal} {output}: {said}");
        assert_eq!(said.contains("1 answer in"), code.is_some(), "{said}");
        assert!(written().contains("first"), "{signal} {output}");
        assert_eq!(
            fs::read_to_string(place.path(output)).unwrap(),
            "from before"
        );
        // A second command does not write over it.
        let said = place.fail(2, &["predict", "runs/small", "--output", output]);
        assert!(said.contains("of a command that was stopped"), "{said}");
        assert!(written().contains("first"), "{signal} {output}");
        fs::remove_file(&partial).unwrap();
    }
    // The next one is whole.
    place.write("input.jsonl", b"{\"text\": \"fine\"}\n");
    place.succeed(&[
        "predict",
        "runs/small",
        "--input",
        "input.jsonl",
        "--output",
        "answers.jsonl",
    ]);
    assert!(!place.path("answers.jsonl.partial").exists());
    assert_eq!(
        answers(&fs::read_to_string(place.path("answers.jsonl")).unwrap()).len(),
        1
    );
}

/// A link leads to the same file after it, a pipe stays a pipe, and the input is never the output.
#[cfg(unix)]
#[test]
fn an_output_takes_the_place_of_files_alone() {
    let place = finished();
    let row = b"{\"text\": \"fine\"}\n";
    place.write("out.jsonl.partial", row);
    let ask = [
        "predict",
        "runs/small",
        "--input",
        "out.jsonl.partial",
        "--output",
    ];
    let asked = |output| [&ask[..], &[output]].concat();
    let said = place.fail(2, &asked("out.jsonl"));
    assert!(said.contains("until it is complete"), "{said}");
    let said = place.fail(2, &asked("runs"));
    assert!(said.contains("`runs` is a directory"), "{said}");
    assert_eq!(fs::read(place.path("out.jsonl.partial")).unwrap(), row);

    place.write("real.jsonl", b"from before");
    std::os::unix::fs::symlink("real.jsonl", place.path("link.jsonl")).unwrap();
    place.succeed(&asked("link.jsonl"));
    let kind = |name: &str| fs::symlink_metadata(place.path(name)).unwrap().file_type();
    assert!(kind("link.jsonl").is_symlink());
    let real = fs::read_to_string(place.path("real.jsonl")).unwrap();
    assert_eq!(answers(&real).len(), 1);

    use std::os::unix::fs::FileTypeExt;
    let made = std::process::Command::new("mkfifo")
        .arg(place.path("pipe"))
        .status();
    assert!(made.unwrap().success());
    let pipe = place.path("pipe");
    let reader = std::thread::spawn(move || fs::read_to_string(pipe).unwrap());
    place.succeed(&asked("pipe"));
    assert_eq!(reader.join().unwrap(), real);
    assert!(kind("pipe").is_fifo());
}
