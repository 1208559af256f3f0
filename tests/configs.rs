//! `config.json`: every key that transformers has is honoured, changes nothing, or is refused by name; defaults are
//! transformers' own. `tests/fixtures/make_configs.py` wrote what transformers has.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use crate::common::fixture;
use deltarun::backbone::{
    language_model_parameters, BlockKind, Config, Parameter, RopeScaling, Rotation, Tree,
};
use deltarun::engine::Activation;
use serde_json::{json, Map, Value};

type Keys = BTreeMap<String, Value>;

fn families(directory: &Path) -> Keys {
    let text = std::fs::read_to_string(directory.join("keys.json")).unwrap();
    let mut all: Keys = serde_json::from_str(&text).unwrap();
    all.remove("transformers").unwrap();
    assert_eq!(all.len(), 17);
    all
}

fn check(all: &Keys) {
    for (family, defaults) in all {
        // The defaults that transformers writes out are read without a question.
        let text = defaults.to_string();
        let config = Config::parse(&text).unwrap_or_else(|e| panic!("{family}: {e}"));
        let unknown = Config::unknown_keys(&text);
        assert!(unknown.is_empty(), "{family} does not name {unknown:?}");
        // Without them the same is taken, but for a size that two models do not agree on.
        let mut least = Map::new();
        least.insert("model_type".into(), json!(family));
        if family.contains("roberta") {
            let error = Config::parse(&Value::from(least.clone()).to_string()).unwrap_err();
            assert!(error.contains("it has no `vocab_size`"), "{error}");
            least.insert("vocab_size".into(), defaults["vocab_size"].clone());
        }
        let found = Config::parse(&Value::from(least).to_string()).unwrap();
        assert_eq!(found, config, "{family}");
    }
}

#[test]
fn every_key_of_transformers_is_known_and_its_default_is_ours() {
    check(&families(&fixture("configs")));
}

/// The same for the transformers that is installed, where `DELTARUN_PYTHON` names a Python that has one.
#[test]
#[ignore = "needs DELTARUN_PYTHON"]
fn every_key_of_the_transformers_at_hand_is_known() {
    let python = std::env::var_os("DELTARUN_PYTHON").expect("DELTARUN_PYTHON is set");
    let place = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .arg(fixture("make_configs.py"))
        .arg(place.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    check(&families(place.path()));
}

#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let text = std::fs::read_to_string(fixture("configs").join("rope.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 9);
    for case in cases {
        let parameters = &case["rope_parameters"];
        let rotary = |key: &str, theta: Value| {
            let mut more = json!({ "max_position_embeddings": 4096, "head_dim": 10 });
            more[key] = parameters.clone();
            more["rope_theta"] = theta;
            parse("llama", more).unwrap().rotary.unwrap()
        };
        // As transformers 5 writes it, and as 4 did.
        let found = rotary("rope_parameters", Value::Null);
        assert_eq!(found, rotary("rope_scaling", json!(10000)));
        let (frequencies, factor) = found.frequencies(10);
        let expected = case["frequencies"].as_array().unwrap().iter();
        let expected: Vec<f64> = expected.map(|f| f.as_f64().unwrap()).collect();
        assert_eq!(frequencies.len(), expected.len());
        for (found, expected) in frequencies.iter().zip(expected) {
            let error = (f64::from(*found) / expected - 1.0).abs();
            assert!(error < 1e-6, "{parameters}: {found} for {expected}");
        }
        let error = f64::from(factor) - case["factor"].as_f64().unwrap();
        assert!(error.abs() < 1e-6, "{parameters}: {factor}");
    }
}

/// As in transformers, what stands beside `rope_scaling` counts before what it says.
#[test]
fn original_positions_may_stand_beside_their_scaling() {
    let rotary = |outer: Value, inner: Value| {
        let scaling = json!({ "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": inner });
        let more = json!({
            "max_position_embeddings": 4096, "rope_scaling": scaling, "original_max_position_embeddings": outer,
        });
        parse("qwen2", more).unwrap().rotary
    };
    assert_eq!(
        rotary(json!(256), json!(512)),
        rotary(Value::Null, json!(256))
    );
    assert_ne!(
        rotary(Value::Null, json!(512)),
        rotary(Value::Null, json!(256))
    );
}

fn parse(family: &str, more: Value) -> Result<Config, String> {
    let mut config = json!({ "model_type": family, "vocab_size": 61 });
    let object = config.as_object_mut().unwrap();
    object.extend(more.as_object().unwrap().clone());
    Config::parse(&config.to_string())
}

