//! What is trained here, loaded by PEFT itself; the merged models, loaded by transformers; and a cloze
//! without training beside transformers' masked language model. Needs Python with torch, transformers
//! and peft: `DELTARUN_PYTHON` names it, and `.ci/run` sets it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Every kind of rank, several LoRAs at one module, and the other methods that PEFT has.
const PLACES: [(&str, &str); 20] = [
    (
        "one",
        "reparam a = lora { rank = 4, alpha = 9 } on block.*.attn.{q,v}",
    ),
    (
        "many",
        "reparam a = lora { rank = 4, alpha = 9 } on block.*.attn.{q,v}\n\
         reparam b = lora { rank = 2, alpha = 3 } on block[last 1].attn.{q,o}\n\
         reparam c = lora { rank = 3, alpha = 1 } on block.0.ff.down",
    ),
    ("upper", "reparam a = lora on block[1..3].{attn.o,ff.up}"),
    (
        "rslora",
        "reparam a = lora { rank = 4, scaling = rank_stabilized } on block.*.attn.{q,v}",
    ),
    (
        "embedding",
        "reparam a = lora { rank = 4 } on embeddings.word\n\
         reparam b = lora { rank = 2 } on block.*.attn.q",
    ),
    (
        "pissa",
        "reparam a = lora { rank = 4, init = pissa } on block.*.attn.{q,v}",
    ),
    (
        "adalora",
        "reparam a = adalora { rank = 4, target_rank = 2, last = 10 } on block.*.attn.{q,v}",
    ),
    (
        "words",
        "reparam a = trainable_tokens { words = [\"good\", \"bad\"] } on embeddings.word",
    ),
    (
        "words_and_rank",
        "reparam a = trainable_tokens { words = [\"good\", \"bad\"] } on embeddings.word\n\
         reparam b = lora { rank = 2 } on block.*.attn.q",
    ),
    (
        "intrinsic",
        "reparam a = intrinsic_dimension { dimension = 50, structure_aware = on } on block.*.ff.{up,down}",
    ),
    ("norms", "unfreeze a = **.norm"),
    (
        "dora",
        "reparam a = dora { rank = 4 } on block.*.{attn.{q,v},ff.down}",
    ),
    (
        "loha",
        "reparam a = loha { rank = 4 } on block.*.{attn.{q,v},ff.down}",
    ),
    (
        "lokr",
        "reparam a = lokr { rank = 4 } on block.*.{attn.{q,v},ff.down}",
    ),
    (
        "vera",
        "reparam a = vera { rank = 8 } on block.*.{attn.{q,v},ff.down}",
    ),
    (
        "miss",
        "reparam a = miss { rank = 4 } on block.*.{attn.{q,v},ff.down}",
    ),
    ("ia3", "reparam a = ia3 on block.*.{attn.{k,v},ff.down}"),
    (
        "prefix",
        "insert a = prefix { tokens = 5, hidden = 16 } before block.*.attn",
    ),
    (
        "text",
        "insert a = prompt { tokens = 4, init = \"is it good or bad\" } before embeddings",
    ),
    (
        "prompt",
        "insert a = p_tuning { tokens = 5, hidden = 16 } before embeddings",
    ),
];

/// A folder to run `deltarun` in, and a Python with torch, transformers and PEFT.
struct Place {
    folder: TempDir,
    python: OsString,
    /// Texts of the quickstart's dev set; they lie in `input.jsonl`.
    texts: Vec<String>,
}

