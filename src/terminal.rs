//! Text for people: results on standard output, notes on standard error. Nobody who stops reading (`| head`)
//! makes a command fail; a full disk does.

use std::io::{ErrorKind, Write};
use std::sync::OnceLock;

/// Why text was lost, the first time that it was.
static LOST: OnceLock<String> = OnceLock::new();

/// Writes text to standard output.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // A reader that has gone away wants no more: what the command leaves on disk is not less for it.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            let _ = LOST.set(error.to_string());
        }
        _ => {}
    }
}

/// Why a part of the text for standard output was lost, unless its reader had gone away.
pub fn lost() -> Option<&'static str> {
    LOST.get().map(String::as_str)
}

/// Writes a line to standard error.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Something that the user should know of, and that is no mistake.
pub fn note(text: &str) {
    say(&format!("note: {text}"));
}
