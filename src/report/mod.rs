//! What a person sees of a run: progress while it goes on, tables when it is over.

mod example;
mod labels;
mod page;
mod plan;
mod plot;
mod progress;
mod sites;
mod table;

pub use example::{example, Shown};
pub use labels::{label_report, label_tables};
pub use page::Page;
pub use plan::{against_precision, describe, Assumptions};
pub use plot::{plot, Series};
pub use progress::Progress;
pub use table::Table;

use crate::plan::Metric;

/// A metric as people write it: shares in percent, the rest as numbers.
pub fn metric_value(metric: Metric, value: f64) -> String {
    match metric {
        Metric::Accuracy
        | Metric::F1
        | Metric::MacroF1
        | Metric::Precision
        | Metric::Recall
        | Metric::ExactMatch
        | Metric::F1OfWords => format!("{:.1} %", 100.0 * value),
        _ => format!("{value:.3}"),
    }
}
