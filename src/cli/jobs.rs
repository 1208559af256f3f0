//! `deltarun jobs` and `submit`: a script's runs, one by one, for several processes or a cluster.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::arguments::{ScriptOptions, SubmitOptions};
use super::commands::{interruption, script_out, settings};
use super::Ended;
use crate::diagnostic::{Problem, Problems};
use crate::disk::{self, failed};
use crate::report::Table;
use crate::run::Integrity;
use crate::script::{self, Job, Jobs, Shard};
use crate::terminal::{print, say};
use crate::text::{bytes, counted, thousands};

fn script_options(options: &ScriptOptions) -> Result<script::Options<'static>, Problem> {
    Ok(script::Options {
        set: settings(&options.set)?,
        preset: options.preset.clone(),
        out: script_out(&options.file, options.out.as_deref()),
        allowed: options.allow.clone(),
        integrity: Integrity::Checked,
        is_quiet: true,
        interrupted: interruption(),
    })
}

/// `deltarun jobs`
pub(super) fn jobs(options: &ScriptOptions) -> Result<Ended, Problems> {
    let found = script::jobs(&options.file, &script_options(options)?)?;
    let mut table = Table::new(["run", "params", "steps", "estimate", "memory", "state"]);
    for (number, job) in found.known.iter().enumerate() {
        let params = job
            .params
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        table.row([
            format!("{} {}", number + 1, job.name),
            params.collect::<Vec<_>>().join(" "),
            thousands(job.steps),
            time(job.seconds),
            bytes(job.memory),
            if job.is_finished { "finished" } else { "open" }.to_owned(),
        ]);
    }
    let open = found.known.iter().filter(|job| !job.is_finished);
    let (count, seconds) = open.fold((0, 0.0), |(count, sum), job| (count + 1, sum + job.seconds));
    print(&format!(
        "{table}\n  {} of {} open: about {} of one process\n{}",
        count,
        counted(found.known.len(), "run"),
        time(seconds),
        if found.has_more {
            "  further runs depend on their results\n"
        } else {
            ""
        },
    ));
    Ok(Ended::Done)
}

/// Runs a part of a script's runs, and says what is left.
pub(super) fn run_shard(
    path: &Path,
    options: &script::Options<'static>,
    shard: Shard,
) -> Result<script::Ended, Problems> {
    let (ended, own, jobs) = script::run_shard(path, options, shard)?;
    if ended == script::Ended::Complete && !options.is_quiet {
        let more = match jobs.has_more {
            true => ", beside those that depend on their results",
            false => "",
        };
        let all = counted(jobs.known.len(), "run");
        say(&format!(
            "part {} of {}: {own} of {all}{more}",
            shard.number, shard.of
        ));
    }
    Ok(ended)
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 90.0 => format!("{seconds:.0} s"),
        seconds if seconds < 5400.0 => format!("{:.0} min", seconds / 60.0),
        seconds => format!("{:.1} h", seconds / 3600.0),
    }
}

/// The most jobs of an array unless the user asks for more.
const MOST_TASKS: usize = 16;

/// `deltarun submit`
pub(super) fn submit(options: &SubmitOptions) -> Result<Ended, Problems> {
    let of_script = script_options(&options.script)?;
    let found = script::jobs(&options.script.file, &of_script)?;
    let open = found.known.iter().filter(|job| !job.is_finished).count();
    let tasks = match options.tasks {
        Some(tasks) => tasks as usize,
        None => open.clamp(1, MOST_TASKS),
    };
    let files = Files {
        options: &options.script,
        further: &options.options,
        out: &of_script.out,
    };
    let array = files.array(&found, tasks)?;
    let report = files.report(&found)?;
    std::fs::create_dir_all(&of_script.out).map_err(|e| failed("made", &of_script.out, &e))?;
    let write = |name: &str, text: &str| -> Result<PathBuf, Problem> {
        let path = of_script.out.join(name);
        disk::replace(&path, text.as_bytes()).map_err(|e| failed("written", &path, &e))?;
        Ok(path)
    };
    let (array, report) = (
        write("array.sbatch", &array)?,
        write("report.sbatch", &report)?,
    );
    if !options.now {
        print(&format!(
            "{}\n{}\n  id=$(sbatch --parsable {0}) && sbatch --dependency=afterany:$id {1}\n",
            array.display(),
            report.display()
        ));
        return Ok(Ended::Done);
    }
    let id = sbatch(&["--parsable".as_ref(), array.as_os_str()])?;
    // A cluster's name may follow the number.
    let id = id.split(';').next().unwrap_or_default().to_owned();
    let dependency = format!("--dependency=afterany:{id}");
    let last = sbatch(&[
        "--parsable".as_ref(),
        dependency.as_ref(),
        report.as_os_str(),
    ])?;
    print(&format!(
        "array {id} of {}, then job {last}\n",
        counted(tasks, "task")
    ));
    Ok(Ended::Done)
}