#[test]
fn values_that_change_the_model_are_refused_by_name() {
    let cases = [
        ("bert", json!({ "is_decoder": true })),
        ("roberta", json!({ "is_decoder": true })),
        ("bert", json!({ "is_causal": true })),
        ("bert", json!({ "add_cross_attention": true })),
        ("gpt2", json!({ "add_cross_attention": true })),
        ("gpt2", json!({ "scale_attn_weights": false })),
        ("gpt2", json!({ "scale_attn_by_inverse_layer_idx": true })),
        ("gpt2", json!({ "is_causal": false })),
        ("bert", json!({ "position_embedding_type": "relative_key" })),
        ("bert", json!({ "quantization_config": { "bits": 4 } })),
        ("bert", json!({ "problem_type": "made_up" })),
        ("roberta", json!({ "pruned_heads": { "0": [1] } })),
        ("bert", json!({ "hidden_act": "quick_gelu" })),
        ("bert", json!({ "hidden_act": null, "hidden_size": "768" })),
        ("gpt2", json!({ "n_layer": 3, "num_hidden_layers": 2 })),
        ("roberta", json!({ "pad_token_id": -1 })),
        ("bert", json!({ "layer_norm_eps": 1 })),
        ("llama", json!({ "num_key_value_heads": 5 })),
        ("llama", json!({ "rope_scaling": { "type": "longrope" } })),
        ("llama", json!({ "rope_scaling": { "type": "linear" } })),
        ("llama", json!({ "partial_rotary_factor": 0.5 })),
        (
            "llama",
            json!({ "rope_parameters": { "rope_type": "linear", "factor": 2, "low_freq_factor": 1 } }),
        ),
        ("llama", json!({ "mlp_bias": "yes" })),
        (
            "qwen3",
            json!({ "layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": true }),
        ),
        (
            "gemma3_text",
            json!({ "layer_types": ["full_attention", "chunked_attention"], "num_hidden_layers": 2 }),
        ),
        (
            "smollm3",
            json!({ "no_rope_layers": [1, 2], "num_hidden_layers": 2 }),
        ),
        (
            "mistral",
            json!({ "layer_types": ["full_attention"], "num_hidden_layers": 1 }),
        ),
        ("gemma2", json!({ "attn_logit_softcapping": -1.0 })),
        ("gemma3_text", json!({ "attn_logit_softcapping": 50.0 })),
        ("gemma3_text", json!({ "sliding_window": null })),
        (
            "gemma3_text",
            json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 500.0 } }),
        ),
        (
            "modernbert",
            json!({ "rope_parameters": { "rope_theta": 500.0 } }),
        ),
        (
            "llama",
            json!({ "rope_scaling": { "rope_type": 7, "factor": 2.0 } }),
        ),
        (
            "phi3",
            json!({ "rope_scaling": { "rope_type": "yarn", "factor": 2.0 } }),
        ),
        (
            "phi3",
            json!({ "rope_scaling": { "type": "su", "short_factor": [1.0], "long_factor": [1.0, 2.0] } }),
        ),
        ("gemma", json!({ "use_bidirectional_attention": true })),
        ("distilbert", json!({ "dim": 18, "hidden_size": 20 })),
    ];
    for (family, more) in cases {
        let error = parse(family, more.clone()).unwrap_err();
        let mut keys = more.as_object().unwrap().keys();
        assert!(
            keys.any(|key| error.contains(&format!("`{key}`")))
                || error.contains("activation")
                || error.contains("key-value heads"),
            "{more}: {error}"
        );
    }
    // The values under which they change nothing.
    let neutral = json!({
        "is_decoder": false, "position_embedding_type": "absolute", "quantization_config": null, "pruned_heads": {},
        "problem_type": "regression", "a_key_of_the_future": 1,
    });
    assert_eq!(parse("bert", neutral.clone()), parse("bert", json!({})));
    let mut written = neutral;
    written["model_type"] = json!("bert");
    assert_eq!(
        Config::unknown_keys(&written.to_string()),
        ["a_key_of_the_future"]
    );
}

#[test]
fn what_families_differ_in_is_read() {
    let gpt2 = parse("gpt2", json!({ "embd_pdrop": 0.3, "resid_pdrop": 0.0 })).unwrap();
    assert_eq!((gpt2.embedding_dropout(), gpt2.dropout), (0.3, 0.0));
    assert_eq!(gpt2.activation, Activation::GeluTanh);
    assert_eq!((gpt2.inner, gpt2.first_position()), (3072, 0));
    let roberta = |pad: Value| parse("roberta", json!({ "pad_token_id": pad })).unwrap();
    // modeling_roberta.py: positions begin at `padding_idx + 1`.
    assert_eq!(roberta(json!(1)).first_position(), 2);
    assert_eq!(roberta(json!(5)).first_position(), 6);
    assert_eq!(roberta(json!(5)).longest(), 512 - 6);
    assert_eq!(parse("bert", json!({})).unwrap().norm_epsilon, 1e-12);
}

