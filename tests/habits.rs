//! What people write who come from PEFT, Axolotl, LLaMA-Factory, Python or YAML: each says what to write instead. The
//! kinds of mistakes that 69 broken pipelines were made of.

use crate::common::place::{Place, PIPELINE};

/// What is changed in the pipeline: a name, what stood there, what stands there.
const MISTAKES: [(&str, &str, &str); 49] = [
    ("no name", "reparam low_rank = lora", "reparam = lora"),
    ("python slice", "block.*.attn", "block[1:].attn"),
    ("last without a number", "block.*.attn", "block[last].attn"),
    (
        "a path that begins below",
        "on block.*.attn.{q,v}",
        "on attn.q",
    ),
    ("yaml colon", "batch = 8", "batch: 8"),
    (
        "json colon",
        "labels = [negative, positive]",
        "labels = { \"0\": negative, \"1\": positive }",
    ),
    (
        "yaml list",
        "labels = [negative, positive]",
        "labels =\n      - negative\n      - positive",
    ),
    ("slashes", "pipeline small", "// a comment\npipeline small"),
    (
        "block comment",
        "pipeline small",
        "/* a comment */\npipeline small",
    ),
    ("semicolon", "batch = 8", "batch = 8;"),
    ("single quotes", "tsv(\"train.tsv\")", "tsv('train.tsv')"),
    (
        "typographic quotes",
        "tsv(\"train.tsv\")",
        "tsv(“train.tsv”)",
    ),
    ("typographic minus", "1e-3", "1e−3"),
    ("no quotes at a path", "\"backbone\"", "./backbone"),
    (
        "no quotes at a file",
        "tsv(\"train.tsv\")",
        "tsv(train.tsv)",
    ),
    ("dash in a name", "pipeline small", "pipeline my-run"),
    (
        "python call",
        "lora { rank = 2, alpha = 4, dropout = 0.1 }",
        "lora(rank = 2, alpha = 4)",
    ),
    (
        "python optimizer",
        "adamw { lr = 1e-3 }",
        "adamw(lr = 1e-3)",
    ),
    (
        "list of modules",
        "on block.*.attn.{q,v}",
        "on [\"query\", \"value\"]",
    ),
    (
        "target_modules in place of on",
        "dropout = 0.1 } on block.*.attn.{q,v}",
        "target_modules = [\"q_proj\"] }",
    ),
    ("insert on", "reparam low_rank", "insert low_rank"),
    ("reparam after", "on block.*.attn.{q,v}", "after block.*.ff"),
    ("task with =", "task classify {", "task = classify {"),
    ("import", "pipeline small", "import peft"),
    ("capital statement", "stage tune", "Stage tune"),
    (
        "unclosed brace",
        "evaluate = every 4 steps\n}",
        "evaluate = every 4 steps",
    ),
    (
        "unclosed brace in the middle",
        "label = label\n    labels = [negative, positive]\n}",
        "label = label\n    labels = [negative, positive]",
    ),
    ("unclosed bracket", "[low_rank, head]", "[low_rank, head"),
    ("unclosed quote", "tsv(\"dev.tsv\")", "tsv(\"dev.tsv)"),
    (
        "closing too much",
        "evaluate = every 4 steps\n}",
        "evaluate = every 4 steps\n}\n}",
    ),
    ("True", "dropout = 0.1", "gate = True"),
    ("lora_alpha", "alpha = 4", "lora_alpha = 4"),
    ("r", "rank = 2", "r = 2"),
    ("learning_rate", "batch = 8", "learning_rate = 1e-3"),
    ("num_train_epochs", "steps = 12", "num_train_epochs = 3"),
    ("early stopping", "batch = 8", "early_stopping_patience = 3"),
    ("eval_steps", "evaluate = every 4 steps", "eval_steps = 4"),
    ("seed in a stage", "batch = 8", "seed = 3"),
    (
        "gradient checkpointing",
        "batch = 8",
        "gradient_checkpointing = on",
    ),
    (
        "weight decay of a stage",
        "batch = 8",
        "weight_decay = 0.01",
    ),
    (
        "num_labels",
        "labels = [negative, positive]",
        "num_labels = 2",
    ),
    ("qlora", "= lora {", "= qlora {"),
    ("adam", "adamw {", "adam {"),
    ("SEQ_CLS", "task classify", "task SEQ_CLS"),
    ("number as text", "batch = 8", "batch = \"8\""),
    (
        "number as percent",
        "lr = 1e-3",
        "lr = 1e-3, weight_decay = 1%",
    ),
    (
        "share as number",
        "evaluate = every 4 steps",
        "schedule = linear { warmup = 0.06 }",
    ),
    ("hub name", "\"backbone\"", "\"bert-base-uncased\""),
    (
        "reader of another format",
        "tsv(\"train.tsv\")",
        "csv(\"train.tsv\")",
    ),
];

