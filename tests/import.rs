//! `deltarun import`: configurations of other tools, as their documentation has them, become pipelines without mistakes.

use crate::common::place::Place;

const AXOLOTL: &str = "\
base_model: meta-llama/Llama-3.2-1B
load_in_4bit: true
adapter: qlora
datasets:
  - path: rows.jsonl
    type: alpaca
    ds_type: json
val_set_size: 0.25
sequence_len: 48
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
warmup_ratio: 0.1
weight_decay: 0.01
gradient_checkpointing: true
neftune_noise_alpha: 5
wandb_project:
special_tokens:
  pad_token: <|end_of_text|>
";

const LLAMA_FACTORY: &str = "\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: rows.jsonl
template: llama3
cutoff_len: 40
max_samples: 1000
output_dir: saves/llama3
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
val_size: 0.25
";

const MLX: &str = "\
model: mistralai/Mistral-7B-v0.1
train: true
fine_tune_type: lora
data: data
num_layers: 16
batch_size: 4
iters: 100
learning_rate: 1e-5
max_seq_length: 40
mask_prompt: true
grad_checkpoint: true
lora_parameters:
  keys: [\"self_attn.q_proj\", \"self_attn.v_proj\"]
  rank: 8
  scale: 20.0
  dropout: 0.0
";

const PEFT: &str = r#"{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "meta-llama/Llama-3.2-3B", "r": 16,
"lora_alpha": 32, "lora_dropout": 0.05, "use_rslora": true, "target_modules": ["q_proj", "v_proj"], "bias": "none",
"fan_in_fan_out": false, "init_lora_weights": true, "layers_to_transform": [0], "inference_mode": true}"#;

/// The folder of a tool's user, and what its configuration becomes on a backbone that is here.
fn imported(name: &str, text: &str) -> (Place, String) {
    let place = Place::of_tasks();
    let rows = std::fs::read_to_string(place.path("rows.jsonl")).unwrap();
    let rows = rows
        .replace("\"text\":", "\"instruction\":")
        .replace("\"label\":", "\"output\":");
    place.write("rows.jsonl", rows.as_bytes());
    std::fs::create_dir(place.path("data")).unwrap();
    let rows = rows
        .replace("\"instruction\":", "\"prompt\":")
        .replace("\"output\":", "\"completion\":");
    place.write("data/train.jsonl", rows.as_bytes());
    place.write(name, text.as_bytes());
    place.succeed(&["import", name, "--out", "own.delta"]);
    let own = std::fs::read_to_string(place.path("own.delta")).unwrap();
    place.succeed(&["import", name, "--backbone", "llama", "--out", "here.delta"]);
    (place, own)
}

