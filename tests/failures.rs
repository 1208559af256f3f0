//! What goes wrong when the command runs, and how it says so.

use crate::common::place::{Place, PIPELINE};

#[test]
fn an_existing_output_is_not_touched() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runs/small")).unwrap();
    insta::assert_snapshot!(place.fail(2, &["small.delta", "--quiet"]));
    assert_eq!(place.runs(), ["small"]);
}

#[test]
fn an_unfinished_run_of_another_plan_is_not_touched() {
    let place = Place::new();
    std::fs::create_dir_all(place.path("runs/small.partial")).unwrap();
    place.write("runs/small.partial/manifest.yaml", b"other\n");
    insta::assert_snapshot!(place.fail(2, &["small.delta", "--quiet"]));
}

/// Name of the snapshot, and what is spoiled.
type Spoil = fn(&Place);

const SPOILED: &[(&str, Spoil)] = &[
    ("warmup_beyond_the_steps", |place| {
        let adalora = "adalora { rank = 4, target_rank = 2, warmup = 10, last = 5 }";
        let lora = "lora { rank = 2, alpha = 4, dropout = 0.1 }";
        place.write("small.delta", PIPELINE.replace(lora, adalora).as_bytes())
    }),
    ("missing_file", |place| {
        std::fs::remove_file(place.path("dev.tsv")).unwrap()
    }),
    ("unknown_label", |place| {
        place.write(
            "train.tsv",
            b"text\tlabel\nfine\tpositive\nso so\tneutral\n",
        )
    }),
    ("wrong_width", |place| {
        place.write("train.tsv", b"text\tlabel\nfine\tpositive\nso so\n")
    }),
    ("not_utf8", |place| {
        place.write(
            "train.tsv",
            b"text\tlabel\nfine\tpositive\ncaf\xe9\tnegative\n",
        )
    }),
    ("empty_file", |place| place.write("train.tsv", b"")),
    ("only_a_header", |place| {
        place.write("train.tsv", b"text\tlabel\n")
    }),
    ("missing_column", |place| {
        place.write("train.tsv", b"sentence\tlabel\nfine\tpositive\n")
    }),
    ("unsupported_family", |place| {
        place.write("backbone/config.json", b"{\"model_type\": \"mamba\"}")
    }),
    ("config_not_json", |place| {
        place.write("backbone/config.json", b"{")
    }),
    ("missing_weights", |place| {
        std::fs::remove_file(place.path("backbone/model.safetensors")).unwrap()
    }),
    ("truncated_weights", |place| {
        let bytes = std::fs::read(place.path("backbone/model.safetensors")).unwrap();
        place.write("backbone/model.safetensors", &bytes[..bytes.len() / 2]);
    }),
    ("corrupt_weights", |place| {
        place.write("backbone/model.safetensors", &[255; 1000])
    }),
    ("weights_of_another_shape", |place| {
        let text = std::fs::read_to_string(place.path("backbone/config.json")).unwrap();
        place.write(
            "backbone/config.json",
            text.replace("\"intermediate_size\": 384", "\"intermediate_size\": 256")
                .as_bytes(),
        );
    }),
    ("weights_of_fewer_blocks", |place| {
        let text = std::fs::read_to_string(place.path("backbone/config.json")).unwrap();
        place.write(
            "backbone/config.json",
            text.replace("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4")
                .as_bytes(),
        );
    }),
    ("missing_tokenizer", |place| {
        std::fs::remove_file(place.path("backbone/tokenizer.json")).unwrap()
    }),
    ("tokenizer_of_another_backbone", |place| {
        let text = std::fs::read_to_string(place.path("backbone/tokenizer.json")).unwrap();
        place.write(
            "backbone/tokenizer.json",
            text.replace("\"plot\":", "\"plot\":9").as_bytes(),
        );
    }),
];

#[test]
fn every_spoiled_input_has_its_message_and_leaves_nothing() {
    for (name, spoil) in SPOILED {
        let place = Place::new();
        spoil(&place);
        insta::assert_snapshot!(*name, place.fail(2, &["small.delta", "--quiet"]));
        assert!(place.runs().is_empty(), "{name} left {:?}", place.runs());
    }
}

