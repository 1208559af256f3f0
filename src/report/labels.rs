//! How well each label is predicted.

use super::Table;
use crate::task::OfLabel;

/// The most labels whose confusions are shown.
const MOST: usize = 12;

/// [`label_tables`] as text.
pub fn label_report(labels: &[OfLabel], confusion: Option<&Vec<Vec<usize>>>) -> String {
    let tables = label_tables(labels, confusion);
    let texts: Vec<String> = tables.iter().map(Table::to_string).collect();
    texts.join("\n")
}

/// The measures of each label. Where each example has one of a few labels, also how often each was taken for another.
pub fn label_tables(labels: &[OfLabel], confusion: Option<&Vec<Vec<usize>>>) -> Vec<Table> {
    if labels.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(["label", "precision", "recall", "f1", "examples"]);
    for own in labels {
        let shares = [own.precision(), own.recall(), own.f1()];
        let shares = shares.map(|share| format!("{share:.3}"));
        let cells = std::iter::once(own.name.clone()).chain(shares);
        table.row(cells.chain([own.examples.to_string()]));
    }
    let Some(confusion) = confusion.filter(|_| labels.len() <= MOST) else {
        return vec![table];
    };
    let names = || labels.iter().map(|own| own.name.as_str());
    let mut taken = Table::new(std::iter::once("label, taken for").chain(names()));
    for (name, row) in names().zip(confusion) {
        let counts = row.iter().map(usize::to_string);
        taken.row(std::iter::once(name.to_owned()).chain(counts));
    }
    vec![table, taken]
}
