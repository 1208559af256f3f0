//! Files as people have them: Parquet by `tests/fixtures/make_parquet.py`, JSON lists, files packed by gzip.

use std::io::Write;

use crate::common::place::Place;
use crate::common::{fixture, json_fixture};
use deltarun::data::{visit, RowPlace, Wanted};
use deltarun::diagnostic::Span;
use deltarun::plan::{FileFormat, FilePlan};
use serde_json::{json, Value};

fn rows(file: &FilePlan, wanted: &[Wanted]) -> Vec<(RowPlace, Vec<String>)> {
    let mut rows = Vec::new();
    visit(file, wanted, &mut |row| {
        rows.push(row.unwrap());
        true
    })
    .unwrap();
    rows
}

/// The values of a Parquet file and of a JSON list are those that `datasets` tells, with the names of classes.
#[test]
fn parquet_and_json_have_the_values_of_datasets() {
    let expected = json_fixture("rows.json");
    let wanted: Vec<Wanted> = [
        "tags", "text", "label", "score", "stars", "good", "words", "messages",
    ]
    .into_iter()
    .map(|name| Wanted {
        is_structured: ["tags", "words", "messages"].contains(&name),
        ..Wanted::text(name)
    })
    .collect();
    for (format, name) in [
        (FileFormat::Parquet, "rows.parquet"),
        (FileFormat::Json, "rows.json"),
    ] {
        let found = rows(
            &FilePlan::whole(format, fixture(name), Span::default()),
            &wanted,
        );
        assert_eq!(found.len(), 16);
        for ((number, values), expected) in found.iter().zip(expected.as_array().unwrap()) {
            for (wanted, value) in wanted.iter().zip(values) {
                let expected = &expected[wanted.name];
                let found: Value = match expected.is_string() {
                    true => Value::from(value.as_str()),
                    false => serde_json::from_str(value).unwrap(),
                };
                assert_eq!(&found, expected, "{name}, {number:?}: {}", wanted.name);
            }
        }
    }
}

fn pipeline(train: &str, task: &str) -> String {
    format!(
        "pipeline small\nbackbone \"backbone\" {{ max_length = 16 }}\n\
         data {{ train = {train}, dev = split(train, 25%) }}\n\
         task {task}\n\
         reparam low = lora {{ rank = 2 }} on **.q\n\
         stage tune {{ train = [low, head], steps = 2, batch = 4, optimizer = adamw {{ lr = 1e-3 }} }}\n"
    )
}

