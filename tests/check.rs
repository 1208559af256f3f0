//! `check` reads the rows: what is wrong with them is an error with its line, what is odd a warning. Its report for
//! programs has codes and places.

use crate::common::place::{Place, PIPELINE};
use serde_json::Value;

fn row(number: usize) -> String {
    let label = ["negative", "positive"][number % 2];
    format!("text number {number}\t{label}\n")
}

fn rows(numbers: std::ops::Range<usize>) -> String {
    "text\tlabel\n".to_owned() + numbers.map(row).collect::<String>().as_str()
}

#[test]
fn bad_rows_are_found_with_their_lines() {
    let place = Place::new();
    for (old, new, said) in [
        (
            "text number 7\tpositive",
            "text number 7\tpositiv",
            "line 9: the task does not name the label `positiv`",
        ),
        (
            "text number 7\tpositive",
            "text number 7",
            "line 9: the row has 1 column, but the header has 2",
        ),
        (
            "text number 7\tpositive",
            "\t",
            "line 9: the label is empty",
        ),
        (
            "text\tlabel\n",
            "text\ttext\n",
            "has two columns named `text`",
        ),
        ("text\tlabel\n", "label\tlabel\n", "has no column `text`"),
    ] {
        place.write("train.tsv", rows(0..30).replacen(old, new, 1).as_bytes());
        let message = place.fail(2, &["check", "small.delta"]);
        assert!(message.contains(said), "{new:?}: {message}");
    }
    // Far behind in a large file: at its end, and in the middle only with `--all-rows`.
    let large = rows(0..5000);
    place.write(
        "train.tsv",
        large
            .replacen("number 4999\tpositive", "number 4999\tp", 1)
            .as_bytes(),
    );
    assert!(place
        .fail(2, &["check", "small.delta"])
        .contains("line 5001: the task does not name the label `p`"));
    place.write(
        "train.tsv",
        large
            .replacen("number 2501\tpositive", "number 2501\tp", 1)
            .as_bytes(),
    );
    place.succeed(&["check", "small.delta"]);
    let message = place.fail(2, &["check", "small.delta", "--all-rows"]);
    assert!(message.contains("line 2503: the task"), "{message}");
    // A run reads all of them before it begins.
    assert!(place
        .fail(2, &["small.delta", "--quiet"])
        .contains("line 2503"));
    assert!(place.runs().is_empty());
}

