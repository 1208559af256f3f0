//! AdaLoRA: `y = W x + b + s · B (E ⊙ (A x))` with `s = alpha / rank`. In training, a penalty keeps A and B
//! nearly orthogonal. The least important ranks of all modules are set to zero, until each module has
//! `target_rank` ranks left on average (Zhang et al., arXiv 2303.10512, eq. 3 and 4 and algorithm 1).

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    is_kind, lora, At, DeltaMethod, Folded, Init, NewParameter, OnHost, ParameterId, PeftConfig,
    PeftForm, PeftModule, PeftTensor, Preposition, Step,
};
use crate::backbone::{Config, Module, Site};
use crate::engine::{ops, Matrix, Outcome, Tensor};
use crate::settings::Fields;

/// Settings of AdaLoRA; the defaults are PEFT's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdaLora {
    /// Initial rank of each module. Default: 12.
    pub rank: usize,
    /// Average rank of a module at the end. Default: 8.
    pub target_rank: usize,
    /// The scaling's numerator. Default: 16, as for our LoRA.
    pub alpha: f32,
    /// Dropout of A's input. Default: 0.
    pub dropout: f32,
    /// Steps before the first ranks are removed. Default: 0.
    pub warmup: usize,
    /// Steps at the end in which no ranks are removed. Default: 0.
    pub last: usize,
    /// Steps from one choice of ranks to the next. Default: 1.
    pub interval: usize,
    /// Decay rates of the running means of sensitivity and uncertainty. Default: 0.85 each.
    pub betas: (f32, f32),
    /// Weight of the penalty `mean ‖P Pᵀ − I‖` over all A and B. Default: 0.5.
    pub orthogonal: f32,
}

impl AdaLora {
    /// s. As in PEFT, a small number is added to the rank.
    fn scale(&self) -> f32 {
        self.alpha / (self.rank as f32 + 1e-5)
    }

    /// The number of ranks that all `modules` modules together may keep after a step; `None` if the step removes none.
    fn budget(&self, step: &Step, modules: usize) -> Option<usize> {
        let (first, target) = (self.rank * modules, self.target_rank * modules);
        let end = step.steps.saturating_sub(self.last);
        if step.number <= self.warmup.min(end.saturating_sub(1)) || step.number > end {
            return None;
        }
        if step.number == end {
            return Some(target);
        }
        let done = (step.number - self.warmup) as f64 / (end - self.warmup) as f64;
        let excess = (first - target) as f64 * (1.0 - done).powi(3);
        let is_due = step.number.is_multiple_of(self.interval);
        is_due.then_some((excess + target as f64) as usize)
    }

    /// Updates the running means of the sensitivity `|p ∂p|` and of its uncertainty (eq. 8 to 10).
    fn remember(&self, step: &mut Step) {
        for (key, values) in &step.values {
            let Some(gradient) = step.gradients.get(key) else {
                continue;
            };
            let mut memory = |kind: &str| {
                let zeros = || vec![0.0; values.len()];
                step.memory
                    .remove(&format!("{kind} {key}"))
                    .unwrap_or_else(zeros)
            };
            let (mut sensitivity, mut uncertainty) = (memory(SENSITIVITY), memory(UNCERTAINTY));
            let smoothed = sensitivity.iter_mut().zip(&mut uncertainty);
            for ((s, u), (p, g)) in smoothed.zip(values.iter().zip(gradient)) {
                let now = (p * g).abs();
                *s = self.betas.0 * *s + (1.0 - self.betas.0) * now;
                *u = self.betas.1 * *u + (1.0 - self.betas.1) * (now - *s).abs();
            }
            step.memory
                .insert(format!("{SENSITIVITY} {key}"), sensitivity);
            step.memory
                .insert(format!("{UNCERTAINTY} {key}"), uncertainty);
        }
    }

    /// The importance of each rank of a module (eq. 7): the score of its element of E, plus the mean scores
    /// of its row of A and of its column of B.
    fn importance(&self, step: &Step, module: &str) -> Vec<f64> {
        let scores = |name: &str| -> Vec<f64> {
            let memory = |kind: &str| step.memory.get(&format!("{kind} {module}.{name}"));
            let (sensitivity, uncertainty) = (memory(SENSITIVITY), memory(UNCERTAINTY));
            let pairs = sensitivity
                .into_iter()
                .flatten()
                .zip(uncertainty.into_iter().flatten());
            pairs.map(|(s, u)| f64::from(s * u)).collect()
        };
        let (a, b, e) = (scores("A"), scores("B"), scores("E"));
        let (input, output) = (a.len() / self.rank, b.len() / self.rank);
        let of_rank = |rank: usize| {
            let row: f64 = a[rank * input..(rank + 1) * input].iter().sum();
            let column: f64 = b.iter().skip(rank).step_by(self.rank).sum();
            e[rank] + row / input as f64 + column / output as f64
        };
        (0..self.rank).map(of_rank).collect()
    }

