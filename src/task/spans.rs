//! Spans of words with one type, as labels such as `B-person` and `I-person` write them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How labels make spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// `B-` begins a span, `I-` continues it, `E-` ends it, and `S-` is one alone; an `I-` or `E-` of another type, or
    /// after `O`, begins one as well. This is seqeval's default mode.
    Bio,
    /// Only `B-` begins a span: seqeval's mode `strict` with the scheme IOB2.
    Strict,
    /// Every word is a span of its own, and `O` is a type like any other.
    Plain,
}

/// A span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span<'a> {
    /// Its words.
    pub words: Range<usize>,
    /// Its type.
    pub kind: &'a str,
}

/// The spans of a sentence's labels, in order.
pub fn spans<'a>(labels: &[&'a str], scheme: Scheme) -> Vec<Span<'a>> {
    let mut found: Vec<Span<'a>> = Vec::new();
    // Whether the last span may go on with the next word.
    let mut is_open = false;
    for (word, label) in labels.iter().enumerate() {
        let (mark, kind) = match (scheme, label.split_once('-')) {
            (Scheme::Plain, _) => ("S", *label),
            (_, Some((mark, kind))) => (mark, kind),
            (_, None) if *label == "O" => ("O", ""),
            (_, None) => ("I", *label),
        };
        let last = found.last_mut().filter(|last| is_open && last.kind == kind);
        let begins = match mark {
            "O" => false,
            "B" => true,
            "S" => scheme != Scheme::Strict,
            _ => last.is_none() && scheme == Scheme::Bio,
        };
        match (begins, last) {
            (true, _) => found.push(Span {
                words: word..word + 1,
                kind,
            }),
            (false, Some(last)) if mark != "O" => last.words.end = word + 1,
            _ => {
                is_open = false;
                continue;
            }
        }
        is_open = !matches!(mark, "E" | "S");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    // By seqeval 1.2.2: `get_entities(labels)`, and `Entities([labels], IOB2).entities` for the strict mode.
    #[test]
    fn spans_are_those_of_seqeval() {
        let labels = [
            "B-a", "I-a", "I-b", "O", "I-a", "B-a", "I-a", "B-b", "O", "I-b", "I-b",
        ];
        let of = |scheme| {
            let found = spans(&labels, scheme).into_iter();
            found
                .map(|span| (span.kind, span.words.start, span.words.end - 1))
                .collect::<Vec<_>>()
        };
        let bio = [
            ("a", 0, 1),
            ("b", 2, 2),
            ("a", 4, 4),
            ("a", 5, 6),
            ("b", 7, 7),
            ("b", 9, 10),
        ];
        assert_eq!(of(Scheme::Bio), bio);
        assert_eq!(of(Scheme::Strict), [("a", 0, 1), ("a", 5, 6), ("b", 7, 7)]);
        let labels = [
            "S-a", "E-a", "B-a", "I-a", "E-a", "I-a", "O", "E-b", "B-b", "E-b", "E-b",
        ];
        let found: Vec<Range<usize>> = spans(&labels, Scheme::Bio)
            .into_iter()
            .map(|span| span.words)
            .collect();
        assert_eq!(found, [0..1, 1..2, 2..5, 5..6, 7..8, 8..10, 10..11]);
    }
}
