//! A command that is told the events of a run, for dashboards: `--on-event COMMAND`.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::thread::JoinHandle;

use serde_json::Value;

use crate::diagnostic::Problem;
use crate::terminal::note;

/// Events that wait for a command which reads more slowly than they come.
const MOST_WAITING: usize = 1 << 16;

/// A command under way, which reads events from its standard input, one JSON object per line.
pub struct Listener {
    command: String,
    /// None once there are no more events.
    events: Option<SyncSender<Value>>,
    writer: Option<JoinHandle<()>>,
    is_behind: AtomicBool,
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
        let mut shell = Command::new(shell);
        shell.args([option, command]).stdin(Stdio::piped());
        // Ctrl-C is for the run: the command is to read its last events.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let child = shell.spawn().map_err(|e| {
            let message = format!("`{command}` cannot be started: {e}");
            Problem::failure("delta::run::listener", message).help("check `--on-event`")
        })?;
        let (sender, events) = sync_channel(MOST_WAITING);
        let name = command.to_owned();
        Ok(Listener {
            command: command.to_owned(),
            events: Some(sender),
            writer: Some(std::thread::spawn(move || write(&name, child, events))),
            is_behind: AtomicBool::new(false),
        })
    }

    /// Tells an event. The run neither waits for a command nor fails because of it.
    pub(super) fn tell(&self, event: &Value) {
        let sent = self
            .events
            .as_ref()
            .map(|events| events.try_send(event.clone()));
        let is_full = matches!(sent, Some(Err(TrySendError::Full(_))));
        if is_full && !self.is_behind.swap(true, Ordering::Relaxed) {
            note(&format!(
                "`{}` is {MOST_WAITING} events behind: some are not told",
                self.command
            ));
        }
    }
}

impl Drop for Listener {
    /// Waits for the command's end: it may have something to send.
    fn drop(&mut self) {
        drop(self.events.take());
        if let Some(writer) = self.writer.take() {
            // It has nothing to panic over.
            let _ = writer.join();
        }
    }
}

/// Writes events as they come, and waits for the command's end.
fn write(command: &str, mut child: Child, events: Receiver<Value>) {
    if let Some(mut input) = child.stdin.take() {
        for event in events {
            if writeln!(input, "{event}").is_err() {
                note(&format!("`{command}` reads no more events"));
                break;
            }
        }
    }
    // How it ended is its own affair.
    let _ = child.wait();
}