    /// Keeps the `budget` most important ranks of all modules, and remembers which.
    fn choose(&self, step: &mut Step, modules: &[String], budget: usize) {
        let scores: Vec<Vec<f64>> = modules
            .iter()
            .map(|module| self.importance(step, module))
            .collect();
        let mut all: Vec<f64> = scores.concat();
        all.sort_by(f64::total_cmp);
        let threshold = match all.len() - budget.min(all.len()) {
            0 => f64::NEG_INFINITY,
            gone => all[gone - 1],
        };
        for (module, scores) in modules.iter().zip(scores) {
            let kept = scores.iter().map(|score| f32::from(*score > threshold));
            step.memory
                .insert(format!("{KEPT} {module}"), kept.collect());
        }
        self.apply(step, modules);
    }

    /// Sets the elements of E to zero for all ranks that were not kept.
    fn apply(&self, step: &mut Step, modules: &[String]) {
        for module in modules {
            let kept = step.memory.get(&format!("{KEPT} {module}"));
            let factors = step.values.get_mut(format!("{module}.E").as_str());
            if let (Some(kept), Some(factors)) = (kept, factors) {
                factors
                    .iter_mut()
                    .zip(kept)
                    .for_each(|(e, kept)| *e *= kept);
            }
        }
    }
}

/// Prefixes of the keys in [`Step::memory`].
const SENSITIVITY: &str = "sensitivity";
const UNCERTAINTY: &str = "uncertainty";
const KEPT: &str = "kept";

impl OnHost for AdaLora {
    fn check_steps(&self, steps: usize) -> Result<(), String> {
        match self.warmup + self.last >= steps {
            true => Err(format!(
                "`warmup` and `last` of `adalora` use up the stage's {steps} steps and leave none for choosing ranks"
            )),
            false => Ok(()),
        }
    }

    fn penalty(&self, step: &mut Step) -> Outcome<f32> {
        let is_factor = |id: &ParameterId| matches!(id.name(), "A" | "B");
        let count = step.values.keys().filter(|id| is_factor(id)).count() as f32;
        let mut sum = 0.0;
        for (id, values) in step.values.iter().filter(|(id, _)| is_factor(id)) {
            // P has one row per rank: it is A, or B transposed.
            let is_a = id.name() == "A";
            let rows = match is_a {
                true => values.clone(),
                false => lora::transposed(values, self.rank),
            };
            let width = rows.len() / self.rank;
            let rows = Tensor::new(step.device, rows, (self.rank, width))?;
            let (norm, gradient) = orthogonality(&rows.constant())?;
            sum += norm;
            let gradient = match is_a {
                true => gradient.read(),
                false => lora::transposed(&gradient.read(), width),
            };
            let sums = step.gradients.get_mut(id).into_iter().flatten();
            let pairs = sums.zip(gradient);
            pairs.for_each(|(sum, g)| *sum += self.orthogonal / count * g);
        }
        Ok(self.orthogonal * sum / count.max(1.0))
    }

    fn allocate(&self, step: &mut Step) {
        let modules: Vec<String> = step
            .values
            .keys()
            .filter(|id| id.name() == "E")
            .map(|id| id.module().to_owned())
            .collect();
        if step.number > step.steps - self.last {
            return self.apply(step, &modules);
        }
        if step.number < step.steps - self.last {
            self.remember(step);
        }
        if let Some(budget) = self.budget(step, modules.len()) {
            self.choose(step, &modules, budget);
        }
    }
}

/// `‖P Pᵀ − I‖` and its gradient `2 (P Pᵀ − I) P / ‖P Pᵀ − I‖` of `P (ranks, width)`.
fn orthogonality(p: &Matrix) -> Outcome<(f32, Matrix)> {
    let ranks = p.shape().0;
    let minus_one = (0..ranks * ranks).map(|i| if i % (ranks + 1) == 0 { -1.0 } else { 0.0 });
    let minus_one = Tensor::new(&p.device(), minus_one.collect(), (ranks, ranks))?.constant();
    let excess = ops::add(ops::linear(p, &p.clone().into(), None)?, &minus_one)?; // (ranks, ranks)
    let norms = ops::row_norms(&excess)?.read();
    let norm = norms.iter().map(|norm| norm * norm).sum::<f32>().sqrt();
    let factor = 2.0 / norm.max(f32::MIN_POSITIVE);
    Ok((norm, ops::scale(&ops::matmul(&excess, p)?, factor)?))
}

impl DeltaMethod for AdaLora {
    const NAME: &'static str = "adalora";
    const PREPOSITION: Preposition = Preposition::On;
    const PAPER: &'static str = "Zhang et al., arXiv 2303.10512";
    const SITES: &'static str = "choose linear layers, such as `block.*.attn.{q,v}`";
    const PEFT_KIND: Option<&'static str> = Some("ADALORA");

