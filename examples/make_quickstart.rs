//! Makes everything that `pipelines/quickstart.delta` and `pipelines/architectures.delta` need and that is not
//! trained: short reviews in a small invented English, a tokenizer for them, and the `config.json` of a tiny BERT, a
//! tiny Llama and a tiny T5.
//!
//!     sh pipelines/quickstart/make.sh
//!     sh pipelines/architectures/make.sh
//!
//! run this program and then the pipelines that pre-train the models on the text.
//!
//! A review says what somebody thought of something. Its label is the opinion of its last clause, so
//! that it takes more than spotting words: `the plot was dull but the acting was superb` is positive,
//! and `not dull` is too. Half of the adjectives occur in the training set, all of them in the dev and
//! test sets: what the other half means can only be known from the text of the pre-training.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

const GOOD: [&str; 16] = [
    "superb",
    "charming",
    "brilliant",
    "lovely",
    "moving",
    "funny",
    "clever",
    "graceful",
    "fresh",
    "gripping",
    "warm",
    "elegant",
    "delightful",
    "splendid",
    "witty",
    "tender",
];
const BAD: [&str; 16] = [
    "dull", "awful", "clumsy", "tedious", "bland", "messy", "shallow", "stale", "grating",
    "hollow", "lifeless", "crude", "boring", "tired", "weak", "noisy",
];
const PARTS: [&str; 14] = [
    "plot", "acting", "music", "ending", "story", "dialogue", "camera", "cast", "pace", "script",
    "humour", "opening", "hero", "villain",
];
const THINGS: [&str; 8] = [
    "film", "show", "play", "series", "movie", "drama", "comedy", "thriller",
];
const LOVED: [&str; 5] = ["loved", "enjoyed", "admired", "adored", "liked"];
const HATED: [&str; 5] = ["hated", "disliked", "loathed", "regretted", "despised"];
const MOODS: [(&str, &str); 4] = [
    ("happy", "sad"),
    ("glad", "sorry"),
    ("smiling", "yawning"),
    ("pleased", "annoyed"),
];
const DEGREES: [&str; 6] = ["", "very", "quite", "really", "rather", "so"];
const WORDS: [&str; 21] = [
    "the", "was", "not", "but", "and", "i", "we", "it", ".", ",", "left", "because", "in", "this",
    "although", "never", "everyone", "felt", "found", "though", "so",
];

/// Adjectives that the training set may use.
const SEEN: usize = 8;

struct Writer {
    random: ChaCha8Rng,
    /// How many of the adjectives may be used.
    adjectives: usize,
}

impl Writer {
    fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words
            .choose(&mut self.random)
            .expect("no list of words is empty")
    }

    /// A description such as `very dull`, `not charming`, that says `good` or its opposite.
    fn opinion(&mut self, good: bool) -> String {
        let negated = self.random.random_bool(0.2);
        let adjectives = if good != negated { &GOOD } else { &BAD };
        let adjective = self.pick(&adjectives[..self.adjectives]);
        let degree = self.pick(&DEGREES);
        match (negated, degree) {
            (true, _) => format!("{} {adjective}", self.pick(&["not", "never"])),
            (false, "") => adjective.to_owned(),
            (false, degree) => format!("{degree} {adjective}"),
        }
    }

    fn clause(&mut self, good: bool) -> String {
        let part = self.pick(&PARTS);
        let opinion = self.opinion(good);
        match self.random.random_range(0..4) {
            0 => format!("the {part} in this {} was {opinion}", self.pick(&THINGS)),
            1 => format!("i found the {part} {opinion}"),
            2 => format!("the {part} felt {opinion}"),
            _ => format!("the {part} was {opinion}"),
        }
    }

    /// A review whose last clause says `good` or its opposite.
    fn review(&mut self, good: bool) -> String {
        let last = self.clause(good);
        match self.random.random_range(0..5) {
            0 => format!("{last} ."),
            1 | 2 => {
                let first = self.clause(!good);
                format!("{first} {} {last} .", self.pick(&["but", ", though"]))
            }
            3 => format!("although {} , {last} .", self.clause(!good)),
            _ => format!("{} and {last} .", self.clause(good)),
        }
    }

    /// A line of the text for pre-training: mostly a review with its verdict, or two adjectives of a
    /// kind, which tell what the words mean.
    fn line(&mut self) -> String {
        let good = self.random.random_bool(0.5);
        let who = self.pick(&["i", "we", "everyone"]);
        let verb = if good {
            self.pick(&LOVED)
        } else {
            self.pick(&HATED)
        };
        let thing = self.pick(&THINGS);
        let (happy, sad) = *MOODS.choose(&mut self.random).expect("there are moods");
        let mood = if good { happy } else { sad };
        match self.random.random_range(0..5) {
            0 => format!(
                "{} , so {who} {verb} it .",
                self.review(good).trim_end_matches(" .")
            ),
            1 => format!("{who} left {mood} because {} .", self.clause(good)),
            2 => format!(
                "{who} {verb} it , and the {thing} was {} .",
                self.opinion(good)
            ),
            3 => format!(
                "{} , so {who} left {mood} .",
                self.review(good).trim_end_matches(" .")
            ),
            _ => {
                let adjectives = if good { &GOOD } else { &BAD };
                let (first, second) = (self.pick(adjectives), self.pick(adjectives));
                format!(
                    "the {} was {first} and {second} , so {who} {verb} it .",
                    self.pick(&PARTS)
                )
            }
        }
    }
}