/// Runs `sbatch`, and returns what it says.
fn sbatch(arguments: &[&std::ffi::OsStr]) -> Result<String, Problem> {
    let refused = |reason: String| {
        Problem::failure("delta::cli::sbatch", format!("`sbatch` failed: {reason}"))
            .help("run it yourself: without `--now`, `deltarun submit` shows the command")
    };
    let output = Command::new("sbatch").args(arguments).output();
    let output = output.map_err(|e| refused(e.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(refused(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

/// The files for Slurm.
struct Files<'a> {
    options: &'a ScriptOptions,
    further: &'a [String],
    out: &'a Path,
}

impl Files<'_> {
    /// The file of the array, each of whose tasks runs a part of the runs.
    fn array(&self, jobs: &Jobs, tasks: usize) -> Result<String, Problem> {
        let mut parts = vec![0.0; tasks];
        for (number, job) in jobs
            .known
            .iter()
            .enumerate()
            .filter(|(_, job)| !job.is_finished)
        {
            parts[number % tasks] += job.seconds;
        }
        let longest = parts.into_iter().fold(0.0, f64::max);
        let array = format!("#SBATCH --array=0-{}\n#SBATCH --requeue\n", tasks - 1);
        self.file(&array, &jobs.known, longest, "--shard", "%A_%a")
    }

    /// The file of the job that runs the script itself: what depends on results, and its pages.
    fn report(&self, jobs: &Jobs) -> Result<String, Problem> {
        let seconds = match jobs.has_more {
            // Nothing is known of these runs: as long as all others take, one after the other.
            true => jobs.known.iter().map(|job| job.seconds).sum(),
            false => 0.0,
        };
        self.file("", &jobs.known, seconds, "", "%j")
    }

    fn file(
        &self,
        array: &str,
        jobs: &[Job],
        seconds: f64,
        part: &str,
        log: &str,
    ) -> Result<String, Problem> {
        let program = std::env::current_exe().map_err(Problem::internal)?;
        let here = std::env::current_dir().map_err(Problem::internal)?;
        let threads = rayon::current_num_threads();
        // Runs go side by side, one for each thread, where there is memory for them: ask for two and the program.
        let memory = jobs.iter().map(|job| job.memory).max().unwrap_or(0);
        let mebibytes = (2 * memory + (256 << 20)) >> 20;
        // Estimates of time are rough, and a job that ends too early goes on when it is queued again.
        let minutes = 10 + (3.0 * seconds / 60.0).ceil() as usize;
        let stem = self
            .options
            .file
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        let further: String = self
            .further
            .iter()
            .map(|option| format!("#SBATCH {option}\n"))
            .collect();
        let mut command = vec![
            quoted(&program.to_string_lossy()),
            quoted(&self.options.file.to_string_lossy()),
        ];
        command.extend(
            self.options
                .set
                .iter()
                .map(|set| format!("--set {}", quoted(set))),
        );
        command.extend(
            self.options
                .preset
                .iter()
                .map(|preset| format!("--preset {}", quoted(preset))),
        );
        command.extend(
            self.options
                .allow
                .iter()
                .map(|folder| format!("--allow {}", quoted(&folder.to_string_lossy()))),
        );
        command.push(format!("--out {}", quoted(&self.out.to_string_lossy())));
        command.push("--threads \"${SLURM_CPUS_PER_TASK:-1}\"".to_owned());
        command.push(part.to_owned());
        let (here, out) = (here.display(), here.join(self.out));
        Ok(format!(
            "#!/bin/sh\n#SBATCH --job-name={stem}\n{array}#SBATCH --cpus-per-task={threads}\n#SBATCH --mem={mebibytes}M\n\
             #SBATCH --time={minutes}\n#SBATCH --chdir={here}\n#SBATCH --output={}/slurm-{log}.txt\n{further}exec {}\n",
            out.display(),
            command.join(" ").trim_end(),
        ))
    }
}

/// A word for a shell.
fn quoted(text: &str) -> String {
    let is_plain = |symbol: char| symbol.is_ascii_alphanumeric() || "-_./=,:+".contains(symbol);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}
