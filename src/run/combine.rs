//! Combines several runs with LoRAs into one: by the weighted sum of their changes to each weight, by TIES
//! (Yadav et al., arXiv 2306.01708, section 4) or by DARE (Yu et al., arXiv 2311.03099, section 3).

use std::collections::BTreeMap;
use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

use super::{has_same_backbone, Directory, Integrity, Loaded, Manifest};
use crate::backbone::{Module, Site};
use crate::delta::{transposed, Folded, Lora, LoraInit, Method, PeftAdapter, Scaling};
use crate::diagnostic::Problem;
use crate::engine::{Device, Svd};
use crate::graph::{label_order, reordered, Graph, Tensors};
use crate::plan::{DeltaPlan, Plan};

/// How runs are combined.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    /// How the changes of each weight are combined.
    pub rule: Rule,
    /// The weight of each run. Default: `1 / runs`, but 1 for TIES, which takes the mean itself.
    pub weights: Option<Vec<f32>>,
    /// The share of a change's elements that TIES and DARE keep, above 0, at most 1. Default: 0.2. The average keeps all.
    pub density: Option<f32>,
    /// The rank of the result. Default for the average: the sum of the ranks, which makes the average exact.
    /// Default for the other rules: the largest rank.
    pub rank: Option<usize>,
    /// The seed of DARE, the only rule that draws. Default: 0.
    pub seed: Option<u64>,
}

/// How the changes of each weight are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Their weighted sum.
    Average,
    /// The largest elements of each change, averaged over those whose sign agrees with the sum's.
    Ties,
    /// The weighted sum of random elements of each change, scaled up.
    Dare,
}

impl std::str::FromStr for Rule {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "average" => Ok(Rule::Average),
            "ties" => Ok(Rule::Ties),
            "dare" => Ok(Rule::Dare),
            _ => Err("the rule must be `average`, `ties` or `dare`".to_owned()),
        }
    }
}

/// The name of a combined run, and the beginning of its deltas' names.
const DELTA: &str = "combined";

/// Combines runs into a run directory `out`.
///
/// # Errors
/// The runs have different backbones or heads, a delta is not a LoRA, a setting is out of range, or a file
/// cannot be written.
pub fn combine(
    runs: &[Loaded],
    combination: &Combination,
    device: Device,
    out: &Path,
) -> Result<(), Problem> {
    let directory = Directory::claim(out)?;
    let (plan, tensors) = combined(runs, combination)?;
    let mut graph = Graph::load(&plan, device)?;
    graph.set(tensors)?;
    graph.adopt_heads();
    graph.activate(&plan, 0)?;
    let names: Vec<&str> = runs.iter().map(|run| run.plan.name.as_str()).collect();
    let source = format!("# {combination:?} of {}\n", names.join(", "));
    let manifest = Manifest::new(&plan, &source)?;
    directory.begin(&manifest, &plan, &source, Integrity::Checked)?;
    directory.finish(&plan, &source, &graph, None, &manifest)
}

/// The plan and the tensors of the combined run.
///
/// # Errors
/// See [`combine`].
pub fn combined(runs: &[Loaded], combination: &Combination) -> Result<(Plan, Tensors), Problem> {
    check(runs, combination)?;
    let weights = combination.weights.clone().unwrap_or_else(|| {
        let even = match combination.rule {
            Rule::Ties => 1.0,
            Rule::Average | Rule::Dare => 1.0 / runs.len() as f32,
        };
        vec![even; runs.len()]
    });
    let mut tensors = head(runs, &weights);
    // Modules by rank. The result has one delta for each rank.
    let mut deltas: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for module in runs[0].graph.tree().modules() {
        let changes: Vec<Option<Ranked>> = runs.iter().map(|run| change(run, module)).collect();
        let ranks = || changes.iter().flatten().map(|change| change.rank);
        let Some(largest) = ranks().max() else {
            continue;
        };
        let rank = combination.rank.unwrap_or(match combination.rule {
            Rule::Average => ranks().sum(),
            Rule::Ties | Rule::Dare => largest,
        });
        let rank = rank.min(module.input).min(module.output);
        let pairs = weights.iter().zip(changes);
        let present = pairs.filter_map(|(weight, change)| Some((*weight, change?.values)));
        let sum = combination.apply(present.collect(), &module.path);
        let columns = module.input;
        let singular = Svd::of(&sum, columns, rank).ok_or_else(|| {
            let message = format!(
                "the LoRA weights at `{}` contain NaN or infinity",
                module.path
            );
            Problem::new("delta::run::combine", message).help("train the runs again")
        })?;
        let (rows, columns) = (singular.rows(1.0), singular.columns(1.0));
        let (a, b) = match module.site {
            Site::Embedding => (columns, transposed(&rows, module.input)),
            _ => (rows, columns),
        };
        let shapes = match module.site {
            Site::Embedding => [[module.output, rank], [module.input, rank]],
            _ => [[rank, module.input], [module.output, rank]],
        };
        for ((name, values), shape) in [("A", a), ("B", b)].into_iter().zip(shapes) {
            let key = format!("{DELTA}_{rank}.{}.{name}", module.path);
            tensors.insert(key, (values, shape.to_vec()));
        }
        deltas.entry(rank).or_default().push(module.path.clone());
    }
    let mut plan = runs[0].plan.clone();
    plan.name = DELTA.to_owned();
    plan.tasks = runs[0].plan.final_task().into_iter().map(owned).collect();
    plan.deltas = deltas
        .into_iter()
        .map(|(rank, sites)| delta(rank, sites))
        .collect();
    plan.stages = Vec::new();
    Ok((plan, tensors))
}

