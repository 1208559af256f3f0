//! Files as people have them: Parquet by `tests/fixtures/make_parquet.py`, JSON lists, files packed by gzip.

use std::io::Write;

use crate::common::place::Place;
use crate::common::{fixture, json_fixture};
use deltarun::data::{visit, Wanted};
use deltarun::diagnostic::Span;
use deltarun::plan::{FileFormat, FilePlan};
use serde_json::Value;

fn rows(file: &FilePlan, wanted: &[Wanted]) -> Vec<(usize, Vec<String>)> {
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
                assert_eq!(&found, expected, "{name}, row {number}: {}", wanted.name);
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
