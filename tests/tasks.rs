//! Every method for every task that a family has: a few steps lower the loss of a batch, and what is saved and loaded
//! evaluates to the same numbers. What a family cannot have is a mistake with its reason.

use std::path::Path;

use crate::common::place::Place;
use crate::common::{planned, three_steps, METHODS};
use deltarun::backbone::{write_tensors, Checkpoint};
use deltarun::data::{groups, Prediction};
use deltarun::engine::Device;
use deltarun::graph::Graph;
use deltarun::plan::Plan;
use deltarun::run::Loader;
use deltarun::task::{Comparison, Example};
use deltarun::train::{evaluate, Measuring};

/// Tasks, and whether each has a head of its own.
const CLASSIFY: (&str, bool) = (
    "classify { text = text, label = label, labels = [negative, positive] }",
    true,
);
const SEVERAL: (&str, bool) = (
    "classify { text = text, label = both, several = on, labels = [negative, positive, seen] }",
    true,
);
const REGRESS: (&str, bool) = ("regress { text = text, label = score }", true);
const TAG: (&str, bool) = (
    "tag { tokens = words, tags = tags, labels = [\"O\", \"B-long\"] }",
    true,
);
const MASKED: (&str, bool) = ("masked_lm { text = text }", false);
const CAUSAL: (&str, bool) = ("causal_lm { text = text }", false);
const INSTRUCT: (&str, bool) = ("instruct { prompt = text, answer = good }", false);
const PREFER: (&str, bool) = (
    "prefer { prompt = text, chosen = good, rejected = bad, loss = orpo }",
    false,
);
const CHOOSE: (&str, bool) = (
    "choose { prompt = text, answers = choices, label = key }",
    false,
);
const JOINED: (&str, bool) = (
    "seq2seq { source = text, target = good, separator = \" was \" }",
    false,
);
const SEQ2SEQ: (&str, bool) = ("seq2seq { source = text, target = good }", false);

fn load(plan: &Plan) -> Graph {
    let mut graph = Graph::load(plan, Device::Cpu).unwrap();
    graph.activate(plan, 0).unwrap();
    graph
}

/// Trains on all rows and checks what is saved. `file` is where.
fn try_out(plan: &Plan, file: &Path, what: &str) {
    let task = &plan.tasks["task"];
    let mut loader = Loader::new(plan).unwrap();
    let data = loader.stages(plan).unwrap().remove(0);
    let mut graph = load(plan);
    let all = data.train.unpacked();
    let examples: Vec<&Example> = all.iter().collect();
    let prediction = Prediction {
        noising: data.noising.as_ref(),
        predicts_first: graph.predicts_first(),
        reads_prompts: task
            .kind
            .comparison()
            .is_some_and(Comparison::reads_prompts),
        ..Prediction::default()
    };
    let groups = groups(&examples, 7, prediction, 64);
    let (before, after) = three_steps(&mut graph, &groups);
    assert!(after < before, "{what}: {before} became {after}");
    write_tensors(file, &graph.tensors(), None).unwrap();
    let saved = Checkpoint::open(&[file.to_owned()]).unwrap();
    let names = saved.names().into_iter().map(str::to_owned);
    let tensors = names.map(|name| (name.clone(), saved.read(&name).unwrap()));
    let mut again = load(plan);
    again.set(tensors.collect()).unwrap();
    let measuring = Measuring {
        noising: data.noising.as_ref(),
        ..Measuring::default()
    };
    let measured = |graph: &Graph| evaluate(graph, &all, task, measuring).unwrap();
    assert_eq!(measured(&graph), measured(&again), "{what}");
}

/// Tries every method for tasks of a backbone. Returns how many were trained, and the statements that were refused.
fn try_all(
    backbone: &str,
    tasks: &[(&str, bool)],
    adapt: impl Fn(&str) -> String,
) -> (usize, Vec<String>) {
    let place = Place::of_tasks();
    let file = place.path("delta.safetensors");
    let (mut trained, mut refused) = (0, Vec::new());
    for (task, has_head) in tasks {
        for (statement, _) in METHODS {
            let statement = adapt(statement);
            let heads = if *has_head { ", head" } else { "" };
            let text = format!(
                "backbone \"{backbone}\" {{ dropout = off, max_length = 24 }}\n\
                 data {{ train = jsonl(\"rows.jsonl\") }}\n\
                 task {task}\n{statement}\n\
                 stage s {{ train = [delta{heads}], epochs = 1, batch = 8, optimizer = adamw {{ lr = 1e-3 }} }}"
            );
            match planned(&text, &place.path("")) {
                Ok(plan) => {
                    try_out(&plan, &file, &format!("{backbone}: {task}: {statement}"));
                    trained += 1;
                }
                Err(problems) => refused.push(format!("{statement}: {}", problems[0].code)),
            }
        }
    }
    refused.sort();
    refused.dedup();
    (trained, refused)
}

/// Neither family has biases.
const NO_BIASES: &str = "unfreeze delta = **.bias: delta::plan::no_match";

#[test]
fn every_method_does_every_task_of_bert() {
    let tasks = [CLASSIFY, SEVERAL, REGRESS, TAG, MASKED];
    let (trained, refused) = try_all("backbone", &tasks, str::to_owned);
    assert_eq!(
        (trained, refused),
        (METHODS.len() * tasks.len(), Vec::new())
    );
}

#[test]
fn every_method_does_every_task_of_llama() {
    let tasks = [
        CLASSIFY, SEVERAL, REGRESS, TAG, CAUSAL, INSTRUCT, PREFER, CHOOSE, JOINED,
    ];
    let (trained, refused) = try_all("llama", &tasks, str::to_owned);
    assert_eq!(
        (trained, refused),
        (
            (METHODS.len() - 1) * tasks.len(),
            vec![NO_BIASES.to_owned()]
        )
    );
}

#[test]
fn every_method_does_every_task_of_t5() {
    let tasks = [CLASSIFY, REGRESS, SEQ2SEQ, CHOOSE];
    let encoder = |statement: &str| statement.replace("block.*", "encoder.block.*");
    let (trained, refused) = try_all("t5", &tasks, encoder);
    assert_eq!(
        (trained, refused),
        (
            (METHODS.len() - 1) * tasks.len(),
            vec![NO_BIASES.to_owned()]
        )
    );
}