impl Place {
    /// Nothing where there is no such Python.
    fn new() -> Self {
        let python = std::env::var_os("DELTARUN_PYTHON");
        let python = python.expect("DELTARUN_PYTHON is a Python with torch, transformers and peft");
        let folder = TempDir::new().unwrap();
        let dev = std::fs::read_to_string(quickstart().join("dev.tsv")).unwrap();
        let texts = dev
            .lines()
            .skip(1)
            .filter_map(|line| line.split('\t').next());
        let texts: Vec<String> = texts.take(40).map(str::to_owned).collect();
        let input: String = texts
            .iter()
            .map(|text| serde_json::json!({ "text": text }).to_string() + "\n")
            .collect();
        std::fs::write(folder.path().join("input.jsonl"), input).unwrap();
        Place {
            folder,
            python,
            texts,
        }
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn run(&self, arguments: &[&str]) -> String {
        self.output(env!("CARGO_BIN_EXE_deltarun").as_ref(), arguments)
    }

    /// Predicts the texts with a run, and writes them with their logits.
    fn predict(&self, run: &str, out: &str) {
        let predicted = self.run(&["predict", run, "--input", "input.jsonl"]);
        let mut lines = String::new();
        for (line, text) in predicted.lines().zip(&self.texts) {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["text"] = serde_json::json!(text);
            lines += &(line.to_string() + "\n");
        }
        self.write(out, &lines);
    }

    /// The loss of a language model's run, which is that of its adapter read back.
    fn loss(&self, run: &str, backbone: &str, data: &str) -> f64 {
        let loss = |arguments: &[&str]| -> f64 {
            let more = ["--data", data, "--format", "json"];
            let text = self.run(&[&["eval"], arguments, &more].concat());
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json["metrics"]["loss"].as_f64().unwrap()
        };
        let own = loss(&[run]);
        let back = loss(&[&format!("{run}/peft"), "--backbone", backbone]);
        assert!((own - back).abs() < 1e-5, "{run}: {own}, read back {back}");
        own
    }

    /// Runs a script of `tests/python`, which compares and ends with 1 where something differs.
    fn compare(&self, script: &str, arguments: &[&str]) {
        self.compare_on(&quickstart().join("backbone"), script, arguments);
    }

    /// The same on another backbone.
    fn compare_on(&self, backbone: &Path, script: &str, arguments: &[&str]) {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let script = root.join("tests/python").join(script);
        let paths = [script.to_str().unwrap(), backbone.to_str().unwrap()];
        println!(
            "{}",
            self.output(&self.python, &[&paths, arguments].concat())
        );
    }

    fn output(&self, program: &OsStr, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        let command = command.args(arguments).current_dir(self.folder.path());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text} {error}");
        text
    }
}

fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart")
}

#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn peft_and_transformers_load_what_a_run_leaves() {
    let place = Place::new();
    for (name, statements) in PLACES {
        let names: Vec<&str> = statements
            .lines()
            .filter_map(|line| line.split_whitespace().nth(1))
            .collect();
        let text = format!(
            r#"
            backbone "{0}/backbone" {{ max_length = 32 }}
            data {{ train = tsv("{0}/train.tsv") }}
            task classify {{ text = text, label = label, labels = [negative, positive] }}
            {statements}
            stage tune {{ train = [{1}, head], steps = 40, optimizer = adamw {{ lr = 3e-3 }} }}
            "#,
            quickstart().display(),
            names.join(", "),
        );
        place.write("p.delta", &text);
        place.run(&["p.delta", "--quiet", "--out", name]);
        if !statements.contains("before") {
            place.run(&["merge", name, &format!("{name}-merged")]);
        }
        place.predict(name, &format!("{name}.jsonl"));
    }
    place.compare("check_peft.py", &PLACES.map(|(name, _)| name));
}

#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn zero_shot_logits_are_those_of_transformers() {
    let place = Place::new();
    let text = format!(
        r#"
        pipeline zero
        backbone "{0}/backbone"
        data {{ dev = tsv("{0}/dev.tsv") }}
        task classify {{
            label = label
            labels = [negative, positive]
            template = "{{text}} so i {{mask}} it ."
            words = {{ negative = "hated", positive = "loved" }}
        }}
        "#,
        quickstart().display()
    );
    place.write("zero.delta", &text);
    let table = place.run(&["zero.delta", "--quiet"]);
    assert!(table.contains("zero-shot"), "{table}");
    place.predict("runs/zero", "predicted.jsonl");
    let template = "{text} so i [MASK] it .";
    place.compare(
        "check_cloze.py",
        &["predicted.jsonl", template, "hated", "loved"],
    );
}