/// The blocks that transformers' configurations give a window or no rotation (`__post_init__` of each), by default, by
/// their switches and by lists.
#[test]
fn blocks_have_the_windows_and_angles_of_transformers() {
    let blocks = |family: &str, more: Value| -> String {
        let mut more = more;
        more["num_hidden_layers"] = json!(7);
        let config = parse(family, more).unwrap();
        let letter = |block: usize| match config.block_kind(block) {
            BlockKind {
                window: None,
                rotation: Rotation::Usual,
            } => 'u',
            BlockKind {
                window: None,
                rotation: Rotation::Off,
            } => 'o',
            BlockKind {
                window: Some(_),
                rotation: Rotation::Usual,
            } => 'w',
            BlockKind {
                window: Some(_),
                rotation: Rotation::Local,
            } => 'l',
            kind => panic!("{kind:?}"),
        };
        (0..7).map(letter).collect()
    };
    let list = ["full_attention", "sliding_attention"]
        .map(|word| [word; 5])
        .concat();
    let cases = [
        ("llama", json!({}), "uuuuuuu"),
        ("mistral", json!({}), "wwwwwww"),
        ("mistral", json!({ "sliding_window": null }), "uuuuuuu"),
        (
            "qwen2",
            json!({ "use_sliding_window": true, "max_window_layers": 5 }),
            "uuuuuww",
        ),
        (
            "qwen3",
            json!({ "use_sliding_window": true, "max_window_layers": 0 }),
            "wwwwwww",
        ),
        (
            "qwen3",
            json!({ "sliding_window": 9, "max_window_layers": 0 }),
            "uuuuuuu",
        ),
        // A list may be longer than the backbone.
        (
            "qwen3",
            json!({ "use_sliding_window": true, "layer_types": list }),
            "uuuuuww",
        ),
        ("smollm3", json!({}), "uuuouuu"),
        ("smollm3", json!({ "no_rope_layer_interval": 3 }), "uuouuou"),
        (
            "smollm3",
            json!({ "no_rope_layers": [0, 1, 1, 1, 1, 1, 0] }),
            "ouuuuuo",
        ),
        ("gemma", json!({}), "uuuuuuu"),
        ("gemma2", json!({}), "wuwuwuw"),
        ("gemma3_text", json!({}), "lllllul"),
        (
            "gemma3_text",
            json!({ "sliding_window_pattern": 3 }),
            "llullul",
        ),
        ("gemma3_text", json!({ "layer_types": list }), "uuuuull"),
        ("modernbert", json!({}), "ullullu"),
        (
            "modernbert",
            json!({ "global_attn_every_n_layers": 2 }),
            "ulululu",
        ),
    ];
    for (family, more, expected) in cases {
        assert_eq!(blocks(family, more.clone()), expected, "{family} {more}");
    }
}

/// The angles of Gemma 3's two kinds of blocks, as transformers 4 and 5 write them (`convert_rope_params_to_dict`).
#[test]
fn a_gemma_3_has_two_kinds_of_angles() {
    let angles = |more: Value| {
        let config = parse("gemma3_text", more).unwrap();
        let [usual, local] = [config.rotary, config.local_rotary].map(Option::unwrap);
        (usual.theta, usual.scaling, local.theta, local.scaling)
    };
    let plain = (1e6, RopeScaling::Default, 1e4, RopeScaling::Default);
    assert_eq!(angles(json!({})), plain);
    let linear = json!({ "rope_type": "linear", "factor": 8.0 });
    let scaled = (
        1e6,
        RopeScaling::Linear { factor: 8.0 },
        1e4,
        RopeScaling::Default,
    );
    assert_eq!(
        angles(json!({ "rope_scaling": linear, "rope_theta": 1000000 })),
        scaled
    );
    let new = json!({ "rope_parameters": {
        "full_attention": { "rope_type": "linear", "factor": 8.0, "rope_theta": 1e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 500.0 },
    } });
    let own = (
        1e6,
        RopeScaling::Linear { factor: 8.0 },
        500.0,
        RopeScaling::Default,
    );
    assert_eq!(angles(new), own);
    let one = json!({ "rope_parameters": { "full_attention": { "rope_theta": 700.0 } } });
    assert_eq!(
        angles(one),
        (700.0, RopeScaling::Default, 1e4, RopeScaling::Default)
    );
}

