//! Parses templates: texts with a gap, as lists of pieces.

use serde::{Deserialize, Serialize};

use crate::text::{did_you_mean, quoted_list};

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Piece {
    /// Text as it is.
    Text(String),
    /// The text of a column.
    Field {
        /// The column.
        column: String,
        /// The edits to its text, in order.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        edits: Vec<Edit>,
    },
    /// The mask.
    Mask,
    /// The place of the soft tokens of a prompt, if there are any.
    Soft,
    /// The tokenizer's first token: `[CLS]`, `<s>`.
    Cls,
    /// The token that the tokenizer puts after a text: `[SEP]`, `</s>`.
    Sep,
    /// Starts a segment: all following pieces have this token type.
    Segment(u8),
}

/// An edit to a column's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Edit {
    /// Drops the last character.
    DropLast,
    /// Lower-cases the first letter.
    LowerFirst,
}

impl Edit {
    const ALL: [(&'static str, Edit); 2] = [
        ("drop_last", Edit::DropLast),
        ("lower_first", Edit::LowerFirst),
    ];

    /// Applies the edit to a text.
    pub fn apply(self, text: &str) -> String {
        let mut characters = text.chars();
        match self {
            Edit::DropLast => {
                characters.next_back();
                characters.collect()
            }
            Edit::LowerFirst => {
                let first = characters.next().into_iter().flat_map(char::to_lowercase);
                first.chain(characters).collect()
            }
        }
    }
}

impl Piece {
    /// Parses a template into pieces. Exactly one piece is the mask.
    ///
    /// # Errors
    /// A sentence and a suggestion: for an unmatched brace, empty braces, an unknown edit or segment, no
    /// mask or several, or soft tokens in two places.
    pub fn parse(text: &str) -> Result<Vec<Piece>, (String, String)> {
        let pieces = Piece::read(text)?;
        let count = |wanted: Piece| pieces.iter().filter(|piece| **piece == wanted).count();
        match (count(Piece::Mask), count(Piece::Soft)) {
            (0, _) => Err(wrong("the template has no `{mask}`")),
            (1, 0 | 1) => Ok(pieces),
            (1, _) => Err(wrong("the template has more than one `{soft}`")),
            _ => Err(wrong("the template has more than one `{mask}`")),
        }
    }

    /// Parses a template into pieces, whatever they are.
    ///
    /// # Errors
    /// A sentence and a suggestion: for an unmatched brace, empty braces, an unknown edit or segment.
    pub fn read(text: &str) -> Result<Vec<Piece>, (String, String)> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(['{', '}']) {
            let Some(end) = rest[start..]
                .find('}')
                .map(|end| start + end)
                .filter(|_| rest[start..].starts_with('{'))
            else {
                return Err(wrong("the template has an unmatched brace"));
            };
            if start > 0 {
                pieces.push(Piece::Text(rest[..start].to_owned()));
            }
            match rest[start + 1..end].trim() {
                "" => return Err(wrong("the template has empty braces")),
                inner => pieces.push(Piece::in_braces(inner)?),
            }
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(pieces)
    }

    fn in_braces(inner: &str) -> Result<Piece, (String, String)> {
        let mut parts = inner.split(':').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let plain = match name {
            "mask" => Some(Piece::Mask),
            "soft" => Some(Piece::Soft),
            "cls" => Some(Piece::Cls),
            "sep" => Some(Piece::Sep),
            _ => None,
        };
        let rest: Vec<&str> = parts.collect();
        match (plain, name, rest.as_slice()) {
            (Some(piece), _, []) => Ok(piece),
            (Some(_), _, _) => Err((
                format!("`{{{name}}}` takes no edits"),
                format!("write `{{{name}}}`"),
            )),
            (None, "segment", [number]) => match number.parse() {
                Ok(number @ (0 | 1)) => Ok(Piece::Segment(number)),
                _ => Err((
                    format!("there is no segment `{number}`"),
                    "write `{segment:0}` or `{segment:1}`".to_owned(),
                )),
            },
            (None, _, edits) => Ok(Piece::Field {
                column: name.to_owned(),
                edits: edits
                    .iter()
                    .map(|edit| edit_called(edit))
                    .collect::<Result<_, _>>()?,
            }),
        }
    }
}

fn wrong(message: &str) -> (String, String) {
    let example = "write columns and one mask in braces: \"{sentence} It was {mask}.\"";
    (message.to_owned(), example.to_owned())
}

/// The text of pieces that are texts and columns; `value` gives the text of a column.
pub(super) fn fill<'v>(pieces: &[Piece], value: impl Fn(&str) -> &'v str) -> String {
    let mut filled = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Field { column, edits } => {
                let text = value(column).to_owned();
                filled.push_str(&edits.iter().fold(text, |text, edit| edit.apply(&text)));
            }
            _ => {}
        }
    }
    filled
}

/// The columns that a template names, each once, in the order of the template.
pub(super) fn columns(pieces: &[Piece]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for piece in pieces {
        if let Piece::Field { column, .. } = piece {
            if !columns.contains(column) {
                columns.push(column.clone());
            }
        }
    }
    columns
}

fn edit_called(name: &str) -> Result<Edit, (String, String)> {
    let found = Edit::ALL.iter().find(|(known, _)| *known == name);
    found.map(|(_, edit)| *edit).ok_or_else(|| {
        let known = || Edit::ALL.iter().map(|(known, _)| *known);
        let help = match did_you_mean(name, known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("use one of the edits {}", quoted_list(known())),
        };
        (format!("there is no template edit `{name}`"), help)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_change_whole_characters() {
        assert_eq!(Edit::DropLast.apply("Füße"), "Füß");
        assert_eq!(Edit::DropLast.apply(""), "");
        assert_eq!(Edit::LowerFirst.apply("Über Nacht"), "über Nacht");
        assert_eq!(Edit::LowerFirst.apply(""), "");
    }

    #[test]
    fn the_templates_of_the_study_are_read() {
        let manual = Piece::parse("{soft}{a:drop_last}? {mask}, {b:lower_first}").unwrap();
        assert_eq!(manual.len(), 6);
        let none = "{cls}{soft}{a}{sep}{b}{sep}{segment:1}{mask}{sep}";
        let none = Piece::parse(none).unwrap();
        assert_eq!(none[0], Piece::Cls);
        assert_eq!(none[6], Piece::Segment(1));
    }
}