#[test]
fn formats_have_their_own_mistakes() {
    let place = Place::new();
    let as_format = |format: &str, bytes: &[u8]| {
        place.write("train.data", bytes);
        let text = PIPELINE.replace("tsv(\"train.tsv\")", &format!("{format}(\"train.data\")"));
        place.write("small.delta", text.as_bytes());
        let output = place.run(&["check", "small.delta"]);
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let utf16: Vec<u8> = "\u{feff}text,label\n"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    for (format, bytes, said) in [
        (
            "csv",
            b"text,label,text\na,positive,b\n".to_vec(),
            "has two columns named `text`",
        ),
        (
            "csv",
            b"text,label\nfine,positive\n\" bad,negative\ngood,positive\nso \"great\",positive\n"
                .to_vec(),
            "line 5: a quote",
        ),
        (
            "csv",
            b"text\tlabel\na\tpositive\n".to_vec(),
            "read it with `tsv(...)`",
        ),
        (
            "csv",
            b"text,label\r\n\"a\nb\",positive\r\nc,positive\r\nd,wrong\r\n".to_vec(),
            "line 5: the task does not name the label `wrong`",
        ),
        ("csv", utf16, "UTF-16"),
        (
            "jsonl",
            b"{\"text\": null, \"label\": \"positive\"}\n".to_vec(),
            "line 1: `text` is null",
        ),
        (
            "jsonl",
            b"{\"text\": \"a\", \"label\": \"positive\"}\n{\"text\": \"b\"}\n".to_vec(),
            "line 2: the object has no `label`",
        ),
    ] {
        let (code, message) = as_format(format, &bytes);
        let words = message
            .split_whitespace()
            .filter(|w| *w != "│")
            .collect::<Vec<_>>()
            .join(" ");
        assert_eq!(code, Some(2), "{message}");
        assert!(words.contains(said), "{said}: {message}");
    }
    // A quote that is missing at the end of a text swallows rows, and may still be CSV.
    let swallowed =
        "text,label\nfine,positive\n\"bad,negative\ngood,positive\nmore \"\" film\",negative\n";
    let (code, message) = as_format("csv", swallowed.as_bytes());
    assert_eq!(code, Some(0), "{message}");
    assert!(message.contains("delta::data::swallowed"), "{message}");
    // What a task does not read may be anything.
    for extra in ["{\"a\": 1}", "null", "[1]"] {
        let line = |label: &str| {
            format!("{{\"text\": \"a {label}\", \"label\": \"{label}\", \"more\": {extra}}}\n")
        };
        let text = line("positive") + line("negative").as_str();
        let (code, message) = as_format("jsonl", text.as_bytes());
        assert_eq!(code, Some(0), "{message}");
    }
}

/// What a warning is said of, and its code.
#[test]
fn what_is_odd_is_said_and_stops_nothing() {
    let place = Place::new();
    let warnings = |pipeline: &str, train: &str, dev: &str| -> Vec<String> {
        place.write("small.delta", pipeline.as_bytes());
        place.write("train.tsv", train.as_bytes());
        place.write("dev.tsv", dev.as_bytes());
        let report: Value =
            serde_json::from_str(&place.succeed(&["check", "small.delta", "--format", "json"]))
                .unwrap();
        let problems = report["problems"].as_array().unwrap();
        assert!(problems
            .iter()
            .all(|problem| problem["severity"] == "warning"));
        problems
            .iter()
            .map(|p| p["code"].as_str().unwrap().to_owned())
            .collect()
    };
    // Of words that the backbone knows.
    let words = [
        "film", "plot", "cast", "hero", "show", "play", "pace", "story", "music", "script",
    ];
    let known = |numbers: std::ops::Range<usize>| -> String {
        let word = |digit: char| words[digit.to_digit(10).unwrap() as usize];
        let text = |line: &str| match line.rsplit_once(' ') {
            Some((_, number)) => {
                let (number, label) = number.split_once('\t').unwrap();
                let number: Vec<&str> = number.chars().map(word).collect();
                format!("the {}\t{label}\n", number.join(" "))
            }
            None => format!("{line}\n"),
        };
        rows(numbers).lines().map(text).collect()
    };
    let (train, dev) = (known(0..30), known(100..110));
    assert_eq!(
        warnings(PIPELINE, &rows(0..30), &dev),
        ["delta::data::unknown_tokens"]
    );
    assert_eq!(
        warnings(PIPELINE, &train.replace("the ", "[CLS] the "), &dev),
        ["delta::data::begun_twice"]
    );
    let long = PIPELINE.replace(
        "batch = 8",
        "batch = 8\n    schedule = linear { warmup = 500 }",
    );
    assert_eq!(warnings(&long, &train, &dev), ["delta::train::warmup"]);
    assert!(warnings(PIPELINE, &train, &dev).is_empty());
    assert_eq!(
        warnings(PIPELINE, &train, &known(25..35)),
        ["delta::data::overlap"]
    );
    let same = PIPELINE.replace("tsv(\"dev.tsv\")", "tsv(\"train.tsv\")");
    assert_eq!(warnings(&same, &train, &dev), ["delta::data::overlap"]);
    let split = PIPELINE.replace("tsv(\"dev.tsv\")", "split(train, 10%)");
    assert!(warnings(&split, &train, &dev).is_empty());
    let twice = format!(
        "{train}{}",
        train
            .lines()
            .skip(1)
            .map(|line| format!("{line}\n"))
            .collect::<String>()
    );
    assert_eq!(warnings(&split, &twice, &dev), ["delta::data::overlap"]);
    let short = PIPELINE.replace("max_length = 32", "max_length = 4");
    assert_eq!(
        warnings(&short, &train, &dev),
        ["delta::data::cut", "delta::data::cut"]
    );
    assert_eq!(
        warnings(PIPELINE, &train.replace("negative", "positive"), &dev),
        ["delta::data::absent_label"]
    );
    let three = PIPELINE.replace("[negative, positive]", "[negative, positive, neutral]");
    assert_eq!(
        warnings(&three, &train, &dev),
        ["delta::data::absent_label"]
    );
    let without = PIPELINE.replace("    dev = tsv(\"dev.tsv\")\n", "");
    assert_eq!(warnings(&without, &train, &dev), ["delta::data::no_dev"]);
    assert_eq!(
        warnings(PIPELINE, &(train.clone() + "\tpositive\n"), &dev),
        ["delta::data::empty_text"]
    );
    assert_eq!(
        warnings(
            PIPELINE,
            &(train.clone() + "\"the film\"\tpositive\n"),
            &dev
        ),
        ["delta::data::quotes"]
    );
    // The target of a sequence-to-sequence task is a text as well.
    let t5 = concat!(env!("CARGO_MANIFEST_DIR"), "/pipelines/architectures/t5");
    let pairs = PIPELINE
        .replace("\"backbone\"", &format!("\"{t5}\""))
        .replace("task classify {\n    text = text\n    label = label\n    labels = [negative, positive]\n}", "task seq2seq { source = text, target = label }")
        .replace("on block.", "on **.block.");
    assert!(pairs.contains("seq2seq"));
    assert!(warnings(&pairs, &train, &dev).is_empty());
    assert_eq!(
        warnings(&pairs, &(train.clone() + "text without one\t\n"), &dev),
        ["delta::data::empty_text"]
    );
    assert_eq!(
        warnings(&pairs, &(train.clone() + "a text\t\"so so\"\n"), &dev),
        ["delta::data::quotes"]
    );
    let config = std::fs::read_to_string(place.path("backbone/config.json")).unwrap();
    place.write(
        "backbone/config.json",
        config.replacen('{', "{\"of_the_future\": 1,", 1).as_bytes(),
    );
    assert_eq!(
        warnings(PIPELINE, &train, &dev),
        ["delta::backbone::unknown_key"]
    );
}

/// Three of eight public sets collapsed to one class without a word.
#[test]
fn a_run_that_learned_nothing_says_so() {
    let place = Place::new();
    place.write("train.tsv", rows(0..30).as_bytes());
    let text = PIPELINE
        .replace("steps = 12", "steps = 1")
        .replace("1e-3", "1e-9");
    let text = text.replace("max_length = 32", "max_length = 4");
    place.write("small.delta", text.as_bytes());
    let output = place.run(&["small.delta", "--quiet"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("delta::train::collapse"), "{said}");
    assert!(
        said.contains("30 of 30 texts of") && said.contains("fill `max_length` (4 tokens)"),
        "{said}"
    );
}

#[test]
fn reports_for_programs_have_codes_and_places() {
    let place = Place::new();
    let text = PIPELINE
        .replace("rank = 2", "rnk = 2")
        .replace("epochs", "epoch");
    place.write("small.delta", text.as_bytes());
    let output = place.run(&["check", "small.delta", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["file"], "small.delta");
    let problem = &report["problems"][0];
    assert_eq!(
        (problem["code"].as_str(), problem["severity"].as_str()),
        (Some("delta::plan::unknown_key"), Some("mistake"))
    );
    let label = &problem["labels"][0];
    let (start, end) = (
        label["start"].as_u64().unwrap() as usize,
        label["end"].as_u64().unwrap() as usize,
    );
    assert_eq!(&text[start..end], "rnk");
    let line = 1 + text[..start].matches('\n').count();
    assert_eq!(label["line"], line);
    let output = place.run(&["check", "small.delta", "--format", "github"]);
    let annotations = String::from_utf8(output.stdout).unwrap();
    assert!(
        annotations.starts_with(&format!("::error file=small.delta,line={line},")),
        "{annotations}"
    );
    place.write("small.delta", PIPELINE.as_bytes());
    let plan: Value =
        serde_json::from_str(&place.succeed(&["plan", "small.delta", "--format", "json"])).unwrap();
    assert_eq!(plan["plan"]["deltas"][0]["name"], "low_rank");
    assert!(plan["costs"][0]["trained"].as_u64().unwrap() > 0);
    place.succeed(&["small.delta", "--quiet"]);
    let eval: Value =
        serde_json::from_str(&place.succeed(&["eval", "runs/small", "--format", "json"])).unwrap();
    assert_eq!(eval["examples"], 20);
    assert!(eval["metrics"]["accuracy"].is_number());
}

/// 14 kB of mistakes made 48 MB of messages, 10 MB in a line took 969 MB.
#[test]
fn messages_do_not_grow_faster_than_the_text() {
    let place = Place::new();
    let many = "x ".repeat(7000);
    place.write("small.delta", many.as_bytes());
    let output = place.run(&["check", "small.delta"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        output.stderr.len() < 4 * many.len(),
        "{} bytes",
        output.stderr.len()
    );
    let settings: String = (0..700)
        .map(|number| format!("key{number} = 1, "))
        .collect();
    let text = PIPELINE.replace("batch = 8", &settings);
    place.write("small.delta", text.as_bytes());
    let output = place.run(&["check", "small.delta"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.len() < 4 * text.len(), "{} bytes", said.len());
    assert!(
        said.contains("more: fix these first") && said.contains("(line "),
        "{said}"
    );
    place.write("small.delta", &vec![b'a'; 10 << 20]);
    assert!(place
        .fail(2, &["check", "small.delta"])
        .contains("at most 1 MB"));
    place.write("small.delta", PIPELINE.as_bytes());
    place.write(
        "params.yaml",
        format!("seed: {}1{}", "[".repeat(5000), "]".repeat(5000)).as_bytes(),
    );
    let message = place.fail(2, &["check", "small.delta", "--params", "params.yaml"]);
    assert!(message.contains("nested deeper than"), "{message}");
}

/// What needs no weight is refused before a run begins, and not after the weights are there.
#[test]
fn check_refuses_what_the_run_would() {
    let place = Place::new();
    place.write("train.tsv", rows(0..30).as_bytes());
    let few = |count: &str| {
        PIPELINE.replace(
            "tsv(\"train.tsv\")",
            &format!("few(tsv(\"train.tsv\"), {count})"),
        )
    };
    let regress = few("3")
        .replace("classify", "regress")
        .replace("    labels = [negative, positive]\n", "");
    let adalora = PIPELINE
        .replace("lora {", "adalora { warmup = 100, last = 100, ")
        .replace("alpha = 16", "rank = 2");
    let language = PIPELINE
        .replace("task classify {\n    text = text\n    label = label\n    labels = [negative, positive]\n}", "task masked_lm { text = text }")
        .replace("low_rank, head", "low_rank");
    // A pooler is no part of this task's head.
    let unread = language.replace("block.*.attn.{q,v}", "pooler");
    place.write("empty.tsv", "text\tlabel\n\tpositive\n".as_bytes());
    let nothing = language.replace("tsv(\"train.tsv\")", "tsv(\"empty.tsv\")");
    for (text, code) in [
        (
            PIPELINE.replace("[low_rank, head]", "[low_rank]"),
            "delta::graph::untrained_head",
        ),
        (few("400"), "delta::data::few"),
        (regress, "delta::data::few"),
        (adalora, "delta::train::steps"),
        (nothing, "delta::data::nothing_to_predict"),
        (unread, "delta::weights::unfrozen"),
    ] {
        place.write("small.delta", text.as_bytes());
        let message = place.fail(2, &["check", "small.delta"]);
        assert!(message.contains(code), "{code}: {message}");
    }
}

/// `few` draws from all rows, even if another set has read only some of them.
#[test]
fn few_counts_all_rows_of_a_file_that_another_set_reads() {
    let place = Place::new();
    let row = |label: &'static str| move |number: usize| format!("text {number}\t{label}\n");
    let ends = |first: usize| {
        (first..first + 1200)
            .map(row("negative"))
            .collect::<String>()
    };
    let middle: String = (1200..1700).map(row("positive")).collect();
    let text = format!("text\tlabel\n{}{middle}{}", ends(0), ends(1700));
    place.write("train.tsv", text.as_bytes());
    let dev = |count| {
        PIPELINE.replace(
            "tsv(\"dev.tsv\")",
            &format!("few(tsv(\"train.tsv\"), {count})"),
        )
    };
    place.write("small.delta", dev(500).as_bytes());
    place.succeed(&["check", "small.delta"]);
    place.write("small.delta", dev(501).as_bytes());
    let message = place.fail(2, &["check", "small.delta"]);
    assert!(
        message.contains("has only 500 of the 501 examples"),
        "{message}"
    );
}

/// What people write about files in other tools, and what they are told to write here.
#[test]
fn habits_with_files_get_a_way_out_that_works() {
    let place = Place::new();
    let header = "Review Text,label\nso good,positive\nso bad,negative\n";
    place.write("train.csv", header.as_bytes());
    let of = |reader: &str| PIPELINE.replace("tsv(\"train.tsv\")", reader);
    let column = of("csv(\"train.csv\")").replace("text = text", "text = review_text");
    let labels = PIPELINE.replace("[negative, positive]", "{ negative = 0, positive = 1 }");
    let numbers = PIPELINE.replace("[negative, positive]", "{ 0 = negative, 1 = positive }");
    place.write(
        "wide.jsonl",
        b"{\n  \"text\": \"good\",\n  \"label\": \"positive\"\n}\n",
    );
    for (name, content) in [
        (
            "quoted.csv",
            "\"text\";\"label\"\n\"so good\";\"positive\"\n",
        ),
        (
            "compact.jsonl",
            "{\"text\":\"so good\",\"label\":\"positive\"}\n",
        ),
        ("list.json", "[\n  {\n    \"text\": \"good\"\n  }\n]\n"),
    ] {
        place.write(name, content.as_bytes());
    }
    for (text, help) in [
        (column, "did you mean `Review Text`?"),
        (
            of("csv(\"train.csv\", sep = \";\")"),
            "write `separator = \";\"`",
        ),
        (
            of("tsv(\"train.csv\", separator = \",\")"),
            "read a file with another symbol with `csv(",
        ),
        (
            of("csv(\"train.csv\", header = off)"),
            "`columns = [first, second]`",
        ),
        (of("jsonl(\"wide.jsonl\")"), "jq -c . FILE > NEW"),
        (of("csv(\"quoted.csv\")"), "separator = \";\""),
        (of("csv(\"compact.jsonl\")"), "read it with `jsonl(...)`"),
        (of("csv(\"list.json\")"), "read it with `json(...)`"),
        (of("jsonl(\"train.tsv\")"), "read it with `tsv(...)`"),
        (of("jsonl(\"train.csv\")"), "read it with `csv(...)`"),
        (labels, "write `\"0\" = negative`"),
        (numbers, "write `\"0\" = negative`"),
    ] {
        place.write("small.delta", text.as_bytes());
        let message = place.fail(2, &["check", "small.delta"]);
        // The help may be broken into lines.
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let message = words(&message.replace('│', " "));
        assert!(message.contains(help), "{help}: {message}");
        assert!(!message.contains("which has no `train` file"), "{message}");
    }
}

#[test]
fn numbers_of_the_command_line_have_ranges() {
    let place = Place::new();
    for (arguments, said) in [
        (
            &["small.delta", "--threads", "100000"][..],
            "from 1 to 1024",
        ),
        (&["small.delta", "--threads", "0"], "from 1 to 1024"),
        (&["profile", "small.delta", "--steps", "0"], "1..=1000000"),
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
}

/// A family with rotary positions reads longer texts than those of its pre-training; `check` says so.
#[test]
fn texts_beyond_the_pretraining_are_a_warning() {
    let place = Place::of_tasks();
    let text = "pipeline long\nbackbone \"llama\" { max_length = LENGTH }\n\
                data { train = jsonl(\"rows.jsonl\") }\n\
                task causal_lm { text = text }\n\
                reparam low = lora on **.q\n\
                stage tune { train = [low], steps = 2, optimizer = adamw { lr = 1e-3 } }\n";
    for (length, warns) in [("48", false), ("64", true)] {
        place.write("long.delta", text.replace("LENGTH", length).as_bytes());
        let output = place.run(&["check", "long.delta"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        assert_eq!(
            said.contains("pre-trained on 48 positions"),
            warns,
            "{said}"
        );
    }
}
