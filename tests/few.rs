//! A few examples of each label: as many as were asked for, others for dev than for train, the same for
//! the same seed.

use std::path::Path;

use crate::common::place::Place;
use crate::common::{plan_of, planned};
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
    Ok([data.train.unpacked(), data.dev.unwrap().unpacked()])
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

const ALL: &str = "tsv(\"train.tsv\")";

fn of_class(set: &[Example], class: usize) -> usize {
    let of_class = set
        .iter()
        .filter(|example| example.target == Target::Class(class));
    of_class.count()
}

/// `split` takes its share of each label away from the training set, from the seed; `head` takes the first rows.
#[test]
fn a_split_is_a_share_of_each_label_and_is_not_trained_on() {
    let [whole, _] = sets(ALL, ALL).unwrap();
    let [train, dev] = sets(ALL, "split(train, 10%)").unwrap();
    assert_eq!(train.len() + dev.len(), whole.len());
    for class in 0..2 {
        let share = of_class(&dev, class) as f64 / of_class(&whole, class) as f64;
        assert!((share - 0.1).abs() < 0.01, "{share}");
    }
    // Every row is in one of the two as often as in the file, in its order.
    let mut rest = train.iter().peekable();
    let mut held = dev.iter().peekable();
    for example in &whole {
        let taken = rest.next_if(|own| *own == example);
        assert!(taken
            .or_else(|| held.next_if(|own| *own == example))
            .is_some());
    }
    let [_, again] = sets(ALL, "split(train, 10%)").unwrap();
    assert!(again == dev);
    let [train, dev] = sets("head(tsv(\"train.tsv\"), 50)", "split(train, 20%)").unwrap();
    assert!(
        (train.len(), dev.len()) == (40, 10),
        "{} {}",
        train.len(),
        dev.len()
    );
    assert!(train
        .iter()
        .chain(&dev)
        .all(|example| whole[..50].contains(example)));
}

/// Labels that few rows have: parts have their exact sizes nevertheless, and a label with one row is trained on.
#[test]
fn rare_labels_leave_parts_their_sizes() {
    let place = Place::new();
    let rows: String = (0..303)
        .map(|row| {
            format!(
                "a film {row}\t{}\n",
                if row < 3 {
                    format!("once{row}")
                } else {
                    format!("rare{}", row % 100)
                }
            )
        })
        .collect();
    place.write("rare.tsv", format!("text\tlabel\n{rows}").as_bytes());
    let names = (0..3)
        .map(|one| format!("once{one}"))
        .chain((0..100).map(|one| format!("rare{one}")));
    let labels = names.collect::<Vec<_>>().join(", ");
    let sizes = |dev: &str| {
        let text = format!(
            "backbone \"backbone\"\ndata {{ train = tsv(\"rare.tsv\"), dev = {dev} }}\ntask classify {{ text = text, label = label, labels = [{labels}] }}\n\
             stage tune {{ train = [head], steps = 1, optimizer = sgd {{ lr = 1 }} }}"
        );
        let plan = plan_of(&text, &place.path(""));
        let mut loader = Loader::new(&plan).unwrap();
        let data = loader.stages(&plan).unwrap().remove(0);
        let task = plan.tasks.values().next().unwrap();
        let labels = data.train.label_counts(task);
        (
            data.train.len(),
            data.dev.unwrap().len(),
            labels.iter().filter(|count| **count > 0).count(),
        )
    };
    assert_eq!(sizes("split(train, 10%)"), (273, 30, 103));
    // Rare labels are spread over the folds, so that each is trained on in most of them.
    for number in 1..=5 {
        let (train, dev, labels) = sizes(&format!("fold(train, {number}, of = 5)"));
        assert!(labels > 95, "{number}: {labels}");
        assert!(
            train + dev == 303 && (60..=61).contains(&dev),
            "{number}: {dev}"
        );
    }
}

