//! Generated tokens are those of transformers and PEFT, by `tests/fixtures/make_generation.py`.

use crate::common::fixture;
use deltarun::engine::Device;
use deltarun::generate::{generate, Decoding, Written};
use deltarun::run::{open_run, InputSettings, Integrity, Loaded};
use deltarun::task::{Encoded, Example, Target, Wishes};
use serde_json::Value;

fn open(adapter: Option<&str>, backbone: &str) -> Loaded {
    let backbone = fixture(backbone);
    let location = backbone.display().to_string();
    // Some fixtures were saved with a classifier's head, and would answer as classifiers.
    let writer = tempfile::tempdir().unwrap();
    let files = std::fs::read_dir(&backbone).unwrap().flatten();
    for entry in files.filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), writer.path().join(entry.file_name())).unwrap();
    }
    let config = writer.path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(
        &config,
        text.replace("ForSequenceClassification", "ForCausalLM"),
    )
    .unwrap();
    let opened = match adapter {
        Some(adapter) => open_run(
            &fixture("adapters").join(adapter),
            Some(&location),
            InputSettings::default(),
            Integrity::Checked,
            Device::Cpu,
        ),
        None => open_run(
            writer.path(),
            None,
            InputSettings::default(),
            Integrity::Checked,
            Device::Cpu,
        ),
    };
    opened.unwrap_or_else(|problem| panic!("{problem:?}"))
}

fn prompt(tokens: &[u32], loaded: &Loaded) -> Example {
    let start = loaded.plan.backbone.config.start_token;
    Example {
        text: Encoded {
            tokens: tokens.to_vec(),
            types: vec![0; tokens.len()],
            special: vec![false; tokens.len()],
            reads: Vec::new(),
            soft: None,
            words: Vec::new(),
        },
        decoder: start.map_or(Vec::new(), |start| vec![start, start]),
        target: Target::None,
        cut: 0,
        others: Vec::new(),
    }
}

fn answers(loaded: &Loaded, prompts: &[&Example], decoding: &Decoding) -> Vec<Written> {
    generate(
        &loaded.graph,
        prompts,
        decoding,
        &|_| Ok(String::new()),
        &mut |_, _| true,
    )
    .unwrap()
}

fn wishes(way: &str) -> Wishes {
    let none = Wishes::default();
    match way {
        "greedy" => none,
        "penalty" => Wishes {
            repetition_penalty: Some(1.3),
            ..none
        },
        "beams" => Wishes {
            beams: Some(3),
            ..none
        },
        "long_beams" => Wishes {
            beams: Some(4),
            length_penalty: Some(2.0),
            ..none
        },
        _ => panic!("{way}"),
    }
}

#[test]
fn tokens_are_those_of_transformers_and_peft() {
    let text = std::fs::read_to_string(fixture("generation.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let prompts: Vec<Vec<u32>> = serde_json::from_value(expected["prompts"].clone()).unwrap();
    let mut seen = 0;
    for case in expected["cases"].as_array().unwrap() {
        let loaded = open(case["adapter"].as_str(), case["backbone"].as_str().unwrap());
        let decoding = Wishes {
            max_tokens: expected["tokens"].as_u64().map(|count| count as usize),
            ..wishes(case["way"].as_str().unwrap())
        };
        let decoding = Decoding::of(decoding, vec![case["end"].as_u64().unwrap() as u32]);
        let decoding = decoding.unwrap();
        let prompts: Vec<Example> = prompts.iter().map(|ids| prompt(ids, &loaded)).collect();
        let all: Vec<&Example> = prompts.iter().collect();
        let together = answers(&loaded, &all, &decoding);
        for (number, answer) in together.iter().enumerate() {
            let of_transformers: Vec<u32> =
                serde_json::from_value(case["answers"][number].clone()).unwrap();
            assert_eq!(answer.tokens, of_transformers, "{case}, prompt {number}");
            // A prompt's answer does not depend on the prompts beside it.
            let alone = answers(&loaded, &all[number..=number], &decoding);
            assert_eq!(&alone[0], answer, "{case}, prompt {number} alone");
            seen += 1;
        }
    }
    assert_eq!(seen, 352);
}

/// Draws depend on the seed and the prompt, and on nothing else.
#[test]
fn draws_depend_on_the_seed_and_the_prompt_alone() {
    let loaded = open(None, "llama_a");
    let prompts = [prompt(&[5, 9, 33], &loaded), prompt(&[20], &loaded)];
    let drawn = |seed: u64, prompts: &[&Example]| {
        let wishes = Wishes {
            max_tokens: Some(12),
            temperature: Some(1.5),
            top_k: Some(20),
            seed: Some(seed),
            ..Wishes::default()
        };
        answers(
            &loaded,
            prompts,
            &Decoding::of(wishes.clone(), Vec::new()).unwrap(),
        )
    };
    let both = drawn(1, &[&prompts[0], &prompts[1]]);
    assert_eq!(both, drawn(1, &[&prompts[0], &prompts[1]]));
    assert_eq!(both[1], drawn(1, &[&prompts[1]])[0]);
    assert_ne!(both[1], drawn(2, &[&prompts[1]])[0]);
}