/// Templates with special, soft and edited pieces, words of several tokens, numbers between words, biases
/// of the head, heads with a weight of their own and causal ones: all against transformers.
#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn templates_and_language_model_heads_are_those_of_transformers() {
    let place = Place::new();
    place.compare("check_templates.py", &["make"]);
    let numbers = place.texts.iter().enumerate();
    let numbers = numbers.map(|(i, text)| format!("{text}\t{}\n", 1 + i % 5));
    let table = format!("text\tlabel\n{}", numbers.collect::<String>());
    place.write("numbers.tsv", &table);
    place.write("texts.txt", &place.texts.join("\n"));

    let own = quickstart().join("backbone").display().to_string();
    let plain = "{text} so i {mask} it .";
    let tuned = |statement: &str, name: &str| {
        format!("{statement}\nstage tune {{ train = [{name}], steps = 5, optimizer = adamw {{ lr = 1e-2 }} }}")
    };
    let soft = "insert soft = prompt { tokens = 3 } before embeddings";
    let biases = "unfreeze biases = {**,lm_head.**}.bias";
    let classify = "classify { labels = [negative, positive], words = { negative = \"hated\", positive = \"loved\" }";
    let mean = "classify { labels = [negative, positive], words = { negative = \"hated dull\", positive = \"loved\" }, multi_token = mean";
    let regress = "regress { range = [1, 5], words = { low = \"hated\", high = \"loved\" }";
    let cases = [
        (
            "separators",
            own.as_str(),
            classify,
            "{cls}{text}{sep}{mask}{sep}",
            String::new(),
        ),
        (
            "segments",
            &own,
            classify,
            "{cls}{text}{sep}{segment:1}it is {mask}{sep}",
            String::new(),
        ),
        (
            "soft",
            &own,
            classify,
            "{soft}{text} so i {mask} it .",
            tuned(soft, "soft"),
        ),
        (
            "edits",
            &own,
            classify,
            "{text:drop_last:lower_first}? {mask}, it is",
            String::new(),
        ),
        ("mean", &own, mean, plain, String::new()),
        ("interpolation", &own, regress, plain, String::new()),
        ("bitfit", &own, classify, plain, tuned(biases, "biases")),
        ("untied", "untied", classify, plain, String::new()),
        (
            "causal",
            "gpt2",
            classify,
            "{text} so i {mask}",
            String::new(),
        ),
    ];
    for (name, backbone, task, template, statements) in cases {
        let file = match name {
            "interpolation" => "numbers.tsv".to_owned(),
            _ => quickstart().join("dev.tsv").display().to_string(),
        };
        let text = format!(
            r#"
            pipeline {name}
            backbone "{backbone}"
            data {{ train = tsv("{file}"), dev = tsv("{file}") }}
            task {task}, label = label, template = "{template}" }}
            {statements}
            "#
        );
        place.write("p.delta", &text);
        place.run(&["p.delta", "--quiet"]);
        let run = format!("runs/{name}");
        if name == "bitfit" {
            place.run(&["merge", &run, "merged"]);
        }
        place.predict(&run, "predicted.jsonl");
        place.compare("check_templates.py", &[name, "predicted.jsonl", &run]);
    }
    let text = r#"
        pipeline causal_lm
        backbone "gpt2"
        data { dev = text("texts.txt") }
        task causal_lm { text = text }
    "#;
    place.write("p.delta", text);
    place.run(&["p.delta", "--quiet"]);
    place.compare(
        "check_templates.py",
        &["causal_lm", "input.jsonl", "runs/causal_lm"],
    );
}

