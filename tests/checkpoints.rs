//! Weights as checkpoints store them: shards with an index, 16-bit types, a prefix or none, the names
//! that old BERTs have for norms.

use std::collections::BTreeMap;
use std::path::Path;

use crate::common::{classifier, difference, fixture, Expected};
use deltarun::backbone::write_tensors;
use deltarun::backbone::Checkpoint;
use deltarun::engine::Device;
use deltarun::graph::Graph;
use safetensors::tensor::{Dtype, TensorView};

type Tensors = BTreeMap<String, (Vec<f32>, Vec<usize>)>;

/// The tensors of the fixture `bert_a`.
fn tensors() -> Tensors {
    let file = Checkpoint::open_directory(&fixture("bert_a")).unwrap();
    file.names()
        .into_iter()
        .map(|name| (name.to_owned(), file.read(name).unwrap()))
        .collect()
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::copy(
        fixture("bert_a").join("config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    folder
}

/// The largest difference of the last hidden state from what transformers computed.
fn error(directory: &Path) -> f32 {
    let expected = Expected::open(&fixture("bert_a"));
    let plan = classifier(directory, 2, "", "head");
    let graph = Graph::load(&plan, Device::Cpu).unwrap();
    let hidden = graph.inference().hidden(&expected.batch(0)).unwrap();
    difference(
        &hidden.read(),
        &expected.packed_rows("hidden", 0, 18),
        false,
    )
}

#[test]
fn shards_with_an_index() {
    let folder = folder();
    let (mut first, mut second, mut map) = (Tensors::new(), Tensors::new(), serde_json::Map::new());
    for (i, (name, tensor)) in tensors().into_iter().enumerate() {
        let (part, file) = if i % 2 == 0 {
            (&mut first, "a.safetensors")
        } else {
            (&mut second, "b.safetensors")
        };
        map.insert(name.clone(), file.into());
        part.insert(name, tensor);
    }
    write_tensors(&folder.path().join("a.safetensors"), &first, None).unwrap();
    write_tensors(&folder.path().join("b.safetensors"), &second, None).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    assert!(error(folder.path()) < 1e-5);
}

/// A tensor that stands in two shards is read if both have the same bytes, and refused by name otherwise.
#[test]
fn a_tensor_in_two_shards_is_one_tensor() {
    let folder = folder();
    let all = tensors();
    let (name, (values, shape)) = all.iter().next().unwrap();
    let map: serde_json::Map<_, _> = all
        .keys()
        .map(|name| (name.clone(), "a.safetensors".into()))
        .chain([("other".to_owned(), "b.safetensors".into())])
        .collect();
    write_tensors(&folder.path().join("a.safetensors"), &all, None).unwrap();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    for (factor, is_read) in [(1.0, true), (2.0, false)] {
        let changed: Vec<f32> = values
            .iter()
            .map(|value| factor * value + 0.5 * (factor - 1.0))
            .collect();
        let copy: Tensors = [
            (name.clone(), (changed, shape.clone())),
            ("other".to_owned(), (vec![0.0], vec![1])),
        ]
        .into_iter()
        .collect();
        write_tensors(&folder.path().join("b.safetensors"), &copy, None).unwrap();
        match Checkpoint::open_directory(folder.path()) {
            Ok(_) => assert!(is_read),
            Err(problem) => {
                let wanted = format!("`{name}` differs from the tensor of that name");
                assert!(
                    !is_read && problem.message.contains(&wanted),
                    "{}",
                    problem.message
                );
            }
        }
    }
}

#[test]
fn no_prefix_and_the_old_names_of_norms() {
    let folder = folder();
    let renamed: Tensors = tensors()
        .into_iter()
        .map(|(name, tensor)| {
            let name = name.trim_start_matches("bert.");
            let name = name
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
            (name, tensor)
        })
        .collect();
    write_tensors(&folder.path().join("model.safetensors"), &renamed, None).unwrap();
    assert!(error(folder.path()) < 1e-5);
}

#[test]
fn sixteen_bit_weights() {
    for (dtype, limit) in [(Dtype::F16, 2e-2), (Dtype::BF16, 2e-1)] {
        let folder = folder();
        let bytes: Vec<(String, Vec<u8>, Vec<usize>)> = tensors()
            .into_iter()
            .map(|(name, (values, shape))| {
                let half = |value: &f32| match dtype {
                    Dtype::F16 => half::f16::from_f32(*value).to_le_bytes(),
                    _ => half::bf16::from_f32(*value).to_le_bytes(),
                };
                (name, values.iter().flat_map(half).collect(), shape)
            })
            .collect();
        let views = bytes.iter().map(|(name, bytes, shape)| {
            (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors"))
            .unwrap();
        let error = error(folder.path());
        assert!(error > 0.0 && error < limit, "{dtype:?}: {error}");
    }
}
