//! Every mistake that the plan can find: a sound pipeline with one thing changed, and the whole
//! message as a snapshot.

use std::collections::BTreeMap;
use std::path::Path;

use deltarun::backbone::read_config;
use deltarun::diagnostic::Problems;
use deltarun::plan::plan;
use deltarun::settings::Overrides;
use deltarun::syntax::parse;

const SOUND: &str = r#"pipeline sst2

param rank = 4

backbone "bert_a" { max_length = 16 }

data {
    train = tsv("train.tsv")
    dev = tsv("dev.tsv")
}

task classify {
    text = sentence
    label = label
    labels = { "0" = negative, "1" = positive }
    metric = accuracy
}

unfreeze biases = **.bias
insert adapters = houlsby { bottleneck = 6 } after block.*.{attn,ff}
reparam low_rank = lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4

stage warm_up {
    train = [biases, head]
    steps = 300
    optimizer = adamw { lr = 1e-3 }
}

stage compose {
    train = [adapters, low_rank, head]
    epochs = 3
    batch = 32
    optimizer = adamw { lr = 5e-4 }
    schedule = linear { warmup = 6% }
    evaluate = every 200 steps
    keep = best
}
"#;

fn message(text: &str, overrides: &Overrides) -> Option<String> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let find = |location: &str| {
        let directory = base.join(location);
        let found = read_config(&directory).map_err(|mut problem| {
            problem.message = problem.message.replace(&base.display().to_string(), "");
            problem
        });
        Ok((directory.clone(), found?))
    };
    let problems = match parse(text) {
        Err(problems) => problems,
        Ok(pipeline) => plan(&pipeline, overrides, &base, &find).err()?,
    };
    for problem in &problems {
        assert!(problem.help.is_some(), "no way out: {problem:?}");
    }
    let problems = Problems::in_source("sst2.delta", text, problems);
    assert_eq!(problems.exit_code(), 2);
    Some(problems.render(false))
}

#[test]
fn the_sound_pipeline_has_no_mistakes() {
    assert_eq!(message(SOUND, &BTreeMap::new()), None);
}

/// The statement that other methods replace.
const ADAPTERS: &str = "insert adapters = houlsby { bottleneck = 6 } after block.*.{attn,ff}";

