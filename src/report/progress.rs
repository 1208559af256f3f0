//! Progress: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::metric_value;
use crate::plan::Metric;
use crate::terminal::say;
use crate::text::thousands;
use crate::train::Event;

/// Seconds between two plain lines about steps.
const EVERY: Duration = Duration::from_secs(10);

/// Shows what a run does, on standard error.
pub struct Progress {
    bar: Option<ProgressBar>,
    is_terminal: bool,
    is_quiet: bool,
    metric: Metric,
    last_line: Instant,
    steps: usize,
}

impl Progress {
    /// Progress for the terminal or the file that standard error is; nothing where `is_quiet`.
    pub fn new(is_quiet: bool) -> Self {
        Progress {
            bar: None,
            is_terminal: std::io::stderr().is_terminal(),
            is_quiet,
            metric: Metric::Loss,
            last_line: Instant::now(),
            steps: 0,
        }
    }

    /// The metric to show of evaluations.
    pub fn show(&mut self, metric: Metric) {
        self.metric = metric;
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        if self.is_quiet {
            return;
        }
        match &self.bar {
            Some(bar) => bar.println(text),
            None => say(text),
        }
    }

    /// Something happened in a stage.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::Begin { stage, step, steps } => self.begin(&stage.name, *step, *steps),
            Event::Step {
                stage,
                step,
                epoch,
                loss,
                lr,
                ..
            } => {
                if let Some(bar) = &self.bar {
                    bar.set_position(*step as u64);
                    bar.set_message(format!("loss {loss:.4}"));
                } else if self.last_line.elapsed() > EVERY {
                    self.last_line = Instant::now();
                    let steps = self.steps;
                    self.line(&format!(
                        "{}: step {step}/{steps}, epoch {epoch:.2}, loss {loss:.4}, lr {lr:.2e}",
                        stage.name
                    ));
                }
            }
            Event::Evaluated {
                stage,
                step,
                evaluation,
                is_best,
            } => {
                let value = metric_value(self.metric, evaluation.get(self.metric));
                let best = if *is_best { " (best)" } else { "" };
                let loss = evaluation.get(Metric::Loss);
                self.line(&format!(
                    "{}: step {step}, dev {} {value}, loss {loss:.4}{best}",
                    stage.name,
                    self.metric.name()
                ));
            }
            Event::End { stage, result } => {
                if let Some(bar) = self.bar.take() {
                    bar.finish_and_clear();
                }
                self.line(&format!(
                    "{}: {} steps in {:.1} s, {} parameters trained",
                    stage.name,
                    thousands(result.steps),
                    result.seconds,
                    thousands(result.trained)
                ));
            }
        }
    }

    fn begin(&mut self, stage: &str, step: usize, steps: usize) {
        self.steps = steps;
        self.last_line = Instant::now();
        let from = if step > 0 {
            format!(", resumed at step {step}")
        } else {
            String::new()
        };
        self.line(&format!("{stage}: {} steps{from}", thousands(steps)));
        if self.is_terminal && !self.is_quiet {
            let bar = ProgressBar::new(steps as u64);
            let template = "{prefix} {bar:30} {pos}/{len}  {per_sec}  {eta} left  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_prefix(stage.to_owned());
            bar.set_position(step as u64);
            self.bar = Some(bar);
        }
    }
}
