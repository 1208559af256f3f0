//! What other tools call things, and what to write here instead: help, never a second spelling.

/// Keys of PEFT, Axolotl, LLaMA-Factory and Hugging Face's Trainer: ours where a key of that name does the same, or a
/// sentence.
const KEYS: [(&str, &str); 44] = [
    (
        "adapter",
        "=the method behind `reparam NAME =` or `insert NAME =`",
    ),
    ("alpha_r", "alpha"),
    ("batch_size", "batch"),
    ("bf16", "=`backbone \"...\" { precision = bf16 }`"),
    ("bottleneck_size", "bottleneck"),
    ("cutoff_len", "=`backbone \"...\" { max_length = 128 }`"),
    (
        "dataset",
        "=a `data` block: `data { train = tsv(\"train.tsv\") }`",
    ),
    ("early_stopping", "patience"),
    ("early_stopping_patience", "patience"),
    ("eval_steps", "=`evaluate = every 200 steps`"),
    (
        "eval_strategy",
        "=`evaluate = every epoch`, or `every 200 steps`",
    ),
    (
        "evaluation_strategy",
        "=`evaluate = every epoch`, or `every 200 steps`",
    ),
    ("fp16", "=`backbone \"...\" { precision = bf16 }`"),
    ("gradient_accumulation_steps", "accumulate"),
    ("init_lora_weights", "init"),
    ("label_names", "labels"),
    ("learning_rate", "=`optimizer = adamw { lr = 1e-3 }`"),
    (
        "load_best_model_at_end",
        "=`keep = best`, which is the default",
    ),
    ("lora_alpha", "alpha"),
    ("lora_dropout", "dropout"),
    ("lora_r", "rank"),
    ("lora_rank", "rank"),
    (
        "lora_target",
        "=the modules behind `on`: `on block.*.attn.{q,v}`",
    ),
    ("lr", "=`optimizer = adamw { lr = 1e-3 }`"),
    ("lr_scheduler", "=`schedule = linear { warmup = 6% }`"),
    ("lr_scheduler_type", "=`schedule = linear { warmup = 6% }`"),
    ("max_grad_norm", "clip"),
    ("max_seq_length", "=`backbone \"...\" { max_length = 128 }`"),
    ("max_steps", "steps"),
    ("micro_batch_size", "batch"),
    ("model", "=`backbone \"DIRECTORY\"`"),
    ("num_epochs", "epochs"),
    ("num_labels", "=all labels: `labels = [a, b]`"),
    ("num_train_epochs", "epochs"),
    ("num_virtual_tokens", "tokens"),
    ("per_device_train_batch_size", "batch"),
    ("r", "rank"),
    (
        "seed",
        "=`param seed = 3` at the top of the file, or `--seed 3`",
    ),
    (
        "target_modules",
        "=the modules behind `on`: `on block.*.attn.{q,v}`",
    ),
    ("test", "=`test = tsv(\"test.tsv\")` in a `data` block"),
    ("warmup", "=`schedule = linear { warmup = 6% }`"),
    ("warmup_ratio", "=`schedule = linear { warmup = 6% }`"),
    ("warmup_steps", "=`schedule = linear { warmup = 100 }`"),
    (
        "weight_decay",
        "=`optimizer = adamw { lr = 1e-3, weight_decay = 0.01 }`",
    ),
];

/// Words that stand for a value, a method or a task elsewhere.
const WORDS: [(&str, &str); 22] = [
    ("adam", "adamw"),
    ("adamw_torch", "adamw"),
    (
        "adapter",
        "=one of the adapters: `houlsby`, `pfeiffer`, `parallel`, `compacter`, `low_rank_adapter`",
    ),
    ("bitfit", "=`unfreeze NAME = **.bias`"),
    (
        "bottleneck",
        "=one of the adapters: `houlsby`, `pfeiffer`, `parallel`, `compacter`, `low_rank_adapter`",
    ),
    ("causal_language_modeling", "causal_lm"),
    ("classification", "classify"),
    ("false", "off"),
    ("full", "=`unfreeze NAME = **`"),
    ("gated", "=`gate = on` in a delta's settings"),
    ("none", "off"),
    ("prefix_tuning", "prefix"),
    ("prompt_tuning", "prompt"),
    (
        "qlora",
        "=`lora`: frozen weights in 4 bits are not there yet",
    ),
    ("regression", "regress"),
    ("rslora", "=`lora { scaling = rank_stabilized }`"),
    ("seq_cls", "classify"),
    ("sequence_classification", "classify"),
    ("text_classification", "classify"),
    ("pissa", "=`lora { init = pissa }`"),
    ("true", "on"),
    ("clm", "causal_lm"),
];

/// What to write instead of a key that is not known, where `known` are those that are.
pub(super) fn for_key<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    find(&KEYS, key, known)
}

/// What to write instead of a word that is not known, where `known` are those that are.
pub(super) fn for_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    find(&WORDS, word, known)
}

fn find<'a>(
    all: &[(&str, &str)],
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let (_, ours) = all
        .iter()
        .find(|(other, _)| other.eq_ignore_ascii_case(word))?;
    match ours.strip_prefix('=') {
        Some(sentence) => Some(format!("write {sentence}")),
        None => known
            .into_iter()
            .any(|known| known == *ours)
            .then(|| format!("write `{ours}`")),
    }
}