fn owned<T: Clone>((name, value): (&str, &T)) -> (String, T) {
    (name.to_owned(), value.clone())
}

fn delta(rank: usize, sites: Vec<String>) -> DeltaPlan {
    let lora = Lora {
        rank,
        alpha: rank as f32,
        scaling: Scaling::Standard,
        dropout: 0.0,
        init: LoraInit::Standard,
    };
    DeltaPlan::of_method(&format!("{DELTA}_{rank}"), lora.into(), sites)
}

fn problem(message: String, help: &str) -> Result<(), Problem> {
    Err(Problem::new("delta::run::combine", message).help(help.to_owned()))
}

fn check(runs: &[Loaded], combination: &Combination) -> Result<(), Problem> {
    combination.check(runs.len())?;
    let first = &runs[0];
    let shapes = |run: &Loaded| -> Vec<Vec<usize>> {
        let keys = run.graph.head_ids();
        keys.into_iter()
            .map(|(parameter, _)| parameter.shape)
            .collect()
    };
    for run in runs {
        let name = &run.plan.name;
        let active = run.plan.active(run.plan.stages.len());
        let is_lora = |delta: &&DeltaPlan| {
            let adapter = delta.method().map(Method::peft_adapter);
            matches!(adapter, Some(PeftAdapter::LowRank(_))) && !delta.is_gated
        };
        if let Some(other) = active.iter().find(|delta| !is_lora(delta)) {
            let message = format!("`{}` of `{name}` is not a plain LoRA", other.name);
            return problem(message, "combine runs that have only plain LoRAs");
        }
        if !has_same_backbone(&run.plan, &first.plan)? {
            let message = format!(
                "`{name}` and `{}` have different backbones",
                first.plan.name
            );
            return problem(
                message,
                "combine runs that were trained on the same backbone",
            );
        }
        if shapes(run) != shapes(first) || order(first, run).is_none() {
            let message = format!("`{name}` and `{}` have different heads", first.plan.name);
            return problem(message, "combine runs with the same labels");
        }
    }
    Ok(())
}

/// For each label of `first`, the index of the same label in `run`; `None` if their tasks or labels differ.
fn order(first: &Loaded, run: &Loaded) -> Option<Vec<usize>> {
    let ((_, first), (_, other)) = (first.plan.final_task()?, run.plan.final_task()?);
    label_order(&first.kind, &other.kind)
}

/// The change of a weight by LoRAs, and its rank.
struct Ranked {
    /// `(out, in)`, or `(entries, width)`.
    values: Vec<f32>,
    rank: usize,
}

/// A run's change to a module's weight, if it has a LoRA there.
fn change(run: &Loaded, module: &Module) -> Option<Ranked> {
    let zeros = vec![0.0; module.input * module.output];
    let mut layer = Folded {
        base: Vec::new(),
        base_bias: None,
        weight: zeros,
        bias: None,
    };
    let mut rank = 0;
    for placed in run.graph.deltas_at(&module.path) {
        if let PeftAdapter::LowRank(lora) = placed.method.peft_adapter() {
            let tensor = |name: &str| {
                let values = run.graph.delta_tensor(&placed.delta, &module.path, name);
                values.unwrap_or_default()
            };
            placed.method.fold(module, &mut layer, &tensor);
            rank += lora.full_rank();
        }
    }
    (rank > 0).then_some(Ranked {
        values: layer.weight,
        rank,
    })
}

/// The weighted mean of the heads, with outputs in the order of the first run's labels.
fn head(runs: &[Loaded], weights: &[f32]) -> Tensors {
    let total: f32 = weights.iter().sum();
    let mut tensors = Tensors::new();
    for (run, weight) in runs.iter().zip(weights) {
        let first = runs[0].graph.head_ids();
        let order = order(&runs[0], run).unwrap_or_default();
        let has_rows = |path: &str| {
            run.graph
                .task()
                .is_some_and(|t| run.graph.is_output(t, path))
        };
        for ((_, key), (parameter, own)) in first.into_iter().zip(run.graph.head_ids()) {
            let mut values = run.graph.tensor(own.path()).unwrap_or_default();
            if has_rows(&parameter.path) && !order.is_empty() {
                values = reordered(&values, &order);
            }
            let zeros = || (vec![0.0; values.len()], parameter.shape.clone());
            let (sum, _) = tensors.entry(key.to_string()).or_insert_with(zeros);
            let pairs = sum.iter_mut().zip(&values);
            pairs.for_each(|(sum, value)| *sum += weight / total * value);
        }
    }
    tensors
}