/// Codes, sentences and ways out of a report.
fn told(place: &Place, text: &str) -> String {
    place.write("small.delta", text.as_bytes());
    let output = place.run(&["check", "small.delta", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut told = String::new();
    for problem in report["problems"].as_array().unwrap() {
        let line = &problem["labels"][0]["line"];
        let text = |key: &str| {
            problem[key]
                .as_str()
                .unwrap_or_else(|| panic!("no {key}: {problem}"))
                .to_owned()
        };
        told.push_str(&format!(
            "  line {line}: {}\n    {}\n",
            text("message"),
            text("help")
        ));
    }
    told.replace(
        &place.path("").canonicalize().unwrap().display().to_string(),
        "PLACE",
    )
}

#[test]
fn every_habit_says_what_to_write() {
    let place = Place::new();
    let mut all = String::new();
    for (name, old, new) in MISTAKES {
        assert!(PIPELINE.contains(old), "{name}");
        all.push_str(&format!(
            "{name}\n{}",
            told(&place, &PIPELINE.replacen(old, new, 1))
        ));
    }
    assert!(
        !all.contains("docs/language.md"),
        "a way out that is none: {all}"
    );
    insta::assert_snapshot!(all);
}

/// The parser goes on after a bad statement: all of them are shown, each once.
#[test]
fn all_syntax_errors_are_shown_at_once() {
    let place = Place::new();
    let text = PIPELINE
        .replace("batch = 8", "batch: 8")
        .replace("labels = [negative, positive]", "labels = 'a'")
        .replace("on block.*.attn.{q,v}", "block.*.attn.{q,v}")
        .replace("pipeline small", "pipelin small");
    insta::assert_snapshot!(told(&place, &text));
}

/// A sound line beside a broken one is not called a mistake.
#[test]
fn sound_statements_have_no_habits() {
    let place = Place::new();
    let sound = "\n# one; two: three // four - 'five' \"six\": seven\n\
                 insert more = pfeiffer { bottleneck = 4, gate = on } after block.*.ff  # on [this]\n\
                 task second = classify {\n    text = \"a: b\"\n    label = label\n    labels = [a, b]\n}\n\
                 stage more {\n    train = [more]\n    task = second\n    steps = 1\n    optimizer = adamw { lr = 1e-3 }\n}\n";
    let text = PIPELINE.replace("pipeline small", "pipelin small # \"a\": b") + sound;
    assert_eq!(
        told(&place, &text),
        "  line 1: expected a statement, found `pipelin`\n    did you mean `pipeline`?\n"
    );
}

/// What some editors put first is no part of the file.
#[test]
fn a_byte_order_mark_is_passed_over() {
    let place = Place::new();
    place.write(
        "small.delta",
        format!("\u{feff}{}", PIPELINE.replace('\n', "\r\n")).as_bytes(),
    );
    place.succeed(&["check", "small.delta"]);
}