/// A real SmolLM2, where `DELTARUN_SMOLLM2` names what `make.py` wrote for it.
#[test]
#[ignore = "needs DELTARUN_PYTHON and DELTARUN_SMOLLM2"]
fn peft_loads_what_runs_of_a_language_model_leave() {
    let place = Place::new();
    let backbone = std::env::var_os("DELTARUN_SMOLLM2").expect("DELTARUN_SMOLLM2 is set");
    let backbone = backbone.to_str().unwrap();
    let lines = [
        "The cat sat on the mat.",
        "A list: one, two, three.",
        "Two and two make four.",
    ];
    place.write("lines.txt", &(lines.join("\n") + "\n"));
    let mut runs = Vec::new();
    for (name, statement) in [
        ("lora", "reparam delta = lora { rank = 4 } on **.attn.{q,v}"),
        (
            "dora",
            "reparam delta = dora { rank = 4 } on block[last 4].ff.{gate,down}",
        ),
    ] {
        let text = format!(
            r#"
            backbone "{backbone}" {{ max_length = 32 }}
            data {{ train = text("lines.txt") }}
            task causal_lm {{ text = text }}
            {statement}
            stage tune {{ train = [delta], steps = 4, batch = 3, optimizer = adamw {{ lr = 1e-3 }} }}
            "#
        );
        place.write("p.delta", &text);
        place.run(&["p.delta", "--quiet", "--out", name]);
        place.run(&["merge", name, &format!("{name}-merged")]);
        let own = place.loss(name, backbone, "lines.txt");
        runs.push(format!("{name}={own}"));
    }
    let mut arguments = vec!["lines.txt"];
    arguments.extend(runs.iter().map(String::as_str));
    place.compare_on(Path::new(backbone), "check_language_model.py", &arguments);
}

/// The tiny T5 of `pipelines/architectures`, whose decoder has two blocks.
#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn peft_loads_what_runs_of_an_encoder_and_a_decoder_leave() {
    let place = Place::new();
    let backbone = quickstart().join("../architectures/t5");
    let backbone = backbone.to_str().unwrap();
    let pairs = [
        "source\ttarget",
        "the plot was [MASK] .\tthe plot was dull .",
        "we [MASK] it , and the film was [MASK] .\twe loved it , and the film was superb .",
        "everyone left happy [MASK] the [MASK] felt fresh .\teveryone left happy because the cast felt fresh .",
    ];
    place.write("pairs.tsv", &(pairs.join("\n") + "\n"));
    let mut runs = Vec::new();
    let both = "**.block.*.{attn,cross}";
    for (name, statement) in [
        (
            "lora",
            format!("reparam delta = lora {{ rank = 4 }} on {both}.{{q,v}}"),
        ),
        (
            "decoder",
            "reparam delta = lora { rank = 2 } on decoder.block[last 1].{cross.{k,o},ff.gate}"
                .to_owned(),
        ),
        (
            "ia3",
            format!("reparam delta = ia3 on {{{both}.{{k,v}},**.ff.down}}"),
        ),
        (
            "distances",
            "reparam delta = lora { rank = 2 } on {encoder,decoder}.position".to_owned(),
        ),
        ("norms", "unfreeze delta = **.norm".to_owned()),
        (
            "prompt",
            "insert delta = prompt { tokens = 3 } before embeddings".to_owned(),
        ),
    ] {
        let text = format!(
            r#"
            backbone "{backbone}" {{ max_length = 32 }}
            data {{ train = tsv("pairs.tsv") }}
            task seq2seq {{ source = source, target = target }}
            {statement}
            stage tune {{ train = [delta], steps = 8, batch = 3, optimizer = adamw {{ lr = 1e-2 }} }}
            "#
        );
        place.write("p.delta", &text);
        place.run(&["p.delta", "--quiet", "--out", name]);
        if name != "prompt" {
            place.run(&["merge", name, &format!("{name}-merged")]);
        }
        let own = place.loss(name, backbone, "pairs.tsv");
        runs.push(format!("{name}={own}"));
    }
    let mut arguments = vec!["pairs.tsv"];
    arguments.extend(runs.iter().map(String::as_str));
    place.compare_on(Path::new(backbone), "check_language_model.py", &arguments);
}

