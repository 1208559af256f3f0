//! How well each label is predicted.

use super::Table;

/// The most labels whose confusions are shown.
const MOST: usize = 12;

/// The precision, recall, F1 and number of examples of a label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OfLabel {
    /// The share of right ones among the examples that were predicted to have the label.
    pub precision: f64,
    /// The share of the label's examples that were predicted to have it.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// The number of the label's examples.
    pub examples: usize,
}

/// The measures of each label, 0 where nothing was predicted, as scikit-learn's `classification_report` has them.
pub fn of_labels(confusion: &[Vec<usize>]) -> Vec<OfLabel> {
    let share = |part: usize, of: usize| match of {
        0 => 0.0,
        _ => part as f64 / of as f64,
    };
    let of_label = |label: usize| {
        let right = confusion[label][label];
        let examples: usize = confusion[label].iter().sum();
        let predicted: usize = confusion.iter().map(|row| row[label]).sum();
        OfLabel {
            precision: share(right, predicted),
            recall: share(right, examples),
            f1: share(2 * right, examples + predicted),
            examples,
        }
    };
    (0..confusion.len()).map(of_label).collect()
}

/// The measures of each label as a table and, for a few labels, how often each was taken for another.
pub fn label_report(names: &[&str], confusion: &[Vec<usize>]) -> String {
    let mut table = Table::new(["label", "precision", "recall", "f1", "examples"]);
    for (name, own) in names.iter().zip(of_labels(confusion)) {
        let shares = [own.precision, own.recall, own.f1].map(|share| format!("{share:.3}"));
        let cells = std::iter::once((*name).to_owned()).chain(shares);
        table.row(cells.chain([own.examples.to_string()]));
    }
    if names.len() > MOST {
        return table.to_string();
    }
    let mut taken = Table::new(std::iter::once("label, taken for").chain(names.iter().copied()));
    for (name, row) in names.iter().zip(confusion) {
        let counts = row.iter().map(usize::to_string);
        taken.row(std::iter::once((*name).to_owned()).chain(counts));
    }
    format!("{table}\n{taken}")
}
