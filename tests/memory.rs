//! Peaks of memory, as the system counts them for one process: what a file needs beside its own size.
#![cfg(target_os = "linux")]

use std::process::Stdio;

use crate::common::fixture;
use crate::common::place::{Place, PIPELINE};
use deltarun::data::TextEncoder;
use deltarun::task::Encoder;

/// The peak of a command's memory, in MB: the last that the system says of the process before it ends.
fn peak(place: &Place, arguments: &[&str]) -> usize {
    let mut command = place.command(arguments);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        most = kilobytes.unwrap_or(0).max(most);
        if let Some(ended) = child.try_wait().unwrap() {
            assert!(ended.success(), "{arguments:?}");
            return most / 1000;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// A text of which only the beginning is read needs no memory for the rest, even if it is one endless word.
#[test]
fn endless_texts_need_little_memory() {
    let place = Place::new();
    let small = peak(&place, &["small.delta", "--quiet", "--out", "small"]);
    let rows =
        ["a", "superb ", "(x)"].map(|part| part.repeat(10_000_000 / part.len()) + "\tnegative\n");
    place.write(
        "long.tsv",
        format!("text\tlabel\n{}", rows.concat()).as_bytes(),
    );
    place.write(
        "long.delta",
        PIPELINE.replace("\"train.tsv\"", "\"long.tsv\"").as_bytes(),
    );
    let long = peak(&place, &["long.delta", "--quiet", "--out", "long"]);
    assert!(
        long < small + 100,
        "{long} MB, {small} MB without long texts"
    );
    let line = format!("{{\"text\": \"{}\"}}\n", "a".repeat(10_000_000));
    place.write("long.jsonl", line.as_bytes());
    let answered = peak(&place, &["predict", "small", "--input", "long.jsonl"]);
    assert!(
        answered < small + 100,
        "{answered} MB, {small} MB without long texts"
    );
}

/// Rows are in memory once, as tokens.
#[test]
fn many_rows_need_no_more_than_their_tokens() {
    let place = Place::new();
    let small = peak(&place, &["small.delta", "--quiet", "--out", "small"]);
    let rows = "a superb film with a fine plot and great acting\tpositive\n".repeat(100_000);
    place.write("many.tsv", format!("text\tlabel\n{rows}").as_bytes());
    place.write(
        "many.delta",
        PIPELINE.replace("\"train.tsv\"", "\"many.tsv\"").as_bytes(),
    );
    let many = peak(&place, &["many.delta", "--quiet", "--out", "many"]);
    // 12 tokens of two bytes and an example's own fields, 50 bytes in all; and what reads 1,024 rows at once.
    assert!(many < small + 30, "{many} MB, {small} MB with 60 rows");
}

/// A word beyond the longest that a WordPiece reads is one unknown token (transformers' `max_input_chars_per_word`), in a
/// text that is read whole as in one of which only a part is.
#[test]
fn an_endless_word_is_one_token() {
    for name in [
        "bert_plain",
        "bert_left",
        "model_longest_word",
        "model_whole_words",
    ] {
        let directory = fixture("tokenizers").join(name);
        let encoder =
            TextEncoder::open(&directory, 12, &crate::common::config(&directory)).unwrap();
        let tokens = |length: usize| {
            let text = format!("the {}, the end", "x".repeat(length));
            encoder.texts(&[text]).unwrap().tokens
        };
        assert_eq!(tokens(100_000), tokens(5_000), "{name}");
    }
}

/// A tokenizer that divides letters or digits which stand together reads the same of a long text as of its beginning.
#[test]
fn a_word_that_is_divided_is_not_endless() {
    let own = fixture("tokenizers").join("bert_plain");
    let text = std::fs::read_to_string(own.join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let place = tempfile::tempdir().unwrap();
    let config = crate::common::config(&own);
    let tokens = |json: &serde_json::Value, length: usize| {
        std::fs::write(place.path().join("tokenizer.json"), json.to_string()).unwrap();
        let encoder = TextEncoder::open(place.path(), 300, &config).unwrap();
        encoder
            .texts(&[format!("the {}", "7".repeat(length))])
            .unwrap()
            .tokens
    };
    for change in ["Digits", "Split", "added"] {
        let mut json = json.clone();
        match change {
            "Digits" => {
                json["pre_tokenizer"] =
                    serde_json::json!({"type": "Digits", "individual_digits": true})
            }
            "Split" => {
                json["pre_tokenizer"] = serde_json::json!({"type": "Split", "pattern": {"String": "7"}, "behavior": "Isolated", "invert": false})
            }
            _ => {
                let mut token = json["added_tokens"][1].clone();
                token["content"] = "7".into();
                json["added_tokens"].as_array_mut().unwrap().push(token);
            }
        }
        assert_eq!(tokens(&json, 20_000), tokens(&json, 5_000), "{change}");
        assert_eq!(tokens(&json, 20_000).len(), 300, "{change}");
    }
}