/// One file on a BERT, a Llama and a T5: `pipelines/architectures.delta`, cut short.
#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn peft_loads_one_file_on_three_architectures() {
    let place = Place::new();
    let pipeline = quickstart().join("../architectures.delta");
    let pipeline = pipeline.to_str().unwrap();
    for (name, model) in [
        ("bert", "quickstart/backbone"),
        ("llama", "architectures/llama"),
        ("t5", "architectures/t5"),
    ] {
        let text = std::fs::read_to_string(pipeline).unwrap();
        let text = text
            .replace("\"quickstart/", &format!("\"{}/", quickstart().display()))
            .replace("epochs = 16", "epochs = 1");
        let root = quickstart().join("..");
        let text = text.replace(
            &format!("param model = \"{}/backbone\"", quickstart().display()),
            &format!("param model = \"{}\"", root.join(model).display()),
        );
        assert!(text.contains("epochs = 1\n"), "{text}");
        place.write("p.delta", &text);
        place.run(&["p.delta", "--quiet", "--out", name]);
        place.run(&["merge", name, &format!("{name}-merged")]);
        place.predict(name, &format!("{name}.jsonl"));
        let backbone = root.join(model);
        place.compare_on(&backbone, "check_peft.py", &[name]);
    }
}

/// A backbone of a family's fixture with a tokenizer of some words of the quickstart.
fn with_words(place: &Place, family: &str) -> PathBuf {
    let directory = place.folder.path().join(family);
    std::fs::create_dir(&directory).unwrap();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture.join(family).join(file), directory.join(file)).unwrap();
    }
    let mut words = vec!["[PAD]", "[END]", "[BEGIN]", "[UNK]"];
    for word in place.texts.iter().flat_map(|text| text.split(' ')) {
        if words.len() < 61 && !words.contains(&word) {
            words.push(word);
        }
    }
    let ids = words.iter().enumerate().map(|(id, word)| (*word, id));
    let vocab: std::collections::BTreeMap<&str, usize> = ids.collect();
    let tokenizer = serde_json::json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let class = r#"{ "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]" }"#;
    std::fs::write(directory.join("tokenizer_config.json"), class).unwrap();
    directory
}

/// What runs on the families leave: adapters, and merged models.
#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn peft_and_transformers_load_what_runs_of_every_family_leave() {
    let place = Place::new();
    let data = quickstart().join("dev.tsv");
    for family in [
        "distilbert",
        "modernbert",
        "mistral",
        "qwen3",
        "smollm3",
        "gemma",
        "gemma2",
        "gemma3",
        "phi3",
    ] {
        let backbone = with_words(&place, family);
        // Where the checkpoint fuses weights, PEFT has one LoRA for all of their parts.
        let sites = match family {
            "phi3" | "modernbert" => "{block.*.attn.{qkv,o}, block.*.ff.{gateup,down}}",
            _ => "{**.attn.{q,v}, **.ff.{up,down}}",
        };
        // PEFT has no place for a norm's weight beside a LoRA; the merged model has.
        let (norms, trained) = match family {
            "gemma2" => ("unfreeze norms = **.norm", "delta, norms, head"),
            _ => ("", "delta, head"),
        };
        let text = format!(
            r#"
            backbone "{family}" {{ max_length = 24 }}
            data {{ train = tsv("{}") }}
            task classify {{ text = text, label = label, labels = [negative, positive, neither] }}
            reparam delta = lora {{ rank = 3 }} on {sites}
            {norms}
            stage tune {{ train = [{trained}], steps = 6, optimizer = adamw {{ lr = 1e-2 }} }}
            "#,
            data.display()
        );
        place.write("p.delta", &text);
        let run = format!("run-{family}");
        place.run(&["p.delta", "--quiet", "--out", &run]);
        place.run(&["merge", &run, &format!("{run}-merged")]);
        place.predict(&run, &format!("{run}.jsonl"));
        place.compare_on(&backbone, "check_peft.py", &[&run]);
    }
}
