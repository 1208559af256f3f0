//! Span corruption, as T5 was pre-trained.

use crate::common::place::Place;
use crate::common::text_of;
use deltarun::data::Spans;
use deltarun::task::{Encoded, Example, Target};
use serde_json::{json, Value};

const MARKS: std::ops::Range<u32> = 1000..1100;
const END: u32 = 1;

fn example(count: u32) -> Example {
    let tokens: Vec<u32> = (0..count).map(|token| 5000 + token).chain([END]).collect();
    let special = tokens.iter().map(|token| *token == END).collect();
    Example {
        text: Encoded {
            special,
            ..text_of(&tokens)
        },
        decoder: [&[0], tokens.as_slice()].concat(),
        target: Target::MaskedTokens,
        cut: 0,
        others: Vec::new(),
    }
}

fn spans() -> Spans {
    Spans {
        share: 0.15,
        length: 3.0,
        marks: MARKS.collect(),
    }
}

/// 568 tokens become inputs of 512 and targets of 114, their ends included, as `compute_input_and_target_lengths(512,
/// 0.15, 3.0)` of transformers' `run_t5_mlm_flax.py` has it.
#[test]
fn inputs_and_targets_have_the_lengths_of_t5() {
    for key in 0..50 {
        let hidden = spans().hide(&example(568), key);
        assert_eq!(hidden.text.tokens.len(), 512);
        assert_eq!(hidden.decoder.len() - 1, 114);
        assert_eq!(hidden.target, Target::NextTokens);
    }
}

/// What stays and what is written make up the text, for any length; each span has its mark, and none touches the next.
#[test]
fn nothing_is_lost_or_doubled() {
    for count in [1, 2, 3, 5, 9, 20, 100, 3000] {
        let whole = example(count);
        for key in 0..20 {
            let hidden = spans().hide(&whole, key);
            assert_eq!(
                hidden,
                spans().hide(&whole, key),
                "the same key hides the same"
            );
            let mut written = hidden.decoder[1..].iter().peekable();
            let mut restored = Vec::new();
            let mut was_mark = false;
            for token in &hidden.text.tokens {
                if MARKS.contains(token) {
                    assert!(!was_mark, "two spans touch");
                    assert_eq!(written.next(), Some(token));
                    let mut length = 0;
                    while let Some(token) = written.next_if(|token| **token >= 5000) {
                        restored.push(*token);
                        length += 1;
                    }
                    assert!(length > 0, "a span is empty");
                } else {
                    restored.push(*token);
                }
                was_mark = MARKS.contains(token);
            }
            assert_eq!(restored, whole.text.tokens);
            assert_eq!(written.collect::<Vec<_>>(), [&END]);
        }
    }
}

/// Every place is hidden about as often as any other, but the first, which T5 never hides, and the last, which it always
/// hides: what stays and what is hidden take turns.
#[test]
fn spans_are_anywhere() {
    let (count, draws) = (400, 2000);
    let mut counts = vec![0u32; count as usize];
    for key in 0..draws {
        let hidden = spans().hide(&example(count), deltarun::engine::mix(key));
        let places = hidden.decoder.iter().filter(|token| **token >= 5000);
        places.for_each(|token| counts[(*token - 5000) as usize] += 1);
    }
    assert_eq!((counts[0], counts[399]), (0, draws as u32));
    let share =
        |counts: &[u32]| f64::from(counts.iter().sum::<u32>()) / counts.len() as f64 / draws as f64;
    assert!((share(&counts) - 0.15).abs() < 1e-9);
    for places in counts[20..380].chunks(20) {
        let share = share(places);
        assert!((share - 0.148).abs() < 0.015, "{share}");
    }
}

/// A T5 with tokens for spans learns to write them; one without is refused.
#[test]
fn a_t5_learns_to_write_spans() {
    let place = Place::new();
    let blank =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/blank_t5");
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(blank.join(name)).unwrap()).unwrap()
    };
    std::fs::create_dir(place.path("t5")).unwrap();
    let mut config = read("config.json");
    config["vocab_size"] = json!(112);
    place.write("t5/config.json", config.to_string().as_bytes());
    let mut tokenizer = read("tokenizer.json");
    let pipeline = "pipeline spans\nbackbone \"t5\" { weights = random, max_length = 40, dropout = off }\n\
        data { train = tsv(\"train.tsv\"), dev = tsv(\"train.tsv\") }\n\
        task span_lm { text = text, mask = 30%, length = 2 }\n\
        unfreeze everything = **\n\
        stage learn { train = [everything], steps = 120, batch = 32, optimizer = adamw { lr = 5e-3 }, evaluate = every 60 steps, keep = last }\n";
    place.write("spans.delta", pipeline.as_bytes());
    place.write("t5/tokenizer.json", tokenizer.to_string().as_bytes());
    let error = place.fail(2, &["check", "spans.delta"]);
    assert!(
        error.contains("the tokenizer has no token `<extra_id_0>`"),
        "{error}"
    );
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    for number in 0..10 {
        let mut token = added[0].clone();
        token["id"] = json!(102 + number);
        token["content"] = json!(format!("<extra_id_{number}>"));
        added.push(token);
    }
    place.write("t5/tokenizer.json", tokenizer.to_string().as_bytes());
    place.succeed(&["spans.delta", "--quiet", "--out", "run"]);
    let log = std::fs::read_to_string(place.path("run/log.jsonl")).unwrap();
    let losses: Vec<f64> = log
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["dev"]["loss"].as_f64())
        .collect();
    // Words of a small made language are found from what is around them: log 102 is 4.6.
    assert!(losses.last().unwrap() < &2.2, "{losses:?}");
}
