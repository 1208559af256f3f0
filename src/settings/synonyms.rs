//! What other tools call things, and what to write here instead: help, never a second spelling.

/// What to write instead.
enum Instead {
    /// A key or word of ours, where it is known at that place.
    Ours(&'static str),
    /// A sentence that begins with "write".
    Write(&'static str),
    /// A key of ours where it is known, else a sentence that begins with "write".
    Either(&'static str, &'static str),
}

use Instead::{Either, Ours, Write};

/// Keys of PEFT, Axolotl, LLaMA-Factory and Hugging Face's Trainer.
const KEYS: [(&str, Instead); 66] = [
    (
        "adapter",
        Write("the method after `reparam NAME =` or `insert NAME =`"),
    ),
    ("alpha_r", Ours("alpha")),
    ("batch_size", Ours("batch")),
    (
        "bias",
        Write("`unfreeze biases = **.bias`, and `biases` in the stage's `train`"),
    ),
    ("metric", Write("`metric` in the `task` block")),
    (
        "metric_for_best_model",
        Write("`metric` in the `task` block"),
    ),
    ("name", Write("`pipeline NAME` at the top of the file")),
    (
        "output_dir",
        Write("the directory on the command line: `--out DIR`"),
    ),
    ("run_name", Write("`pipeline NAME` at the top of the file")),
    ("betas", Write("`beta1 = 0.9, beta2 = 0.999`")),
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
    ("delimiter", Ours("separator")),
    ("early_stopping", Ours("patience")),
    ("early_stopping_patience", Ours("patience")),
    ("eps", Ours("epsilon")),
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
    ("gradient_checkpointing", Write("`recompute = blocks`")),
    ("init_lora_weights", Ours("init")),
    ("label_names", Ours("labels")),
    (
        "learning_rate",
        Either("lr", "`optimizer = adamw { lr = 1e-3 }`"),
    ),
    (
        "load_in_4bit",
        Write("`backbone \"...\" { storage = nf4 }`"),
    ),
    (
        "load_in_8bit",
        Write("`backbone \"...\" { storage = int8 }`"),
    ),
    (
        "quantization",
        Write("`backbone \"...\" { storage = nf4 }`"),
    ),
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
    ("do_sample", Write("`temperature = 1`")),
    ("instruction", Ours("prompt")),
    ("max_new_tokens", Ours("max_tokens")),
    ("num_beams", Ours("beams")),
    ("output", Either("answer", "`target = COLUMN`")),
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
    (
        "warmup_ratio",
        Write("a share in percent: `schedule = linear { warmup = 10% }` for 0.1"),
    ),
    (
        "warmup_steps",
        Write("`schedule = linear { warmup = 100 }`"),
    ),
    ("use_dora", Write("`dora` in place of `lora`")),
    ("use_rslora", Write("`lora { scaling = rank_stabilized }`")),
    ("valid", Ours("dev")),
    ("validation", Ours("dev")),
    (
        "weight_decay",
        Write("`optimizer = adamw { lr = 1e-3, weight_decay = 0.01 }`"),
    ),
];

/// Words that stand for a value, a method or a task elsewhere.
const WORDS: [(&str, Instead); 25] = [
    ("acc", Ours("accuracy")),
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
    ("fp4", Ours("nf4")),
    ("int4", Ours("nf4")),
    ("none", Ours("off")),
    ("prefix_tuning", Ours("prefix")),
    ("prompt_tuning", Ours("prompt")),
    ("qlora", Write("`lora`, and `backbone \"...\" { storage = nf4 }`")),
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
    let (ours, sentence) = match &all.iter().find(is_meant)?.1 {
        Write(sentence) => (None, Some(sentence)),
        Ours(ours) => (Some(ours), None),
        Either(ours, sentence) => (Some(ours), Some(sentence)),
    };
    let is_known = |ours: &&&str| known.into_iter().any(|known| known == **ours);
    let ours = ours.filter(is_known).map(|ours| format!("write `{ours}`"));
    ours.or(sentence.map(|sentence| format!("write {sentence}")))
}
