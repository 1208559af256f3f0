//! CoNLL files: a word per line with its tags, divided by tabs or spaces, and an empty line behind each sentence.

use super::table::{no_examples, places, wrong_width, Numbered, Wanted};
use crate::diagnostic::Problem;
use crate::plan::FilePlan;

/// The mark of a document's beginning in the files of the shared task of 2003.
const DOCUMENT: &str = "-DOCSTART-";

/// Calls `each` with every sentence, whose columns are JSON lists. Without `columns`, the first column is `tokens` and
/// the last `tags`.
///
/// # Errors
/// The file has no sentence, or it lacks a wanted column.
pub(super) fn conll(
    file: &FilePlan,
    text: &str,
    wanted: &[Wanted],
    each: &mut dyn FnMut(Result<Numbered, Problem>) -> bool,
) -> Result<(), Problem> {
    let mut sentences = Sentences::new(text);
    let Some(first) = sentences.next() else {
        return Err(no_examples(file));
    };
    let width = first.words[0].1.len();
    let columns = file.columns.clone().unwrap_or_else(|| {
        let between = (1..width.saturating_sub(1)).map(|number| format!("column {}", number + 1));
        let mut columns = vec!["tokens".to_owned()];
        columns.extend(between);
        columns.extend((width > 1).then(|| "tags".to_owned()));
        columns
    });
    let places = places(file, &columns, wanted)?;
    for sentence in std::iter::once(first).chain(sentences) {
        let odd = sentence
            .words
            .iter()
            .find(|(_, cells)| cells.len() != columns.len());
        let row = match odd {
            Some((line, cells)) => Err(wrong_width(file, *line, cells.len(), columns.len())),
            None => {
                let column = |place: &usize| {
                    let cells = sentence.words.iter().map(|(_, cells)| cells[*place]);
                    serde_json::Value::from_iter(cells).to_string()
                };
                Ok((sentence.words[0].0, places.iter().map(column).collect()))
            }
        };
        if !each(row) {
            break;
        }
    }
    Ok(())
}

/// A sentence: each word's line in the file, and its cells.
struct Sentence<'t> {
    words: Vec<(usize, Vec<&'t str>)>,
}

/// The sentences of a text.
struct Sentences<'t> {
    lines: std::iter::Enumerate<std::str::Lines<'t>>,
    has_tabs: bool,
}

impl<'t> Sentences<'t> {
    fn new(text: &'t str) -> Self {
        Sentences {
            lines: text.lines().enumerate(),
            // A word may have spaces in it where tabs divide the columns.
            has_tabs: text.contains('\t'),
        }
    }
}

impl<'t> Iterator for Sentences<'t> {
    type Item = Sentence<'t>;

    fn next(&mut self) -> Option<Sentence<'t>> {
        let mut words = Vec::new();
        for (index, line) in self.lines.by_ref() {
            // WNUT-17's files end with a line that has nothing but a byte order mark.
            let is_empty = line.trim_matches('\u{feff}').trim().is_empty();
            let is_end = is_empty || line.starts_with(DOCUMENT);
            match (is_end, words.is_empty()) {
                (true, true) => {}
                (true, false) => break,
                (false, _) if self.has_tabs => {
                    words.push((index + 1, line.trim_end().split('\t').collect()));
                }
                (false, _) => words.push((index + 1, line.split_whitespace().collect())),
            }
        }
        (!words.is_empty()).then_some(Sentence { words })
    }
}