/// Name of the snapshot, what is replaced, by what.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "syntax_missing_value",
        "rank = rank, alpha",
        "rank = , alpha",
    ),
    ("syntax_statement", "reparam low_rank", "repram low_rank"),
    ("syntax_unclosed", "keep = best\n}", "keep = best\n"),
    ("syntax_escape", "\"train.tsv\"", "\"train\\q.tsv\""),
    ("syntax_number", "steps = 300", "steps = 1e999"),
    ("unknown_key", "batch = 32", "batchsize = 32"),
    ("unknown_key_of_method", "bottleneck = 6", "botleneck = 6"),
    ("wrong_type", "batch = 32", "batch = \"32\""),
    ("out_of_range", "batch = 32", "batch = 0"),
    ("wrong_unit", "warmup = 6%", "warmup = 0.06"),
    ("unknown_word", "keep = best", "keep = bst"),
    ("metric_of_a_stage", "keep = best", "keep = best\n    metric = f1"),
    ("directory_of_a_stage", "keep = best", "keep = best\n    output_dir = \"out\""),
    ("no_such_layer", "block.*.{attn,ff}", "**.gate"),
    (
        "rate_of_what_is_not_trained",
        "    steps = 300\n",
        "    steps = 300\n    rates = { biases = 1e-4, low_rank = 1e-3 }\n",
    ),
    (
        "rate_that_is_no_number",
        "    steps = 300\n",
        "    steps = 300\n    rates = { biases = fast }\n",
    ),
    (
        "lora_plus_without_a_lora",
        "    steps = 300\n",
        "    steps = 300\n    lora_plus = 16\n",
    ),
    (
        "unknown_optimizer",
        "adamw { lr = 5e-4 }",
        "adam { lr = 5e-4 }",
    ),
    ("missing_learning_rate", "adamw { lr = 5e-4 }", "adamw"),
    (
        "no_match",
        "block.*.attn.{q,v} expect 4",
        "block.*.attn.{q,vv}",
    ),
    ("no_match_deep", "block.*.{attn,ff}", "blocks.*.{attn,ff}"),
    (
        "no_match_checkpoint_name",
        "block.*.attn.{q,v} expect 4",
        "\"encoder.layer.0.attention.self.querry\"",
    ),
    ("expect", "expect 4", "expect 12"),
    ("range", "block.*.attn.{q,v} expect 4", "block[0..4].attn.q"),
    ("wrong_site", "block.*.{attn,ff}", "block.*.attn.q"),
    (
        "wrong_site_norm",
        "block.*.attn.{q,v} expect 4",
        "block.*.attn.*",
    ),
    (
        "wrong_statement",
        "insert adapters = houlsby { bottleneck = 6 } after",
        "insert adapters = lora after",
    ),
    ("unknown_method", "= lora {", "= lorra {"),
    ("rank_above_dimension", "param rank = 4", "param rank = 64"),
    ("unknown_delta", "[biases, head]", "[biasses, head]"),
    (
        "untrained_delta",
        "[adapters, low_rank, head]",
        "[adapters, head]",
    ),
    ("trains_nothing", "[biases, head]", "[]"),
    (
        "unused_param",
        "param rank = 4",
        "param rank = 4\nparam spare = 1",
    ),
    (
        "duplicate_param",
        "param rank = 4",
        "param rank = 4\nparam rank = 5",
    ),
    ("duplicate_key", "batch = 32", "batch = 32\n    batch = 16"),
    ("duplicate_delta", "unfreeze biases", "unfreeze low_rank"),
    (
        "reserved_name",
        "unfreeze biases = **.bias",
        "unfreeze head = **.bias",
    ),
    (
        "overlap",
        "unfreeze biases = **.bias",
        "unfreeze biases = **.bias\nunfreeze norms = block.*.attn.norm",
    ),
    (
        "steps_and_epochs",
        "epochs = 3",
        "epochs = 3\n    steps = 5",
    ),
    ("no_length", "    epochs = 3\n", ""),
    (
        "one_label",
        "{ \"0\" = negative, \"1\" = positive }",
        "{ \"0\" = negative }",
    ),
    (
        "no_labels",
        "    labels = { \"0\" = negative, \"1\" = positive }\n",
        "",
    ),
    (
        "metric_of_another_task",
        "metric = accuracy",
        "metric = pearson",
    ),
    ("unknown_reader", "dev = tsv(", "dev = tvs("),
    ("unknown_task", "task classify", "task clasify"),
    ("no_backbone", "backbone \"bert_a\" { max_length = 16 }", ""),
    ("missing_backbone", "\"bert_a\"", "\"bert_z\""),
    (
        "max_length_above_positions",
        "max_length = 16",
        "max_length = 512",
    ),
    (
        "without_not_in_place",
        "keep = best",
        "keep = best\n    without = [low_rank]",
    ),
    (
        "unused_data",
        "task classify",
        "data spare { train = tsv(\"x.tsv\") }\n\ntask classify",
    ),
    (
        "freeze_takes_all",
        "insert adapters",
        "freeze **\ninsert adapters",
    ),
    (
        "template_without_mask",
        "text = sentence",
        "template = \"{sentence} It was.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "template_with_an_unknown_edit",
        "text = sentence",
        "template = \"{sentence:drop_lst} It was {mask}.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "template_with_two_soft_places",
        "text = sentence",
        "template = \"{soft}{sentence} It was {mask}.{soft}\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "template_with_an_unknown_segment",
        "text = sentence",
        "template = \"{sentence} {segment:2} It was {mask}.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "template_with_an_edited_mask",
        "text = sentence",
        "template = \"{sentence} It was {mask:drop_last}.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "interpolation_without_range",
        "task classify {\n    text = sentence\n    label = label\n    labels = { \"0\" = negative, \"1\" = positive }\n    metric = accuracy",
        "task regress {\n    label = label\n    template = \"{sentence} {mask}\"\n    words = { low = \"No\", high = \"Yes\" }",
    ),
    (
        "head_in_a_delta_and_trained",
        "text = sentence\n    label = label\n    labels = { \"0\" = negative, \"1\" = positive }\n    metric = accuracy\n}\n\nunfreeze biases = **.bias",
        "label = label\n    labels = [negative, positive]\n    template = \"{sentence} {mask}\"\n    words = { negative = \"bad\", positive = \"good\" }\n}\n\nunfreeze biases = {**,lm_head.**}.bias",
    ),
    (
        "from_something_else",
        "**.bias",
        "**.bias from warm_up",
    ),
    (
        "no_causal_head",
        "task classify {\n    text = sentence\n    label = label\n    labels = { \"0\" = negative, \"1\" = positive }\n    metric = accuracy",
        "task causal_lm {\n    text = sentence",
    ),
    (
        "template_without_brace",
        "text = sentence",
        "template = \"{sentence It was {mask}.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "template_without_words",
        "text = sentence",
        "template = \"{sentence} It was {mask}.\"",
    ),
    (
        "template_and_text",
        "text = sentence",
        "text = sentence\n    template = \"{sentence} It was {mask}.\"\n    words = { negative = \"bad\", positive = \"good\" }",
    ),
    (
        "words_of_other_labels",
        "text = sentence",
        "template = \"{sentence} It was {mask}.\"\n    words = { negativ = \"bad\", positive = \"good\" }",
    ),
    (
        "wrong_preposition",
        ADAPTERS,
        "insert adapters = houlsby { bottleneck = 6 } beside block.*.{attn,ff}",
    ),
    (
        "prefix_at_a_feed_forward",
        ADAPTERS,
        "insert adapters = prefix { tokens = 2 } before block.*.{attn,ff}",
    ),
    (
        "prefix_of_an_encoder_from_a_text",
        ADAPTERS,
        "insert adapters = prefix { tokens = 2, init = \"a good film\" } before block.*.attn",
    ),
    (
        "prefix_by_an_mlp_from_a_text",
        ADAPTERS,
        "insert adapters = prefix { tokens = 2, hidden = 4, init = \"a good film\" } before block.*.attn",
    ),
    (
        "prompt_at_attentions",
        ADAPTERS,
        "insert adapters = prompt before block.*.attn",
    ),
    (
        "prompt_longer_than_positions",
        ADAPTERS,
        "insert adapters = prompt { tokens = 10 } before embeddings",
    ),
    (
        "prompt_without_room",
        ADAPTERS,
        "insert adapters = prompt { tokens = 23 } before embeddings",
    ),
    (
        "pfeiffer_at_an_attention",
        ADAPTERS,
        "insert adapters = pfeiffer after block.*.{attn,ff}",
    ),
    (
        "terms_that_do_not_divide",
        ADAPTERS,
        "insert adapters = compacter { bottleneck = 8, terms = 4 } after block.*.ff",
    ),
    (
        "rank_above_bottleneck",
        ADAPTERS,
        "insert adapters = low_rank_adapter { bottleneck = 2, rank = 3 } after block.*.ff",
    ),
    ("unknown_scaling", "alpha = 16", "alpha = 16, scaling = sqrt"),
    ("dora_on_a_norm", "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4", "= dora { rank = rank } on block.*.attn.norm"),
    (
        "unknown_init",
        "alpha = 16",
        "alpha = 16, init = svd",
    ),
    (
        "pissa_at_an_embedding",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= lora { init = pissa } on embeddings.word",
    ),
    (
        "target_rank_above_rank",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= adalora { rank = 4, target_rank = 6 } on block.*.attn.{q,v}",
    ),
    (
        "adalora_share",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= adalora { rank = 4, beta1 = 1 } on block.*.attn.{q,v}",
    ),
    (
        "token_outside_the_vocabulary",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= trainable_tokens { tokens = [3, 61] } on embeddings.word",
    ),
    (
        "tokens_of_no_kind",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= trainable_tokens { tokens = [0.5] } on embeddings.word",
    ),
    (
        "no_tokens",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= trainable_tokens on embeddings.word",
    ),
    (
        "tokens_of_positions",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= trainable_tokens { tokens = [3] } on embeddings.position",
    ),
    (
        "gated_prompt",
        ADAPTERS,
        "insert adapters = prompt { tokens = 2, gate = on } before embeddings",
    ),
    (
        "gated_embedding",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= lora { rank = rank, gate = on } on embeddings.word",
    ),
    (
        "intrinsic_dimension_without_one",
        "= lora { rank = rank, alpha = 16 } on block.*.attn.{q,v} expect 4",
        "= intrinsic_dimension { structure_aware = on } on block.*.attn.q",
    ),
    (
        "few_without_a_number",
        "train = tsv(\"train.tsv\")",
        "train = few(tsv(\"train.tsv\"))",
    ),
    (
        "several_at_once",
        "alpha = 16 } on block.*.attn.{q,v} expect 4",
        "alhpa = 16 } on block.*.atn.q",
    ),
];

#[test]
fn every_mistake_has_its_message() {
    for (name, from, to) in MISTAKES {
        assert!(
            SOUND.contains(from),
            "{name}: `{from}` is not in the sound pipeline"
        );
        let text = SOUND.replacen(from, to, 1);
        let message = message(&text, &BTreeMap::new())
            .unwrap_or_else(|| panic!("{name}: no mistake was found"));
        insta::assert_snapshot!(*name, message);
    }
}

#[test]
fn overrides_have_their_messages() {
    for (name, key, value) in [
        ("override_unknown", "rnak", "8"),
        ("override_type", "rank", "many"),
    ] {
        let overrides = [(key.to_owned(), value.to_owned())].into();
        let message =
            message(SOUND, &overrides).unwrap_or_else(|| panic!("{name}: no mistake was found"));
        insta::assert_snapshot!(name, message);
    }
}

#[test]
fn params_replace_values() {
    let overrides = [("rank".to_owned(), "64".to_owned())].into();
    let message = message(SOUND, &overrides).expect("rank 64 is above the dimension");
    assert!(message.contains("`rank` is 64"), "{message}");
}
