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
        "train = json(\"rows.jsonl\")",
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
    assert!(
        !text.contains("sample_packing") && !text.contains("wandb"),
        "{text}"
    );
    let here = std::fs::read_to_string(place.path("here.delta")).unwrap();
    place.write(
        "here.delta",
        here.replace("json(\"rows", "jsonl(\"rows").as_bytes(),
    );
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
    let here = here.replace("json(\"rows", "jsonl(\"rows");
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
