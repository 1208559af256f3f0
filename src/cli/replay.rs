//! `deltarun replay`: a finished run again, and what came out otherwise.

use std::path::Path;

use super::arguments::ReplayOptions;
use super::commands::{device, interruption};
use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk;
use crate::engine::Device;
use crate::report::{Progress, Table};
use crate::run::{self, Replayed};
use crate::terminal::{print, say};
use crate::text::counted;

pub(super) fn replay(options: &ReplayOptions) -> Result<Ended, Problems> {
    let directory = &options.run;
    let out = options.out.clone().unwrap_or_else(|| {
        let mut name = directory.file_name().unwrap_or_default().to_os_string();
        name.push(".replay");
        directory.with_file_name(name)
    });
    replay_on(options, &out, device(&options.device)?)
}

fn replay_on(options: &ReplayOptions, out: &Path, device: Device) -> Result<Ended, Problems> {
    let progress = Progress::new(options.quiet);
    let integrity = options.integrity.integrity();
    let replayed = run::replay(
        &options.run,
        out,
        integrity,
        device,
        interruption(),
        progress,
    )?;
    let compared = match replayed {
        Replayed::Complete(compared) => compared,
        Replayed::Interrupted => {
            say("interrupted; run the same command again to continue");
            return Ok(Ended::Interrupted);
        }
    };
    let mut table = Table::new(["", "then", "now", ""]);
    for one in &compared {
        let verdict = if one.is_same() { "same" } else { "different" };
        table.row([
            one.name.clone(),
            short(&one.then),
            short(&one.now),
            verdict.to_owned(),
        ]);
    }
    print(&format!("\n{table}\n"));
    let others = compared.iter().filter(|one| !one.is_same()).count();
    if others > 0 {
        let message = format!(
            "{} came out different from the run's record",
            counted(others, "figure")
        );
        return Err(Problem::failure("delta::run::replay", message)
            .help(format!(
                "compare the new run in `{}`; another processor or version may round differently",
                out.display()
            ))
            .into());
    }
    if options.out.is_none() {
        std::fs::remove_dir_all(out).map_err(|e| disk::failed("removed", out, &e))?;
    }
    Ok(Ended::Done)
}

/// The beginning of a long value: a hash.
fn short(value: &str) -> String {
    value.chars().take(20).collect()
}
