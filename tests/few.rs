//! A few examples of each label: as many as were asked for, others for dev than for train, the same for
//! the same seed.

use std::path::Path;

use crate::common::plan_of;
use deltarun::data::Example;
use deltarun::run::Loader;
use deltarun::task::Target;

fn sets(train: &str, dev: &str) -> Result<[Vec<Example>; 2], String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart");
    let text = format!(
        r#"
        backbone "backbone"
        data {{ train = {train}, dev = {dev} }}
        task classify {{ text = text, label = label, labels = [negative, positive] }}
        stage tune {{ train = [head], steps = 1, optimizer = sgd {{ lr = 1 }} }}
        "#
    );
    let plan = plan_of(&text, &folder);
    let mut data = Loader::new(&plan)
        .unwrap()
        .stages(&plan)
        .map_err(|p| p.message)?;
    let data = data.remove(0);
    Ok([data.train.all.clone(), data.dev.unwrap().all.clone()])
}

const FEW: &str = "few(tsv(\"train.tsv\"), 16)";

#[test]
fn there_are_as_many_of_each_label_and_none_is_in_both_sets() {
    let [train, dev] = sets(FEW, FEW).unwrap();
    for set in [&train, &dev] {
        for class in 0..2 {
            let of_class = set.iter().filter(|e| e.target == Target::Class(class));
            assert_eq!(of_class.count(), 16);
        }
    }
    assert!(train.iter().all(|example| !dev.contains(example)));
}

#[test]
fn a_seed_draws_the_same_and_another_seed_others() {
    let seeded = |seed: usize| format!("few(tsv(\"train.tsv\"), 16, seed = {seed})");
    let [one, _] = sets(&seeded(1), FEW).unwrap();
    let [again, _] = sets(&seeded(1), FEW).unwrap();
    let [other, _] = sets(&seeded(2), FEW).unwrap();
    assert!(one == again && one != other);
}

#[test]
fn too_many_are_refused() {
    let message = sets("few(tsv(\"train.tsv\"), 500)", FEW).unwrap_err();
    assert_eq!(
        message,
        "the label `negative` has only 400 of the 500 examples that `few` takes"
    );
}
