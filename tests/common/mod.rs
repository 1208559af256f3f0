//! What several tests share: fixtures that `tests/fixtures/make.py` wrote, as plans and batches.
#![allow(dead_code)]

pub mod place;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use deltarun::backbone::{read_config, Checkpoint, Config};
use deltarun::diagnostic::Problem;
use deltarun::engine::Device;
use deltarun::engine::Layout;
use deltarun::graph::{Batch, DecoderRows, Graph, Targets};
use deltarun::peft::Imported;
use deltarun::plan::{plan, BackbonePlan, Optimizer, Plan, Surroundings};
use deltarun::run::has_head_weight;
use deltarun::syntax::parse;
use deltarun::train::optimizer::Stepper;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Backbones in a directory, with what their checkpoints say of their heads.
struct Backbones<'a>(&'a Path);

impl Surroundings for Backbones<'_> {
    fn backbone(&self, location: &str) -> Result<(PathBuf, Config), Problem> {
        let directory = self.0.join(location);
        Ok((directory.clone(), read_config(&directory)?))
    }

    fn has_head_weight(&self, backbone: &BackbonePlan) -> Result<Option<bool>, Problem> {
        has_head_weight(&backbone.config, &backbone.directory).map(Some)
    }
}

/// A plan from text, its backbone a directory.
pub fn plan_of(text: &str, base: &Path) -> Plan {
    planned(text, base).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

/// The same, or what is wrong.
pub fn planned(text: &str, base: &Path) -> Result<Plan, Vec<Problem>> {
    let pipeline = parse(text).unwrap_or_else(|problem| panic!("{problem:?}"));
    plan(&pipeline, &BTreeMap::new(), base, &Backbones(base))
}

/// A plan for a backbone with a classification head of `labels` labels and these statements.
pub fn classifier(directory: &Path, labels: usize, statements: &str, train: &str) -> Plan {
    try_plan(directory, labels, statements, train)
        .unwrap_or_else(|problems| panic!("{statements}: {problems:#?}"))
}

/// The same, or what is wrong.
pub fn try_plan(
    directory: &Path,
    labels: usize,
    statements: &str,
    train: &str,
) -> Result<Plan, Vec<Problem>> {
    let labels: Vec<String> = (0..labels).map(|i| format!("l{i}")).collect();
    let text = format!(
        r#"
        backbone "{}" {{ dropout = off }}
        data {{ train = tsv("train.tsv") }}
        task classify {{ text = sentence, label = label, labels = [{}] }}
        {statements}
        stage tune {{ train = [{train}], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}
        "#,
        directory.display(),
        labels.join(", "),
    );
    planned(&text, directory)
}

/// The graph of a fixture with the LoRA that PEFT saved, everything in it trained.
pub fn imported_graph(directory: &Path, imported: Imported) -> (Plan, Graph) {
    imported_graph_on(directory, imported, Device::Cpu)
}

/// The same on a device.
pub fn imported_graph_on(directory: &Path, imported: Imported, device: Device) -> (Plan, Graph) {
    let outputs = imported.outputs.unwrap();
    let mut plan = classifier(directory, outputs, "", "head");
    plan.stages[0].train = imported
        .deltas
        .iter()
        .map(|delta| delta.name.clone())
        .collect();
    plan.deltas = imported.deltas;
    let mut graph = Graph::load(&plan, device).unwrap();
    graph.set(imported.tensors).unwrap();
    graph.activate(&plan, 0).unwrap();
    (plan, graph)
}

/// What the fixture's script wrote.
pub struct Expected(Checkpoint);

impl Expected {
    pub fn open(directory: &Path) -> Self {
        Expected::of_file(&directory.join("expected.safetensors"))
    }

    pub fn of_file(path: &Path) -> Self {
        Expected(Checkpoint::open(&[path.to_owned()]).unwrap())
    }

    pub fn read(&self, name: &str) -> Vec<f32> {
        self.0.read(name).unwrap().0
    }

    /// Elements and shape.
    pub fn tensor(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        self.0.read(name).unwrap()
    }

    /// A matrix's transpose.
    pub fn read_transposed(&self, name: &str) -> Vec<f32> {
        let (values, shape) = self.0.read(name).unwrap();
        let column = |column: usize| values[column..].iter().step_by(shape[1]);
        (0..shape[1]).flat_map(column).copied().collect()
    }

    pub fn names(&self) -> Vec<String> {
        self.0.names().into_iter().map(str::to_owned).collect()
    }

    /// A padded batch of the script, packed.
    pub fn batch(&self, number: usize) -> Batch {
        let get = |name: &str| self.read(&format!("batch.{number}.{name}"));
        let (ids, mask, types) = (
            get("input_ids"),
            get("attention_mask"),
            get("token_type_ids"),
        );
        let labels: Vec<usize> = get("labels").iter().map(|&label| label as usize).collect();
        let width = ids.len() / labels.len();
        let kept = |values: &[f32]| -> Vec<usize> {
            values
                .iter()
                .zip(&mask)
                .filter(|(_, m)| **m > 0.0)
                .map(|(v, _)| *v as usize)
                .collect()
        };
        let lengths: Vec<usize> = mask
            .chunks(width)
            .map(|row| row.iter().filter(|m| **m > 0.0).count())
            .collect();
        let keys = (0..labels.len() as u64).collect();
        let layout = Layout::new(lengths, keys);
        let decoder = format!("batch.{number}.decoder_input_ids");
        Batch {
            tokens: kept(&ids),
            types: kept(&types),
            decoder: self.names().contains(&decoder).then(|| DecoderRows {
                tokens: kept(&self.read(&decoder)),
                layout: layout.clone(),
            }),
            layout,
            reads: Vec::new(),
            soft: Vec::new(),
            cached: None,
            total: labels.len(),
            targets: Targets::Classes(labels),
        }
    }

    /// A batch of sources and of what a decoder is to give, which begins with the token 0 and ends with -100s.
    pub fn seq2seq(&self, number: usize) -> Batch {
        let batch = self.batch(number);
        let labels = self.read(&format!("seq2seq.{number}.labels"));
        let sequences = batch.layout.sequences();
        let targets = labels.chunks(labels.len() / sequences).map(|row| {
            let own = row.iter().filter(|label| **label >= 0.0);
            own.map(|label| *label as usize).collect::<Vec<_>>()
        });
        let targets: Vec<Vec<usize>> = targets.collect();
        let read = |target: &Vec<usize>| [&[0], &target[..target.len() - 1]].concat();
        let keys = (0..sequences as u64).collect();
        let tokens = targets.concat();
        Batch {
            decoder: Some(DecoderRows {
                tokens: targets.iter().flat_map(read).collect(),
                layout: Layout::new(targets.iter().map(Vec::len), keys),
            }),
            total: tokens.len(),
            targets: Targets::Tokens {
                rows: (0..tokens.len()).collect(),
                tokens,
            },
            ..batch
        }
    }

    /// The rows of a padded `(sequences, width, hidden)` tensor that have labels and are no padding.
    pub fn target_rows(&self, name: &str, number: usize, columns: usize) -> Vec<f32> {
        self.packed_targets(&self.read(name), number, columns)
    }

    /// The same of values from elsewhere.
    pub fn packed_targets(&self, values: &[f32], number: usize, columns: usize) -> Vec<f32> {
        let labels = self.read(&format!("seq2seq.{number}.labels"));
        let rows = values.chunks(columns).zip(&labels);
        let own = rows.filter(|(_, label)| **label >= 0.0);
        own.flat_map(|(row, _)| row.to_vec()).collect()
    }

    /// The rows of a padded `(sequences, width, hidden)` tensor that are not padding.
    pub fn packed_rows(&self, name: &str, number: usize, hidden: usize) -> Vec<f32> {
        self.packed(&self.read(name), number, hidden)
    }

    /// The same of values from elsewhere.
    pub fn packed(&self, values: &[f32], number: usize, hidden: usize) -> Vec<f32> {
        let mask = self.read(&format!("batch.{number}.attention_mask"));
        values
            .chunks(hidden)
            .zip(&mask)
            .filter(|(_, m)| **m > 0.0)
            .flat_map(|(row, _)| row.to_vec())
            .collect()
    }
}

/// The largest difference; if `relative`, divided by the largest expected value.
pub fn difference(found: &[f32], expected: &[f32], relative: bool) -> f32 {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    let largest = expected.iter().fold(0.0f32, |a, b| a.max(b.abs()));
    let worst = found.iter().zip(expected).fold(0.0f32, |a, (f, e)| {
        let d = (f - e).abs();
        if d.is_nan() {
            f32::INFINITY
        } else {
            a.max(d)
        }
    });
    if relative {
        worst / largest.max(1e-12)
    } else {
        worst
    }
}

pub fn config(directory: &Path) -> Config {
    read_config(directory).unwrap()
}

/// Statements that place each method, and whether it changes nothing at first. All are named `delta`.
pub const METHODS: [(&str, bool); 28] = [
    ("unfreeze delta = **.bias", true),
    ("unfreeze delta = **", true),
    (
        "reparam delta = lora { rank = 3, alpha = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = lora { rank = 3, scaling = rank_stabilized } on block.*.attn.v",
        true,
    ),
    (
        "reparam delta = lora { rank = 3, alpha = 5 } on embeddings.word",
        true,
    ),
    (
        "reparam delta = lora { rank = 3, alpha = 5, init = pissa } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = adalora { rank = 3, target_rank = 2, alpha = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = trainable_tokens { tokens = [3, 7, 12, 40] } on embeddings.word",
        true,
    ),
    (
        "reparam delta = dora { rank = 3, alpha = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = loha { rank = 3, alpha = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = lokr { rank = 2, alpha = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = vera { rank = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = intrinsic_dimension { dimension = 11 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    (
        "reparam delta = intrinsic_dimension { dimension = 6, structure_aware = on } on block.*.ff.{up,down}",
        true,
    ),
    (
        "reparam delta = miss { rank = 5 } on block.*.{attn.{q,o},ff.down}",
        true,
    ),
    ("reparam delta = ia3 on block.*.{attn.{k,v},ff.down}", true),
    (
        "insert delta = parallel { bottleneck = 4, activation = gelu } beside block.*.{attn,ff}",
        true,
    ),
    (
        "insert delta = houlsby { bottleneck = 5 } after block.*.{attn,ff}",
        false,
    ),
    (
        "insert delta = pfeiffer { bottleneck = 5, activation = tanh } after block.*.ff",
        false,
    ),
    (
        "insert delta = low_rank_adapter { bottleneck = 4 } after block.*.{attn,ff}",
        false,
    ),
    (
        "insert delta = compacter { bottleneck = 4, terms = 2 } after block.*.{attn,ff}",
        false,
    ),
    (
        "insert delta = prefix { tokens = 3 } before block.*.attn",
        false,
    ),
    (
        "insert delta = prefix { tokens = 2, hidden = 5 } before block.*.attn",
        false,
    ),
    (
        "reparam delta = lora { rank = 3, alpha = 5, gate = on } on block.*.attn.{q,v}",
        true,
    ),
    (
        "insert delta = pfeiffer { bottleneck = 5, activation = tanh, gate = on } after block.*.ff",
        false,
    ),
    (
        "insert delta = prefix { tokens = 3, gate = on } before block.*.attn",
        false,
    ),
    (
        "insert delta = prompt { tokens = 3 } before embeddings",
        false,
    ),
    (
        "insert delta = p_tuning { tokens = 3, hidden = 6 } before embeddings",
        false,
    ),
];

/// All numbers of a JSON value, in order.
pub fn numbers(value: &serde_json::Value) -> Vec<f32> {
    match value {
        serde_json::Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

/// A JSON file of the fixtures.
pub fn json_fixture(name: &str) -> serde_json::Value {
    let text = std::fs::read_to_string(fixture(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// A text of these tokens.
pub fn text_of(tokens: &[u32]) -> deltarun::task::Encoded {
    deltarun::task::Encoded {
        tokens: tokens.to_vec(),
        types: vec![0; tokens.len()],
        special: vec![false; tokens.len()],
        reads: Vec::new(),
        soft: None,
        words: Vec::new(),
    }
}

/// The loss of a batch before and after three small steps of AdamW.
pub fn three_steps(graph: &mut Graph, groups: &[Batch]) -> (f32, f32) {
    let mut stepper = Stepper::new(Optimizer::AdamW {
        lr: 1e-3,
        betas: (0.9, 0.999),
        epsilon: 1e-8,
        weight_decay: 0.0,
    });
    let (before, _) = graph.gradients(groups).unwrap();
    for _ in 0..3 {
        let (_, gradients) = graph.gradients(groups).unwrap();
        stepper.begin();
        let mut tensors = graph.trained_tensors();
        for (key, (values, _)) in &mut tensors {
            stepper.update(key, values, &gradients[key.as_str()], 1, 1e-3);
        }
        graph.set(tensors).unwrap();
    }
    (before, graph.gradients(groups).unwrap().0)
}
