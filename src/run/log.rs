//! The log of a run: one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{json, Value};

use crate::diagnostic::Problem;
use crate::disk::failed;
use crate::terminal::note;
use crate::train::Event;

/// The log of an unfinished run.
pub struct Log {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Log {
    /// Its name in a run's directory.
    pub const FILE: &'static str = "log.jsonl";

    /// Opens a log and cuts it to `length` bytes. The rest belongs to steps that will run again.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(path: &Path, length: u64) -> Result<Self, Problem> {
        let open = || {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let found = file.metadata()?.len();
            if found < length {
                note(&format!(
                    "`{}` is truncated: {} of the {length} bytes that the checkpoint recorded are missing",
                    path.display(),
                    length - found
                ));
            } else {
                file.set_len(length)?;
            }
            Ok(file)
        };
        let file = open().map_err(|e| failed("opened", path, &e))?;
        Ok(Log {
            file: BufWriter::new(file),
            path: path.to_owned(),
        })
    }

    /// An event as an object; none for one that the log does not have.
    pub(super) fn object(event: &Event) -> Option<Value> {
        Some(match event {
            Event::Begin { .. } => return None,
            Event::Step {
                stage,
                step,
                epoch,
                loss,
                lr,
                norm,
                seconds,
                compared,
            } => {
                let mut line = json!({
                    "stage": stage.name, "step": step, "epoch": epoch, "loss": loss, "lr": lr, "gradient_norm": norm, "seconds": seconds,
                });
                if compared.prompts > 0 {
                    let count = compared.prompts as f64;
                    line["accuracy"] = json!(compared.right as f64 / count);
                    line["margin"] = json!((compared.chosen - compared.rejected) / count);
                    line["chosen"] = json!(compared.chosen / count);
                    line["rejected"] = json!(compared.rejected / count);
                }
                line
            }
            Event::Evaluated {
                stage,
                step,
                evaluation,
                is_best,
            } => json!({
                "stage": stage.name, "step": step, "dev": evaluation.metrics, "best": is_best,
            }),
            Event::End { stage, result } => json!({
                "stage": stage.name, "steps": result.steps, "kept_step": result.kept_step, "seconds": result.seconds,
            }),
        })
    }

    /// Writes an object as one line.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&mut self, object: &Value) -> Result<(), Problem> {
        writeln!(self.file, "{object}").map_err(|e| failed("written", &self.path, &e))
    }

    /// Flushes the log to the disk and returns its length in bytes.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn sync(&mut self) -> Result<u64, Problem> {
        let sync = |file: &mut BufWriter<File>| {
            file.flush()?;
            file.get_ref().sync_data()?;
            Ok(file.get_ref().metadata()?.len())
        };
        sync(&mut self.file).map_err(|e| failed("written", &self.path, &e))
    }
}