impl Writer {
    /// What somebody left a play like, whatever it was; for experiments with several tasks.
    fn mood(&mut self, good: bool) -> String {
        let (happy, sad) = *MOODS.choose(&mut self.random).expect("there are moods");
        let mood = if good { happy } else { sad };
        let who = self.pick(&["i", "we", "everyone"]);
        format!("{} but {who} left {mood} .", self.clause(!good))
    }

    /// What somebody says of a play as a whole.
    fn verdict(&mut self, good: bool) -> String {
        let verb = self.pick(if good { &LOVED } else { &HATED });
        let who = self.pick(&["i", "we", "everyone"]);
        let thing = self.pick(&THINGS);
        format!("{} but {who} {verb} the {thing} .", self.clause(!good))
    }
}

impl Writer {
    /// A line with about a quarter of its words masked, and the whole line: what an encoder reads and a decoder is to
    /// give.
    fn masked(&mut self, line: &str) -> String {
        let words = line
            .split(' ')
            .map(|word| match self.random.random_bool(0.25) {
                true => "[MASK]",
                false => word,
            });
        format!("{}\t{line}\n", words.collect::<Vec<_>>().join(" "))
    }
}

/// What says something good, or its opposite.
type Says = fn(&mut Writer, bool) -> String;

fn table(
    seed: u64,
    adjectives: usize,
    rows: usize,
    avoid: &mut BTreeSet<String>,
    says: Says,
) -> String {
    let mut writer = Writer {
        random: ChaCha8Rng::seed_from_u64(seed),
        adjectives,
    };
    let mut text = String::from("text\tlabel\n");
    let mut count = 0;
    while count < rows {
        let good = count % 2 == 0;
        let review = says(&mut writer, good);
        if avoid.insert(review.clone()) {
            let _ = writeln!(
                text,
                "{review}\t{}",
                if good { "positive" } else { "negative" }
            );
            count += 1;
        }
    }
    text
}

fn vocabulary() -> Vec<String> {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let moods = MOODS.iter().flat_map(|(happy, sad)| [*happy, *sad]);
    let lists = [
        &WORDS[..],
        &GOOD,
        &BAD,
        &PARTS,
        &THINGS,
        &LOVED,
        &HATED,
        &DEGREES[1..],
    ];
    let words: BTreeSet<&str> = lists.into_iter().flatten().copied().chain(moods).collect();
    special
        .into_iter()
        .chain(words)
        .map(str::to_owned)
        .collect()
}

