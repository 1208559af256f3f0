//! Adapters that PEFT does not have: the numbers of their papers' formulas in PyTorch, by
//! `tests/fixtures/make_inserts.py`.

use crate::common::{classifier, config, difference, fixture, Expected};
use deltarun::backbone::Checkpoint;
use deltarun::delta::{Method, PrefixText, Prompt, PromptInit};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::peft::import;
use deltarun::plan::Change;

/// The name of a method, and its statement.
const CASES: [(&str, &str); 5] = [
    (
        "houlsby",
        "insert delta = houlsby { bottleneck = 5 } after block.*.{attn,ff}",
    ),
    (
        "pfeiffer",
        "insert delta = pfeiffer { bottleneck = 5 } after block.*.ff",
    ),
    (
        "parallel",
        "insert delta = parallel { bottleneck = 5 } beside block.*.{attn,ff}",
    ),
    (
        "compacter",
        "insert delta = compacter { bottleneck = 4, terms = 2 } after block.*.{attn,ff}",
    ),
    (
        "low_rank_adapter",
        "insert delta = low_rank_adapter { bottleneck = 4, rank = 2 } after block.*.{attn,ff}",
    ),
];

#[test]
fn logits_and_gradients_are_those_of_the_formulas() {
    for (backbone, labels) in [("bert_a", 2), ("gpt2", 3)] {
        for (name, statement) in CASES {
            let directory = fixture(backbone);
            let plan = classifier(&directory, labels, statement, "delta");
            let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
            let file = format!("inserts/{backbone}_{name}.safetensors");
            let expected = Expected::of_file(&fixture(&file));
            let mut tensors = graph.tensors();
            tensors.retain(|key, _| key.starts_with("delta."));
            for (key, (values, _)) in &mut tensors {
                *values = expected.read(key);
            }
            let weights = tensors.len();
            graph.set(tensors).unwrap();
            graph.activate(&plan, 0).unwrap();
            let batch = Expected::open(&directory).batch(0);
            let logits = graph.inference().logits(&batch).unwrap().read();
            let logits = difference(&logits, &expected.read("logits"), false);
            let (loss, gradients) = graph.gradients(&[batch]).unwrap();
            let loss = difference(&[loss], &expected.read("loss"), false);
            assert_eq!(gradients.len(), weights, "{backbone}, {name}");
            let worst = gradients.iter().map(|(key, gradient)| {
                let of_formula = expected.read(&format!("gradient.{key}"));
                difference(gradient, &of_formula, true)
            });
            let worst = worst.fold(0.0, f32::max);
            println!("{backbone}, {name}: logits differ by at most {logits:.1e}, {weights} gradients by {worst:.1e}");
            assert!(
                logits < 1e-5 && loss < 1e-5 && worst < 1e-4,
                "{backbone}, {name}: {logits} {loss} {worst}"
            );
        }
    }
}

/// A prompt begins as the embeddings that blocks read, which a Gemma multiplies by the root of their width
/// (`GemmaTextScaledWordEmbedding`, whose forward PEFT calls); trained rows of the table begin as the table has them.
#[test]
fn prompts_begin_as_scaled_embeddings() {
    for (backbone, scale) in [("llama_a", 1.0), ("gemma", 24.0f32.sqrt())] {
        let directory = fixture(backbone);
        let statement = "insert delta = prompt { tokens = 3 } before embeddings";
        let mut plan = classifier(&directory, 3, statement, "delta");
        let Change::Method { method, .. } = &mut plan.deltas[0].change else {
            panic!("a method");
        };
        *method = Method::Prompt(Prompt {
            tokens: 3,
            init: PromptInit::Text {
                text: String::new(),
                tokens: vec![5, 9],
            },
        });
        let graph = Graph::load(&plan, Device::Cpu).unwrap();
        let (prompt, shape) = &graph.tensors()["delta.embeddings.prompt"];
        let file = Checkpoint::open_directory(&directory).unwrap();
        let (table, _) = file.read("model.embed_tokens.weight").unwrap();
        let row = |token: usize| &table[token * shape[1]..][..shape[1]];
        let rows = [row(5), row(9), row(5)].concat();
        let expected: Vec<f32> = rows.iter().map(|value| scale * value).collect();
        assert_eq!(difference(prompt, &expected, false), 0.0, "{backbone}");
    }
}

/// LongRoPE has other angles beyond the positions of the pre-training: texts end there, read or written.
#[test]
fn texts_with_longrope_end_where_its_angles_change() {
    let directory = fixture("phi3");
    let plan = classifier(&directory, 3, "", "head");
    assert_eq!(plan.backbone.max_length, 24);
    let graph = Graph::load(&plan, Device::Cpu).unwrap();
    assert_eq!(graph.most_rows(), Some(24));
    let others = ["mistral", "gemma3"].map(|name| classifier(&fixture(name), 3, "", "head"));
    for plan in others {
        let graph = Graph::load(&plan, Device::Cpu).unwrap();
        assert_eq!(graph.most_rows(), None);
    }
}

/// A prefix that begins from a text has the keys and values that PEFT's `initialize_kv_prefix_from_text` gives it; also
/// where the text is longer than the prefix, or than a window.
#[test]
fn prefixes_begin_as_those_of_peft() {
    const TEXT: [usize; 10] = [5, 9, 33, 12, 40, 7, 22, 31, 18, 50];
    for (name, backbone, rows) in [
        ("prefix_text", "llama_a", 3),
        ("prefix_text_windows", "gemma3", 5),
    ] {
        let directory = fixture(backbone);
        let statement = format!("insert delta = prefix {{ tokens = {rows} }} before block.*.attn");
        let mut plan = classifier(&directory, 3, &statement, "delta");
        let Change::Method { method, .. } = &mut plan.deltas[0].change else {
            panic!("a method");
        };
        let Method::Prefix(prefix) = method else {
            panic!("a prefix");
        };
        prefix.init = Some(PrefixText {
            text: String::new(),
            tokens: Vec::new(),
        });
        assert!(method.set_tokens(vec![TEXT[..2].to_vec()]).is_err());
        method.set_tokens(vec![TEXT.to_vec()]).unwrap();
        let graph = Graph::load(&plan, Device::Cpu).unwrap();
        let adapter = fixture("adapters").join(name);
        let imported = import(&adapter, &config(&directory)).unwrap();
        let delta = &imported.deltas[0].name;
        let mut seen = 0;
        for (key, (values, shape)) in graph.tensors() {
            let Some(rest) = key.strip_prefix("delta.") else {
                continue;
            };
            let (of_peft, of_shape) = &imported.tensors[&format!("{delta}.{rest}")];
            let worst = difference(&values, of_peft, false);
            assert!(&shape == of_shape && worst < 1e-5, "{name}, {key}: {worst}");
            seen += 1;
        }
        assert_eq!(seen, 2 * config(&directory).layers);
    }
}