/// Each row is in one of the folds, and trained on in all others; a fold has its share of each label.
#[test]
fn folds_share_no_row_and_leave_none_out() {
    let [whole, _] = sets(ALL, ALL).unwrap();
    let text = |example: &Example| example.text.tokens.clone();
    let mut all = Vec::new();
    for number in 1..=3 {
        let fold = format!("fold(train, {number}, of = 3)");
        let [train, dev] = sets(ALL, &fold).unwrap();
        assert_eq!(train.len() + dev.len(), whole.len());
        for class in 0..2 {
            let share = of_class(&dev, class) as f64 / of_class(&whole, class) as f64;
            assert!((share - 1.0 / 3.0).abs() < 0.01, "{share}");
        }
        let mut both: Vec<Vec<u32>> = train.iter().chain(&dev).map(text).collect();
        let mut expected: Vec<Vec<u32>> = whole.iter().map(text).collect();
        both.sort();
        expected.sort();
        assert!(both == expected);
        all.extend(dev.iter().map(text));
    }
    let mut expected: Vec<Vec<u32>> = whole.iter().map(text).collect();
    all.sort();
    expected.sort();
    assert!(all == expected);
    for (train, wrong) in [
        (ALL, "fold(train, 4, of = 3)"),
        (ALL, "fold(train, 0, of = 3)"),
        (ALL, "fold(train, 1)"),
        (ALL, "fold(train, 1, of = 1)"),
        ("few(tsv(\"train.tsv\"), 4)", "fold(train, 1, of = 2)"),
        (ALL, "fold(train, 1, of = 2), test = split(train, 10%)"),
    ] {
        let text = format!(
            "backbone \"backbone\"\ndata {{ train = {train}, dev = {wrong} }}\n\
             task classify {{ text = text, label = label, labels = [negative, positive] }}\n\
             stage tune {{ train = [head], steps = 1, optimizer = sgd {{ lr = 1 }} }}"
        );
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart");
        let problems = planned(&text, &folder).unwrap_err();
        assert_eq!(problems.len(), 1, "{wrong}: {problems:?}");
        assert!(
            problems[0].message.contains("fold"),
            "{wrong}: {problems:?}"
        );
    }
}

#[test]
fn two_splits_share_no_row() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart");
    let text = format!(
        "param seed = 3\nbackbone \"backbone\"\n\
         data {{ train = {ALL}, dev = split(train, 10%), test = split(train, 25%) }}\n\
         task classify {{ text = text, label = label, labels = [negative, positive] }}\n\
         stage tune {{ train = [head], steps = 1, optimizer = sgd {{ lr = 1 }} }}"
    );
    let plan = plan_of(&text, &folder);
    let data = &plan.data["data"];
    let parts =
        [&data.dev, &data.test, &data.train].map(|file| file.as_ref().unwrap().part.unwrap());
    for rows in [1, 7, 10, 400, 1001] {
        let places = parts.map(|part| part.of(rows));
        assert_eq!(places[0].start, 0);
        assert_eq!(places[0].end, places[1].start);
        assert_eq!(places[1].end, places[2].start);
        assert_eq!(places[2].end, rows);
    }
    assert!(parts.iter().all(|part| part.seed == 3));
}

/// `test` skips what `train` and `dev` take, as `dev` skips what `train` takes.
#[test]
fn a_test_set_of_the_same_file_has_others() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines/quickstart");
    let text = format!(
        r#"
        backbone "backbone"
        data {{ train = {FEW}, dev = few(tsv("train.tsv"), 8), test = few(tsv("train.tsv"), 4, seed = 42) }}
        task classify {{ text = text, label = label, labels = [negative, positive] }}
        stage tune {{ train = [head], steps = 1, optimizer = sgd {{ lr = 1 }} }}
        "#
    );
    let plan = plan_of(&text, &folder);
    let data = plan.final_data().unwrap();
    let few = |file: &Option<deltarun::plan::FilePlan>| file.as_ref().unwrap().few.unwrap();
    assert_eq!(few(&data.dev).skipped, 16);
    let test = few(&data.test);
    let is_same = test.seed == few(&data.train).seed;
    assert_eq!(test.skipped, if is_same { 24 } else { 0 });
    let mut loader = Loader::new(&plan).unwrap();
    let (_, task) = plan.final_task().unwrap();
    let mut all = Vec::new();
    for file in [&data.train, &data.dev, &data.test].into_iter().flatten() {
        all.extend(loader.file(file, task).unwrap().unpacked());
    }
    assert_eq!(all.len(), 2 * (16 + 8 + 4));
    if is_same {
        let is_twice = |place: usize| all[..place].contains(&all[place]);
        assert!(!(0..all.len()).any(is_twice));
    }
}
