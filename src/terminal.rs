//! Text for people: results on standard output, notes on standard error. Nobody who stops reading (`| head`)
//! makes a command fail.

use std::io::Write;

/// Writes text to standard output.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // A reader that has gone away wants no more: what the command leaves on disk is not less for it.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to standard error.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Something that the user should know of, and that is no mistake.
pub fn note(text: &str) {
    say(&format!("note: {text}"));
}
