//! How well each label is predicted.

use super::Table;
use crate::task::OfLabel;

/// The most labels whose confusions are shown.
const MOST: usize = 12;

/// The measures of each label as a table. Where each example has one of a few labels, also how often each was taken for another.
pub fn label_report(labels: &[OfLabel], confusion: Option<&Vec<Vec<usize>>>) -> String {
    let mut table = Table::new(["label", "precision", "recall", "f1", "examples"]);
    for own in labels {
        let shares = [own.precision(), own.recall(), own.f1()];
        let shares = shares.map(|share| format!("{share:.3}"));
        let cells = std::iter::once(own.name.clone()).chain(shares);
        table.row(cells.chain([own.examples.to_string()]));
    }
    let Some(confusion) = confusion.filter(|_| labels.len() <= MOST) else {
        return table.to_string();
    };
    let names = || labels.iter().map(|own| own.name.as_str());
    let mut taken = Table::new(std::iter::once("label, taken for").chain(names()));
    for (name, row) in names().zip(confusion) {
        let counts = row.iter().map(usize::to_string);
        taken.row(std::iter::once(name.to_owned()).chain(counts));
    }
    format!("{table}\n{taken}")
}