#[test]
fn check_finds_missing_files_and_columns_without_running() {
    let place = Place::new();
    assert!(place
        .succeed(&["check", "small.delta"])
        .contains("no mistakes"));
    place.write("dev.tsv", b"txt\tlabel\na\tpositive\n");
    insta::assert_snapshot!(place.fail(2, &["check", "small.delta"]));
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let config =
        std::fs::read_to_string(place.path("runs/small/peft/adapter_config.json")).unwrap();
    let predict = [
        "predict",
        "runs/small/peft",
        "--backbone",
        "backbone",
        "--input",
        "train.tsv",
    ];
    let cases = [
        (
            "adapter_missing_tensors",
            config.replace("\"query\"", "\"query\",\n    \"key\""),
        ),
        ("adapter_extra_tensors", config.replace("\"query\",", "")),
        ("adapter_wrong_rank", config.replace("\"r\": 2", "\"r\": 3")),
        (
            "adapter_of_another_kind",
            config.replace("\"LORA\"", "\"OFT\""),
        ),
        (
            "adapter_with_lora_bias",
            config.replace("\"use_dora\": false", "\"lora_bias\": true"),
        ),
    ];
    for (name, spoiled) in cases {
        assert_ne!(config, spoiled, "{name}");
        place.write("runs/small/peft/adapter_config.json", spoiled.as_bytes());
        insta::assert_snapshot!(name, place.fail(2, &predict));
    }
}

#[test]
fn what_cannot_be_merged_says_why() {
    let place = Place::new();
    let cases = [
        (
            "merge_adapter",
            "insert low_rank = houlsby after block.*.ff",
        ),
        (
            "merge_prefix",
            "insert low_rank = prefix { tokens = 2 } before block.*.attn",
        ),
        (
            "merge_prompt",
            "insert low_rank = prompt { tokens = 2 } before embeddings",
        ),
        (
            "merge_gate",
            "reparam low_rank = lora { rank = 2, gate = on } on block.*.attn.q",
        ),
    ];
    let lora = PIPELINE
        .lines()
        .find(|line| line.starts_with("reparam"))
        .unwrap();
    for (name, statement) in cases {
        place.write(
            &format!("{name}.delta"),
            PIPELINE.replace(lora, statement).as_bytes(),
        );
        place.succeed(&[&format!("{name}.delta"), "--quiet", "--out", name]);
        insta::assert_snapshot!(name, place.fail(2, &["merge", name, "merged"]));
        assert!(!place.path("merged").exists());
    }
}

#[test]
fn another_backbone_is_refused() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    let weights = place.path("backbone/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    insta::assert_snapshot!(place.fail(2, &["eval", "runs/small"]));
}

#[test]
fn bad_lines_of_predict_are_named() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet"]);
    for (name, line) in [
        ("predict_not_json", "fine\n"),
        ("predict_wrong_key", "{\"txt\": \"fine\"}\n"),
    ] {
        place.write(
            "input.jsonl",
            format!("{{\"text\": \"fine\"}}\n{line}").as_bytes(),
        );
        let arguments = [
            "predict",
            "runs/small",
            "--input",
            "input.jsonl",
            "--output",
            "out.jsonl",
        ];
        insta::assert_snapshot!(name, place.fail(2, &arguments));
        let kept = std::fs::read_to_string(place.path("out.jsonl")).unwrap();
        assert_eq!(kept.lines().count(), 1, "what came before is kept");
    }
}

#[test]
fn arguments_have_their_messages() {
    let place = Place::new();
    insta::assert_snapshot!("no_file", place.fail(2, &[]));
    let message = place.fail(2, &["chek", "small.delta"]);
    assert!(message.contains("did you mean"), "{message}");
    insta::assert_snapshot!("no_such_file", place.fail(2, &["none.delta"]));
    insta::assert_snapshot!(
        "no_such_device",
        place.fail(2, &["small.delta", "--device", "tpu"])
    );
    insta::assert_snapshot!("not_a_run", place.fail(2, &["eval", "backbone"]));
    insta::assert_snapshot!(
        "set_without_value",
        place.fail(2, &["check", "small.delta", "--set", "rank"])
    );
    place.write("params.yaml", b"rank: [1\n");
    let message = place.fail(2, &["check", "small.delta", "--params", "params.yaml"]);
    assert!(message.contains("params.yaml"), "{message}");
}

/// Results that a full disk swallows are no success; a reader that has gone away asks for no more.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_standard_output_is_a_failure() {
    let place = Place::new();
    for arguments in [
        &["families"][..],
        &["check", "small.delta"],
        &["plan", "small.delta"],
    ] {
        let full = std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let output = place.command(arguments).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(
            error.contains("standard output could not be written") && error.contains("help:"),
            "{arguments:?}: {error}"
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(arguments).stdout(writer).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {error}");
    }
}
