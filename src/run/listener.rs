//! A command that is told the events of a run, for dashboards: `--on-event COMMAND`.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use serde_json::Value;

use crate::diagnostic::Problem;
use crate::terminal::note;

/// A command under way, which reads events from its standard input, one JSON object per line.
pub struct Listener {
    command: String,
    /// None once the command has ended or reads no more.
    child: Mutex<Option<Child>>,
}

impl Listener {
    /// Starts a command line of the system's shell.
    ///
    /// # Errors
    /// The shell cannot be started.
    pub fn start(command: &str) -> Result<Self, Problem> {
        let (shell, option) = match cfg!(windows) {
            true => ("cmd", "/C"),
            false => ("sh", "-c"),
        };
        let child = Command::new(shell)
            .args([option, command])
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|e| {
                let message = format!("`{command}` cannot be started: {e}");
                Problem::failure("delta::run::listener", message).help("check `--on-event`")
            })?;
        Ok(Listener {
            command: command.to_owned(),
            child: Mutex::new(Some(child)),
        })
    }

    /// Tells an event. A command that reads no more is left alone from then on: no run fails because of it.
    pub(super) fn tell(&self, event: &Value) {
        let mut child = self
            .child
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        let Some(input) = child.as_mut().and_then(|child| child.stdin.as_mut()) else {
            return;
        };
        if writeln!(input, "{event}").is_err() {
            note(&format!("`{}` reads no more events", self.command));
            end(child.take());
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let child = self
            .child
            .get_mut()
            .unwrap_or_else(|broken| broken.into_inner());
        end(child.take());
    }
}

/// Closes a command's input and waits for its end: it may have something to send.
fn end(child: Option<Child>) {
    if let Some(mut child) = child {
        drop(child.stdin.take());
        // How it ended is its own affair.
        let _ = child.wait();
    }
}
