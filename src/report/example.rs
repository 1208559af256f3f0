//! An example token by token, as the model reads it, with what the loss sees.

use crate::text::counted;

/// A token: its text, and whether the model is to predict it.
pub type Shown = (String, bool);

/// The columns of a terminal.
const COLUMNS: usize = 80;

/// The first example of a file, its tokens divided by `│`.
pub fn example(file: &str, tokens: &[Shown]) -> String {
    let learned = tokens.iter().filter(|(_, is_learned)| *is_learned).count();
    let mut text = format!(
        "  the first example of {file}: {}, {learned} of them learned\n",
        counted(tokens.len(), "token")
    );
    for part in tokens.chunk_by(|a, b| a.1 == b.1) {
        let label = match part[0].1 {
            true => "    learned  ",
            false => "    read     ",
        };
        let mut line = label.to_owned();
        for (number, (token, _)) in part.iter().enumerate() {
            let token = visible(token);
            let width = line.chars().count() + token.chars().count() + 1;
            if width > COLUMNS && line.chars().count() > label.len() {
                text += &format!("{line}\n");
                line = " ".repeat(label.len());
            }
            if number > 0 {
                line.push('│');
            }
            line += &token;
        }
        text += &format!("{line}\n");
    }
    text
}

/// A token with its line breaks and tabs shown.
fn visible(token: &str) -> String {
    token
        .replace('\n', "⏎")
        .replace('\t', "⇥")
        .replace('\r', "␍")
}