    fn read(fields: &Fields, _: &Config) -> Self {
        let rank = fields.count("rank", 1..=1_000_000).unwrap_or(12);
        let steps = |key| fields.count(key, 0..=1_000_000_000).unwrap_or(0);
        let share = |key| fields.number(key, 0.85, 1e-6..=0.999_999) as f32;
        AdaLora {
            rank,
            target_rank: fields.count("target_rank", 1..=rank).unwrap_or(rank.min(8)),
            alpha: fields.number("alpha", 16.0, 1e-6..=1e6) as f32,
            dropout: fields.number("dropout", 0.0, 0.0..=0.99) as f32,
            warmup: steps("warmup"),
            last: steps("last"),
            interval: fields.count("interval", 1..=1_000_000).unwrap_or(1),
            betas: (share("beta1"), share("beta2")),
            orthogonal: fields.number("orthogonal", 0.5, 0.0..=1e6) as f32,
        }
    }

    fn accepts(site: Site) -> bool {
        site == Site::Linear
    }

    fn check(&self, module: &Module) -> Result<(), String> {
        lora::check_rank(self.rank, module)
    }

    fn parameters(&self, module: &Module) -> Vec<NewParameter> {
        let init = || Init::Normal(0.02); // as PEFT draws it
        vec![
            NewParameter::new("A", [self.rank, module.input], init()),
            NewParameter::new("B", [module.output, self.rank], init()),
            NewParameter::new("E", [self.rank], Init::ZEROS),
        ]
    }

    fn dropout(&self) -> f32 {
        self.dropout
    }

    fn forward(&self, at: &At, x: &Matrix, y: Matrix) -> Outcome<Matrix> {
        let low = ops::linear(&at.dropout(x, self.dropout)?, &at.weight("A"), None)?;
        let low = ops::scale_columns(&low, &at.vector("E"))?; // (rows, rank)
        let low = ops::scale(&low, self.scale())?;
        ops::add(y, &ops::linear(&low, &at.weight("B"), None)?)
    }

    fn on_host(&self) -> Option<&dyn OnHost> {
        Some(self)
    }

    fn fold(&self, module: &Module, layer: &mut Folded, tensor: &dyn Fn(&str) -> Vec<f32>) -> bool {
        let mut a = tensor("A");
        for (row, e) in a.chunks_exact_mut(module.input).zip(tensor("E")) {
            row.iter_mut().for_each(|a| *a *= e);
        }
        layer.add(&lora::product(&tensor("B"), &a, module.input, self.scale()));
        true
    }

    /// Exports all ranks. A removed rank has a zero in E, so PEFT computes the same result.
    fn peft(&self) -> Option<PeftForm> {
        Some(PeftForm {
            tensors: &[("A", "lora_A"), ("B", "lora_B"), ("E", "lora_E")],
            shared: &[],
            settings: json!({
                "init_r": self.rank,
                "target_r": self.target_rank,
                "r": self.rank,
                "lora_alpha": self.alpha,
                "lora_dropout": self.dropout,
                "tinit": self.warmup,
                "tfinal": self.last,
                "deltaT": self.interval,
                "beta1": self.betas.0,
                "beta2": self.betas.1,
                "orth_reg_weight": self.orthogonal,
                "total_step": self.warmup + self.last + 1,
                "bias": "none",
            }),
        })
    }

    /// PEFT stores E as a column.
    fn peft_tensor(&self, _: &Module, parameter: &NewParameter) -> Option<PeftTensor> {
        let mut stored = self.peft()?.tensor(parameter)?;
        if parameter.name == "E" {
            stored.shape.push(1);
        }
        Some(stored)
    }

    /// If PEFT removed ranks, it still scales by the initial rank. We adjust `alpha` so that s stays the same.
    fn from_peft(config: &PeftConfig, module: &PeftModule) -> Option<Self> {
        if !is_kind(config, Self::PEFT_KIND) {
            return None;
        }
        let number = |key: &str| config.get(key).and_then(|value| value.as_f64());
        let initial = number("init_r").unwrap_or(12.0) as f32;
        Some(AdaLora {
            rank: module.rank,
            target_rank: module.rank.min(number("target_r").unwrap_or(8.0) as usize),
            alpha: module.alpha * (module.rank as f32 + 1e-5) / (initial + 1e-5),
            dropout: 0.0,
            warmup: number("tinit").unwrap_or(0.0) as usize,
            last: number("tfinal").unwrap_or(0.0) as usize,
            interval: number("deltaT").unwrap_or(1.0).max(1.0) as usize,
            betas: (
                number("beta1").unwrap_or(0.85) as f32,
                number("beta2").unwrap_or(0.85) as f32,
            ),
            orthogonal: number("orth_reg_weight").unwrap_or(0.5) as f32,
        })
    }
}