/// What T5's `config.json` says beside the defaults, as transformers reads it (`T5Config.__post_init__`), or a sentence.
#[test]
fn a_t5_is_read_as_transformers_reads_it() {
    let t5 = |more: Value| parse("t5", more);
    let plain = t5(json!({ "num_layers": 4 })).unwrap();
    assert_eq!((plain.layers, plain.decoder_layers), (4, Some(4)));
    assert_eq!(
        (plain.activation, plain.is_gated),
        (Activation::Relu, false)
    );
    assert!(plain.scales_logits && !plain.is_head_own());
    let gated = t5(json!({ "feed_forward_proj": "gated-gelu", "num_decoder_layers": 2 })).unwrap();
    // `gated-gelu` is the approximation by tanh, for backwards compatibility.
    assert_eq!(
        (gated.activation, gated.is_gated),
        (Activation::GeluTanh, true)
    );
    assert_eq!(gated.decoder_layers, Some(2));
    let silu = t5(json!({ "feed_forward_proj": "gated-silu" })).unwrap();
    assert_eq!((silu.activation, silu.is_gated), (Activation::Swish, true));
    let exact = t5(json!({ "feed_forward_proj": "gelu" })).unwrap();
    assert_eq!(
        (exact.activation, exact.is_gated),
        (Activation::Gelu, false)
    );
    // What version 4 wrote says by tying whether logits are scaled; what version 5 writes says it itself.
    assert!(
        !t5(json!({ "tie_word_embeddings": false }))
            .unwrap()
            .scales_logits
    );
    let both = json!({ "tie_word_embeddings": false, "scale_decoder_outputs": true });
    assert!(t5(both).unwrap().scales_logits);
    // Keys that `T5Config.from_dict` takes as they are, whatever `feed_forward_proj` says.
    for (more, expected) in [
        (json!({ "dense_act_fn": "relu" }), (Activation::Relu, true)),
        (
            json!({ "is_gated_act": false }),
            (Activation::GeluTanh, false),
        ),
        (json!({ "dense_act_fn": "gelu" }), (Activation::Gelu, true)),
        (
            json!({ "dense_act_fn": null }),
            (Activation::GeluTanh, true),
        ),
    ] {
        let mut all = more;
        all["feed_forward_proj"] = json!("gated-gelu");
        let found = t5(all.clone()).unwrap();
        assert_eq!((found.activation, found.is_gated), expected, "{all}");
    }
    assert_eq!(
        t5(json!({ "eos_token_id": [3] })).unwrap().end_token,
        Some(3)
    );
    for (more, said) in [
        (json!({ "eos_token_id": [3, 4] }), "`eos_token_id`"),
        (
            json!({ "tie_word_embeddings": 0 }),
            "its `tie_word_embeddings` must be",
        ),
        (json!({ "num_layers": 30000 }), "30000 blocks"),
        (
            json!({ "decoder_start_token_id": 61 }),
            "`decoder_start_token_id` 61",
        ),
        (json!({ "num_decoder_layers": 0 }), "`num_decoder_layers`"),
        (json!({ "relative_attention_num_buckets": 3 }), "buckets"),
        (json!({ "relative_attention_max_distance": 8 }), "buckets"),
        (
            json!({ "feed_forward_proj": "gated" }),
            "`gated` is not supported",
        ),
        (json!({ "is_decoder": true }), "`is_decoder`"),
        (
            json!({ "is_encoder_decoder": false }),
            "`is_encoder_decoder`",
        ),
        (json!({ "initializer_factor": 0 }), "`initializer_factor`"),
    ] {
        let error = t5(more.clone()).unwrap_err();
        assert!(error.contains(said), "{more}: {error}");
    }
    // `gated-` means something in T5 alone.
    let error = parse("bert", json!({ "hidden_act": "gated-gelu" })).unwrap_err();
    assert!(error.contains("`gated-gelu`"), "{error}");
}

/// Configurations as their authors published them, in the spelling of their years, with the number of parameters that
/// their pages on the hub state.
#[test]
fn published_models_are_read_and_have_their_parameters() {
    let mut cases = 0;
    for entry in std::fs::read_dir(fixture("published")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().display().to_string();
        let published: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let text = published["config"].to_string();
        let config = Config::parse(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        // A T5 1.1 ties its head unless the checkpoint has a weight for it.
        let has_head_weight = name.starts_with("flan") || name.starts_with("mt5");
        let config = Config {
            has_head_weight,
            ..config
        };
        let tree = Tree::new(&config);
        let own = tree.parameters().map(Parameter::count).sum::<usize>();
        let head = language_model_parameters(&config);
        let all = own + head.iter().map(Parameter::count).sum::<usize>();
        assert_eq!(Some(all as u64), published["parameters"].as_u64(), "{name}");
        let unknown = Config::unknown_keys(&text);
        assert!(unknown.is_empty(), "{name}: {unknown:?}");
        cases += 1;
    }
    assert_eq!(cases, 28);
}
