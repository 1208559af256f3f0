//! Several LoRAs as one: what each weight gets, beside PEFT's `add_weighted_adapter` (the fixture is
//! `tests/fixtures/make_methods.py`'s); DARE by its definition; the command.

use std::collections::BTreeMap;

use crate::common::place::{Place, PIPELINE};
use crate::common::{config, difference, fixture, imported_graph, Expected};
use deltarun::graph::Tensors;
use deltarun::peft::import;
use deltarun::plan::{Change, Plan};
use deltarun::run::{combined, Combination, Loaded, Rule};

const COMBINATION: Combination = Combination {
    rule: Rule::Average,
    weights: None,
    density: None,
    rank: None,
    seed: None,
};

fn runs() -> Vec<Loaded> {
    let directory = fixture("bert_a");
    let run = |name: &str| {
        let adapter = fixture("methods/combination").join(name);
        let mut imported = import(&adapter, &config(&directory)).unwrap();
        imported.outputs = Some(2);
        let (plan, graph) = imported_graph(&directory, imported);
        Loaded {
            plan,
            graph,
            run: None,
        }
    };
    ["first", "second"].map(run).into()
}

/// `s B A` of every module, by PEFT's name.
fn products(plan: &Plan, tensors: &Tensors) -> BTreeMap<String, Vec<f32>> {
    let mut products = BTreeMap::new();
    let runs = runs();
    for delta in &plan.deltas {
        let Change::Method { sites, .. } = &delta.change else {
            panic!("a LoRA is expected");
        };
        for site in sites {
            let module = runs[0].graph.tree().module(site).unwrap();
            let (a, shape) = &tensors[&format!("{}.{site}.A", delta.name)];
            let (b, _) = &tensors[&format!("{}.{site}.B", delta.name)];
            let (rank, input) = (shape[0], shape[1]);
            let product = b.chunks(rank).flat_map(|row| {
                (0..input).map(move |i| (0..rank).map(|r| row[r] * a[r * input + i]).sum::<f32>())
            });
            let name = format!("base_model.model.bert.{}", module.checkpoint_name);
            products.insert(name, product.collect());
        }
    }
    products
}

#[test]
fn what_each_weight_gets_is_what_peft_makes_of_it() {
    let expected = Expected::open(&fixture("methods/combination"));
    let average = Combination {
        weights: Some(vec![0.7, 0.4]),
        ..COMBINATION
    };
    let cases = [
        ("cat", average.clone()),
        (
            "svd",
            Combination {
                rank: Some(3),
                ..average.clone()
            },
        ),
        (
            "ties_svd",
            Combination {
                rule: Rule::Ties,
                density: Some(0.5),
                rank: Some(3),
                ..average
            },
        ),
    ];
    for (kind, combination) in cases {
        let (plan, tensors) = combined(&runs(), &combination).unwrap();
        let found = products(&plan, &tensors);
        let names = expected.names().into_iter();
        let there: Vec<String> = names
            .filter_map(|name| name.strip_prefix(&format!("{kind}.")).map(str::to_owned))
            .collect();
        assert_eq!(there.len(), found.len(), "{kind}");
        let mut worst = 0.0f32;
        for name in there {
            let wanted = expected.read(&format!("{kind}.{name}"));
            worst = worst.max(difference(&found[&name], &wanted, true));
        }
        println!("{kind}: products differ by at most {worst:.1e}, relative");
        assert!(worst < 1e-4, "{kind}: {worst}");
    }
}

/// With every rank kept, DARE leaves of each change a share of its elements, scaled up.
#[test]
fn dare_keeps_a_share_of_the_elements_and_scales_it_up() {
    let dare = Combination {
        rule: Rule::Dare,
        density: Some(0.5),
        weights: Some(vec![1.0, 0.0]),
        rank: Some(30),
        ..COMBINATION
    };
    let whole = Combination {
        density: Some(1.0),
        ..dare.clone()
    };
    let of = |combination: &Combination| {
        let (plan, tensors) = combined(&runs(), combination).unwrap();
        products(&plan, &tensors)
    };
    let (part, whole) = (of(&dare), of(&whole));
    let (mut kept, mut all) = (0, 0);
    for (name, part) in &part {
        let largest = whole[name].iter().fold(0.0f32, |a, b| a.max(b.abs()));
        for (part, whole) in part.iter().zip(&whole[name]) {
            let is_zero = part.abs() <= 1e-5 * largest;
            let is_scaled = (part - 2.0 * whole).abs() <= 1e-5 * largest;
            assert!(is_zero || is_scaled, "{name}: {part} of {whole}");
            kept += usize::from(!is_zero && largest > 0.0);
            all += usize::from(largest > 0.0);
        }
    }
    let share = kept as f64 / all as f64;
    assert!(
        (share - 0.5).abs() < 0.05,
        "{share} of the elements are left"
    );
    assert_eq!(part, of(&dare), "the same seed draws the same");
}

#[test]
fn the_command_leaves_a_run() {
    let place = Place::new();
    place.succeed(&["small.delta", "--quiet", "--out", "a"]);
    place.succeed(&["small.delta", "--quiet", "--out", "b", "--seed", "7"]);
    for by in ["average", "ties", "dare"] {
        place.succeed(&["combine", "a", "b", "--by", by, "--out", by]);
        assert!(place.succeed(&["eval", by]).contains("accuracy"));
        assert!(place.path(by).join("peft/adapter_config.json").exists());
    }
    // A run with itself is itself.
    place.succeed(&["combine", "a", "a", "--out", "same"]);
    assert_eq!(
        place.succeed(&["eval", "same"]),
        place.succeed(&["eval", "a"])
    );

    let lora = PIPELINE
        .lines()
        .find(|line| line.starts_with("reparam"))
        .unwrap();
    let adapter = "insert low_rank = houlsby after block.*.ff";
    place.write("c.delta", PIPELINE.replace(lora, adapter).as_bytes());
    place.succeed(&["c.delta", "--quiet", "--out", "c"]);
    let mistakes: [(&str, &[&str]); 7] = [
        ("combine_adapter", &["a", "c"]),
        ("combine_weights", &["a", "b", "--weights", "1"]),
        (
            "combine_density",
            &["a", "b", "--by", "ties", "--density", "0"],
        ),
        (
            "combine_density_of_average",
            &["a", "b", "--density", "0.5"],
        ),
        (
            "combine_seed_of_ties",
            &["a", "b", "--by", "ties", "--seed", "1"],
        ),
        ("combine_rank", &["a", "b", "--rank", "0"]),
        ("combine_nothing", &["a", "nothing"]),
    ];
    for (name, arguments) in mistakes {
        let arguments = [&["combine"], arguments, &["--out", "bad"]].concat();
        insta::assert_snapshot!(name, place.fail(2, &arguments));
        assert!(!place.path("bad").exists());
    }
}

/// Backbones that were drawn at random from other seeds are others.
#[test]
fn backbones_of_other_seeds_are_not_combined() {
    let place = Place::new();
    let text = PIPELINE.replace("max_length", "weights = random, max_length");
    assert!(text.contains("weights = random"), "{text}");
    place.write("small.delta", text.as_bytes());
    for seed in ["1", "2"] {
        let out = format!("r{seed}");
        place.succeed(&["small.delta", "--quiet", "--seed", seed, "--out", &out]);
    }
    let said = place.fail(2, &["combine", "r1", "r2", "--out", "both"]);
    assert!(said.contains("different backbones"), "{said}");
}