impl Combination {
    fn density(&self) -> f32 {
        self.density.unwrap_or(0.2)
    }

    /// Checks the settings for this number of runs.
    fn check(&self, runs: usize) -> Result<(), Problem> {
        if runs < 2 {
            return problem(
                "combining needs at least two runs".into(),
                "name two or more runs",
            );
        }
        if self.density.is_some() && self.rule == Rule::Average {
            let message = "the average keeps all elements, so it has no density".to_owned();
            return problem(
                message,
                "remove `--density`, or set `--by ties` or `--by dare`",
            );
        }
        if self.seed.is_some() && self.rule != Rule::Dare {
            let message = "only DARE draws at random, so this rule has no seed".to_owned();
            return problem(message, "remove `--seed`, or set `--by dare`");
        }
        let density = self.density();
        if !(density > 0.0 && density <= 1.0) {
            let message = format!("the density {density} is not above 0 and at most 1");
            return problem(message, "set `--density` above 0 and at most 1");
        }
        if self.rank == Some(0) {
            return problem("the rank is 0".into(), "set `--rank` above 0");
        }
        let weights = self.weights.iter().flatten();
        if let Some(weights) = self.weights.as_ref().filter(|w| w.len() != runs) {
            let message = format!(
                "the number of weights is {}, but the number of runs is {}",
                weights.len(),
                runs
            );
            return problem(message, "give one weight for each run");
        }
        if let Some(weight) = weights.clone().find(|weight| !weight.is_finite()) {
            let message = format!("the weight {weight} is not a finite number");
            return problem(message, "use only finite numbers in `--weights`");
        }
        // Heads are averaged with weights divided by their sum, so the sum must not be 0.
        let total: f32 = weights.clone().sum();
        let largest = weights.fold(0.0f32, |most, weight| most.max(weight.abs()));
        if self.weights.is_some() && total.abs() <= 1e-6 * largest {
            let message =
                "the weights add up to 0, but the heads are combined by their weighted mean"
                    .to_owned();
            return problem(message, "give weights whose sum is not 0, such as `1,-0.5`");
        }
        Ok(())
    }

    /// Combines the changes of several runs, each given with its weight.
    fn apply(&self, mut changes: Vec<(f32, Vec<f32>)>, path: &str) -> Vec<f32> {
        match self.rule {
            Rule::Average => sum(&changes),
            Rule::Ties => {
                changes.iter_mut().for_each(|(_, change)| self.trim(change));
                elect(&changes)
            }
            Rule::Dare => {
                for (run, (_, change)) in changes.iter_mut().enumerate() {
                    self.drop(change, &format!("{path} {run}"));
                }
                sum(&changes)
            }
        }
    }

    /// Sets all but the largest elements to zero.
    fn trim(&self, change: &mut [f32]) {
        let kept = (f64::from(self.density()) * change.len() as f64) as usize;
        let mut order: Vec<usize> = (0..change.len()).collect();
        order.sort_by(|a, b| change[*b].abs().total_cmp(&change[*a].abs()));
        order[kept..].iter().for_each(|index| change[*index] = 0.0);
    }

    /// Sets random elements to zero and scales the others up.
    fn drop(&self, change: &mut [f32], name: &str) {
        let density = self.density();
        let mut hasher = Sha256::new();
        hasher.update(self.seed.unwrap_or(0).to_le_bytes());
        hasher.update(name);
        let mut random = ChaCha8Rng::from_seed(hasher.finalize().into());
        for value in change {
            let is_kept = random.random::<f32>() < density;
            *value = if is_kept { *value / density } else { 0.0 };
        }
    }
}

fn sum(changes: &[(f32, Vec<f32>)]) -> Vec<f32> {
    let mut result = vec![0.0; changes[0].1.len()];
    for (weight, change) in changes {
        let pairs = result.iter_mut().zip(change);
        pairs.for_each(|(sum, value)| *sum += weight * value);
    }
    result
}

/// The mean of the weighted elements whose sign is that of the elements' sum; zeros do not count.
fn elect(changes: &[(f32, Vec<f32>)]) -> Vec<f32> {
    let elements = 0..changes[0].1.len();
    let merged = elements.map(|index| {
        let all = || {
            changes
                .iter()
                .map(|(weight, change)| (weight, change[index]))
        };
        let total: f32 = all().map(|(_, value)| value).sum();
        let elected = if total >= 0.0 { 1.0 } else { -1.0 };
        let agree = || all().filter(|(_, value)| *value != 0.0 && value.signum() == elected);
        let sum: f32 = agree().map(|(weight, value)| weight * value).sum();
        sum / agree().count().max(1) as f32
    });
    merged.collect()
}
