//! Weights in fewer bits: the values of bitsandbytes, by `tests/fixtures/make_storage.py`; products with codes; runs.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use crate::common::place::Place;
use crate::common::{fixture, Expected};
use deltarun::backbone::{write_tensors, Checkpoint};
use deltarun::engine::{
    backward, ops, uses_amx, Coded, Device, Elements, Storage, Stored, Tensor, Trace, Weight,
    WeightSource,
};

struct Held(Vec<f32>);

impl WeightSource for Held {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn elements(&self) -> Cow<'_, [f32]> {
        Cow::Borrowed(&self.0)
    }
    fn has_rows(&self) -> bool {
        true
    }
    fn read(&self, range: Range<usize>, values: &mut [f32]) {
        values.copy_from_slice(&self.0[range]);
    }
    fn release(&self) {}
}

#[test]
fn codes_have_the_values_of_bitsandbytes() {
    let file = Expected::of_file(&fixture("storage.safetensors"));
    let (weight, shape) = file.tensor("weight");
    let shape = (shape[0], shape[1]);
    for (name, storage, most) in [("nf4", Storage::Nf4, 2e-7), ("int8", Storage::Int8, 1e-7)] {
        let coded = Coded::new(storage, &Held(weight.clone()), shape).unwrap();
        let found = coded.elements();
        let expected = file.read(name);
        let wrong: Vec<_> = found
            .iter()
            .zip(&expected)
            .enumerate()
            .filter(|(_, (a, b))| (*a - *b).abs() > most)
            .collect();
        assert!(
            wrong.is_empty(),
            "{name}: {} differ: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
        // Any part is that part of the whole.
        for range in [
            0..1,
            1..2,
            3..70,
            63..65,
            17..9001,
            shape.1 - 1..3 * shape.1 + 1,
        ] {
            let mut part = vec![0.0; range.len()];
            coded.read(range.clone(), &mut part);
            assert_eq!(part, found[range]);
        }
    }
    let half = Coded::new(Storage::Bf16, &Held(weight.clone()), shape).unwrap();
    for (found, own) in half.elements().iter().zip(&weight) {
        assert_eq!(*found, half::bf16::from_f32(*own).to_f32());
    }
}

/// A product with codes gives the bits of the product with what they stand for, in both directions. Where AMX multiplies
/// the latter, from integers, the two differ by the rounding of f32.
#[test]
fn products_decode_and_change_no_bit() {
    for (rows, out, input) in [
        (1, 1, 1),
        (3, 33, 70),
        (40, 64, 256),
        (130, 300, 515),
        (7, 32, 600),
    ] {
        let value = |i: usize| (deltarun::engine::mix(i as u64) >> 40) as f32 / 16_777_216.0 - 0.5;
        let weight: Vec<f32> = (0..out * input).map(value).collect();
        let x: Vec<f32> = (0..rows * input).map(|i| value(!i)).collect();
        for storage in [Storage::Bf16, Storage::Int8, Storage::Nf4] {
            let coded = Coded::new(storage, &Held(weight.clone()), (out, input)).unwrap();
            let decoded = coded.elements().into_owned();
            let device = Device::Cpu;
            let run = |elements: Elements| {
                let weight = Weight::new(&elements, &Arc::default(), &Trace::off());
                let trace = Trace::on();
                let x = Tensor::new(&device, x.clone(), (rows, input)).unwrap();
                let on = x.on(&trace);
                let y = ops::linear(&on, &weight, None).unwrap();
                let found = y.read();
                let loss =
                    ops::squared_error(&y.reshaped((rows * out, 1)), &vec![0.0; rows * out], 1)
                        .unwrap();
                let mut gradients = backward(loss).unwrap();
                (found, gradients.take(&x))
            };
            let stored = Stored::new(Box::new(coded), (out, input), device.clone());
            let found = run(Elements::Stored(Arc::new(stored)));
            let expected = run(Elements::Held(
                Tensor::new(&device, decoded, (out, input)).unwrap(),
            ));
            let case = format!("{storage:?}: {rows}x{input} by {out}x{input}");
            if !uses_amx(input, out) {
                assert!(found == expected, "{case}");
                continue;
            }
            for (found, expected) in [(found.0, expected.0), (found.1, expected.1)] {
                let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
                let mut pairs = found.iter().zip(&expected);
                assert!(
                    pairs.all(|(x, y)| (x - y).abs() <= 2e-6 * largest),
                    "{case}"
                );
            }
        }
    }
}

fn pipeline(backbone: &str, settings: &str, delta: &str) -> String {
    format!(
        "pipeline small\nbackbone \"{backbone}\" {{ max_length = 40, {settings} }}\n\
         data {{ train = tsv(\"train.tsv\"), dev = tsv(\"train.tsv\") }}\n\
         task causal_lm {{ text = text }}\n\
         {delta}\n\
         stage tune {{ train = [low], steps = 20, batch = 8, optimizer = adamw {{ lr = 1e-2 }}, evaluate = every 10 steps, keep = last }}\n"
    )
}

const LORA: &str = "reparam low = lora { rank = 4 } on **.{q,v}";

/// A run trains on the decoded weights, merges into them, and its merged model gives its loss.
#[test]
fn runs_train_on_codes_and_merge_what_they_stand_for() {
    let place = Place::new();
    let llama =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
    let llama = llama.display().to_string();
    let mut losses = Vec::new();
    for storage in ["f32", "bf16", "int8", "nf4"] {
        let text = pipeline(&llama, &format!("storage = {storage}"), LORA);
        place.write("small.delta", text.as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", storage]);
        let merged = format!("{storage}-merged");
        place.succeed(&["merge", storage, &merged]);
        let loss = |source: &[&str]| {
            let found = place.succeed(
                &[
                    &["eval"],
                    source,
                    &["--data", "train.tsv", "--format", "json"],
                ]
                .concat(),
            );
            let found: serde_json::Value = serde_json::from_str(&found).unwrap();
            found["metrics"]["loss"].as_f64().unwrap()
        };
        let (run, merged) = (loss(&[storage]), loss(&[&merged, "--text", "text"]));
        assert!((run - merged).abs() < 1e-5, "{storage}: {run}, {merged}");
        losses.push(run);
    }
    // The errors of the codes are in this order.
    let errors: Vec<f64> = losses[1..]
        .iter()
        .map(|loss| (loss - losses[0]).abs())
        .collect();
    assert!(
        errors[0] < 2e-3 && errors[1] < 5e-3 && errors[2] < 0.2,
        "{losses:?}"
    );
    let text = pipeline(&llama, "storage = nf4", LORA);
    place.write("small.delta", text.as_bytes());
    let plan = place.succeed(&["plan", "small.delta"]);
    assert!(plan.contains("storage nf4: "), "{plan}");
}

#[test]
fn what_codes_cannot_do_is_refused_by_name() {
    let place = Place::new();
    let llama =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/architectures/llama");
    let llama = llama.display().to_string();
    for (settings, delta, wanted) in [
        (
            "storage = nf4",
            "unfreeze low = **",
            "would round small updates away",
        ),
        (
            "storage = int8",
            "reparam low = lora { rank = 4, init = pissa } on **.q",
            "is computed from whole weights",
        ),
        (
            "storage = bf16",
            "reparam low = dora { rank = 4 } on **.q",
            "is computed from whole weights",
        ),
        (
            "storage = nf4, precision = bf16",
            LORA,
            "remove `precision`",
        ),
        ("storage = int4", LORA, "must be one of"),
    ] {
        place.write("small.delta", pipeline(&llama, settings, delta).as_bytes());
        let error = place.fail(2, &["check", "small.delta"]);
        assert!(error.contains(wanted), "{settings}, {delta}: {error}");
    }
    for (settings, delta) in [
        ("storage = nf4", "unfreeze low = **.norm"),
        ("storage = bf16", "unfreeze low = **"),
        ("storage = nf4", "unfreeze low = embeddings.word"),
    ] {
        place.write("small.delta", pipeline(&llama, settings, delta).as_bytes());
        place.succeed(&["small.delta", "--quiet", "--out", "run"]);
        std::fs::remove_dir_all(place.path("run")).unwrap();
    }
}

/// Every family computes with weights in codes what it computes in f32, up to the codes' rounding; GPT-2 stores its weights
/// transposed, and T5 has two stacks.
#[test]
fn every_family_computes_with_codes() {
    use crate::common::{plan_of, text_of};
    use deltarun::data::{batch, Prediction};
    use deltarun::graph::Graph;
    use deltarun::task::{Example, Target};
    for family in ["bert_a", "roberta", "gpt2", "llama_a", "qwen2", "t5_v1_0"] {
        let directory = fixture(family);
        let logits = |storage: &str| {
            let text = format!(
                "backbone \"{}\" {{ dropout = off, storage = {storage} }}\n\
                 data {{ train = tsv(\"t\") }}\n\
                 task classify {{ text = a, label = b, labels = [x, y, z] }}\n\
                 stage s {{ train = [head], epochs = 1, optimizer = adamw {{ lr = 1e-3 }} }}",
                directory.display()
            );
            let plan = plan_of(&text, &directory);
            let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
            graph.activate(&plan, 0).unwrap();
            let tokens = [5, 9, 33, 12, 7];
            let example = Example {
                text: text_of(&tokens),
                decoder: if family.starts_with("t5") {
                    [&[0], &tokens[..]].concat()
                } else {
                    Vec::new()
                },
                target: Target::None,
                cut: 0,
                others: Vec::new(),
            };
            let batch = batch(&[&example], &[0], 0, Prediction::default());
            graph.inference().hidden(&batch).unwrap().read()
        };
        let exact = logits("f32");
        for (storage, most) in [("bf16", 0.03), ("int8", 0.05), ("nf4", 0.6)] {
            let found = logits(storage);
            let worst = crate::common::difference(&found, &exact, true);
            assert!(worst < most && worst > 0.0, "{family}, {storage}: {worst}");
        }
    }
}

/// Elements and shapes by name.
type Tensors = std::collections::BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// A language model's own output table is the checkpoint's: a run that does not train it neither saves it nor changes it,
/// and a run of an earlier version that saved it is accepted.
#[test]
fn an_output_table_that_no_stage_trains_is_not_saved() {
    let place = Place::of_tasks();
    let file = place.path("llama/model.safetensors");
    let stored = Checkpoint::open(std::slice::from_ref(&file)).unwrap();
    let names = stored.names().into_iter().map(str::to_owned);
    let mut tensors: Tensors = names
        .map(|name| (name.clone(), stored.read(&name).unwrap()))
        .collect();
    let (mut table, shape) = tensors["model.embed_tokens.weight"].clone();
    table.reverse();
    tensors.insert("lm_head.weight".to_owned(), (table.clone(), shape.clone()));
    drop(stored);
    write_tensors(&file, &tensors, None).unwrap();
    let config = std::fs::read_to_string(place.path("llama/config.json")).unwrap();
    let untied = config.replace(
        "\"tie_word_embeddings\": true",
        "\"tie_word_embeddings\": false",
    );
    assert_ne!(config, untied);
    place.write("llama/config.json", untied.as_bytes());
    let text = |train: &str, storage: &str| {
        format!(
            "pipeline p\nbackbone \"llama\" {{ max_length = 24{storage} }}\n\
             data {{ train = jsonl(\"rows.jsonl\"), dev = jsonl(\"rows.jsonl\") }}\n\
             task instruct {{ prompt = text, answer = good }}\n\
             reparam low = lora {{ rank = 2 }} on block.*.attn.{{q,v}}\n\
             stage tune {{ train = [{train}], steps = 4, batch = 4, optimizer = adamw {{ lr = 1e-2 }}, evaluate = every 2 steps }}\n"
        )
    };
    let saved = |run: &str| {
        let delta = Checkpoint::open(&[place.path(run).join("delta.safetensors")]).unwrap();
        let names = delta.names().into_iter().map(str::to_owned);
        let all: Tensors = names
            .map(|name| (name.clone(), delta.read(&name).unwrap()))
            .collect();
        all
    };
    for (run, train, storage, has_table) in [
        ("frozen", "low", "", false),
        ("coded", "low", ", storage = int8", false),
        ("trained", "low, head", "", true),
    ] {
        place.write("p.delta", text(train, storage).as_bytes());
        place.succeed(&["p.delta", "--quiet", "--out", run]);
        let tensors = saved(run);
        let table = tensors.keys().any(|key| key.ends_with("lm_head.weight"));
        assert_eq!(table, has_table, "{run}: {:?}", tensors.keys());
        let evaluated = place.succeed(&["eval", run, "--format", "json"]);
        let evaluated: serde_json::Value = serde_json::from_str(&evaluated).unwrap();
        let metrics = std::fs::read(place.path(run).join("metrics.json")).unwrap();
        let metrics: serde_json::Value = serde_json::from_slice(&metrics).unwrap();
        assert_eq!(
            evaluated["metrics"], metrics["stages"][0]["dev"]["metrics"],
            "{run}"
        );
    }
    let before = place.succeed(&["eval", "frozen", "--format", "json"]);
    let mut older = saved("frozen");
    older.insert("task.lm_head.weight".to_owned(), (table, shape));
    write_tensors(&place.path("frozen/delta.safetensors"), &older, None).unwrap();
    let after = place.succeed(&["eval", "frozen", "--format", "json", "--allow-changed"]);
    assert_eq!(before, after);
}