fn tokenizer(vocabulary: &[String]) -> serde_json::Value {
    let numbered: serde_json::Map<String, serde_json::Value> = vocabulary
        .iter()
        .enumerate()
        .map(|(number, word)| (word.clone(), json!(number)))
        .collect();
    let added: Vec<_> = (0..5)
        .map(|id| {
            json!({ "id": id, "content": vocabulary[id], "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let special = |name: &str, id: usize| json!({ "id": name, "ids": [id], "tokens": [name] });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                       { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }],
            "pair": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } },
                     { "SpecialToken": { "id": "[SEP]", "type_id": 1 } }],
            "special_tokens": { "[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3) },
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": numbered, "unk_token": "[UNK]" },
    })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new("pipelines/quickstart");
    let blank = folder.join("blank");
    std::fs::create_dir_all(&blank)?;
    let mut used = BTreeSet::new();
    std::fs::write(
        folder.join("train.tsv"),
        table(1, SEEN, 800, &mut used, Writer::review),
    )?;
    std::fs::write(
        folder.join("dev.tsv"),
        table(2, GOOD.len(), 400, &mut used, Writer::review),
    )?;
    std::fs::write(
        folder.join("test.tsv"),
        table(3, GOOD.len(), 400, &mut used, Writer::review),
    )?;
    let study = Path::new("pipelines/study");
    let tasks: [(&str, Says); 2] = [("moods", Writer::mood), ("verdicts", Writer::verdict)];
    for (seed, (name, says)) in (5u64..).step_by(2).zip(tasks) {
        for (set, seed, rows) in [("train", seed, 400), ("dev", seed + 1, 200)] {
            let text = table(seed, GOOD.len(), rows, &mut used, says);
            std::fs::write(study.join(format!("{name}_{set}.tsv")), text)?;
        }
    }

    let mut writer = Writer {
        random: ChaCha8Rng::seed_from_u64(4),
        adjectives: GOOD.len(),
    };
    for (name, lines) in [("corpus.txt", 30_000), ("corpus_dev.txt", 500)] {
        let text: String = (0..lines).map(|_| writer.line() + "\n").collect();
        if name == "corpus.txt" {
            // A part that is small enough to be kept.
            let part: Vec<&str> = text.lines().take(5_000).collect();
            std::fs::write(study.join(name), part.join("\n") + "\n")?;
        }
        std::fs::write(folder.join(name), text)?;
    }

    let architectures = Path::new("pipelines/architectures");
    for (name, lines) in [("masked.tsv", 20_000), ("masked_dev.tsv", 500)] {
        let mut text = "masked\twhole\n".to_owned();
        for _ in 0..lines {
            let line = writer.line();
            text += &writer.masked(&line);
        }
        std::fs::write(architectures.join(name), text)?;
    }

    let vocabulary = vocabulary();
    let tokenizer = serde_json::to_string(&tokenizer(&vocabulary))? + "\n";
    let sizes = study.join("sizes");
    let models = [
        (blank, 128, 3, 4),
        (sizes.join("small"), 64, 2, 2),
        (sizes.join("medium"), 128, 3, 4),
        (sizes.join("large"), 192, 4, 6),
    ];
    for (model, hidden, layers, heads) in models {
        std::fs::create_dir_all(&model)?;
        std::fs::write(model.join("tokenizer.json"), &tokenizer)?;
        let config = json!({
            "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": 3 * hidden,
            "hidden_act": "gelu", "vocab_size": vocabulary.len(), "max_position_embeddings": 48,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.02,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "pad_token_id": 0,
        });
        let config = serde_json::to_string_pretty(&config)? + "\n";
        std::fs::write(model.join("config.json"), config)?;
    }
    let llama = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160, "vocab_size": vocabulary.len(),
        "max_position_embeddings": 48, "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "pad_token_id": 0,
    });
    let t5 = json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 160,
        "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 16, "relative_attention_max_distance": 32,
        "feed_forward_proj": "gated-gelu", "vocab_size": vocabulary.len(), "pad_token_id": 0,
        "decoder_start_token_id": 0, "eos_token_id": 3, "scale_decoder_outputs": true,
    });
    for (name, config) in [("blank_llama", llama), ("blank_t5", t5)] {
        let model = architectures.join(name);
        std::fs::create_dir_all(&model)?;
        std::fs::write(model.join("tokenizer.json"), &tokenizer)?;
        let config = serde_json::to_string_pretty(&config)? + "\n";
        std::fs::write(model.join("config.json"), config)?;
        // Else transformers would build the tokenizer of the family.
        let class = json!({
            "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "unk_token": "[UNK]",
            "eos_token": "[SEP]", "mask_token": "[MASK]",
        });
        let class = serde_json::to_string_pretty(&class)? + "\n";
        std::fs::write(model.join("tokenizer_config.json"), class)?;
    }
    Ok(())
}
