//! Adapters whose configuration says something that few do: read as PEFT reads them, by
//! `tests/fixtures/make_adapters.py`, or refused by the name of the field with a reason of their own.

use std::path::{Path, PathBuf};

use crate::common::{config, difference, fixture, Expected};
use deltarun::backbone::{write_tensors, Checkpoint};
use deltarun::data::{Encoded, Example};
use deltarun::diagnostic::Problem;
use deltarun::engine::Device;
use deltarun::graph::Tensors;
use deltarun::peft::import;
use deltarun::plan::Metric;
use deltarun::run::{open_run, InputSettings, Integrity, Loaded};
use deltarun::task::Target;
use deltarun::train::{evaluate, Measuring};
use serde_json::{json, Value};

const CASES: [(&str, &str); 44] = [
    ("layers", "bert_b"),
    ("layers_pattern", "gpt2"),
    ("bias_all", "bert_a"),
    ("bias_lora_only", "bert_a"),
    ("bias_all_roberta", "roberta"),
    ("saved_pooler", "bert_a"),
    ("saved_norms", "bert_a"),
    ("named_keys", "bert_a"),
    ("orthogonal", "bert_a"),
    ("patterns", "bert_b"),
    ("tokens_alone", "bert_a"),
    ("ia3_default", "bert_a"),
    ("causal", "llama_a"),
    ("causal_head", "llama_b"),
    ("causal_gpt2", "gpt2"),
    ("prefix_grouped", "llama_b"),
    ("prefix_qwen2", "qwen2"),
    ("prompt_qwen2", "qwen2"),
    ("p_tuning_llama", "llama_b"),
    ("embed_untied", "llama_b"),
    ("embed_tied", "llama_a"),
    ("tables_saved", "llama_b"),
    ("tables_saved_tied", "llama_a"),
    ("both_tables_tied", "llama_a"),
    ("bias_all_gpt2", "gpt2"),
    ("early_names", "bert_a"),
    ("python_pattern", "bert_b"),
    ("ia3_qwen2", "qwen2"),
    ("prefix_qwen3", "qwen3"),
    ("prefix_mistral", "mistral"),
    ("prefix_gemma3", "gemma3"),
    ("prompt_gemma2", "gemma2"),
    ("embed_gemma", "gemma"),
    ("ia3_gemma3", "gemma3"),
    ("distilbert_head", "distilbert"),
    ("tags", "bert_a"),
    ("tags_llama", "llama_a"),
    ("t5_prefix", "t5_v1_0"),
    ("t5_prefix_even", "t5_v1_1"),
    ("t5_prompt", "t5_v1_1"),
    ("t5_ia3", "t5_v1_0"),
    ("t5_norms", "t5_v1_1"),
    ("t5_layers", "t5_v1_1"),
    ("t5_head", "t5_v1_1"),
];

fn open(adapter: &Path, backbone: &Path) -> Result<Loaded, Problem> {
    let backbone = backbone.display().to_string();
    open_run(
        adapter,
        Some(&backbone),
        InputSettings::default(),
        Integrity::Checked,
        Device::Cpu,
    )
}

