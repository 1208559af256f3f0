//! A backbone that is wide enough for what narrow ones never meet: several panels and parts of the depth, tile
//! registers, gradients that are left for after the pass. Losses and gradients as it is trained, beside a pass
//! without gradients.

use crate::common::{fixture, plan_of};
use deltarun::engine::Device;
use deltarun::engine::{mix, Layout};
use deltarun::graph::{Batch, Graph, Targets, Tensors};
use deltarun::plan::Plan;
use rayon::ThreadPoolBuilder;

const SEQUENCES: usize = 4;
const TOKENS: usize = 60;

fn uniform(seed: usize) -> f32 {
    (mix(seed as u64) >> 40) as f32 / 16_777_216.0 - 0.5
}

fn batch() -> Batch {
    let rows = SEQUENCES * TOKENS;
    Batch {
        tokens: (0..rows).map(|i| mix(i as u64) as usize % 30_000).collect(),
        types: vec![0; rows],
        layout: Layout::new([TOKENS; SEQUENCES], vec![0; SEQUENCES]),
        reads: Vec::new(),
        soft: Vec::new(),
        targets: Targets::Classes(vec![0, 1, 1, 0]),
        cached: None,
        decoder: None,
        total: SEQUENCES,
    }
}

/// The loss with all trained parameters moved by `step` along `direction`, by plain sums.
fn moved(graph: &mut Graph, start: &Tensors, direction: &Tensors, step: f32) -> f64 {
    let mut tensors = start.clone();
    for (key, (values, _)) in &mut tensors {
        let along = values.iter_mut().zip(&direction[key].0);
        along.for_each(|(value, d)| *value += step * d);
    }
    graph.set(tensors).unwrap();
    f64::from(graph.inference().loss(&batch()).unwrap().read()[0])
}

/// A plan for a backbone of 384 columns with random weights.
fn plan(delta: &str, backbone: &str) -> Plan {
    let directory = fixture("counts").join("minilm");
    let text = format!(
        r#"
        backbone "{}" {{ weights = random{backbone} }}
        data {{ train = tsv("train.tsv") }}
        task classify {{ text = text, label = label, labels = [a, b] }}
        {delta}
        stage tune {{ train = [delta, head], steps = 1, optimizer = sgd {{ lr = 1 }} }}
        "#,
        directory.display()
    );
    plan_of(&text, &directory)
}

/// A group that is alone has all threads, which take parts of each operation.
#[test]
fn one_group_has_the_same_bits_on_several_threads() {
    for delta in [
        "reparam delta = lora { rank = 4, alpha = 8, dropout = 0.1 } on block.*.attn.{q,v}",
        "insert delta = prefix { tokens = 5 } before block.*.attn",
        "unfreeze delta = block.**",
    ] {
        let plan = plan(delta, "");
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
        graph.activate(&plan, 0).unwrap();
        let gradients = |threads: usize| {
            let pool = ThreadPoolBuilder::new().num_threads(threads).build();
            let work = || graph.gradients(&[batch()]).unwrap();
            let (loss, gradients) = pool.unwrap().install(work);
            let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
            let gradients = gradients
                .into_iter()
                .map(|(key, values)| (key, bits(values)));
            (loss.to_bits(), gradients.collect::<Vec<_>>())
        };
        let alone = gradients(1);
        for _ in 0..3 {
            assert!(gradients(4) == alone, "{delta}");
        }
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for delta in [
        "reparam delta = lora { rank = 4, alpha = 8 } on block.*.attn.{q,v}",
        "insert delta = houlsby { bottleneck = 8 } after block.*.{attn,ff}",
        "unfreeze delta = block.{0,5}.ff.**",
    ] {
        let plan = plan(delta, ", dropout = off");
        let mut graph = Graph::load(&plan, Device::Cpu).unwrap();
        graph.activate(&plan, 0).unwrap();
        // What begins as zeros has neighbours without a gradient.
        let mut start = graph.trained_tensors();
        for (seed, (values, _)) in start.values_mut().enumerate() {
            let places = values.iter_mut().enumerate();
            places.for_each(|(i, value)| *value += 0.1 * uniform(seed << 32 | i));
        }
        graph.set(start.clone()).unwrap();
        let (loss, gradients) = graph.gradients(&[batch()]).unwrap();
        let plain = moved(&mut graph, &start, &start, 0.0);
        assert!(
            (f64::from(loss) - plain).abs() < 1e-5,
            "{delta}: {loss}, {plain}"
        );

        // Along the gradient itself, and along a random direction beside it.
        let length = gradients
            .values()
            .flatten()
            .map(|g| g * g)
            .sum::<f32>()
            .sqrt();
        for beside in [0.0, 1.0] {
            let of = |seed: usize, i: usize, g: f32| {
                g / length + beside * uniform(seed << 32 | i) / (gradients.len() as f32 * 100.0)
            };
            let mut direction = start.clone();
            for (seed, (key, (values, _))) in direction.iter_mut().enumerate() {
                let places = values.iter_mut().enumerate();
                places.for_each(|(i, value)| *value = of(seed, i, gradients[key.as_str()][i]));
            }
            let products = direction.iter().flat_map(|(key, (values, _))| {
                let pairs = values.iter().zip(&gradients[key.as_str()]);
                pairs.map(|(d, g)| f64::from(*d) * f64::from(*g))
            });
            let expected: f64 = products.sum();
            let step = 0.02f32.min(0.01 / length);
            let ahead = moved(&mut graph, &start, &direction, step);
            let behind = moved(&mut graph, &start, &direction, -step);
            let slope = (ahead - behind) / (2.0 * f64::from(step));
            let error = (slope - expected).abs() / expected.abs();
            assert!(
                error < 0.01,
                "{delta}: the slope is {slope}, the gradient says {expected}"
            );
        }
    }
}
