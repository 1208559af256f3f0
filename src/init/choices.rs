//! Finds multiple choice: a question, its answers, and which of them is right.

use super::column::Column;
use super::guess::{named, own, FileKind};

/// A question, its answers in one list or in a column each, and the right one.
pub(super) fn of_choices(columns: &[Column]) -> Option<FileKind> {
    const PROMPTS: [&str; 10] = [
        "startphrase",
        "question",
        "prompt",
        "ctx",
        "query",
        "sent1",
        "goal",
        "sentence",
        "stem",
        "premise",
    ];
    const KEYS: [&str; 8] = [
        "answerkey",
        "label",
        "answer",
        "answer_idx",
        "cop",
        "gold",
        "correct",
        "key",
    ];
    let prompt = PROMPTS.iter().find_map(|name| named(columns, &[name]))?;
    let list = named(columns, &["choices", "options", "endings", "answers"]);
    let list = list.filter(|list| list.has_words() || list.has_named_answers());
    let answers: Vec<&Column> = match list {
        Some(list) => vec![list],
        None => numbered(columns)?,
    };
    let count = match answers.as_slice() {
        [list] => list.longest_list(),
        several => several.len(),
    };
    let names = |key: &Column| match answers.as_slice() {
        [list] if list.has_named_answers() => Some(Vec::new()),
        _ => names_of_answers(key, count),
    };
    let mut keys = KEYS.iter().filter_map(|name| named(columns, &[name]));
    let is_key = |key: &Column| key.is_text() && key.words() <= 1.0;
    let (label, labels) = keys.find_map(|key| Some((key, names(key).filter(|_| is_key(key))?)))?;
    let context = named(columns, &["context", "article", "passage"]);
    Some(FileKind::Choose {
        context: context.filter(|column| column.is_text()).map(own),
        prompt: own(prompt),
        labels,
        answers: answers.into_iter().map(own).collect(),
        label: own(label),
    })
}

/// Columns whose names differ only in a number or a letter at their end: `ending0`, `ending1`; `opa`, `opb`.
fn numbered<'a, 'c>(columns: &'a [Column<'c>]) -> Option<Vec<&'a Column<'c>>> {
    const STEMS: [&str; 8] = [
        "ending",
        "answer",
        "option",
        "choice",
        "sol",
        "op",
        "opt",
        "alternative",
    ];
    let of_stem = |stem: &str, ends: &str| -> Vec<&Column> {
        let named_by = |end: char| {
            named(
                columns,
                &[&format!("{stem}{end}"), &format!("{stem}_{end}")],
            )
        };
        let found = ends.chars().map_while(named_by);
        found.filter(|column| column.is_text()).collect()
    };
    let found = STEMS
        .iter()
        .flat_map(|stem| ["0123456789", "123456789", "abcdefgh"].map(|ends| of_stem(stem, ends)));
    found.max_by_key(Vec::len).filter(|found| found.len() > 1)
}

/// The names by which a label calls answers: none if it counts them from 0. `None` if it is nothing of the kind.
fn names_of_answers(label: &Column, count: usize) -> Option<Vec<String>> {
    let name_lists = [
        (0..count).map(|number| number.to_string()).collect(),
        (1..=count).map(|number| number.to_string()).collect(),
        ('A'..='Z').take(count).map(String::from).collect(),
        ('a'..='z').take(count).map(String::from).collect(),
    ];
    let fits = |names: &Vec<String>| {
        label
            .texts()
            .all(|text| names.iter().any(|name| name == text.trim()))
    };
    let place = name_lists.iter().position(fits)?;
    Some(match place {
        0 => Vec::new(),
        _ => name_lists[place].clone(),
    })
}