#[test]
fn a_data_set_of_the_hub_is_trained_on_as_it_is() {
    let place = Place::new();
    for name in ["rows.parquet", "rows.json"] {
        std::fs::copy(fixture(name), place.path(name)).unwrap();
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed
        .write_all(&std::fs::read(fixture("rows.json")).unwrap())
        .unwrap();
    place.write("rows.json.gz", &packed.finish().unwrap());
    let mut bits = Vec::new();
    for train in [
        "parquet(\"rows.parquet\")",
        "json(\"rows.json\")",
        "json(\"rows.json.gz\")",
    ] {
        place.write(
            "small.delta",
            pipeline(train, "classify { text = text, label = label }").as_bytes(),
        );
        place.succeed(&["small.delta", "--quiet", "--out", "run"]);
        bits.push(std::fs::read(place.path("run/delta.safetensors")).unwrap());
        std::fs::remove_dir_all(place.path("run")).unwrap();
        place.write(
            "small.delta",
            pipeline(train, "tag { tokens = words, tags = tags }").as_bytes(),
        );
        let plan = place.succeed(&["plan", "small.delta"]);
        assert!(plan.contains("`O`, `B-name` and `I-name`"), "{plan}");
    }
    assert!(bits[0] == bits[1] && bits[0] == bits[2]);
}

#[test]
fn files_that_are_not_what_they_are_called_are_refused() {
    let place = Place::new();
    std::fs::copy(fixture("rows.parquet"), place.path("rows.parquet")).unwrap();
    std::fs::copy(fixture("rows.json"), place.path("rows.json")).unwrap();
    let whole = std::fs::read(fixture("rows.parquet")).unwrap();
    place.write("cut.parquet", &whole[..whole.len() / 2]);
    place.write("cut.json.gz", b"\x1f\x8b\x08\x00\x00");
    place.write(
        "lines.json",
        b"{\"text\": \"a\", \"label\": \"b\"}\n{\"text\": \"a\", \"label\": \"c\"}\n",
    );
    place.write("odd.json", b"[{\"text\": \"a\", \"label\": \"b\"}, 3]");
    for (train, wanted) in [
        ("parquet(\"cut.parquet\")", "cannot be read as Parquet"),
        ("parquet(\"none.parquet\")", "there is no file"),
        (
            "parquet(\"rows.parquet\", columns = [a])",
            "`parquet` takes a path",
        ),
        ("jsonl(\"rows.parquet\")", "read it with `parquet(...)`"),
        ("jsonl(\"rows.json\")", "read it with `json(...)`"),
        ("json(\"lines.json\")", "is read with `jsonl(...)`"),
        ("json(\"odd.json\")", "row 2: it is not an object"),
        ("json(\"cut.json.gz\")", "cannot be unpacked"),
    ] {
        let task = "classify { text = text, label = label, labels = [b, c] }";
        place.write("small.delta", pipeline(train, task).as_bytes());
        let error = place.fail(2, &["check", "small.delta"]);
        assert!(error.contains(wanted), "{train}: {error}");
    }
    let task = "classify { text = txt, label = label }";
    place.write(
        "small.delta",
        pipeline("parquet(\"rows.parquet\")", task).as_bytes(),
    );
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(error.contains("did you mean `text`?"), "{error}");
}

/// What `reader("NAME" SETTINGS)` in a `data` block reads of a file, as texts and labels.
fn read(
    name: &str,
    bytes: &[u8],
    reader: &str,
    settings: &str,
    wanted: [&str; 2],
) -> Vec<Vec<String>> {
    let place = Place::new();
    place.write(name, bytes);
    let text = format!(
        "backbone \"backbone\"\ndata {{ train = {reader}(\"{name}\"{settings}) }}\n\
         task classify {{ text = text, label = label, labels = [positive, negative] }}\n\
         stage s {{ train = [head], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}\n"
    );
    let plan = crate::common::plan_of(&text, &place.path(""));
    let file = plan.data["data"].train.as_ref().unwrap();
    let rows = rows(file, &wanted.map(Wanted::text));
    rows.into_iter().map(|(_, values)| values).collect()
}

/// The letters of `bytes.decode("latin-1")` and `.decode("utf-16")` in Python.
#[test]
fn files_are_read_in_the_encoding_that_they_say() {
    let expected = [["caf\u{e9}", "positive"], ["\u{fc}ber", "negative"]];
    let latin1 = b"text,label\ncaf\xe9,positive\n\xfcber,negative\n";
    let rows = read(
        "t.csv",
        latin1,
        "csv",
        ", encoding = \"latin-1\"",
        ["text", "label"],
    );
    assert_eq!(rows, expected);
    // bytes.decode("cp1252")
    let windows = b"text,label\n\x93caf\xe9\x94,positive\n\x80 5,negative\n";
    let rows = read(
        "t.csv",
        windows,
        "csv",
        ", encoding = \"cp1252\"",
        ["text", "label"],
    );
    assert_eq!(
        rows,
        [
            ["\u{201c}caf\u{e9}\u{201d}", "positive"],
            ["\u{20ac} 5", "negative"]
        ]
    );
    let text = "text\tlabel\ncaf\u{e9}\tpositive\n\u{fc}ber\tnegative\n";
    for is_big in [false, true] {
        let unit = |unit: u16| {
            if is_big {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        };
        let bytes: Vec<u8> = std::iter::once(0xfeff)
            .chain(text.encode_utf16())
            .flat_map(unit)
            .collect();
        let rows = read(
            "t.tsv",
            &bytes,
            "tsv",
            ", encoding = \"utf-16\"",
            ["text", "label"],
        );
        assert_eq!(rows, expected, "big: {is_big}");
    }
}

/// Two frames, one after the other, by python-zstandard 0.25.
#[test]
fn files_packed_by_zstd_are_read() {
    let hex = "28b52ffd202001010074657874096c6162656c0a612066696e652066696c6d09706f7369746976650a28b52ffd2015a90000612064756c6c2066696c6d096e656761746976650a";
    let byte = |place: usize| u8::from_str_radix(&hex[2 * place..2 * place + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
    let rows = read("t.tsv.zst", &bytes, "tsv", "", ["text", "label"]);
    assert_eq!(
        rows,
        [["a fine film", "positive"], ["a dull film", "negative"]]
    );
    let place = Place::new();
    place.write("train.tsv", &bytes[..bytes.len() - 9]);
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(
        error.contains("cannot be unpacked") && error.contains("zstd -d"),
        "{error}"
    );
}

#[test]
fn columns_of_json_may_be_paths() {
    let lines =
        br#"{"data": {"question": "good?"}, "answers": [{"text": "positive"}], "a.b": "key"}
{"data": {"question": "bad?"}, "answers": [{"text": "negative"}], "a.b": "key"}
"#;
    let rows = read(
        "t.jsonl",
        lines,
        "jsonl",
        "",
        ["data.question", "answers.0.text"],
    );
    assert_eq!(rows, [["good?", "positive"], ["bad?", "negative"]]);
    // A key that contains a dot is taken as it is.
    let rows = read("t.jsonl", lines, "jsonl", "", ["a.b", "data.question"]);
    assert_eq!(rows[0], ["key", "good?"]);
    let place = Place::new();
    place.write("rows.jsonl", lines);
    let text = crate::common::place::PIPELINE
        .replace(
            "train = tsv(\"train.tsv\")",
            "train = jsonl(\"rows.jsonl\")",
        )
        .replace("dev = tsv(\"dev.tsv\")", "")
        .replace("text = text", "text = \"data.question\"")
        .replace("label = label", "label = \"answers.0.text\"");
    place.write("small.delta", text.as_bytes());
    place.succeed(&["small.delta", "--quiet"]);
    let mut child = place
        .command(&["predict", "runs/small"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout).lines().count(), 2);
    place.write(
        "small.delta",
        text.replace("answers.0.text", "answers.1.text").as_bytes(),
    );
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(error.contains("no column `answers.1.text`"), "{error}");
}

/// Several files are one set: by a list, or by a pattern in the order of their names. A mistake has its own file and line.
#[test]
fn several_files_are_read_as_one() {
    let place = Place::new();
    let table = std::fs::read_to_string(place.path("train.tsv")).unwrap();
    let cells: Vec<(&str, &str)> = table
        .lines()
        .skip(1)
        .map(|line| line.split_once('\t').unwrap())
        .collect();
    let row = |number: usize| json!({ "text": cells[number].0, "label": cells[number].1 });
    let lines = |numbers: std::ops::Range<usize>| {
        numbers
            .map(|number| format!("{}\n", row(number)))
            .collect::<String>()
    };
    std::fs::create_dir(place.path("shards")).unwrap();
    for shard in 0..3 {
        let name = format!("shards/train-0000{shard}-of-00003.jsonl");
        place.write(&name, lines(20 * shard..20 * shard + 20).as_bytes());
    }
    place.write("whole.jsonl", lines(0..60).as_bytes());
    let task = "classify { text = text, label = label }";
    let run = |train: &str, out: &str| {
        place.write("small.delta", pipeline(train, task).as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", out]);
        std::fs::read(place.path(out).join("delta.safetensors")).unwrap()
    };
    let whole = run("jsonl(\"whole.jsonl\")", "whole");
    assert!(run("jsonl(\"shards/train-*.jsonl\")", "pattern") == whole);
    let [a, b, c] = [0, 1, 2].map(|shard| format!("\"shards/train-0000{shard}-of-00003.jsonl\""));
    assert!(run(&format!("jsonl([{a}, {b}, {c}])"), "list") == whole);
    assert!(run(&format!("jsonl([{b}, {a}, {c}])"), "turned") != whole);
    // The first rows of all.
    assert!(
        run("head(jsonl(\"shards/train-*.jsonl\"), 30)", "head")
            == run("head(jsonl(\"whole.jsonl\"), 30)", "first")
    );
    // The run knows its files.
    let found = place.succeed(&["eval", "pattern"]);
    assert!(found.contains("15 examples"), "{found}");
    place.write(
        "shards/train-00003-of-00003.jsonl",
        lines(50..60).as_bytes(),
    );
    let error = place.fail(2, &["eval", "pattern"]);
    assert!(
        error.contains("train-00003-of-00003.jsonl` is new: the run read other files"),
        "{error}"
    );
    std::fs::remove_file(place.path("shards/train-00003-of-00003.jsonl")).unwrap();
    std::fs::remove_file(place.path("shards/train-00002-of-00003.jsonl")).unwrap();
    let error = place.fail(2, &["eval", "pattern"]);
    assert!(
        error.contains("train-00002-of-00003.jsonl` is missing"),
        "{error}"
    );
    // A set that lies in a folder above is not missing from it; signs in the folder's own name are none.
    std::fs::create_dir_all(place.path("x[v1]/d/below")).unwrap();
    for (name, rows) in [
        ("x[v1]/d/below/a.jsonl", 0..20),
        ("x[v1]/d/dev.jsonl", 20..30),
    ] {
        place.write(name, lines(rows).as_bytes());
    }
    place.write("x[v1]/d/.hidden.jsonl", b"no row\n");
    std::fs::create_dir(place.path("x[v1]/backbone")).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let copy = place.path("x[v1]/backbone").join(file);
        std::fs::copy(place.path("backbone").join(file), copy).unwrap();
    }
    let nested = pipeline("jsonl(\"d/below/*.jsonl\")", task)
        .replace("split(train, 25%)", "jsonl(\"d/*.jsonl\")");
    place.write("x[v1]/small.delta", nested.as_bytes());
    place.succeed(&["x[v1]/small.delta", "--quiet", "--out", "nested"]);
    assert!(place.succeed(&["eval", "nested"]).contains("10 examples"));
    // One file may be read in two ways: each column of texts is a set.
    let other = |columns: &str| format!("csv(\"two.csv\", columns = [{columns}])");
    let table: String = cells
        .iter()
        .take(30)
        .map(|(text, label)| format!("{},{label},a film\n", text.replace(',', "")))
        .collect();
    place.write("two.csv", table.as_bytes());
    let sets = |train: &str, dev: &str| {
        let text = pipeline(&other(train), task).replace("split(train, 25%)", &other(dev));
        place.write("small.delta", text.as_bytes());
        place
            .succeed(&["plan", "small.delta"])
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    let found = sets("text, label, other", "other, label, text");
    assert!(
        found.contains("dev 30 rows of `two.csv`") && found.contains("4 at most"),
        "{found}"
    );
    let twice = pipeline("jsonl([\"whole.jsonl\", \"whole.jsonl\"])", task);
    place.write("small.delta", twice.as_bytes());
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(error.contains("whole.jsonl` is named twice"), "{error}");
    // Years are no shards.
    for year in [2023, 2024] {
        place.write(&format!("year-{year}.jsonl"), lines(0..30).as_bytes());
    }
    place.succeed(&["init", "year-2023.jsonl", "--out", "year.delta"]);
    let year = std::fs::read_to_string(place.path("year.delta")).unwrap();
    assert!(
        year.contains("train = jsonl(\"year-2023.jsonl\")"),
        "{year}"
    );
    // What is wrong has its place.
    place.write(
        "shards/train-00001-of-00003.jsonl",
        b"{\"text\": \"a\", \"label\": \"positive\"}\n{\"text\": 1\n",
    );
    place.write(
        "small.delta",
        pipeline("jsonl(\"shards/train-*.jsonl\")", task).as_bytes(),
    );
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(
        error.contains("train-00001-of-00003.jsonl`, line 2"),
        "{error}"
    );
    place.write(
        "small.delta",
        pipeline("jsonl(\"shards/dev-*.jsonl\")", task).as_bytes(),
    );
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(
        error.contains("no file matches `") && error.contains("shards/dev-*.jsonl"),
        "{error}"
    );
    place.write("small.delta", pipeline("jsonl([])", task).as_bytes());
    let error = place.fail(2, &["check", "small.delta"]);
    assert!(
        error.contains("a string in quotes, or a list of them"),
        "{error}"
    );
    // `init` takes all shards, and the sets beside them; a directory means its training file.
    for shard in 0..2 {
        place.write(
            &format!("shards/train-0000{shard}-of-00003.jsonl"),
            lines(20 * shard..20 * shard + 20).as_bytes(),
        );
    }
    place.write(
        "shards/validation-00000-of-00001.jsonl",
        lines(0..5).as_bytes(),
    );
    for (data, out) in [
        ("shards/train-00000-of-00003.jsonl", "a.delta"),
        ("shards", "b.delta"),
    ] {
        place.succeed(&["init", data, "--backbone", "backbone", "--out", out]);
        let draft = std::fs::read_to_string(place.path(out)).unwrap();
        assert!(
            draft.contains("pipeline shards")
                && draft.contains("train = jsonl(\"shards/train-*-of-00003.jsonl\")"),
            "{draft}"
        );
        assert!(
            draft.contains("dev = jsonl(\"shards/validation-*.jsonl\")")
                && draft.contains("# These are 2 files."),
            "{draft}"
        );
        place.succeed(&["check", out]);
    }
}