#[test]
fn logits_are_those_of_peft() {
    for (name, backbone) in CASES {
        let (adapter, backbone) = (fixture("adapters").join(name), fixture(backbone));
        let loaded = open(&adapter, &backbone).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        let expected = Expected::open(&backbone);
        let of_peft = Expected::open(&adapter);
        let (batch, of_peft) = match loaded.graph.task().unwrap().kind.name() {
            "seq2seq" => {
                let logits = expected.packed_targets(&of_peft.read("logits"), 0, 61);
                (expected.seq2seq(0), logits)
            }
            "causal_lm" => {
                let logits = expected.packed(&of_peft.read("logits"), 0, 61);
                (expected.batch(0), logits)
            }
            "tag" => {
                let mut batch = expected.batch(0);
                batch.reads = (0..batch.tokens.len()).collect();
                let outputs = loaded.graph.task().unwrap().kind.outputs();
                let logits = expected.packed(&of_peft.read("logits"), 0, outputs);
                (batch, logits)
            }
            _ => (expected.batch(0), of_peft.read("logits")),
        };
        let logits = loaded.graph.inference().logits(&batch).unwrap();
        let worst = difference(&logits.read(), &of_peft, false);
        println!("{name}: logits differ by at most {worst:.1e}");
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

/// PEFT counts the first token behind a prompt, which the prompt's last row predicts, and none without a prompt.
#[test]
fn losses_of_causal_models_are_those_of_peft() {
    let mut cases = 0;
    for (name, backbone) in CASES {
        let (adapter, backbone) = (fixture("adapters").join(name), fixture(backbone));
        let loaded = open(&adapter, &backbone).unwrap();
        let task = loaded.graph.task().unwrap();
        if task.kind.name() != "causal_lm" {
            continue;
        }
        let batch = Expected::open(&backbone).batch(0);
        let example = |range: std::ops::Range<usize>| Example {
            text: Encoded {
                tokens: batch.tokens[range.clone()]
                    .iter()
                    .map(|token| *token as u32)
                    .collect(),
                types: vec![0; range.len()],
                special: vec![false; range.len()],
                reads: Vec::new(),
                soft: None,
                words: Vec::new(),
            },
            decoder: Vec::new(),
            target: Target::NextTokens,
            cut: 0,
            others: Vec::new(),
        };
        let examples: Vec<Example> = batch.layout.ranges().map(example).collect();
        let found = evaluate(&loaded.graph, &examples, task, Measuring::default()).unwrap();
        let (found, of_peft) = (
            found.get(Metric::Loss),
            Expected::open(&adapter).read("loss")[0],
        );
        assert!(
            (found - f64::from(of_peft)).abs() < 1e-5,
            "{name}: {found} for {of_peft}"
        );
        cases += 1;
    }
    assert_eq!(cases, 17);
}

/// An adapter's directory whose configuration has other values.
fn changed(adapter: &Path, changes: &Value) -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let directory = place.path().join("adapter");
    std::fs::create_dir(&directory).unwrap();
    let tensors = "adapter_model.safetensors";
    std::fs::copy(adapter.join(tensors), directory.join(tensors)).unwrap();
    let text = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    std::fs::write(directory.join("adapter_config.json"), config.to_string()).unwrap();
    (place, directory)
}

#[test]
fn what_changes_an_adapter_is_refused_by_its_name() {
    let lora = fixture("adapters/orthogonal");
    let methods = fixture("methods");
    let cases = [
        (
            lora.clone(),
            json!({ "use_mora": true }),
            "`use_mora` is true, and deltarun does not know this key",
        ),
        (
            lora.clone(),
            json!({ "enable_lora": [true] }),
            "`enable_lora`",
        ),
        (
            lora.clone(),
            json!({ "arrow_config": {} }),
            "`arrow_config`",
        ),
        (lora.clone(), json!({ "kasa_config": {} }), "KaSA"),
        (
            lora.clone(),
            json!({ "lora_bias": true }),
            "`lora_bias` is true: the adapter adds its own biases",
        ),
        (
            lora.clone(),
            json!({ "lora_alpha": "6" }),
            "`lora_alpha` is \"6\", not a number",
        ),
        (
            lora.clone(),
            json!({ "lora_alpha": null }),
            "`lora_alpha` is null, not a number",
        ),
        (
            lora.clone(),
            json!({ "use_dora": "yes" }),
            "`use_dora` is \"yes\", not `true` or `false`",
        ),
        (lora.clone(), json!({ "r": 0 }), "`r` is 0"),
        (
            lora.clone(),
            json!({ "layer_replication": [[0, 1]] }),
            "`layer_replication`",
        ),
        (
            lora.clone(),
            json!({ "target_parameters": ["x"] }),
            "`target_parameters`",
        ),
        (
            lora.clone(),
            json!({ "alora_invocation_tokens": [1] }),
            "`alora_invocation_tokens`",
        ),
        (
            lora.clone(),
            json!({ "init_lora_weights": "olora" }),
            "`init_lora_weights` is \"olora\"",
        ),
        (
            lora.clone(),
            json!({ "init_lora_weights": "loftq" }),
            "`init_lora_weights` is \"loftq\"",
        ),
        (
            lora.clone(),
            json!({ "init_lora_weights": "PISSA" }),
            "`init_lora_weights` is \"PISSA\"",
        ),
        (
            lora.clone(),
            json!({ "rank_pattern": { "(": 3 } }),
            "`rank_pattern` contains `(`",
        ),
        (
            lora.clone(),
            json!({ "task_type": "CAUSAL_LM" }),
            "`task_type` is \"CAUSAL_LM\"",
        ),
        (
            lora.clone(),
            json!({ "peft_type": "OFT" }),
            "`peft_type` is OFT",
        ),
        (
            lora,
            json!({ "a_key_of_the_future": 7 }),
            "`a_key_of_the_future` is 7",
        ),
        (
            methods.join("miss"),
            json!({ "init_weights": "bat" }),
            "`init_weights` is \"bat\"",
        ),
        (
            methods.join("lokr"),
            json!({ "decompose_both": true }),
            "`decompose_both`",
        ),
        (
            methods.join("vera"),
            json!({ "save_projection": false }),
            "lacks its projections",
        ),
        (
            methods.join("adalora"),
            json!({ "use_dora": true }),
            "`use_dora`",
        ),
        (
            methods.join("prefix"),
            json!({ "num_attention_heads": 5 }),
            "`num_attention_heads` is 5",
        ),
        (
            methods.join("prompt"),
            json!({ "num_transformer_submodules": 2 }),
            "`num_transformer_submodules`",
        ),
        (
            methods.join("dora_gpt2"),
            json!({ "target_modules": ["c_attn"] }),
            "c_attn",
        ),
    ];
    for (adapter, changes, said) in cases {
        let backbone = match adapter.ends_with("dora_gpt2") {
            true => fixture("gpt2"),
            false => fixture("bert_a"),
        };
        let (_place, directory) = changed(&adapter, &changes);
        let problem = import(&directory, &config(&backbone))
            .err()
            .unwrap_or_else(|| panic!("{changes}"));
        assert!(
            problem.message.contains(said),
            "{changes}: {}",
            problem.message
        );
        let help = problem.help.unwrap();
        assert!(
            !help.contains("name the backbone that the adapter was trained on")
                || said.contains("heads"),
            "{help}"
        );
    }
}

/// What acts in training alone, or is off, may be passed over at any value.
#[test]
fn what_changes_nothing_is_passed_over() {
    let adapter = fixture("adapters/orthogonal");
    let changes = json!({
        "lora_dropout": 0.3, "init_lora_weights": "eva", "eva_config": { "rho": 2.0 }, "revision": "x",
        "a_flag_of_the_future": false, "a_list_of_the_future": [], "a_setting_of_the_future": null,
    });
    let (_place, directory) = changed(&adapter, &changes);
    let found = import(&directory, &config(&fixture("bert_a"))).unwrap();
    let plain = import(&adapter, &config(&fixture("bert_a"))).unwrap();
    assert_eq!(found.tensors, plain.tensors);
    assert_eq!(found.deltas, plain.deltas);
}

#[test]
fn pickles_and_missing_backbones_have_a_way_out() {
    let (place, directory) = changed(&fixture("adapters/orthogonal"), &json!({}));
    let tensors = directory.join("adapter_model.safetensors");
    std::fs::rename(&tensors, directory.join("adapter_model.bin")).unwrap();
    let problem = open(&directory, &fixture("bert_a")).err().unwrap();
    assert!(problem
        .help
        .unwrap()
        .contains("torch.load('adapter_model.bin'"));
    let problem = open_run(
        &directory,
        None,
        InputSettings::default(),
        Integrity::Checked,
        Device::Cpu,
    )
    .err()
    .unwrap();
    assert!(problem.help.unwrap().contains("--backbone"));
    // PEFT does not look into subfolders either, but says nothing of them.
    let problem = open(place.path(), &fixture("bert_a")).err().unwrap();
    let help = problem.help.unwrap();
    assert!(help.contains(&directory.display().to_string()), "{help}");
}

/// PEFT trains a copy of a tied table for the embeddings alone, or the rows of both of its uses.
#[test]
fn a_tied_table_is_not_read_as_something_else() {
    for name in ["tied_rows", "tied_table"] {
        let adapter = fixture("adapters").join(name);
        let Err(problem) = open(&adapter, &fixture("llama_a")) else {
            panic!("{name} is read");
        };
        assert!(
            problem.message.contains("`embeddings.word`") && problem.message.contains("the head"),
            "{name}: {}",
            problem.message
        );
    }
}

/// PEFT compares the ends of names with `modules_to_save`.
#[test]
fn a_tied_table_under_a_part_of_its_name_is_not_read_either() {
    for saved in ["model.embed_tokens", "tokens"] {
        let change = json!({ "modules_to_save": [saved] });
        let (_place, directory) = changed(&fixture("adapters/tied_table"), &change);
        let Err(problem) = import(&directory, &config(&fixture("llama_a"))) else {
            panic!("{saved} is read");
        };
        assert!(
            problem.message.contains("`embeddings.word`"),
            "{saved}: {}",
            problem.message
        );
    }
}

/// What an adapter says of tokens and outputs is checked before it is used.
#[test]
fn numbers_that_fit_no_backbone_are_refused() {
    let lora = fixture("adapters/orthogonal");
    let backbone = config(&fixture("bert_a"));
    let broken = |change: Value, name: &str, values: Vec<f32>, shape: Vec<usize>| {
        let (place, directory) = changed(&lora, &change);
        let path = directory.join("adapter_model.safetensors");
        let stored = Checkpoint::open(std::slice::from_ref(&path)).unwrap();
        let names: Vec<String> = stored.names().into_iter().map(str::to_owned).collect();
        let mut tensors: Tensors = names
            .into_iter()
            .map(|name| {
                let tensor = stored.read(&name).unwrap();
                (name, tensor)
            })
            .collect();
        tensors.insert(name.to_owned(), (values, shape));
        write_tensors(&path, &tensors, None).unwrap();
        let problem = import(&directory, &backbone).err();
        drop(place);
        problem.unwrap_or_else(|| panic!("{change}")).message
    };
    let rows =
        "base_model.model.bert.embeddings.word_embeddings.token_adapter.trainable_tokens_delta";
    let message = broken(
        json!({ "trainable_token_indices": [9999999] }),
        rows,
        vec![0.0; backbone.hidden],
        vec![1, backbone.hidden],
    );
    assert!(
        message.contains("token 9999999 is outside the vocabulary"),
        "{message}"
    );
    let head = "base_model.model.classifier.weight";
    let saved = json!({ "modules_to_save": ["classifier"] });
    for (values, shape) in [(vec![1.0], vec![]), (vec![], vec![0, backbone.hidden])] {
        let message = broken(saved.clone(), head, values, shape);
        assert!(message.contains("no outputs"), "{message}");
    }
    let (_place, directory) = changed(
        &fixture("methods/prompt"),
        &json!({ "num_virtual_tokens": u64::MAX }),
    );
    let problem = import(&directory, &backbone).err().unwrap();
    assert!(
        problem.message.contains("`num_virtual_tokens`"),
        "{}",
        problem.message
    );
}

/// What deltarun cannot hold is refused for what it is, with a way out.
#[test]
fn adapters_that_fit_no_delta_are_refused_by_their_reason() {
    for (name, backbone) in [("head_lora", "llama_b"), ("t5_all_linear", "t5_v1_0")] {
        let problem = open(&fixture("adapters").join(name), &fixture(backbone))
            .err()
            .unwrap();
        assert!(
            problem.message.contains("is a LoRA on the task's head"),
            "{problem:?}"
        );
        assert!(problem.help.unwrap().contains("modules_to_save"));
    }
    let lora = fixture("adapters/orthogonal");
    let (_place, mlx) = changed(&lora, &json!({ "fine_tune_type": "lora" }));
    let problem = import(&mlx, &config(&fixture("bert_a"))).err().unwrap();
    assert!(problem.message.contains("MLX-LM's"), "{problem:?}");
    let (_place, converted) = changed(&lora, &json!({ "peft_type": "SHIRA" }));
    let problem = import(&converted, &config(&fixture("bert_a")))
        .err()
        .unwrap();
    assert!(problem.help.unwrap().contains("save_as_lora"));
    for broken in [
        json!({ "target_modules": "(query" }),
        json!({ "target_modules": "query", "layers_to_transform": [0], "layers_pattern": ["[layer"] }),
    ] {
        let (_place, adapter) = changed(&lora, &broken);
        let problem = import(&adapter, &config(&fixture("bert_a"))).err().unwrap();
        assert!(
            problem.message.contains("no regular expression"),
            "{problem:?}"
        );
    }
}

/// Without a task, PEFT records the class that it was given: its head is read.
#[test]
fn an_adapter_without_a_task_has_the_head_of_its_class() {
    for (name, class, backbone, kind) in [
        ("tags", "BertForTokenClassification", "bert_a", "tag"),
        ("causal", "LlamaForCausalLM", "llama_a", "causal_lm"),
        (
            "t5_layers",
            "T5ForConditionalGeneration",
            "t5_v1_1",
            "seq2seq",
        ),
        (
            "layers",
            "BertForSequenceClassification",
            "bert_b",
            "classify",
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let adapter = fixture("adapters").join(name);
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            std::fs::copy(adapter.join(file), folder.path().join(file)).unwrap();
        }
        let path = folder.path().join("adapter_config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config["task_type"] = Value::Null;
        config["auto_mapping"] =
            json!({ "base_model_class": class, "parent_library": "transformers" });
        std::fs::write(&path, config.to_string()).unwrap();
        let loaded =
            open(folder.path(), &fixture(backbone)).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        assert_eq!(loaded.graph.task().unwrap().kind.name(), kind, "{name}");
    }
}

/// A checkpoint saved from a masked language model has no pooler, and this adapter brings none.
#[test]
fn a_head_that_is_nowhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let bert = fixture("bert_a");
    let whole = Checkpoint::open_directory(&bert).unwrap();
    let names = whole
        .names()
        .into_iter()
        .filter(|name| !name.contains("pooler"));
    let mut tensors = Tensors::new();
    for name in names {
        tensors.insert(name.to_owned(), whole.read(name).unwrap());
    }
    write_tensors(&folder.path().join("model.safetensors"), &tensors, None).unwrap();
    std::fs::copy(bert.join("config.json"), folder.path().join("config.json")).unwrap();
    let problem = open(&fixture("adapters").join("named_keys"), folder.path())
        .err()
        .unwrap();
    assert!(
        problem.message.contains("pooler.dense.weight"),
        "{problem:?}"
    );
    assert!(
        problem.help.unwrap().contains("modules_to_save"),
        "no way out"
    );
    // One that brings it is read.
    assert!(open(&fixture("adapters").join("saved_pooler"), folder.path()).is_ok());
}
