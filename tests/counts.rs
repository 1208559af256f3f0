//! How many parameters each method trains, the head aside, on three shapes: equal to PEFT's own count
//! where PEFT has the method (`tests/fixtures/make_counts.py`), and to the paper's formula elsewhere.
//! The table in `docs/methods.md` is what this test found; `UPDATE_DOCS=1` writes it again.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{config, fixture, plan_of};
use deltarun::backbone::Config;
use deltarun::graph::this_machine;

/// What a count is held to.
enum Source {
    /// PEFT's count under this name.
    Peft(&'static str),
    /// The formula of a paper, on a backbone's dimensions.
    Formula(fn(&Config) -> usize),
}
use Source::{Formula, Peft};

/// Dimensions as the papers call them: layers, hidden width, inner width.
fn sizes(config: &Config) -> (usize, usize, usize) {
    (config.layers, config.hidden, config.inner)
}

/// A bottleneck adapter of width `b`: two projections with their biases.
fn bottleneck(hidden: usize, b: usize) -> usize {
    2 * hidden * b + b + hidden
}

const ROWS: &[(&str, &str, Source)] = &[
    (
        "LoRA, rank 8",
        "reparam d = lora { rank = 8 } on block.*.attn.{q,v}",
        Peft("lora"),
    ),
    (
        "rsLoRA, rank 8",
        "reparam d = lora { rank = 8, scaling = rank_stabilized } on block.*.attn.{q,v}",
        Peft("rslora"),
    ),
    (
        "PiSSA, rank 8",
        "reparam d = lora { rank = 8, init = pissa } on block.*.attn.{q,v}",
        Peft("lora"),
    ),
    (
        "LoRA on word embeddings, rank 8",
        "reparam d = lora { rank = 8 } on embeddings.word",
        Peft("lora, embeddings"),
    ),
    (
        "AdaLoRA, rank 12 at first",
        "reparam d = adalora on block.*.attn.{q,v}",
        Peft("adalora"),
    ),
    (
        "trainable tokens, 3",
        "reparam d = trainable_tokens { tokens = [1037, 2143, 3185] } on embeddings.word",
        Formula(|c| 3 * c.hidden),
    ),
    (
        "DoRA, rank 8",
        "reparam d = dora { rank = 8 } on block.*.attn.{q,v}",
        Peft("dora"),
    ),
    (
        "LoHa, rank 8",
        "reparam d = loha { rank = 8 } on block.*.attn.{q,v}",
        Peft("loha"),
    ),
    (
        "LoKr, rank 8",
        "reparam d = lokr { rank = 8 } on block.*.attn.{q,v}",
        Peft("lokr"),
    ),
    (
        "VeRA, rank 256",
        "reparam d = vera { rank = 256 } on block.*.attn.{q,v}",
        Peft("vera"),
    ),
    (
        "MiSS, rank 64",
        "reparam d = miss on block.*.attn.{q,v}",
        Peft("miss"),
    ),
    (
        "(IA)³",
        "reparam d = ia3 on block.*.{attn.{k,v},ff.down}",
        Peft("ia3"),
    ),
    (
        "prefix, 30 tokens",
        "insert d = prefix { tokens = 30 } before block.*.attn",
        Peft("prefix"),
    ),
    (
        "prefix, 30 tokens, MLP of 512",
        "insert d = prefix { tokens = 30, hidden = 512 } before block.*.attn",
        Peft("prefix, MLP"),
    ),
    (
        "prompt, 10 tokens",
        "insert d = prompt { tokens = 10 } before embeddings",
        Peft("prompt"),
    ),
    (
        "P-tuning, 20 tokens",
        "insert d = p_tuning { tokens = 20 } before embeddings",
        Peft("p_tuning"),
    ),
    (
        "LoRA, rank 8, gated",
        "reparam d = lora { rank = 8, gate = on } on block.*.attn.{q,v}",
        // A gate is a row of the width, and a bias.
        Formula(|c| {
            let (l, h, _) = sizes(c);
            2 * l * (2 * 8 * h + h + 1)
        }),
    ),
    (
        "intrinsic dimension (DID), 1000",
        "reparam d = intrinsic_dimension { dimension = 1000 } on block.*.{attn.{q,k,v,o},ff.{up,down}}",
        Formula(|_| 1000),
    ),
    (
        "intrinsic dimension (SAID), 1000",
        "reparam d = intrinsic_dimension { dimension = 1000, structure_aware = on } \
         on block.*.{attn.{q,k,v,o},ff.{up,down}}",
        // A factor of each of the six weights of a layer.
        Formula(|c| 1000 + 6 * c.layers),
    ),
    ("layer norms", "unfreeze d = **.norm", Peft("layer norms")),
    (
        "BitFit",
        "unfreeze d = {embeddings,block}.**.bias",
        // Biases of q, k, v, o, up, down and two norms in each layer, and of the embeddings' norm.
        Formula(|c| {
            let (l, h, i) = sizes(c);
            l * (7 * h + i) + h
        }),
    ),
    (
        "BitFit, query and FFN-up",
        "unfreeze d = block.*.{attn.q,ff.up}.bias",
        Formula(|c| {
            let (l, h, i) = sizes(c);
            l * (h + i)
        }),
    ),
    (
        "Houlsby, bottleneck 64",
        "insert d = houlsby { bottleneck = 64 } after block.*.{attn,ff}",
        Formula(|c| {
            let (l, h, _) = sizes(c);
            2 * l * bottleneck(h, 64)
        }),
    ),
    (
        "Pfeiffer, reduction 16",
        "insert d = pfeiffer after block.*.ff",
        Formula(|c| {
            let (l, h, _) = sizes(c);
            l * bottleneck(h, h / 16)
        }),
    ),
    (
        "parallel, reduction 2",
        "insert d = parallel beside block.*.ff",
        Formula(|c| {
            let (l, h, _) = sizes(c);
            l * bottleneck(h, h / 2)
        }),
    ),
    (
        "low-rank adapter, reduction 32, rank 1",
        "insert d = low_rank_adapter after block.*.{attn,ff}",
        // Each projection is a column, a row and a bias.
        Formula(|c| {
            let (l, h, _) = sizes(c);
            2 * l * (2 * (h + h / 32) + h / 32 + h)
        }),
    ),
    (
        "Compacter, n 4, reduction 32",
        "insert d = compacter after block.*.{attn,ff}",
        // (k + d) per projection in factors of rank 1, the biases, and n³ for all layers together.
        Formula(|c| {
            let (l, h, _) = sizes(c);
            2 * l * (2 * (h + h / 32) + h / 32 + h) + 64
        }),
    ),
    (
        "last layer",
        "unfreeze d = block[last 1]",
        Formula(|c| {
            let (_, h, i) = sizes(c);
            4 * h * h + 2 * h * i + 7 * h + i + 2 * h
        }),
    ),
];

const SHAPES: [&str; 3] = ["bert_base", "roberta_large", "minilm"];

/// What the delta `d` trains on a backbone, and all parameters of the backbone.
fn count(shape: &str, statement: &str) -> (usize, usize) {
    let directory = fixture("counts").join(shape);
    let text = format!(
        r#"
        backbone "{}"
        data {{ train = tsv("train.tsv") }}
        task classify {{ text = text, label = label, labels = [a, b] }}
        {statement}
        stage tune {{ train = [d], steps = 1, optimizer = sgd {{ lr = 1 }} }}
        "#,
        directory.display()
    );
    let plan = plan_of(&text, &directory);
    let tree = deltarun::backbone::Tree::new(&plan.backbone.config);
    let backbone = tree.parameters().map(|parameter| parameter.count()).sum();
    (plan.cost(0, 64, &this_machine(1)).trained, backbone)
}

fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn every_method_trains_as_many_parameters_as_it_should() {
    let text = std::fs::read_to_string(fixture("counts/peft.json")).unwrap();
    let peft: BTreeMap<String, BTreeMap<String, usize>> = serde_json::from_str(&text).unwrap();
    let mut table = String::from(
        "| method | statement | BERT-base | RoBERTa-large | share of RoBERTa-large | MiniLM | equal to |\n\
         |---|---|---:|---:|---:|---:|---|\n",
    );
    for (name, statement, source) in ROWS {
        let mut cells = Vec::new();
        for shape in SHAPES {
            let (found, backbone) = count(shape, statement);
            let expected = match source {
                Peft(key) => peft[*key][shape],
                Formula(formula) => formula(&config(&fixture("counts").join(shape))),
            };
            assert_eq!(found, expected, "{name} on {shape}");
            cells.push(thousands(found));
            if shape == "roberta_large" {
                cells.push(format!("{:.3} %", 100.0 * found as f64 / backbone as f64));
            }
        }
        let source = match source {
            Peft(_) => "PEFT",
            Formula(_) => "formula",
        };
        let statement = statement.replace(" d = ", " … = ");
        table += &format!(
            "| {name} | `{statement}` | {} | {source} |\n",
            cells.join(" | ")
        );
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md");
    let docs = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- counts -->\n", "<!-- /counts -->");
    let start = docs.find(begin).unwrap() + begin.len();
    let stop = docs.find(end).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let text = format!("{}{table}{}", &docs[..start], &docs[stop..]);
        return std::fs::write(&path, text).unwrap();
    }
    assert_eq!(docs[start..stop], table, "run this test with UPDATE_DOCS=1");
}
