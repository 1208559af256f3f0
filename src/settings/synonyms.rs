//! What other tools call things, and what to write here instead: help, never a second spelling.

/// What to write instead.
enum Instead {
    /// A key or word of ours, where it is known at that place.
    Ours(&'static str),
    /// A sentence that begins with "write".
    Write(&'static str),
}

use Instead::{Ours, Write};

/// Keys of PEFT, Axolotl, LLaMA-Factory and Hugging Face's Trainer.
const KEYS: [(&str, Instead); 44] = [
    (
        "adapter",
        Write("the method after `reparam NAME =` or `insert NAME =`"),
    ),
    ("alpha_r", Ours("alpha")),
    ("batch_size", Ours("batch")),
    ("bf16", Write("`backbone \"...\" { precision = bf16 }`")),
    ("bottleneck_size", Ours("bottleneck")),
    (
        "cutoff_len",
        Write("`backbone \"...\" { max_length = 128 }`"),
    ),
    (
        "dataset",
        Write("a `data` block: `data { train = tsv(\"train.tsv\") }`"),
    ),
    ("early_stopping", Ours("patience")),
    ("early_stopping_patience", Ours("patience")),
    ("eval_steps", Write("`evaluate = every 200 steps`")),
    (
        "eval_strategy",
        Write("`evaluate = every epoch`, or `every 200 steps`"),
    ),
    (
        "evaluation_strategy",
        Write("`evaluate = every epoch`, or `every 200 steps`"),
    ),
    ("fp16", Write("`backbone \"...\" { precision = bf16 }`")),
    ("gradient_accumulation_steps", Ours("accumulate")),
    ("init_lora_weights", Ours("init")),
    ("label_names", Ours("labels")),
    ("learning_rate", Write("`optimizer = adamw { lr = 1e-3 }`")),
    (
        "load_best_model_at_end",
        Write("`keep = best`, which is the default"),
    ),
    ("lora_alpha", Ours("alpha")),
    ("lora_dropout", Ours("dropout")),
    ("lora_r", Ours("rank")),
    ("lora_rank", Ours("rank")),
    (
        "lora_target",
        Write("the modules after `on`: `on block.*.attn.{q,v}`"),
    ),
    ("lr", Write("`optimizer = adamw { lr = 1e-3 }`")),
    ("lr_scheduler", Write("`schedule = linear { warmup = 6% }`")),
    (
        "lr_scheduler_type",
        Write("`schedule = linear { warmup = 6% }`"),
    ),
    ("max_grad_norm", Ours("clip")),
    (
        "max_seq_length",
        Write("`backbone \"...\" { max_length = 128 }`"),
    ),
    ("max_steps", Ours("steps")),
    ("micro_batch_size", Ours("batch")),
    ("model", Write("`backbone \"DIRECTORY\"`")),
    ("num_epochs", Ours("epochs")),
    ("num_labels", Write("all labels: `labels = [a, b]`")),
    ("num_train_epochs", Ours("epochs")),
    ("num_virtual_tokens", Ours("tokens")),
    ("per_device_train_batch_size", Ours("batch")),
    ("r", Ours("rank")),
    (
        "seed",
        Write("`param seed = 3` at the top of the file, or `--seed 3`"),
    ),
    (
        "target_modules",
        Write("the modules after `on`: `on block.*.attn.{q,v}`"),
    ),
    (
        "test",
        Write("`test = tsv(\"test.tsv\")` in a `data` block"),
    ),
    ("warmup", Write("`schedule = linear { warmup = 6% }`")),
    ("warmup_ratio", Write("`schedule = linear { warmup = 6% }`")),
    (
        "warmup_steps",
        Write("`schedule = linear { warmup = 100 }`"),
    ),
    (
        "weight_decay",
        Write("`optimizer = adamw { lr = 1e-3, weight_decay = 0.01 }`"),
    ),
];

/// Words that stand for a value, a method or a task elsewhere.
const WORDS: [(&str, Instead); 22] = [
    ("adam", Ours("adamw")),
    ("adamw_torch", Ours("adamw")),
    ("adapter", Write("one of the adapters: `houlsby`, `pfeiffer`, `parallel`, `compacter`, `low_rank_adapter`")),
    ("bitfit", Write("`unfreeze NAME = **.bias`")),
    ("bottleneck", Write("one of the adapters: `houlsby`, `pfeiffer`, `parallel`, `compacter`, `low_rank_adapter`")),
    ("causal_language_modeling", Ours("causal_lm")),
    ("classification", Ours("classify")),
    ("false", Ours("off")),
    ("full", Write("`unfreeze NAME = **`")),
    ("gated", Write("`gate = on` in a delta's settings")),
    ("none", Ours("off")),
    ("prefix_tuning", Ours("prefix")),
    ("prompt_tuning", Ours("prompt")),
    ("qlora", Write("`lora`: deltarun does not support 4-bit weights yet")),
    ("regression", Ours("regress")),
    ("rslora", Write("`lora { scaling = rank_stabilized }`")),
    ("seq_cls", Ours("classify")),
    ("sequence_classification", Ours("classify")),
    ("text_classification", Ours("classify")),
    ("pissa", Write("`lora { init = pissa }`")),
    ("true", Ours("on")),
    ("clm", Ours("causal_lm")),
];

/// What to write instead of a key that is not known, where `known` are those that are.
pub(crate) fn for_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    find(&KEYS, key, known)
}

/// What to write instead of a word that is not known, where `known` are those that are.
pub(crate) fn for_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    find(&WORDS, word, known)
}

fn find<'a>(
    all: &[(&str, Instead)],
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let is_meant = |(other, _): &&(&str, Instead)| other.eq_ignore_ascii_case(word);
    match all.iter().find(is_meant)? {
        (_, Write(sentence)) => Some(format!("write {sentence}")),
        (_, Ours(ours)) => known
            .into_iter()
            .any(|known| known == *ours)
            .then(|| format!("write `{ours}`")),
    }
}