#[test]
fn configurations_of_axolotl_become_pipelines() {
    let (place, text) = imported("qlora.yml", AXOLOTL);
    for line in [
        "pipeline qlora",
        "backbone \"hf:meta-llama/Llama-3.2-1B\"",
        "max_length = 48",
        "storage = nf4",
        "train = jsonl(\"rows.jsonl\")",
        "packs rows",
        "dev = split(train, 25%)",
        "rank = 32, alpha = 16, dropout = 0.05",
        "epochs = 3",
        "accumulate = 4",
        "optimizer = adamw { lr = 2e-4, weight_decay = 0.01 }",
        "schedule = cosine { warmup = 10% }",
        "recompute = blocks",
        "# Without a meaning here: neftune_noise_alpha = 5",
        "# Without a meaning here: special_tokens",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(!text.contains("wandb"), "{text}");
    place.succeed(&["check", "here.delta"]);
}

#[test]
fn configurations_of_llama_factory_become_pipelines() {
    let (place, text) = imported("sft.yaml", LLAMA_FACTORY);
    for line in [
        "param seed = 42",
        "max_length = 40",
        "messages = messages",
        "rank = 8, alpha = 16",
        "on **.{q,k,v,o,gate,up,down}",
        "batch = 1",
        "lr = 1e-4",
        "template `llama3`",
        "# Without a meaning here: max_samples = 1000",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let here = std::fs::read_to_string(place.path("here.delta")).unwrap();
    let here = here.replace(
        "messages = messages",
        "prompt = instruction, answer = output",
    );
    place.write("here.delta", here.as_bytes());
    place.succeed(&["check", "here.delta"]);
}

#[test]
fn configurations_of_mlx_become_pipelines() {
    let (place, text) = imported("lora_config.yaml", MLX);
    for line in [
        "train = jsonl(\"data/train.jsonl\")",
        "rank = 8, alpha = 160",
        "steps = 100",
        "lr = 1e-5",
        "schedule = constant",
        "clip = off",
        "block[last 16]",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    place.succeed(&["check", "here.delta"]);
    place.succeed(&["here.delta", "--quiet", "--set", "seed=1"]);
}

#[test]
fn adapters_of_peft_become_pipelines_of_their_method() {
    let (place, text) = imported("adapter_config.json", PEFT);
    for line in [
        "backbone \"hf:meta-llama/Llama-3.2-3B\"",
        "rank = 16, alpha = 32, dropout = 0.05, scaling = rank_stabilized",
        "on {\"q_proj\", \"v_proj\"}",
        "# Without a meaning here: layers_to_transform = [0]",
        "TODO",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let here = std::fs::read_to_string(place.path("here.delta")).unwrap();
    let here = here
        .replace("TODO", "rows.jsonl")
        .replace("prompt = prompt", "prompt = instruction");
    place.write(
        "here.delta",
        here.replace("answer = answer", "answer = output")
            .as_bytes(),
    );
    place.succeed(&["check", "here.delta"]);
    for (kind, method) in [
        ("LOHA", "= loha { rank = 16, alpha = 32 }"),
        ("IA3", "= ia3"),
        ("VERA", "= vera { rank = 16 }"),
        (
            "PROMPT_TUNING",
            "= prompt { tokens = 20 } before embeddings",
        ),
    ] {
        place.write("adapter_config.json", PEFT.replace("LORA", kind).as_bytes());
        let out = format!("{kind}.delta");
        place.succeed(&["import", "adapter_config.json", "--out", &out]);
        let text = std::fs::read_to_string(place.path(&out)).unwrap();
        assert!(text.contains(method), "{kind}: {text}");
    }
    place.write(
        "adapter_config.json",
        PEFT.replace("LORA", "SHIRA").as_bytes(),
    );
    let said = place.fail(2, &["import", "adapter_config.json"]);
    assert!(said.contains("no method for PEFT's `SHIRA`"), "{said}");
    let odd = AXOLOTL.replace("type: alpaca", "type: completion\n    field: \"a \\n} b\"");
    place.write("odd.yml", odd.as_bytes());
    place.succeed(&["import", "odd.yml"]);
    place.succeed(&["fmt", "--check", "odd.delta"]);
    place.write("grpo.yml", format!("{AXOLOTL}rl: grpo\n").as_bytes());
    let said = place.fail(2, &["import", "grpo.yml"]);
    assert!(said.contains("`rl: grpo`"), "{said}");
    place.write("other.yaml", b"a: 1\n");
    let said = place.fail(2, &["import", "other.yaml"]);
    assert!(said.contains("of no tool that deltarun knows"), "{said}");
}

/// What a configuration says is in the pipeline, in a comment of it, or refused.
#[test]
fn nothing_of_a_configuration_is_passed_over() {
    let place = Place::new();
    let import = |name: &str, text: &str| {
        place.write(name, text.as_bytes());
        let _ = std::fs::remove_file(place.path("out.delta"));
        place.succeed(&["import", name, "--out", "out.delta"]);
        place.succeed(&["fmt", "--check", "out.delta"]);
        std::fs::read_to_string(place.path("out.delta")).unwrap()
    };
    let own_rows = "type:\n      field_instruction: ask\n      field_output: reply\n      format: \"Q {instruction}\"";
    for (from, to, wanted) in [
        ("type: alpaca", own_rows, "prompt = ask"),
        ("type: alpaca", own_rows, "answer = reply"),
        (
            "type: alpaca",
            own_rows,
            "# Without a meaning here: datasets.0.type.format = \"Q {instruction}\"",
        ),
        (
            "val_set_size: 0.25",
            "val_set_size: 100",
            "holds out 100 rows",
        ),
        (
            "lora_r: 32",
            "lora_r: many",
            "# Without a meaning here: lora_r = \"many\"",
        ),
        ("learning_rate: 2e-4", "learning_rate: .nan", "lr = 2e-4"),
        (
            "lora_dropout: 0.05",
            "lora_model_dir: before",
            "# Without a meaning here: lora_model_dir",
        ),
        (
            "lora_dropout: 0.05",
            "peft_init_lora_weights: olora",
            "peft_init_lora_weights = \"olora\"",
        ),
        (
            "lora_dropout: 0.05",
            "plugins: [axolotl.integrations.kd.KDPlugin]",
            "plugins",
        ),
        ("lora_dropout: 0.05", "rl: dpo\nrl_beta: 0.3", "beta = 0.3"),
        (
            "ds_type: json",
            "split: train[:10%]",
            "datasets.0.split = \"train[:10%]\"",
        ),
    ] {
        let text = import("own.yml", &AXOLOTL.replace(from, to));
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    for (from, to, wanted) in [
        (
            "dataset: rows.jsonl",
            "dataset: rows.jsonl,more",
            "the data sets `more` are not here",
        ),
        ("val_size: 0.25", "val_size: 100", "holds out 100 rows"),
        ("val_size: 0.25", "seed: 0", "param seed = 0"),
        ("stage: sft", "stage: dpo\npref_loss: simpo", "gamma = 0.5"),
        (
            "bf16: true",
            "resume_from_checkpoint: old",
            "resume_from_checkpoint",
        ),
    ] {
        let text = import("own.yaml", &LLAMA_FACTORY.replace(from, to));
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    let ipo = LLAMA_FACTORY.replace("stage: sft", "stage: dpo\npref_loss: ipo");
    place.write("ipo.yaml", ipo.as_bytes());
    let said = place.fail(2, &["import", "ipo.yaml"]);
    assert!(said.contains("no preference loss `ipo`"), "{said}");
    for (line, wanted) in [
        ("optimizer: muon", "the optimizer `muon` became AdamW"),
        ("optimizer: adamw", "weight_decay = 0.01"),
        ("optimizer: adam", "optimizer = adamw { lr = 1e-5 }"),
        (
            "lr_schedule:\n  name: step_decay\n  arguments: [1e-5, 0.9]",
            "became `constant`",
        ),
        (
            "lr_schedule:\n  name: cosine_decay\n  warmup: 10\n  arguments: [1e-5, 100, 1e-7]",
            "lr_schedule.arguments",
        ),
        ("resume_adapter_file: old", "resume_adapter_file"),
    ] {
        let text = import("own.yaml", &format!("{MLX}{line}\n"));
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    for (from, to, wanted) in [
        (r#""bias": "none""#, r#""bias": "all""#, "bias = \"all\""),
        (
            r#""init_lora_weights": true"#,
            r#""init_lora_weights": false"#,
            "PEFT draws both matrices at random",
        ),
        (
            r#""init_lora_weights": true"#,
            r#""init_lora_weights": "olora""#,
            "init_lora_weights = \"olora\"",
        ),
        (
            r#""init_lora_weights": true"#,
            r#""init_lora_weights": "pissa_niter_4""#,
            "init = pissa",
        ),
        (
            r#""inference_mode": true"#,
            r#""module_dropout": 0.1, "rank_dropout": 0.0"#,
            "module_dropout = 0.1",
        ),
        (
            r#"["q_proj", "v_proj"]"#,
            "[]",
            "PEFT takes `q_proj` and `v_proj`",
        ),
    ] {
        let text = import("adapter_config.json", &PEFT.replace(from, to));
        assert!(text.contains(wanted), "{wanted}\n{text}");
    }
    let tokens = r#"{"peft_type": "TRAINABLE_TOKENS", "token_indices": {"lm_head": [1]}}"#;
    place.write("adapter_config.json", tokens.as_bytes());
    let said = place.fail(2, &["import", "adapter_config.json"]);
    assert!(said.contains("as a list of tokens"), "{said}");
}

/// Tools read paths from where they are started, and a pipeline from where it is.
#[test]
fn paths_lead_to_the_files_from_wherever_the_pipeline_is() {
    let place = Place::of_tasks();
    let rows = std::fs::read_to_string(place.path("rows.jsonl")).unwrap();
    let rows = rows.replace("\"text\":", "\"instruction\":");
    place.write(
        "rows.jsonl",
        rows.replace("\"label\":", "\"output\":").as_bytes(),
    );
    let text = AXOLOTL.replace("meta-llama/Llama-3.2-1B", "llama");
    std::fs::create_dir_all(place.path("configs/out")).unwrap();
    place.write("configs/own\nname.yml", text.as_bytes());
    for out in ["own.delta", "configs/own.delta", "configs/out/own.delta"] {
        place.succeed(&["import", "configs/own\nname.yml", "--out", out]);
        place.succeed(&["check", out]);
    }
    std::fs::copy(place.path("rows.jsonl"), place.path("configs/near.jsonl")).unwrap();
    place.write(
        "configs/near.yml",
        text.replace("rows.jsonl", "near.jsonl").as_bytes(),
    );
    place.succeed(&["import", "configs/near.yml"]);
    place.succeed(&["check", "near.delta"]);
}
